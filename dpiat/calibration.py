"""Batch-norm statistics from images without labels, for a network whose weights come from another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpiat.observing import Images, called, in_eval_mode


@torch.no_grad()
def calibrate(target: nn.Module, images: Images | Iterable[Any]) -> None:
    """Give the batch norms of a network the statistics that images have in the network, in place of their own.

    Use this for a network that is used in eval mode before any training, after a transfer in paper mode, which leaves
    the statistics of a new network. A transfer in default mode brings the source's statistics: they come from more
    images, and are often better. Training makes its own statistics either way. No weight changes, and `transfer` never
    calls this.

    Args:
        target: The network. Its batch norms' running statistics become the mean over batches; each batch counts alike.
        images: What the network takes: a batch, a mapping of its arguments, or an iterable of batches such as a
            DataLoader. The first element of a tuple or list is taken, as of (images, labels).

    Raises:
        ValueError: If the network has no batch norm that keeps statistics, or there is no batch. Then, as after any
            error, the statistics are what they were.

    Note:
        Batch norms are in training mode for the time of the call, and everything else, dropout say, in eval mode.
        Modes and momenta are what they were afterwards.

    Examples:
        >>> transfer(source, target)
        >>> calibrate(target, images)
    """
    batches = [images] if isinstance(images, (Tensor, Mapping)) else images
    count = 0
    with in_eval_mode(target) as norms:
        before = [
            (norm, norm.momentum, [buffer.clone() for buffer in norm.buffers()])
            for norm in norms
            if norm.running_mean is not None
        ]
        if not before:
            raise ValueError("the target has no batch norm that keeps statistics: there is nothing to calibrate")
        try:
            for norm, _, _ in before:
                norm.momentum = None
                norm.reset_running_stats()
            for batch in batches:
                called(target, batch[0] if isinstance(batch, (tuple, list)) else batch)
                count += 1
            if not count:
                raise ValueError("there is no batch of images to calibrate with")
        except BaseException:
            for norm, _, kept in before:
                for buffer, value in zip(norm.buffers(), kept, strict=True):
                    buffer.copy_(value)
            raise
        finally:
            for norm, momentum, _ in before:
                norm.momentum = momentum
