"""Random resized crops of a whole batch on its device, as torchvision's transforms make them of one image."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

# The mean and standard deviation of ImageNet's channels. The paper uses them for every data set and network.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def crop_area(size: int) -> tuple[float, float]:
    """Return the smallest and the largest share of an image's area that a training crop of `size` pixels shows."""
    return (0.5 if size < 100 else 0.1), 1.0


def normalized(images: Tensor) -> Tensor:
    """Normalize images (b, 3, h, w), with values from 0 to 255, by MEAN and STD: float32 in channels_last."""
    mean, std = _statistics(images.device)
    return ((images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


@lru_cache
def _statistics(device: torch.device) -> Tensor:
    """Return MEAN and STD on a device, (2, 3, 1, 1)."""
    # Cached: to send them with every batch would make the CPU wait for the GPU, which a CUDA graph does not allow.
    return torch.tensor((MEAN, STD), device=device).view(2, 3, 1, 1)


def centre_boxes(count: int, height: int, width: int, device: torch.device) -> Tensor:
    """Return the largest square at the centre of images, `count` times: (count, 4) of top, left, height, width."""
    short = min(height, width)
    box = (height - short) // 2, (width - short) // 2, short, short
    return torch.stack([torch.full((count,), pixels, device=device) for pixels in box], dim=1)


def random_boxes(count: int, height: int, width: int, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Draw boxes as torchvision's RandomResizedCrop does.

    The first of ten tries that fits into the image counts. If none fits, the box is the largest centred box of an
    allowed ratio.

    Args:
        count: The number of boxes.
        height: The height of the images, in pixels.
        width: The width of the images, in pixels.
        scale: The smallest and the largest share of the image's area. The aspect ratio is between 3/4 and 4/3.
        generator: A generator on the CPU.

    Returns:
        Top, left, height and width in pixels, (count, 4) int64.
    """
    # All ten tries of all boxes are drawn at once, also those that come after a try that fits. So a batch takes the
    # same number of random values whatever fits, and the generator's state after it is known. Records depend on this
    # order of draws: a change here would change every result of a seed.
    low, high = scale
    area = height * width * (low + (high - low) * torch.rand(count, 10, generator=generator))
    ratio = torch.exp(math.log(3 / 4) + 2 * math.log(4 / 3) * torch.rand(count, 10, generator=generator))
    w, h = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    w, h = w.gather(1, first).squeeze(1), h.gather(1, first).squeeze(1)
    none = ~fits.any(dim=1)
    w[none] = min(width, round(height * 4 / 3))
    h[none] = min(height, round(width * 4 / 3))
    top = (torch.rand(count, generator=generator) * (height - h + 1)).long()
    left = (torch.rand(count, generator=generator) * (width - w + 1)).long()
    top[none], left[none] = (height - h[none]) // 2, (width - w[none]) // 2
    return torch.stack([top, left, h, w], dim=1)


def resized_crops(images: Tensor, boxes: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """Crop each image to its box, resize it with antialiasing, flip it where asked, and normalize it.

    Args:
        images: (b, 3, h, w) uint8.
        boxes: Top, left, height and width in pixels, (b, 4), as `random_boxes` draws them.
        size: The side of the result, in pixels.
        flip: Which images are mirrored, (b,) bool; None for none.

    Returns:
        (b, 3, size, size) float32 in channels_last.
    """
    # Every image has a box of its own, so torchvision would resize image by image. A resize along one axis is linear:
    # it is a matrix product with the triangle filters of PIL and torchvision. Cropping is part of the matrix, whose
    # weights outside of the box are 0, and flipping reverses it. So two batched products do all of it for a whole
    # batch, on any device, without a loop and without a wait.
    height, width = images.shape[-2:]
    rows = _triangle_filters(boxes[:, 0], boxes[:, 2], height, size)  # (b, size, h)
    columns = _triangle_filters(boxes[:, 1], boxes[:, 3], width, size)  # (b, size, w)
    if flip is not None:
        columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    return normalized(rows[:, None] @ (images.float() @ columns[:, None].transpose(2, 3)))  # (b, 3, size, size)


def _triangle_filters(start: Tensor, length: Tensor, pixels: int, size: int) -> Tensor:
    """Return the weights (b, size, pixels) that resize `length` pixels, from `start` on, to `size` pixels."""
    scale = (length / size)[:, None, None]  # input pixels per output pixel
    centre = (torch.arange(size, device=start.device) + 0.5)[:, None] * scale  # (b, size, 1)
    place = torch.arange(pixels, device=start.device) - start[:, None, None]  # (b, 1, pixels) from the edge of the box
    weight = (1 - (place + 0.5 - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    weight = weight * ((place >= 0) & (place < length[:, None, None]))
    return weight / weight.sum(dim=2, keepdim=True)
