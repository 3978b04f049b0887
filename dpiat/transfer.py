"""Moving the weights: a plan that says what every target tensor will receive, and its application (section 3.4)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dpiat.assignment import MATCHINGS, Matcher, check_matching
from dpiat.operators import OPERATORS, Index, Indices, Operator, Weights, clip, fractional, is_centred, is_table
from dpiat.parametrized import assign, originals, solved
from dpiat.report import COPIED, CROPPED, LEFT, PARTLY, Entry, Report, times
from dpiat.roles import (
    CLASSES,
    HEADS,
    INPUTS,
    SKIPPED,
    UNMATCHED,
    ChosenClasses,
    adapt_inputs,
    other_inputs,
    seen,
    treat_heads,
)
from dpiat.sources import Source, first_line, load
from dpiat.standardization import MODES, LayerWeights, Network, known_kind, read
from dpiat.stored import Stored
from dpiat.writing import Write, check, check_optimizers, move_state, put

if TYPE_CHECKING:
    from pandas import DataFrame

FORMAT = "dpiat plan 3"  # of the text that keeps a plan
DROPPED = "dropped"
# Those of Table 12.
PAPER_NAMES = {
    "ClipTransfer": "clip",
    "ClipWithNormalization": "clip_normalized",
    "ClipWithNormalizationTransfer": "clip_normalized",
    "FullTransfer": "full",
    "MagnitudeTransfer": "magnitude",
    "DPMatching": "dp",
    "RandomMatching": "random",
    "BipartiteMatching": "bipartite",
    "NBipartiteMatching": "nbipartite",
}


def transfer(
    source: Source,
    target: nn.Module,
    mode: str = "default",
    head: str | Mapping[int, int] = "auto",
    matching: str | Matcher = "dp",
    operator: str | Operator = "clip",
    optimizer: tuple[Optimizer, Optimizer] | None = None,
) -> Report:
    """Initialize `target` with the knowledge of `source`, a trained network of another architecture.

    Matches the layers of both by dynamic programming on their weight shapes, then copies the centre crop of every
    matched tensor, in place; of an embedding, the rows from the first one. Tensors without a counterpart keep their
    values. `source` is not modified; nor are devices, dtypes, requires_grad and the training flag of either.

    `source` is a module, a state dict, the path of one (.pt, .pth, .bin), or a timm name, which brings its pretrained
    weights. Of a state dict the kinds of layers are what the shapes tell; the groups of its convolutions are not known.
    A .safetensors file is taken if its tensors have the names of `target`'s, or if `dpiat transfer` wrote it; of others
    `dpiat.load` makes a module, if you name their network.

    mode="default" also carries the running statistics of batch norms and the weights of layers that the paper does
    not treat, so that a network transferred to itself stays the same function; it knows groups, strides, stacked
    projections, and other numbers of input channels. mode="paper" is the authors' algorithm: weights and biases of
    convolutions, linear layers and batch norms by their shapes alone, a classifier like any other layer.

    head="auto" fills the classifier (a linear layer or a 1 × 1 convolution with no weights after it) only from a
    classifier of as many classes, matched or not; "skip" never; "copy" also like any other layer, cropped rows of other
    classes included, as both do in paper mode; a mapping {target class: source class} fills the classes that it names.
    The heads beside it that see the same inputs (boxes, a distillation token) and auxiliary classifiers of as many
    classes follow the same rule, except in paper mode. Heads of other kernels or elsewhere are like any other layer. A
    head that is tied to an embedding is filled as that is, by the numbers of its tokens, unless it is skipped.

    `matching` is "dp", "bipartite", "nbipartite", "random", or a function of two architectures, source and target,
    that gives a `Matching`; `operator` is "clip", "clip_normalized", "full", "magnitude", "uniform", or a function (see
    `dpiat.operators`); the names of the paper's Table 12 will do too. `optimizer`, the source's and the target's, also
    moves the state of Adam or SGD.

    A weight that is computed from others (torch.nn.utils.parametrize, weight_norm, spectral_norm, pruning) comes as
    near to what it receives as they can bring it.

    Returns a report with one entry for each target tensor. Raises TypeError if an argument is of another type,
    ValueError for an unknown name, lazy parameters, weights that cannot be read or written (on the meta device, shared
    with the source, ...), or a file that holds no weights. Then nothing is written.

        >>> from dpiat import transfer
        >>> report = transfer(trained, new)
        >>> print(report.summary())
    """
    planned, writes = _plan(source, target, mode, head, matching, operator)
    return planned._carry_out(writes, optimizer)


def plan(
    source: Source,
    target: nn.Module,
    mode: str = "default",
    head: str | Mapping[int, int] = "auto",
    matching: str | Matcher = "dp",
    operator: str | Operator = "clip",
) -> Plan:
    """What `transfer` with these arguments would do. Changes nothing, and works on the meta device."""
    return _plan(source, target, mode, head, matching, operator)[0]


def _plan(source, target, mode, head, matching, operator) -> tuple[Plan, list[Write]]:
    """The plan, and what it takes to carry it out while the networks are as they are."""
    if not isinstance(target, nn.Module):
        raise TypeError(f"target must be a torch.nn.Module, got {type(target).__name__}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if not isinstance(head, Mapping) and head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)} or {{target class: source class}}, got {head!r}")
    if isinstance(head, Mapping):
        head = {_class(target): _class(source) for target, source in head.items()}
    matcher, operator = _chosen("matching", matching, MATCHINGS), _chosen("operator", operator, OPERATORS)
    source = load(source, like=target)
    giver, taker = _read(source, target, mode)
    architectures = giver.architecture, taker.architecture
    matched = matcher(*architectures)
    if matcher not in MATCHINGS.values():
        check_matching(matched, *architectures)
    partner = {pair.target.name: pair.source.name for pair in matched.layers}
    kept, mapped = treat_heads(*architectures, partner, head, mode)
    rules = dict.fromkeys(mapped, CLASSES)
    if mode == "default":
        rules |= dict.fromkeys(other_inputs(giver, taker, partner), INPUTS)
    planned = Plan(source, target, Report(()), mode, operator, head if isinstance(head, Mapping) else {})
    found = list(planned._entries(giver.weights, taker.weights, partner, kept, rules))
    report = Report(tuple(entry for entry, _ in found))
    return replace(planned, report=report), [write for _, write in found if write]


def _read(source: nn.Module, target: nn.Module, mode: str) -> tuple[Network, Network]:
    shapes_alone = isinstance(source, Stored)
    return read(source, mode, shapes_alone), read(target, mode, shapes_alone)


def _class(number: Any) -> int:
    try:
        return index(number)
    except TypeError as error:
        raise TypeError(f"head maps classes by their numbers, got {number!r}") from error


def _chosen(key: str, value: Any, known: Mapping[str, Any]) -> Any:
    """One of ours by its name or the paper's, or a function of the user's."""
    if isinstance(value, str) and PAPER_NAMES.get(value, value) in known:
        return known[PAPER_NAMES.get(value, value)]
    if not callable(value):
        raise ValueError(f"{key} must be one of {', '.join(known)}, or a function, got {value!r}")
    return value


@dataclass(frozen=True)
class Plan:
    """A transfer that has not happened yet: `print()` shows it, `apply()` carries it out.

    It can be changed first (`drop`, `pair`) and kept as text (`to_json`, `from_json`). A changed plan is a new one.
    """

    source: nn.Module
    target: nn.Module
    report: Report
    mode: str = "default"
    operator: Operator = clip
    classes: Mapping[int, int] = field(default_factory=dict)  # target class -> source class

    def apply(self, optimizer: tuple[Optimizer, Optimizer] | None = None) -> Report:
        """Write the weights into the target, in place, and return the report. The source is only read.

        With `optimizer`, the source's and the target's, the state of the parameters that are written moves too.

        Nothing is written unless everything can be. Raises ValueError if the target's tensors, or which of them are
        one, are no longer those of the plan, if a tensor that takes part is on the meta device, no longer has the shape
        it was planned with, or cannot be written, or if the state of the source's optimizer means nothing to the
        target's.
        """
        source, target = _read(self.source, self.target, self.mode)
        found = list(self._again(source, target))
        now = replace(self, report=Report(tuple(entry for entry, _ in found)))
        return now._carry_out([write for _, write in found if write], optimizer)

    @torch.no_grad()
    def _carry_out(self, writes: Sequence[Write], optimizer: tuple[Optimizer, Optimizer] | None) -> Report:
        itself = self.source is self.target
        check(writes, None if itself else self.source, finished=hasattr(self.operator, "finish"))
        if optimizer is not None:
            check_optimizers(writes, optimizer, (self.source, self.target))
        computed, direct = [], []
        for write in writes:
            (computed if write.local in originals(write.to.module) else direct).append(write)
        for write in computed:  # into tensors of their own
            put(write.target, write.source, write.index)
        values = [solved(write.to.module, write.local, write.target, write.by.module) for write in computed]
        sources = [write.source.clone() if itself else write.source for write in direct]
        for write, source in zip(direct, sources, strict=True):
            put(write.target, source, write.index)
        if hasattr(self.operator, "finish"):
            for written in self._written(writes):
                self.operator.finish(written)
            values = [solved(write.to.module, write.local, write.target, write.by.module) for write in computed]
        for write, value in zip(computed, values, strict=True):
            assign(write.to.module, write.local, value)
        if optimizer is not None:
            move_state(writes, *optimizer)
        return self.report

    def _written(self, writes: Iterable[Write]) -> Iterator[Weights]:
        """The layers that an operator may finish: what it wrote of each, and in paper mode all that was not dropped."""
        left = {
            e.target for e in self.report.entries if e.action == LEFT and (self.mode != "paper" or e.note == DROPPED)
        }
        for layer in {write.to.name: write.to for write in writes}.values():
            target = seen(layer, layer, self.mode)[1]
            yield target._replace(tensors={k: t for k, t in target.tensors.items() if layer.path(k) not in left})

    def _again(self, source: Network, target: Network) -> Iterator[tuple[Entry, Write | None]]:
        """As `_entries`, by those of the plan, which may come from a text, have been edited, or no longer be so."""
        given, wanted = _by_path(source.weights), _by_path(target.weights)
        planned, there = Counter(entry.target for entry in self.report.entries), Counter(list(wanted))
        if differ := (planned - there) + (there - planned):
            raise ValueError(f"the target and the plan do not have {min(differ)} alike: make a new plan")
        written: dict[int, str] = {}
        layers: dict[tuple[str, ...], dict[str, tuple[Entry, Write | None]]] = {}
        for entry in self.report.entries:
            to, local = wanted[entry.target]
            if entry.action == LEFT:
                tensor, owner = to.tensors[local], wanted.get(entry.shared or entry.target)
                if owner is None or owner[0].tensors[owner[1]] is not tensor:
                    raise ValueError(f"{entry.target} is not the same tensor as {entry.shared}: make a new plan")
                shape = (0,) if entry.shared else tuple(tensor.shape)
                yield Entry(entry.target, shape, LEFT, note=entry.note, shared=entry.shared), None
                continue
            _found(wanted, entry.target, entry.shape)
            by, theirs = _found(given, entry.source, entry.source_shape)
            if theirs != local or len(entry.shape) != len(entry.source_shape):
                raise ValueError(f"{entry.source} is no counterpart of {entry.target}: make a new plan")
            key = to.name, by.name, entry.rule
            if key not in layers:
                layers[key] = {now.target: (now, write) for now, write in self._filled(by, to, entry.rule)}
            now, write = layers[key][entry.target]
            if write is None:
                raise ValueError(f"{entry.target} cannot be filled ({now.note}): make a new plan")
            if (first := written.setdefault(id(write.target), entry.target)) != entry.target:
                raise ValueError(f"{entry.target} is now the same tensor as {first}: make a new plan")
            yield now, write

    def _route(self, by: LayerWeights, to: LayerWeights, rule: str) -> _Route:
        source, target = seen(by, to, self.mode)
        operator = ChosenClasses(self.classes) if rule == CLASSES else self.operator
        if rule == INPUTS:
            weight = adapt_inputs(by.tensors["weight"], to.tensors["weight"].shape[1])
            source = source._replace(tensors={**by.tensors, "weight": weight})
        elif operator is clip and is_centred(source, target):
            return _Route(source.tensors, None)
        indices = operator(source, target)
        if operator not in OPERATORS.values():
            _check_indices(indices, source, to, by)
        return _Route(source.tensors, indices)

    def _entries(
        self,
        sources: Iterable[LayerWeights],
        targets: Sequence[LayerWeights],
        partner: Mapping[str, str],
        kept: Mapping[str, str],
        rules: Mapping[str, str],
    ) -> Iterator[tuple[Entry, Write | None]]:
        """One entry for each target tensor, in the order of its state dict, and what it takes to carry it out."""
        given = {layer.name: layer for layer in sources}
        partners = [given.get(partner.get(layer.name)) for layer in targets]
        writer = _writers(targets, partners)
        held = _held(targets, partners, kept) if writer else {}
        for to, by in zip(targets, partners, strict=True):
            rule, reason = rules.get(to.name, ""), kept.get(to.name) or ("" if by else "no source layer matched")
            found = _left(to, reason) if reason else self._filled(by, to, rule)
            for (entry, write), tensor in zip(found, to.tensors.values(), strict=True):
                if writer.get(id(tensor), entry.target) != entry.target:  # its elements are counted once
                    if rule == CLASSES:
                        raise ValueError(f"head maps classes, and {entry.target} is {writer[id(tensor)]} as well")
                    entry, write = Entry(entry.target, (0,), LEFT, shared=writer[id(tensor)]), None
                elif write and id(tensor) in held:
                    entry, write = Entry(entry.target, entry.shape, LEFT, note=held[id(tensor)]), None
                yield entry, write

    def _filled(self, by: LayerWeights, to: LayerWeights, rule: str = "") -> Iterator[tuple[Entry, Write | None]]:
        """As `_entries`, for a target layer that has a source layer."""
        route = self._route(by, to, rule)
        indices = route.indices
        for local, t in to.tensors.items():
            name, shape, s = to.path(local), tuple(t.shape), by.tensors.get(local)
            if self.mode == "paper" and local in to.module._buffers:
                reason = "a buffer, which paper mode does not copy"
            elif s is None:
                reason = f"{by.name or 'the source'} has no {local}"
            elif s.dim() != len(shape):
                reason = f"{by.path(local)} has {s.dim()} dimensions"
            elif indices is not None and local not in indices:
                reason = "the operator leaves it"
            elif s.layout != torch.strided or t.layout != torch.strided:
                reason = "sparse tensors are not treated"
            elif s.is_quantized or t.is_quantized:
                reason = "quantized tensors are not treated"
            elif (odd := _odd(type(s)) or _odd(type(t))) and (type(s) is not type(t) or s.shape != t.shape):
                reason = f"tensors of class {odd} are filled by their like of equal shape alone"
            elif s.shape != t.shape and not fractional(t):
                reason = f"{_dtype(t)} values are no weights that could be cropped"
            elif s.dtype != t.dtype and not (fractional(s) == fractional(t) and torch.can_cast(s.dtype, t.dtype)):
                reason = f"{_dtype(s)} values do not fit {_dtype(t)}"
            else:
                source_shape = tuple(s.shape)
                filled = prod(map(min, source_shape, shape)) if indices is None else _count(t, indices[local][0])
                action = PARTLY if filled < t.numel() else COPIED if shape == source_shape else CROPPED
                entry = Entry(name, shape, action, filled, by.path(local), source_shape, _cast(s, t), rule)
                yield entry, Write(to, by, local, *route.part(local))
                continue
            yield Entry(name, shape, LEFT, note=reason), None

    def drop(self, name: str) -> Plan:
        """The plan without a layer, a block or a tensor of the target, given by its name: it keeps its values.

        Raises ValueError if the target has nothing of this name.

            >>> plan(source, target).drop("classifier").apply()
        """
        chosen = [e for e in self.report.entries if e.target == name or e.target.startswith(f"{name}.")]
        if not chosen:
            raise ValueError(f"the target has no {name!r}: print the plan to see its names")
        shared = {entry.shared for entry in chosen}
        chosen += [entry for entry in self.report.entries if entry.target in shared]
        return self._with(Entry(e.target, e.shape, LEFT, note=DROPPED, shared=e.shared) for e in chosen)

    def pair(self, source: str, target: str) -> Plan:
        """The plan with a layer of the target filled from a layer of the source of your choice, given by their names.

        Raises ValueError if one has no such layer or no tensor of the target layer fits.
        """
        found = []
        networks = _read(self.source, self.target, self.mode)
        for role, network, name in zip(("source", "target"), networks, (source, target), strict=True):
            found.append(next((layer for layer in network.weights if layer.name == name), None))
            if found[-1] is None:
                raise ValueError(f"the {role} has no layer {name!r} with weights: print the plan to see its names")
        by, to = found
        rule = INPUTS if self.mode == "default" and other_inputs(*networks, {target: source}) else ""
        entries = [entry for entry, write in self._filled(by, to, rule) if write]
        if not entries:
            raise ValueError(f"no tensor of {target!r} has one of as many dimensions in {source!r}")
        # A shared tensor is written under the one of its names that has its elements.
        aliases = {entry.target: entry.shared for entry in self.report.entries if entry.shared}
        return self._with(entry._replace(target=aliases.get(entry.target, entry.target)) for entry in entries)

    def _with(self, entries: Iterable[Entry]) -> Plan:
        """The plan with these entries in place of those of the same target tensors."""
        new = {entry.target: entry for entry in entries}
        return replace(self, report=Report(tuple(new.get(e.target, e) for e in self.report.entries)))

    def to_json(self) -> str:
        """The plan as text, without the networks and their weights."""
        operator = next((name for name, known in OPERATORS.items() if known == self.operator), None)
        head = {"format": FORMAT, "mode": self.mode, "operator": operator, "classes": list(self.classes.items())}
        return json.dumps({**head, "entries": [entry._asdict() for entry in self.report.entries]}, indent=1)

    @classmethod
    def from_json(cls, text: str, source: Source, target: nn.Module, operator: Operator | None = None) -> Plan:
        """A plan that was kept as text, for networks with the tensors that it names.

        A plan with an operator of your own needs it again. Raises ValueError if the text is no plan. What no longer
        fits, `apply` refuses.
        """
        try:
            kept = json.loads(text)
            if kept["format"] != FORMAT:
                raise ValueError(f"its format is {kept['format']!r}, not {FORMAT!r}")
            shapes = ("shape", "source_shape")
            entries = [Entry(**{k: tuple(v) if k in shapes else v for k, v in row.items()}) for row in kept["entries"]]
            if wrong := {entry.action for entry in entries} - {COPIED, CROPPED, PARTLY, LEFT}:
                raise ValueError(f"there is no action {wrong.pop()!r}")
            if wrong := {entry.rule for entry in entries} - {"", INPUTS, CLASSES}:
                raise ValueError(f"there is no rule {wrong.pop()!r}")
            operator = operator or OPERATORS.get(kept["operator"])
            mode, classes = kept["mode"], dict(kept["classes"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a plan that to_json wrote ({error})") from error
        if operator is None:
            raise ValueError("the plan was made with an operator of your own: pass it as operator=")
        return cls(load(source, like=target), target, Report(tuple(entries)), mode, operator, classes)

    def to_dataframe(self) -> DataFrame:
        """A row for each target tensor. Needs pandas."""
        return self.report.to_dataframe()

    def __str__(self) -> str:
        return str(self.report)


class _Route(NamedTuple):
    """What goes from a source layer to a target layer: its tensors, and where they go; None for their centre crops."""

    tensors: Mapping[str, Tensor]
    indices: Indices | None

    def part(self, local: str) -> tuple[Tensor, tuple[Index, Index] | None]:
        """A tensor and where it goes."""
        return self.tensors[local], None if self.indices is None else self.indices[local]


def _left(to: LayerWeights, reason: str) -> Iterator[tuple[Entry, None]]:
    for local, tensor in to.tensors.items():
        yield Entry(to.path(local), tuple(tensor.shape), LEFT, note=reason), None


def _writers(targets: Sequence[LayerWeights], partners: Iterable[LayerWeights | None]) -> dict[int, str]:
    """The name that counts of each tensor that has several: the first with a counterpart. Others are not in it."""
    tensors = [id(tensor) for to in targets for tensor in to.tensors.values()]
    if len(set(tensors)) == len(tensors):
        return {}
    names: dict[int, list[tuple[bool, str]]] = {}
    for to, by in zip(targets, partners, strict=True):
        for local, tensor in to.tensors.items():
            names.setdefault(id(tensor), []).append((by is None or local not in by.tensors, to.path(local)))
    return {key: min(found, key=lambda each: each[0])[1] for key, found in names.items() if len(found) > 1}


def _held(
    targets: Sequence[LayerWeights], partners: Iterable[LayerWeights | None], kept: Mapping[str, str]
) -> dict[int, str]:
    """The tensors that a classifier keeps as they are, under all of their names, each with the reason.

    Not those of an embedding that is filled: the numbers of its tokens are those of the classes.
    """
    filled = [to for to, by in zip(targets, partners, strict=True) if by and is_table(known_kind(type(to.module)))]
    tokens = {id(tensor) for to in filled for tensor in to.tensors.values()}
    reasons = ((to, reason) for to in targets if (reason := kept.get(to.name, UNMATCHED)) != UNMATCHED)
    held = {id(tensor): reason for to, reason in reasons for tensor in to.tensors.values()}
    return {key: reason for key, reason in held.items() if reason == SKIPPED or key not in tokens}


Place = tuple[LayerWeights, str]  # a layer, and the name of a tensor in it


def _by_path(layers: Iterable[LayerWeights]) -> dict[str, Place]:
    """The place of every tensor by its name in the state dict."""
    return {layer.path(local): (layer, local) for layer in layers for local in layer.tensors}


def _found(places: Mapping[str, Place], name: str, shape: tuple[int, ...]) -> Place:
    layer, local = places.get(name, (None, ""))
    if layer is None or layer.tensors[local].shape != shape:
        now = "is gone" if layer is None else f"now has shape {times(tuple(layer.tensors[local].shape))}"
        raise ValueError(f"{name} {now}; it was planned with {times(shape)}: make a new plan")
    return layer, local


def _check_indices(indices: Any, source: Weights, to: LayerWeights, by: LayerWeights) -> None:
    """Raise TypeError or ValueError for what an operator of the user's must not return."""
    if not isinstance(indices, Mapping):
        raise TypeError(
            f"an operator must return {{tensor: (target index, source index)}}, got {type(indices).__name__}"
        )
    for local, pair in indices.items():
        try:
            ours, theirs = pair
            shapes = _part(to.tensors[local], ours).shape, _part(source.tensors[local], theirs).shape
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"the operator's indices for {to.path(local)} do not fit ({first_line(error)})") from error
        if shapes[0] != shapes[1]:
            chosen = " and ".join(times(tuple(shape)) for shape in shapes)
            raise ValueError(
                f"the operator's indices choose {chosen} elements of {to.path(local)} and {by.path(local)}"
            )
        written = torch.zeros(to.tensors[local].shape, dtype=torch.bool, device="cpu")
        written[ours] = True
        if int(written.sum()) < prod(shapes[0]):
            raise ValueError(f"the operator's indices choose an element of {to.path(local)} more than once")


def _part(tensor: Tensor, index: Index) -> Tensor:
    """What an index chooses of a tensor, but for the values: what is out of its bounds shows."""
    return torch.zeros((), dtype=torch.bool, device="cpu").expand(tensor.shape)[index]


def _count(tensor: Tensor, index: Index) -> int:
    """The number of elements that an index chooses."""
    return torch.empty(tensor.shape, device="meta")[index].numel()


@cache
def _odd(cls: type[Tensor]) -> str:
    """The name of a class of tensors that does by itself what is done with tensors, such as a DTensor, or ""."""
    return "" if cls.__torch_dispatch__ is Tensor.__torch_dispatch__ else cls.__name__


def _cast(source: Tensor, target: Tensor) -> str:
    return f"{_dtype(source)} → {_dtype(target)}" if source.dtype != target.dtype else ""


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
