"""Which images a batch norm normalizes together in training.

By default a batch norm sees the whole batch, even where several processes share the batch. So a result does not depend
on the number of processes. With `batchnorm_group`, each group of so many successive images is normalized by itself, as
on each of the paper's TPU cores.
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
    """Make batch norms normalize groups of `group` images, or the whole batch for None, during a forward pass."""
    return nullcontext() if group is None and parallel.size() == 1 else _Normalizing(group)


class _Normalizing(TorchFunctionMode):
    """Puts `batch_norm` in the place of torch.nn.functional.batch_norm."""

    # Why not replace the modules, as torch.nn.SyncBatchNorm.convert_sync_batchnorm does? The replacement would have to
    # know every class: timm's BatchNormAct2d fuses an activation, and users write norms of their own. All of these call
    # F.batch_norm in the end. A function mode catches this one call, leaves the network's modules, names and state dict
    # as they are, and is gone after the forward pass.

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
    """Compute torch.nn.functional.batch_norm by groups of images, or over the images of all processes.

    Args:
        group: The number of successive images that are normalized together; None for the batch of all processes.
        x: Activations, (images, channels, ...).
        running_mean: The running statistics, (channels,), updated in place when `training`; None to keep none.
        running_var: As `running_mean`.
        weight: The scale, (channels,), or None.
        bias: The shift, (channels,), or None.
        training: False normalizes by the running statistics, as torch does.
        momentum: The share of the new statistics in the running ones.
        eps: What is added to a variance.

    Returns:
        The normalized activations, of the shape and type of `x`.
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
    # Each group updates a copy of the running statistics, and the mean of the copies is kept. The groups follow one
    # another in this process, but stand for devices that work at the same time: to update the same buffers in turn
    # would weigh the last group most. The paper's cores kept statistics of their own and never compared them; a network
    # has one set of statistics here, so the mean is the fairest single answer. Over several processes,
    # `parallel.average_buffers` completes the mean after the epoch.
    outputs, means, variances = [], [], []
    for images in x.split(group):
        own_mean = None if running_mean is None else running_mean.clone()
        own_var = None if running_var is None else running_var.clone()
        outputs.append(F.batch_norm(images, own_mean, own_var, weight, bias, True, momentum, eps))
        means.append(own_mean)
        variances.append(own_var)
    if running_mean is not None:
        running_mean.copy_(torch.stack(means).mean(0))
        running_var.copy_(torch.stack(variances).mean(0))
    return torch.cat(outputs)


class _OverProcesses(torch.autograd.Function):
    """Normalizes by the mean and the variance over the images of all processes. Each process has as many images."""

    # A process computes the loss of its own images, but its statistics depend on the images of all processes. So the
    # gradient of an input has terms from the losses of other processes, and the backward pass needs its own exchange:
    # the two sums over images that the formula contains (of the gradient, and of the gradient times the normalized
    # input) are gathered from all processes. The gradients of weight and bias must not be summed here:
    # DistributedDataParallel takes their mean afterwards, and would count them twice.
    # The variance over all images follows from the variances of the processes plus the variance of their means. The
    # sums of squares would do too, but lose digits where the mean is far from zero.

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
