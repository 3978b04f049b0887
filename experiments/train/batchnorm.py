"""Which images a batch norm normalizes together in training.

By default, all of a batch, also where several processes share it, so that a result does not depend on their number.
With `batchnorm_group`, each group of so many successive images by itself, as each of the paper's TPU cores did.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from experiments.train import parallel


def normalizing(group: int | None) -> AbstractContextManager[Any]:
    """For the time of a forward pass: batch norms normalize groups of `group` images, or the whole batch."""
    return nullcontext() if group is None and parallel.size() == 1 else _Normalizing(group)


class _Normalizing(TorchFunctionMode):
    """Stands in for torch.nn.functional.batch_norm, which every batch norm calls, timm's and a user's own too."""

    def __init__(self, group: int | None):
        super().__init__()
        self.group = group

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        return batch_norm(self.group, *args, **(kwargs or {}))


def batch_norm(
    group: int | None,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """torch.nn.functional.batch_norm of x (images, channels, ...) by groups of images, or of all processes' images.

    The running statistics become the mean of what they would become by each group alone. (The paper's cores kept their
    own and never compared them.) Over several processes that mean is completed by parallel.average_buffers.
    """
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    if group is None:
        y, mean, var = _OverProcesses.apply(x, weight, bias, eps)
        images = x.numel() // x.shape[1] * parallel.size()
        if running_mean is not None:
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(var * images / (images - 1), momentum)
        return y
    parts, statistics = x.split(group), []
    for _ in parts:
        statistics.append([None if s is None else s.clone() for s in (running_mean, running_var)])
    y = [F.batch_norm(p, *s, weight, bias, True, momentum, eps) for p, s in zip(parts, statistics, strict=True)]
    if running_mean is not None:
        for running, own in zip((running_mean, running_var), zip(*statistics, strict=True), strict=True):
            running.copy_(torch.stack(own).mean(0))
    return torch.cat(y)


class _OverProcesses(torch.autograd.Function):
    """Normalizes by mean and variance over the images of all processes, each of which has as many.

    The input's gradient is that of the sum of the processes' losses; those of weight and bias are a process's own, and
    DistributedDataParallel takes their mean.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):
        dims = [0, *range(2, x.dim())]
        var, mean = torch.var_mean(x.float(), dims, correction=0)
        means, variances = parallel.all_gather(torch.stack([mean, var])).unbind(1)  # (processes, channels) each
        mean, var = means.mean(0), variances.mean(0) + means.var(0, correction=0)
        ctx.save_for_backward(x, mean, (var + eps).rsqrt(), weight)
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, var

    @staticmethod
    def backward(ctx, grad: Tensor, *_: Tensor):
        x, mean, scale, weight = ctx.saved_tensors
        dims = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        normal = (x.float() - mean.view(shape)) * scale.view(shape)
        grad_bias, grad_weight = grad.float().sum(dims), (grad.float() * normal).sum(dims)
        both = parallel.all_gather(torch.stack([grad_bias, grad_weight])).sum(0) * x.shape[1]
        along_bias, along_weight = both / (x.numel() * parallel.size())
        grad_x = grad.float() - along_bias.view(shape) - normal * along_weight.view(shape)
        grad_x = grad_x * (scale if weight is None else scale * weight).view(shape)
        if weight is None:
            return grad_x.to(x.dtype), None, None, None
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None
