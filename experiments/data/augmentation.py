"""Random resized crops of a whole batch on its device, in agreement with torchvision's transforms."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

# ImageNet's, which the paper uses for every data set and network.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def crop_area(size: int) -> tuple[float, float]:
    """The smallest and the largest part of an image's area that a training crop of `size` pixels shows (recipe)."""
    return (0.5 if size < 100 else 0.1), 1.0


def normalized(images: Tensor) -> Tensor:
    """Images (b, 3, h, w) with values from 0 to 255 as float32 in channels_last, by MEAN and STD."""
    mean, std = _statistics(images.device)
    return ((images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


@lru_cache
def _statistics(device: torch.device) -> Tensor:
    """MEAN and STD, (2, 3, 1, 1), sent to a device once: to wait for them in every batch would take longer than it."""
    return torch.tensor((MEAN, STD), device=device).view(2, 3, 1, 1)


def centre_boxes(count: int, height: int, width: int, device: torch.device) -> Tensor:
    """The largest square at the centre of images, `count` times: (count, 4), as random_boxes gives them."""
    short = min(height, width)
    box = (height - short) // 2, (width - short) // 2, short, short
    return torch.stack([torch.full((count,), pixels, device=device) for pixels in box], dim=1)


def random_boxes(count: int, height: int, width: int, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Boxes (count, 4) of top, left, height, width, distributed as in torchvision's RandomResizedCrop.

    A box has a part of the area in `scale` and an aspect ratio between 3/4 and 4/3; the first of ten tries that fits
    counts, else the largest centred box of an allowed ratio.
    """
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
    """Each image cropped to its box, resized to size × size with antialiasing, flipped where asked, normalized.

    Takes (b, 3, h, w) uint8 and returns (b, 3, size, size) float32 in channels_last. The resize is two matrix products
    with the triangle filters of PIL and torchvision.
    """
    height, width = images.shape[-2:]
    rows = _triangle_filters(boxes[:, 0], boxes[:, 2], height, size)  # (b, size, h)
    columns = _triangle_filters(boxes[:, 1], boxes[:, 3], width, size)  # (b, size, w)
    if flip is not None:
        columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    return normalized(rows[:, None] @ (images.float() @ columns[:, None].transpose(2, 3)))  # (b, 3, size, size)


def _triangle_filters(start: Tensor, length: Tensor, pixels: int, size: int) -> Tensor:
    """The weights (b, size, pixels) that resize `length` pixels from `start` on to `size` of them."""
    scale = (length / size)[:, None, None]  # input pixels per output pixel
    centre = (torch.arange(size, device=start.device) + 0.5)[:, None] * scale  # (b, size, 1)
    place = torch.arange(pixels, device=start.device) - start[:, None, None]  # (b, 1, pixels), from the box's edge
    weight = (1 - (place + 0.5 - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    weight = weight * ((place >= 0) & (place < length[:, None, None]))
    return weight / weight.sum(dim=2, keepdim=True)
