"""Convolutions of few pixels on a CPU, for which oneDNN is slow.

Small images leave the late layers of a network with maps of a few pixels. There oneDNN takes far longer for the weight
gradient of a depthwise convolution than for its forward pass, and longer for a pointwise convolution than a matrix
product does (those of squeeze-and-excitation are of one pixel at every image size).
`scripts/bench_training.py --only eager ours` measures what this is worth.
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
FEW = 4  # pixels: up to here matrix products are faster, even than what oneDNN has for 3 × 3 kernels


def convolving(device: torch.device) -> AbstractContextManager[Any]:
    """For the time of a forward pass, and the backward pass of what it computes: fast convolutions of few pixels."""
    return _Convolving() if device.type == "cpu" else nullcontext()


class _Convolving(TorchFunctionMode):
    """Stands in for torch.nn.functional.conv2d, which every two-dimensional convolution calls, timm's too."""

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
    """torch.nn.functional.conv2d of input (images, channels, height, width), but for rounding."""
    if input.dim() == 4 and not isinstance(padding, str) and pair(dilation) == (1, 1):
        pixels, kernel = input.shape[2] * input.shape[3], tuple(weight.shape[2:])
        pointwise = groups == 1 and kernel == (1, 1) == pair(stride) and pair(padding) == (0, 0)
        if pointwise and pixels <= FEW:
            return F.linear(input.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
        if groups == len(weight) == input.shape[1] > 1 and pixels <= _most(kernel) and weight.requires_grad:
            return _Depthwise.apply(input, weight, bias, pair(stride), pair(padding))
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _most(kernel: Pair) -> int:
    """Of a map's pixels, for `_weight_gradient` to be faster than oneDNN, and its matrices not to be large."""
    return FEW if max(kernel) <= 3 else min(5 * kernel[0] * kernel[1], 256)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution, with its weight's gradient by `_weight_gradient`."""

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
    """Of a depthwise convolution's weight, (channels, 1, *kernel).

    Each channel's product of all pixels of the input with all of the gradient, summed over the images, is one matrix
    product; an element of the kernel sums those pairs of pixels that it joins.
    """
    products = torch.bmm(_by_channel(x).transpose(1, 2), _by_channel(grad))  # (channels, pixels of x, pixels of grad)
    joined = _joined(tuple(x.shape[2:]), tuple(grad.shape[2:]), kernel, stride, padding)
    return (products.flatten(1) @ joined.to(products)).view(-1, 1, *kernel)


def _by_channel(x: Tensor) -> Tensor:
    """(images, channels, height, width) as (channels, images, pixels): the transpose of one matrix, a fast copy."""
    images, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
    return rows.t().contiguous().view(channels, images, height * width)


@lru_cache(maxsize=64)
def _joined(x: Pair, grad: Pair, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """(pixels of x · pixels of grad, elements of the kernel): 1 where the element joins the two pixels, 0 elsewhere."""
    rows, columns = (_joined_along(*sizes) for sizes in zip(x, grad, kernel, stride, padding, strict=True))
    return torch.einsum("xgk,ywl->xygwkl", rows, columns).reshape(-1, kernel[0] * kernel[1])


def _joined_along(x: int, grad: int, kernel: int, stride: int, padding: int) -> Tensor:
    """(x, grad, kernel): the same along one dimension."""
    element = torch.arange(x)[:, None] + padding - stride * torch.arange(grad)
    return (element.unsqueeze(2) == torch.arange(kernel)).float()
