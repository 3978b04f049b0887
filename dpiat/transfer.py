"""Moving the weights: a plan that says what every target tensor will receive, and its application (section 3.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from dpiat.matching import LayerPair, Matching, match
from dpiat.operators import clip
from dpiat.standardization import MODES, layer_tensors, standardize

COPIED, CROPPED, PARTLY, LEFT = "copied", "cropped", "partly filled", "left"


@dataclass(frozen=True, slots=True)
class Entry:
    """What one target tensor receives.

    `action` is "copied" (equal shapes), "cropped" (all of it, from a larger source), "partly filled" (the `filled`
    part of its elements; the others keep the target's values) or "left" (nothing, for the `reason` given).
    """

    target: str
    shape: tuple[int, ...]
    action: str
    filled: int = 0
    source: str = ""
    source_shape: tuple[int, ...] = ()
    reason: str = ""

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def share(self) -> float:
        """The part of the target tensor that the source fills, in [0, 1]."""
        return self.filled / self.elements if self.elements else 0.0


@dataclass(frozen=True)
class Report:
    """One entry for each tensor of the target: parameters and saved buffers. `print()` shows it as a table."""

    entries: tuple[Entry, ...]

    @property
    def elements(self) -> dict[str, int]:
        """Elements of the target by what happens to them; they add up to all of its elements."""
        totals = dict.fromkeys((COPIED, CROPPED, PARTLY, LEFT), 0)
        for entry in self.entries:
            totals[entry.action] += entry.filled
            totals[LEFT] += entry.elements - entry.filled
        return totals

    @property
    def share(self) -> float:
        """The part of all target elements that the source fills, in [0, 1]."""
        total = sum(entry.elements for entry in self.entries)
        return sum(entry.filled for entry in self.entries) / total if total else 0.0

    def summary(self) -> str:
        total = sum(self.elements.values())
        parts = ", ".join(f"{count:,} {action}" for action, count in self.elements.items() if count)
        return f"{self.share:.1%} of the target's {total:,} elements filled: {parts or 'none'}"

    def __str__(self) -> str:
        head = ("target tensor", "shape", "action", "share", "from")
        rows = [
            (e.target, _times(e.shape), e.action, f"{e.share:.0%}", f"{e.source} {_times(e.source_shape)}".strip())
            if e.source
            else (e.target, _times(e.shape), e.action, "0%", f"({e.reason})")
            for e in self.entries
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        table = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (head, *rows)]
        return "\n".join([*("  ".join(row).rstrip() for row in table), self.summary()])


@dataclass(frozen=True)
class Plan:
    """A transfer that has not happened yet. `print()` shows it, `apply()` carries it out."""

    source: nn.Module
    target: nn.Module
    matching: Matching
    report: Report

    def apply(self) -> Report:
        """Write the weights into the target, in place, and return the report. The source is only read.

        Nothing is written unless everything can be. Raises ValueError if a tensor that takes part is on the meta
        device or no longer has the shape it was planned with.
        """
        source = {tensor.name: tensor.tensor for tensor in layer_tensors(self.source)}
        target = {tensor.name: tensor.tensor for tensor in layer_tensors(self.target)}
        copies = []
        for entry in self.report.entries:
            if entry.action == LEFT:
                continue
            to, by = _usable(target, entry.target, entry.shape), _usable(source, entry.source, entry.source_shape)
            if entry.shape != entry.source_shape:
                to_index, by_index = clip(entry.shape, entry.source_shape)
                to, by = to[to_index], by[by_index]
            copies.append((to, by))
        with torch.no_grad():
            for to, by in copies:
                to.copy_(by)
        return self.report

    def __str__(self) -> str:
        return str(self.report)


def transfer(source: nn.Module, target: nn.Module, mode: str = "default") -> Report:
    """Initialize `target` with the knowledge of `source`, a trained network of another architecture.

    Matches the layers of both by dynamic programming on their weight shapes, then copies the centre crop of every
    matched tensor, in place. Tensors without a counterpart keep their values. `source` is not modified; nor are
    devices, dtypes, requires_grad and the training flag of either.

    mode="default" also carries the running statistics of batch norms and the weights of layers that the paper does
    not treat, so that a network transferred to itself stays the same function. mode="paper" is the authors'
    algorithm: weights and biases of convolutions, linear layers and batch norms.

    Returns a report with one entry for each target tensor. Raises TypeError if an argument is not an nn.Module,
    ValueError for an unknown mode, lazy parameters, or weights on the meta device.

        >>> from dpiat import transfer
        >>> report = transfer(trained, new)
        >>> print(report.summary())
    """
    return plan(source, target, mode).apply()


def plan(source: nn.Module, target: nn.Module, mode: str = "default") -> Plan:
    """What `transfer(source, target, mode)` would do. Changes nothing, and works on the meta device."""
    for role, network in (("source", source), ("target", target)):
        if not isinstance(network, nn.Module):
            raise TypeError(f"{role} must be a torch.nn.Module, got {type(network).__name__}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    matching = match(standardize(source, mode), standardize(target, mode))
    return Plan(source, target, matching, Report(tuple(_entries(source, target, matching.layers, mode))))


def _entries(source: nn.Module, target: nn.Module, pairs: Iterable[LayerPair], mode: str) -> Iterable[Entry]:
    """One entry for each target tensor, in the order of its state dict."""
    sources = {(tensor.layer, tensor.local): tensor for tensor in layer_tensors(source)}
    partner = {pair.target.name: pair.source.name for pair in pairs}
    seen: dict[int, str] = {}
    for tensor in layer_tensors(target):
        name, shape = tensor.name, tuple(tensor.tensor.shape)
        first = seen.setdefault(id(tensor.tensor), name)
        found = sources.get((partner.get(tensor.layer), tensor.local))
        if first != name:  # its elements are counted once
            yield Entry(name, (0,), LEFT, reason=f"the same tensor as {first}")
        elif mode == "paper" and not isinstance(tensor.tensor, nn.Parameter):
            yield Entry(name, shape, LEFT, reason="a buffer, which paper mode does not copy")
        elif tensor.layer not in partner:
            yield Entry(name, shape, LEFT, reason="no source layer matched")
        elif found is None:
            yield Entry(name, shape, LEFT, reason=f"{partner[tensor.layer] or 'the source'} has no {tensor.local}")
        elif found.tensor.dim() != len(shape):
            yield Entry(name, shape, LEFT, reason=f"{found.name} has {found.tensor.dim()} dimensions")
        else:
            yield _filled(name, shape, found.name, tuple(found.tensor.shape))


def _filled(name: str, shape: tuple[int, ...], source: str, source_shape: tuple[int, ...]) -> Entry:
    filled, elements = prod(map(min, shape, source_shape)), prod(shape)
    action = COPIED if shape == source_shape else CROPPED if filled == elements else PARTLY
    return Entry(name, shape, action, filled, source, source_shape)


def _usable(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None or tuple(tensor.shape) != shape:
        found = "is gone" if tensor is None else f"now has shape {_times(tuple(tensor.shape))}"
        raise ValueError(f"{name} {found}; it was planned with {_times(shape)}: make a new plan")
    if tensor.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values: materialize the network first")
    return tensor


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"
