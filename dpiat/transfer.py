"""Moving the weights: a plan that says what every target tensor will receive, and its application (section 3.4)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from dpiat.architecture import Architecture, Layer
from dpiat.matching import match
from dpiat.operators import clip
from dpiat.standardization import COUNTED, MODES, LayerTensor, layer_tensors, standardize

HEADS = ("auto", "copy", "skip")
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
    """A transfer that has not happened yet: `print()` shows it, `apply()` carries it out.

    It can be changed first (`drop`, `pair`) and kept as text (`to_json`, `from_json`). A changed plan is a new one.
    """

    source: nn.Module
    target: nn.Module
    report: Report

    def apply(self) -> Report:
        """Write the weights into the target, in place, and return the report. The source is only read.

        Nothing is written unless everything can be. Raises ValueError if a tensor that takes part is on the meta
        device or no longer has the shape it was planned with.
        """
        source, target = ({t.name: t.tensor for t in layer_tensors(module)} for module in (self.source, self.target))
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

    def drop(self, name: str) -> Plan:
        """The plan without a layer, a block or a tensor of the target, given by its name: it keeps its values.

        Raises ValueError if the target has nothing of this name.

            >>> plan(source, target).drop("classifier").apply()
        """
        chosen = [entry for entry in self.report.entries if _inside(entry.target, name)]
        if not chosen:
            raise ValueError(f"the target has no {name!r}: print the plan to see its names")
        return self._with(Entry(entry.target, entry.shape, LEFT, reason="dropped") for entry in chosen)

    def pair(self, source: str, target: str) -> Plan:
        """The plan with a layer of the target filled from a layer of the source of your choice, given by their names.

        Raises ValueError if one has no such layer or no tensor of the target layer fits.
        """
        given = {t.local: t for t in layer_tensors(self.source) if t.layer == source}
        tensors = layer_tensors(self.target)
        shapes = {entry.target: entry.shape for entry in self.report.entries}
        # A shared tensor is written under the one of its names that has its elements.
        counted = {id(t.tensor): t.name for t in tensors if shapes.get(t.name) == tuple(t.tensor.shape)}
        wanted = [t._replace(name=counted.get(id(t.tensor), t.name)) for t in tensors if t.layer == target]
        for role, name, found in (("source", source, given), ("target", target, wanted)):
            if not found:
                raise ValueError(f"the {role} has no layer {name!r} with weights: print the plan to see its names")
        fitting = [t for t in wanted if t.local in given and given[t.local].tensor.dim() == t.tensor.dim()]
        if not fitting:
            raise ValueError(f"no tensor of {target!r} has one of as many dimensions in {source!r}")
        return self._with(_filled(t, given[t.local]) for t in fitting)

    def _with(self, entries: Iterable[Entry]) -> Plan:
        """The plan with these entries in place of those of the same target tensors."""
        new = {entry.target: entry for entry in entries}
        return replace(self, report=Report(tuple(new.get(e.target, e) for e in self.report.entries)))

    def to_json(self) -> str:
        """The plan as text, without the networks and their weights."""
        return json.dumps({"format": "dpiat plan 1", "entries": [asdict(e) for e in self.report.entries]}, indent=1)

    @classmethod
    def from_json(cls, text: str, source: nn.Module, target: nn.Module) -> Plan:
        """A plan that was kept as text, for networks with the tensors that it names.

        Raises ValueError if the text is no plan. What no longer fits, `apply` refuses.
        """
        try:
            rows = json.loads(text)["entries"]
            shapes = ("shape", "source_shape")
            entries = [Entry(**{k: tuple(v) if k in shapes else v for k, v in row.items()}) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"not a plan that to_json wrote ({error})") from error
        return cls(source, target, Report(tuple(entries)))

    def __str__(self) -> str:
        return str(self.report)


def transfer(source: nn.Module, target: nn.Module, mode: str = "default", head: str = "auto") -> Report:
    """Initialize `target` with the knowledge of `source`, a trained network of another architecture.

    Matches the layers of both by dynamic programming on their weight shapes, then copies the centre crop of every
    matched tensor, in place. Tensors without a counterpart keep their values. `source` is not modified; nor are
    devices, dtypes, requires_grad and the training flag of either.

    mode="default" also carries the running statistics of batch norms and the weights of layers that the paper does
    not treat, so that a network transferred to itself stays the same function. mode="paper" is the authors'
    algorithm: weights and biases of convolutions, linear layers and batch norms, a classifier like any other layer.

    head="auto" fills the classifier (a linear layer or a 1 × 1 convolution with no weights after it) only from a
    classifier of as many classes; "skip" never, "copy" like any other layer, cropped rows of other classes included.

    Returns a report with one entry for each target tensor. Raises TypeError if an argument is not an nn.Module,
    ValueError for an unknown mode or head, lazy parameters, or weights on the meta device.

        >>> from dpiat import transfer
        >>> report = transfer(trained, new)
        >>> print(report.summary())
    """
    return plan(source, target, mode, head).apply()


def plan(source: nn.Module, target: nn.Module, mode: str = "default", head: str = "auto") -> Plan:
    """What `transfer(source, target, mode, head)` would do. Changes nothing, and works on the meta device."""
    for role, network in (("source", source), ("target", target)):
        if not isinstance(network, nn.Module):
            raise TypeError(f"{role} must be a torch.nn.Module, got {type(network).__name__}")
    for key, value, known in (("mode", mode, MODES), ("head", head, HEADS)):
        if value not in known:
            raise ValueError(f"{key} must be one of {', '.join(known)}, got {value!r}")
    giver, taker = standardize(source, mode), standardize(target, mode)
    partner = {pair.target.name: pair.source.name for pair in match(giver, taker).layers}
    kept = {} if mode == "paper" else _kept_head(giver, taker, partner, head)
    return Plan(source, target, Report(tuple(_entries(source, target, partner, kept, mode))))


def _kept_head(source: Architecture, target: Architecture, partner: Mapping[str, str], head: str) -> dict[str, str]:
    """The classifier of the target, if it is not to be filled, with the reason."""
    theirs, ours = _classifier(source), _classifier(target)
    if ours is None or head == "copy":
        return {}
    if head == "skip":
        return {ours.name: "the classifier, which head='skip' leaves"}
    if theirs is None or partner.get(ours.name) != theirs.name:
        return {ours.name: "a classifier, and no classifier matched"}
    if theirs.shape[0] != ours.shape[0]:
        return {ours.name: f"a classifier of {ours.shape[0]} classes, of {theirs.shape[0]} in the source"}
    return {}


def _classifier(architecture: Architecture) -> Layer | None:
    """The last layer with weights, if it is linear or a 1 × 1 convolution. A backbone that ends in a norm has none."""
    last = next((layer for layer in reversed(architecture.layers) if layer.shape), None)
    return last if last and last.kind in COUNTED and set(last.shape[2:]) <= {1} else None


def _entries(
    source: nn.Module, target: nn.Module, partner: Mapping[str, str], kept: Mapping[str, str], mode: str
) -> Iterable[Entry]:
    """One entry for each target tensor, in the order of its state dict."""
    sources = {(tensor.layer, tensor.local): tensor for tensor in layer_tensors(source)}
    targets = layer_tensors(target)
    writer: dict[int, str] = {}  # of a tensor with several names, the one that counts: the first with a counterpart
    for tensor in sorted(targets, key=lambda t: (partner.get(t.layer), t.local) not in sources):
        writer.setdefault(id(tensor.tensor), tensor.name)
    for tensor in targets:
        name, shape = tensor.name, tuple(tensor.tensor.shape)
        found = sources.get((partner.get(tensor.layer), tensor.local))
        if writer[id(tensor.tensor)] != name:  # its elements are counted once
            yield Entry(name, (0,), LEFT, reason=f"the same tensor as {writer[id(tensor.tensor)]}")
        elif mode == "paper" and not isinstance(tensor.tensor, nn.Parameter):
            yield Entry(name, shape, LEFT, reason="a buffer, which paper mode does not copy")
        elif tensor.layer in kept:
            yield Entry(name, shape, LEFT, reason=kept[tensor.layer])
        elif tensor.layer not in partner:
            yield Entry(name, shape, LEFT, reason="no source layer matched")
        elif found is None:
            yield Entry(name, shape, LEFT, reason=f"{partner[tensor.layer] or 'the source'} has no {tensor.local}")
        elif found.tensor.dim() != len(shape):
            yield Entry(name, shape, LEFT, reason=f"{found.name} has {found.tensor.dim()} dimensions")
        else:
            yield _filled(tensor, found)


def _filled(target: LayerTensor, source: LayerTensor) -> Entry:
    shape, source_shape = tuple(target.tensor.shape), tuple(source.tensor.shape)
    filled, elements = prod(map(min, shape, source_shape)), prod(shape)
    action = COPIED if shape == source_shape else CROPPED if filled == elements else PARTLY
    return Entry(target.name, shape, action, filled, source.name, source_shape)


def _inside(tensor: str, name: str) -> bool:
    """Is a tensor the one of this name, or part of the module of this name?"""
    return tensor == name or tensor.startswith(f"{name}.")


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
