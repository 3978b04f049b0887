"""Writing tensors into tensors, and with them the state that an optimizer keeps of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from dpiat.operators import Index
from dpiat.parametrized import basis
from dpiat.standardization import LayerTensors


class Write(NamedTuple):
    """A part of a source tensor that goes to a part of a target tensor.

    `places` None stands for the centre crops. The part that `zeros` chooses becomes zero first. Both tensors may be
    views of what is stored (`LayerTensors.views`).
    """

    to: LayerTensors
    by: LayerTensors
    local: str  # the name of both in their layers
    source: Tensor  # the values: of `by`, or made of these
    places: tuple[Index, Index] | None = None  # of the target and of the source
    made: bool = False  # do the values differ from those that `by` stores?
    layer: LayerTensors | None = None  # `to` as the network has it, where `to` is another view
    zeros: Index | None = None

    @property
    def target(self) -> Tensor:
        return self.to.tensors[self.local]

    def written(self) -> list[tuple[Tensor, Tensor | None]]:
        """The tensors that change, each with its counterpart: for a computed tensor, those that it is computed from."""
        mine = basis(self.to.module, self.to.name_in_module(self.local))
        if not mine:
            return [(self.target, self.source)]
        theirs = basis(self.by.module, self.by.name_in_module(self.local))
        return [(tensor, theirs.get(path)) for path, tensor in mine.items()]

    def to_itself(self) -> bool:
        """Does every element go to its own place in memory?"""
        pairs = self.written()
        if any(source is None or _layout(target) != _layout(source) for target, source in pairs):
            return False
        each = [along if isinstance(along, tuple) else (along,) for along in self.places or ()]
        pairs_of_places = zip(*each, strict=True)
        if not all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs_of_places):
            return False
        return pairs[0][0] is self.target or torch.equal(self.target, self.source)


def put(target: Tensor, source: Tensor, places: tuple[Index, Index] | None, zeros: Index | None = None) -> None:
    """Write the chosen part of a source tensor to the chosen part of a target tensor, across dtypes and devices."""
    if zeros is not None:
        target[zeros] = 0
    if places is None:
        _put_centre(target, source)
        return
    to, by = places
    if isinstance(to, tuple) and all(isinstance(along, slice) for along in to):
        target[to].copy_(source[by])
    else:  # target[to] would be a copy, and to copy into that would write nothing
        target[to] = source[by].to(target)


def _put_centre(target: Tensor, source: Tensor) -> None:
    """Write the crops that `dpiat.operators.centre` chooses, without a crop where sizes are equal: it takes time."""
    if target.shape != source.shape:
        for dimension, (s, t) in enumerate(zip(source.shape, target.shape, strict=True)):
            if s > t:
                source = source.narrow(dimension, (s - t) // 2, t)
            elif t > s:
                target = target.narrow(dimension, (t - s) // 2, s)
    target.copy_(source)


def check(writes: Iterable[Write], source: nn.Module | None, finished: bool = False) -> None:
    """Raise ValueError if a tensor cannot be read or written, or if a tensor to be written is also the source's.

    `source` is the network that must not change, if any. A tensor may be written to itself, unless the operator changes
    it afterwards (`finished`).
    """
    taken = _Taken(source)
    for write in writes:
        if write.target.is_meta or write.source.is_meta:
            name = (write.to if write.target.is_meta else write.by).path(write.local)
            raise ValueError(f"{name} is on the meta device and has no values: materialize it first")
        for target, _ in write.written():
            wrong = ""
            if target in taken and (finished or not write.to_itself()):
                wrong = "belongs to the source too, which must not change: copy one network first"
            elif 0 in target.stride() and 0 not in target.shape and max(target.shape) > 1:
                wrong = "is expanded, many elements in one place of memory: make it contiguous first"
            elif target.is_inference() and not torch.is_inference_mode_enabled():
                wrong = "was made in inference mode and cannot be written outside of it"
            if wrong:
                raise ValueError(f"{write.to.path(write.local)} {wrong}")


class _Taken:
    """The places in memory that a network's tensors take.

    Addresses and not tensors are compared: a target may hold a slice of a source's tensor, or a flattened view of all.
    """

    def __init__(self, network: nn.Module | None):
        self.ranges: dict[torch.device, tuple[list[int], list[int]]] = {}  # begins and ends, ascending
        found: dict[torch.device, list[tuple[int, int]]] = {}
        for tensor in () if network is None else (*network.parameters(), *network.buffers()):
            if place := _range(tensor):
                found.setdefault(tensor.device, []).append(place)
        for device, places in found.items():
            begins, ends = zip(*sorted(places), strict=True)
            self.ranges[device] = list(begins), list(accumulate(ends, max))  # the last end of all up to each

    def __contains__(self, tensor: Tensor) -> bool:
        """Does a tensor share memory with a tensor of the network?"""
        if not (place := _range(tensor)):
            return False
        begins, ends = self.ranges.get(tensor.device, ([], []))
        before = bisect_left(begins, place[1])
        return before > 0 and ends[before - 1] > place[0]


def _range(tensor: Tensor) -> tuple[int, int] | tuple[()]:
    """The addresses of a tensor's first byte and of the byte after its last; () if it has no elements or no place."""
    if is_lazy(tensor) or tensor.is_meta or tensor.is_nested or tensor.layout != torch.strided or not tensor.numel():
        return ()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    begin = tensor.data_ptr()
    return (begin, begin + (last + 1) * tensor.element_size()) if begin else ()


def _layout(tensor: Tensor) -> tuple:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


# The state that an optimizer with an option needs for a parameter, once it has any state for the parameter.
NEEDED = {"amsgrad": "max_exp_avg_sq", "centered": "grad_avg", "momentum": "momentum_buffer"}


def check_optimizers(
    writes: Iterable[Write], optimizers: tuple[Optimizer, Optimizer], networks: tuple[nn.Module, nn.Module]
) -> None:
    """Raise TypeError if these are not two optimizers, ValueError if they are of other networks or hold odd state."""
    try:
        source, target = optimizers
    except (TypeError, ValueError):
        source = target = None
    if not isinstance(source, Optimizer) or not isinstance(target, Optimizer):
        raise TypeError("optimizer must be two: the source's optimizer and the target's")
    names = [type(optimizer).__name__ for optimizer in (source, target)]
    if type(source) is not type(target):
        raise ValueError(f"the optimizers must be of one class, got {names[0]} and {names[1]}")
    for role, optimizer, network in zip(("source", "target"), (source, target), networks, strict=True):
        if not list(network.parameters()):
            raise ValueError(f"the {role} has no parameters, which its optimizer could know: pass the network itself")
        if _groups(optimizer).keys().isdisjoint(map(id, network.parameters())):
            raise ValueError(f"the {role}'s optimizer has none of its parameters: optimizer=(source's, target's)")
    for write in writes:
        theirs = write.by.stored(write.local)
        for key, kept in source.state.get(theirs, {}).items():
            if isinstance(kept, (Sequence, Mapping)):
                raise ValueError(f"{names[0]} keeps {key} of several steps, which cannot be cropped")
            single = not isinstance(kept, Tensor) or kept.numel() == 1
            if not single and kept.shape != theirs.shape != write.to.stored(write.local).shape:
                raise ValueError(f"{names[0]} keeps {key} of another shape than its parameter's: it cannot be cropped")


def _groups(optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """The group of each parameter, by its id."""
    return {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}


def move_state(writes: Iterable[Write], source: Optimizer, target: Optimizer) -> None:
    """Give the written parameters the state of the parameters that they were written from, by the same places.

    State of the parameter's shape (Adam's moments, SGD's momentum) goes the way of the weights. Elsewhere it stays, or
    is zero if there was none. Other state (the step) is copied. State that only the target's optimizer needs begins
    with zeros. Values that were made, such as an average of input channels, bring no state: none belongs to them.
    """
    groups = _groups(target)
    for write in writes:
        ours, theirs = write.to.stored(write.local), write.by.stored(write.local)
        state = None if write.made else source.state.get(theirs)
        if not state or id(ours) not in groups:
            continue
        mine = target.state[ours]
        for key, kept in state.items():
            if not isinstance(kept, Tensor):
                mine[key] = kept
            elif kept.shape != theirs.shape:
                mine[key] = kept.clone()
            else:
                mine.setdefault(key, torch.zeros_like(ours))
                put(write.to.view(write.local, mine[key]), write.by.view(write.local, kept), write.places, write.zeros)
        for option, key in NEEDED.items():
            if groups[id(ours)].get(option) and mine.get(key) is None:
                mine[key] = torch.zeros_like(ours)
