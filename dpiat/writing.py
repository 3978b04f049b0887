"""Tensors written into tensors, and with them the state that an optimizer keeps of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from dpiat.operators import Index
from dpiat.standardization import LayerWeights


class Write(NamedTuple):
    """A part of a source tensor that goes to a part of a target tensor; `index` None stands for their centre crops."""

    to: LayerWeights
    by: LayerWeights
    local: str  # the name of both in their layers
    source: Tensor  # the values: those of `by`, or what was made of them
    index: tuple[Index, Index] | None = None

    @property
    def target(self) -> Tensor:
        return self.to.tensors[self.local]


def put(target: Tensor, source: Tensor, index: tuple[Index, Index] | None) -> None:
    """Write the chosen part of a source tensor to the chosen part of a target tensor, of any dtype and device."""
    if index is None:
        _put_centre(target, source)
        return
    to, by = index
    if Tensor in map(type, to):
        target[to] = source[by].to(target)
    else:
        target[to].copy_(source[by])


def _put_centre(target: Tensor, source: Tensor) -> None:
    """As with the indices of `dpiat.operators.centre`, but that only dimensions of different sizes are cropped."""
    if target.shape != source.shape:
        for dimension, (s, t) in enumerate(zip(source.shape, target.shape, strict=True)):
            if s > t:
                source = source.narrow(dimension, (s - t) // 2, t)
            elif t > s:
                target = target.narrow(dimension, (t - s) // 2, s)
    target.copy_(source)


def check_alike(source: torch.optim.Optimizer, target: torch.optim.Optimizer) -> None:
    """Raise ValueError if the state of one optimizer means nothing to the other."""
    if type(source) is not type(target):
        raise ValueError(
            f"the optimizers must be of one class, got {type(source).__name__} and {type(target).__name__}"
        )


def move_state(writes: Iterable[Write], source: torch.optim.Optimizer, target: torch.optim.Optimizer) -> None:
    """Give the written parameters the state of those that they were written from, through the same indices.

    State of the parameter's shape (Adam's moments, SGD's momentum) starts from zeros where nothing was written; other
    state (the step) is copied.
    """
    trained = {id(parameter) for group in target.param_groups for parameter in group["params"]}
    for write in writes:
        state = source.state.get(write.source)
        if not state or id(write.target) not in trained:
            continue
        mine = target.state[write.target]
        for key, kept in state.items():
            if not isinstance(kept, Tensor):
                mine[key] = kept
            elif kept.shape != write.source.shape:
                mine[key] = kept.clone()
            else:
                mine.setdefault(key, torch.zeros_like(write.target))
                put(mine[key], kept, write.index)
