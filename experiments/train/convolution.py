"""Faster convolutions of few pixels on a CPU.

Small images leave the late layers of a network with maps of a few pixels, for which oneDNN is slow. The weight gradient
of a depthwise convolution takes far longer than its forward pass. A pointwise convolution takes longer than a matrix
product, and squeeze-and-excitation has pointwise convolutions of one pixel at every image size.
`scripts/bench_training.py --only eager ours` measures the gain.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.modules.utils import _pair as pair
from torch.overrides import TorchFunctionMode

Pair = tuple[int, int]  # (height, width)
FEW = 4  # pixels; up to here a matrix product beats even the 3 × 3 kernels that oneDNN has tuned code for


def convolving(device: torch.device) -> AbstractContextManager[Any]:
    """Make convolutions of few pixels fast during a forward pass, and in the backward pass that belongs to it."""
    return _Convolving() if device.type == "cpu" else nullcontext()


class _Convolving(TorchFunctionMode):
    """Puts `conv2d` in the place of torch.nn.functional.conv2d, which every layer calls in the end, timm's too."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return (conv2d if func is F.conv2d else func)(*args, **(kwargs or {}))


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Compute torch.nn.functional.conv2d, up to rounding, with its arguments.

    Takes (images, channels, height, width). Inputs without an image axis, named paddings and dilations go to torch.
    """
    # Three ways, chosen by what was measured with networks in channels_last. There a pointwise convolution is one
    # matrix product over (images · height · width, channels), and the permutations below move no data; for many pixels
    # oneDNN computes the same product with better blocking. A depthwise convolution keeps oneDNN's forward pass, which
    # is fast, and replaces the weight gradient alone. A frozen weight has no gradient, and so nothing to gain.
    if input.dim() == 4 and not isinstance(padding, str) and pair(dilation) == (1, 1):
        pixels, kernel = input.shape[2] * input.shape[3], tuple(weight.shape[2:])
        pointwise = groups == 1 and kernel == (1, 1) == pair(stride) and pair(padding) == (0, 0)
        if pointwise and pixels <= FEW:
            return F.linear(input.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
        depthwise = groups == len(weight) == input.shape[1] > 1
        if depthwise and pixels <= _most_pixels(kernel) and weight.requires_grad:
            return _Depthwise.apply(input, weight, bias, pair(stride), pair(padding))
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _most_pixels(kernel: Pair) -> int:
    """The number of pixels up to which `_weight_gradient` is faster than oneDNN and its matrices stay small."""
    return FEW if max(kernel) <= 3 else min(5 * kernel[0] * kernel[1], 256)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution that takes the gradient of its weight from `_weight_gradient`."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shifts = stride, padding
        return F.conv2d(x, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        needs_x, _, needs_bias = ctx.needs_input_grad[:3]
        others = [needs_x, False, needs_bias]
        grad_x, _, grad_bias = torch.ops.aten.convolution_backward(
            grad, x, weight, [len(weight)], *ctx.shifts, (1, 1), False, (0, 0), len(weight), others
        )
        return grad_x, _weight_gradient(grad, x, tuple(weight.shape[2:]), *ctx.shifts), grad_bias, None, None


def _weight_gradient(grad: Tensor, x: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Compute the gradient of a depthwise weight, (channels, 1, *kernel)."""
    # An element of the kernel joins pairs of pixels: one of the input, one of the output. Its gradient is the sum of
    # input times output gradient over these pairs and over the images. One matrix product for each channel gives the
    # sums over images of *every* pair of pixels, joined or not. A second product, with a matrix of zeros and ones,
    # picks the pairs of each element. Most pairs are thrown away, so this pays only while there are few pixels.
    products = torch.bmm(_by_channel(x).transpose(1, 2), _by_channel(grad))  # (channels, pixels of x, pixels of grad)
    joined = _joined(tuple(x.shape[2:]), tuple(grad.shape[2:]), kernel, stride, padding)
    return (products.flatten(1) @ joined.to(products)).view(-1, 1, *kernel)


def _by_channel(x: Tensor) -> Tensor:
    """Turn (images, channels, height, width) into (channels, images, pixels)."""
    # In channels_last the first step moves no data, and the second is the transpose of one matrix: a fast copy.
    images, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
    return rows.t().contiguous().view(channels, images, height * width)


@lru_cache(maxsize=64)
def _joined(x: Pair, grad: Pair, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Say which pixels each element of the kernel joins: 1 or 0, (pixels of x · pixels of grad, kernel elements)."""
    rows, columns = (_joined_along(*sizes) for sizes in zip(x, grad, kernel, stride, padding, strict=True))
    return torch.einsum("xgk,ywl->xygwkl", rows, columns).reshape(-1, kernel[0] * kernel[1])


def _joined_along(x: int, grad: int, kernel: int, stride: int, padding: int) -> Tensor:
    """Say the same along one dimension: (x, grad, kernel)."""
    element = torch.arange(x)[:, None] + padding - stride * torch.arange(grad)
    return (element.unsqueeze(2) == torch.arange(kernel)).float()
