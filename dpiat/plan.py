"""A transfer that has not happened yet: what every target tensor will receive, and its application (section 3.4)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dpiat.branches import joined, split
from dpiat.checking import Networks
from dpiat.filling import (
    CLASSES,
    FOLDED,
    INPUTS,
    OF_THE_NETWORK,
    RULE_AND_RULE,
    RULES,
    Route,
    Settings,
    route,
    unfilled,
    weights_of,
)
from dpiat.heads import SKIPPED, UNMATCHED, other_inputs
from dpiat.layers import CONSTANT
from dpiat.new import identity
from dpiat.operators import OPERATORS, Index, Indices, Operator, Weights, centre, clip, fractional, is_table
from dpiat.parametrized import assign, originals, solved
from dpiat.reading import Mode, read
from dpiat.recipe import BEST, Recipe
from dpiat.report import ACTIONS, COPIED, CROPPED, IDENTITY, LEFT, NOTHING, PARTLY, WARNING, ZERO, Entry, Report, times
from dpiat.roles import PROJECTED
from dpiat.sources import Source, did_you_mean, load
from dpiat.standardization import LayerTensors, Network
from dpiat.stored import Stored
from dpiat.webpage import page
from dpiat.writing import Write, check, check_optimizers, move_state, put

if TYPE_CHECKING:
    from pandas import DataFrame

FORMAT = "dpiat plan 5"  # of the text that keeps a plan
DROPPED, NO_PARTNER = "dropped", "no source layer matched"
PRINT = "print the plan to see its names"
STRIDED = torch.strided
USUAL = Tensor, nn.Parameter  # classes of tensors that leave nothing to ask

Place = tuple[LayerTensors, str]  # a layer, and the name of a tensor in it
Classes = Mapping[str, Mapping[int, int]]  # of each classifier of the target, target class -> source class


def read_both(source: nn.Module, target: nn.Module, mode: str, recipe: Recipe = BEST) -> tuple[Network, Network]:
    """Both networks; by their shapes alone if the source is a state dict."""
    found = _read_both(source, target, mode)
    return found if recipe.merge or mode == "paper" else tuple(map(split, found))


def _read_both(source: nn.Module, target: nn.Module, mode: str) -> tuple[Network, Network]:
    if not isinstance(source, Stored):
        return read(source, mode), read(target, mode)
    # Kinds of a state dict follow from shapes, so that those of the target must too: layers of other kinds never match.
    # No shape tells how wide the heads of an attention are. They are as wide as the target's: nearly all are 64.
    wanted = read(target, mode, True)
    headed = next((layer for layer in wanted.layers if layer.heads and not layer.plain.role.endswith(PROJECTED)), None)
    return read(source, mode, True, headed.plain.shape[0] // headed.heads if headed else 0), wanted


class Outcome(NamedTuple):
    """What happens to a tensor of a target layer, which may be a part of a stored tensor."""

    to: LayerTensors
    local: str
    note: str = ""
    write: Write | None = None
    by: LayerTensors | None = None  # the source layer
    theirs: str = ""  # the name of the tensor in the source layer
    filled: int = 0
    copied: bool = False
    rule: str = ""
    zeros: int = 0


class Treatment(NamedTuple):
    """What happens to a target layer, and why.

    Attributes:
        by: The source layer that is its partner.
        kept: Why it keeps its values, though it may have a partner.
        rule: The rule that fills it in the operator's place.
        unmatched: Why it has no partner.
        silent: Why it is to be zero.
        passing: Why it is to be the identity.
    """

    by: LayerTensors | None = None
    kept: str = ""
    rule: str = ""
    unmatched: str = NO_PARTNER
    silent: str = ""
    passing: str = ""


@dataclass(frozen=True)
class Plan:
    """A transfer that has not happened yet: `print()` shows it, `apply()` carries it out.

    A plan can be changed first (`drop`, `pair`), kept as text (`to_json`, `from_json`) and looked at (`to_html`). A
    changed plan is a new one.

    Attributes:
        source: The network that gives.
        target: The network that receives.
        report: What each tensor of the target would receive.
        mode: "default" or "paper".
        operator: Which entries fill which.
        classes: For each classifier of the target that `head` names: {target class: source class}.
        recipe: The ideas of the default mode that the plan follows.

    Examples:
        >>> planned = plan(source, target).drop("classifier")
        >>> report = planned.apply()
    """

    source: nn.Module
    target: nn.Module
    report: Report
    mode: Mode = "default"
    operator: Operator = clip
    classes: Classes = field(default_factory=dict)
    recipe: Recipe = BEST

    def apply(self, optimizer: tuple[Optimizer, Optimizer] | None = None) -> Report:
        """Write the weights into the target, in place. The source is only read.

        Nothing is written unless everything can be.

        Args:
            optimizer: The source's and the target's optimizer: the state of the parameters that are written moves too.

        Returns:
            What each tensor of the target received.

        Raises:
            ValueError: If the target's tensors, or which of them are one, are no longer those of the plan. If a tensor
                that takes part is on the meta device, no longer has the shape it was planned with, or cannot be
                written. If the state of the source's optimizer means nothing to the target's.

        Examples:
            >>> report = plan(source, target).apply(optimizer=(source_adam, target_adam))
        """
        source, target = read_both(self.source, self.target, self.mode, self.recipe)
        found = list(self._again(source, target))
        now = replace(self, report=replace(self.report, entries=tuple(entry for entry, _ in found)))
        return now.carry_out([write for _, writes in found for write in writes], optimizer)

    def writes(self, source: Network, target: Network) -> list[Write]:
        """The writes that carry the plan out, for the networks as they are now."""
        return [write for _, writes in self._again(source, target) for write in writes]

    @torch.no_grad()
    def carry_out(self, writes: Sequence[Write], optimizer: tuple[Optimizer, Optimizer] | None) -> Report:
        """Write the `writes` of this plan. The networks must not have changed since these were made."""
        # All checks come first, and weights that are computed from others are solved before anything is written: so a
        # transfer that fails leaves the target as it was. Where source and target are one network, values are cloned
        # first: a tensor may be written before another one reads it.
        itself = self.source is self.target
        check(writes, None if itself else self.source, finished=hasattr(self.operator, "finish"))
        if optimizer is not None:
            check_optimizers(writes, optimizer, (self.source, self.target))
        computed: dict[tuple[int, str], Write] = {}  # weights that are computed from others: one write for each weight
        direct = []
        for write in writes:
            if (own := write.to.name_in_module(write.local)) in originals(write.to.module):
                put(write.target, write.source, write.places, write.zeros)  # into a value that nobody else holds
                computed[id(write.to.module), own] = write
            else:
                direct.append(write)
        values = [_solved(write) for write in computed.values()]
        sources = [write.source.clone() if itself else write.source for write in direct]
        for write, source in zip(direct, sources, strict=True):
            put(write.target, source, write.places, write.zeros)
        if hasattr(self.operator, "finish"):
            for written in self._written(writes):
                self.operator.finish(written)
            values = [_solved(write) for write in computed.values()]
        for (_, own), write, value in zip(computed, computed.values(), values, strict=True):
            assign(write.to.module, own, value)
        if optimizer is not None:
            move_state(writes, *optimizer)
        return replace(self.report, networks=Networks(self.source, self.target))

    def _written(self, writes: Iterable[Write]) -> Iterator[Weights]:
        """The layers that an operator may finish, with the tensors it wrote; in paper mode, all but dropped tensors."""
        left = {
            e.target for e in self.report.entries if e.action == LEFT and (self.mode != "paper" or e.note == DROPPED)
        }
        for layer in {write.to.name: write.layer or write.to for write in writes}.values():
            target = weights_of(layer, self.mode)
            yield target._replace(tensors={k: t for k, t in target.tensors.items() if layer.path(k) not in left})

    def _again(self, source: Network, target: Network) -> Iterator[tuple[Entry, list[Write]]]:
        """The entries of this plan and their writes, for the networks as they are now.

        The plan may come from a text or have been edited, and the networks may have changed since: whatever does not
        fit raises ValueError.
        """
        given, wanted = self._given(source), _places(target.layers)
        planned, there = Counter(entry.target for entry in self.report.entries), Counter(list(wanted))
        if differ := (planned - there) + (there - planned):
            raise ValueError(f"the target and the plan do not have {min(differ)} alike: make a new plan")
        written: dict[int, str] = {}
        layers: dict[tuple[str, str, str], list[Outcome]] = {}
        for entry in self.report.entries:
            places = wanted[entry.target]
            stored = places[0][0].stored(places[0][1])
            if entry.action == LEFT:
                others = wanted.get(entry.shared or entry.target)
                if others is None or others[0][0].stored(others[0][1]) is not stored:
                    raise ValueError(f"{entry.target} is not the same tensor as {entry.shared}: make a new plan")
                shape = (0,) if entry.shared else tuple(stored.shape)
                yield Entry(entry.target, shape, LEFT, note=entry.note, shared=entry.shared), []
                continue
            if tuple(stored.shape) != entry.shape:
                raise ValueError(_changed(entry.target, tuple(stored.shape), entry.shape))
            if entry.action in (ZERO, IDENTITY):
                yield entry, [(_nothing_at if entry.action == ZERO else _itself_at)(*place) for place in places]
                continue
            outcomes = self._repeated(entry, places, given, layers)
            if (first := written.setdefault(id(stored), entry.target)) != entry.target:
                raise ValueError(f"{entry.target} is now the same tensor as {first}: make a new plan")
            now = _entry(entry.target, outcomes)
            yield now._replace(note=entry.note or now.note) if NOTHING in entry.parts else now, _writes(outcomes)

    def _given(self, source: Network) -> dict[str, Place]:
        """The pieces of the source by name, and the layers that its branches make where an entry names one."""
        pieces = (piece for entry in self.report.entries for piece in entry.parts or (entry.source,))
        named = {piece.rpartition(".")[0] for piece in pieces}
        return _pieces([*source.layers, *joined(source, named)])

    def _repeated(
        self,
        entry: Entry,
        places: Sequence[Place],
        given: Mapping[str, Place],
        layers: dict[tuple[str, str, str], list[Outcome]],
    ) -> list[Outcome]:
        """What an entry says of each part of its tensor. `layers` keeps outcomes for the other tensors of a layer."""
        pieces = entry.parts or (entry.source,)
        if len(pieces) != len(places):
            raise ValueError(f"{entry.target} has {len(places)} parts, not {len(pieces)}: make a new plan")
        # Only a rule that the whole network tells is taken from the entry. The others follow from the two layers again.
        rule = next((rule for rule in entry.rule.split(RULE_AND_RULE) if rule in OF_THE_NETWORK), "")
        outcomes = []
        for (to, local), piece in zip(places, pieces, strict=True):
            if piece == NOTHING:
                outcomes.append(Outcome(to, local, DROPPED))
                continue
            by, theirs = given.get(piece, (None, ""))
            if by is None:
                raise ValueError(_changed(piece, None, entry.source_shape))
            now = tuple(by.stored(theirs).shape)
            if now != entry.source_shape and (not entry.parts or piece == _first(entry.parts)):
                raise ValueError(_changed(piece, now, entry.source_shape))
            if (theirs != local and FOLDED not in entry.rule.split(RULE_AND_RULE)) or (
                self.mode == "paper" and len(entry.shape) != len(entry.source_shape)
            ):
                raise ValueError(f"{entry.source} is no counterpart of {entry.target}: make a new plan")
            key = to.name, by.name, rule
            if key not in layers:
                layers[key] = list(self.filled(by, to, rule))
            outcome = next(each for each in layers[key] if each.local == local)
            if outcome.write is None:
                raise ValueError(f"{entry.target} cannot be filled ({outcome.note}): make a new plan")
            outcomes.append(outcome)
        return outcomes

    def entries(
        self, treatments: Mapping[str, Treatment], targets: Sequence[LayerTensors], order: Mapping[str, int]
    ) -> Iterator[tuple[Entry, list[Write]]]:
        """One entry for each target tensor, in the order of the state dict, with the writes that carry it out.

        `treatments` say what happens to the target layers, by their names. `order` is the place of each tensor's name
        in the state dict, where the layers are in another order.
        """
        # An entry is a stored tensor, and outcomes are of layers' tensors: a stacked `qkv` has three outcomes and one
        # entry, and a shared tensor has two entries, of which one counts. So outcomes are collected by stored tensor.
        writer = _writers(targets, treatments)
        held = _held(targets, treatments) if writer else {}
        found: dict[str, list[Outcome]] = {}
        for to in targets:
            for outcome in self._treated(to, treatments[to.name], writer):
                found.setdefault(to.path(outcome.local), []).append(outcome)
        for path in sorted(found, key=lambda path: order.get(path, len(order))) if order else found:
            outcomes = found[path]
            to, local = outcomes[0].to, outcomes[0].local
            key = id(to.stored(local)) if writer else 0
            if writer.get(key, path) != path:  # a shared tensor is counted under its other name
                if treatments[to.name].rule == CLASSES:
                    raise ValueError(f"head maps classes, and {path} is {writer[key]} as well")
                yield Entry(path, (0,), LEFT, shared=writer[key]), []
            elif key in held and any(outcome.write for outcome in outcomes):
                yield Entry(path, tuple(to.stored(local).shape), LEFT, note=held[key]), []
            else:
                yield _entry(path, outcomes), _writes(outcomes)

    def _treated(self, to: LayerTensors, treatment: Treatment, writer: Mapping[int, str]) -> Iterable[Outcome]:
        """What each tensor of a target layer receives. `writer` names the tensors that have several names."""
        reason = treatment.kept or ("" if treatment.by else treatment.unmatched)
        outcomes = _left(to, reason) if reason else self.filled(treatment.by, to, treatment.rule)
        if not (treatment.silent or treatment.passing):
            return outcomes
        if writer and not writer.keys().isdisjoint(id(to.stored(local)) for local in to.tensors):
            return outcomes  # another layer has the same tensor, and may not be new
        if treatment.silent:
            return _silenced(outcomes, treatment.silent, bias=not treatment.kept)
        return _passed(outcomes, treatment.passing)

    def filled(self, by: LayerTensors, to: LayerTensors, rule: str = "") -> Iterator[Outcome]:
        """What each tensor of a target layer receives from a source layer."""
        if closed := _closed(by, to):  # tensors that no operator can look into
            yield from (Outcome(to, local, why) for local, why in closed.items() if local in to.tensors)
            by, to = (layer.without(closed) for layer in (by, to))
        way = route(by, to, rule, self._settings)
        warning, counted = _warning(by, to), {}  # by index, as the vectors of a norm share one
        for local in to.tensors:
            t, s = way.target.tensors[local], way.source.tensors.get(local)
            alike = s is not None and s.shape == t.shape
            if reason := self._reason(by, to, local, s, t, alike, way.indices):
                yield Outcome(to, local, reason)
                continue
            index = None if way.indices is None else way.indices[local]
            size = t.numel()
            if index is None or way.crop:
                filled = size if alike else prod(map(min, s.shape, t.shape))
            elif (filled := counted.get(chosen := (id(index), t.shape))) is None:
                filled = counted[chosen] = _count(index[0], t)
            if not filled and size:
                yield Outcome(to, local, "nothing comes to its place")
                continue
            made, zeros = way.rules.get(local, ""), None if filled == size else self._zeros(way, local)
            notes = (warning, "" if s.dtype == t.dtype else _cast(s, t), "" if alike else _joined(by, to, t))
            yield Outcome(
                to,
                local,
                ", ".join(filter(None, notes)),
                Write(way.target, way.source, local, s, index, made not in ("", CLASSES), to, zeros),
                by,
                local if local in by.tensors else "weight",  # a bias may come from a norm that is folded in
                filled,
                alike and filled == size and made in ("", CLASSES),
                made,
                0 if zeros is None else _count(zeros, t) - filled,
            )

    @cached_property
    def _settings(self) -> Settings:
        return Settings(self.mode, self.operator, self.classes, self.recipe)

    def _reason(
        self,
        by: LayerTensors,
        to: LayerTensors,
        local: str,
        s: Tensor | None,
        t: Tensor,
        alike: bool,
        indices: Indices | None,
    ) -> str:
        """Why a tensor of a layer receives nothing; "" if it receives something."""
        if self.mode == "paper" and to.name_in_module(local) in to.module._buffers:
            return "a buffer, which paper mode does not copy"
        if s is None:
            return f"{by.name or 'the source'} has no {local}"
        if s.dim() != t.dim():
            return f"{by.path(local)} has {s.dim()} dimensions"
        if indices is not None and local not in indices:
            return "the operator leaves it"
        usual = (type(s) in USUAL and type(t) in USUAL) or (alike and type(s) is type(t))
        if not usual and (odd := _odd(type(s)) or _odd(type(t))):
            return f"tensors of class {odd} are filled by their like of equal shape alone"
        if s.dtype != t.dtype and not (fractional(s) == fractional(t) and torch.can_cast(s.dtype, t.dtype)):
            return f"{_dtype(s)} values do not fit {_dtype(t)}"
        if alike:
            return ""
        if not fractional(t):
            return f"{_dtype(t)} values are no weights that could be cropped"
        if to.plain is not None and to.plain.kind == CONSTANT:
            return "computed from the architecture, and not learned"
        return ""

    def _zeros(self, way: Route, local: str) -> Index | None:
        """The rows of a tensor that are filled in part, if they are to be zero elsewhere."""
        t = way.target.tensors[local]
        if not self.recipe.zeros or t.dim() < 2 or way.seen is None or not fractional(t):
            return None
        index = centre(way.source.tensors[local].shape, t.shape) if way.indices is None else way.indices[local]
        return unfilled(way.seen.axes_of(local), index, t)

    def drop(self, name: str) -> Plan:
        """The plan without a layer, a block or a tensor of the target, which keeps its values.

        Args:
            name: The name of a layer, a block or a tensor, as the plan prints it.

        Returns:
            A new plan.

        Raises:
            ValueError: If the target has nothing of this name.

        Examples:
            >>> plan(source, target).drop("classifier").apply()
        """
        chosen = [e for e in self.report.entries if e.target == name or e.target.startswith(f"{name}.")]
        if not chosen:
            parts = (entry.target.split(".") for entry in self.report.entries)
            known = (name for each in parts for name in accumulate(each, "{}.{}".format))  # "a", "a.b", "a.b.weight"
            raise ValueError(f"the target has no {name!r}: {did_you_mean(name, known, PRINT)}")
        shared = {entry.shared for entry in chosen}
        chosen += [entry for entry in self.report.entries if entry.target in shared]
        return self._with(Entry(e.target, e.shape, LEFT, note=DROPPED, shared=e.shared) for e in chosen)

    def pair(self, source: str, target: str) -> Plan:
        """The plan with a layer of the target filled from a layer of the source of your choice.

        Args:
            source: The name of a layer of the source. Of layers that are stacked in one, such as the query in
                "attn.qkv", the name is "attn.qkv[query]"; the name of the whole stands for all of them.
            target: The name of a layer of the target, likewise.

        Returns:
            A new plan.

        Raises:
            ValueError: If a network has no such layer, if the layers are stacks of different numbers, or if no tensor
                of the target layer fits.

        Examples:
            >>> plan(source, target).pair("conv_head", "conv_head").apply()
        """
        networks = read_both(self.source, self.target, self.mode, self.recipe)
        chosen = []
        for role, network, name in zip(("source", "target"), networks, (source, target), strict=True):
            found = [layer for layer in network.layers if name in (layer.name, layer.module_name)]
            if not found:
                hint = did_you_mean(name, (layer.name for layer in network.layers), PRINT)
                raise ValueError(f"the {role} has no layer {name!r} with weights: {hint}")
            chosen.append(found)
        if len(chosen[0]) != len(chosen[1]):
            counts = " and ".join(str(len(found)) for found in chosen)
            raise ValueError(f"{source!r} and {target!r} are {counts} layers: pair them one by one")
        outcomes: dict[str, list[Outcome]] = {}
        for by, to in zip(*chosen, strict=True):
            rule = INPUTS if self.mode == "default" and other_inputs(*networks, {to.name: by.name}) else ""
            for outcome in self.filled(by, to, rule):
                outcomes.setdefault(to.path(outcome.local), []).append(outcome)
        given, places = self._given(networks[0]), _places(networks[1].layers)
        before = {entry.target: entry for entry in self.report.entries}
        entries = []
        for path, now in outcomes.items():
            if any(outcome.write for outcome in now):
                new = {outcome.to.name: outcome for outcome in now}
                parts = _nothing(before[path], places[path])
                if parts is None and len(now) < len(places[path]):
                    parts = self._repeated(before[path], places[path], given, {})
                entries.append(_entry(path, [new.get(part.to.name, part) for part in parts or now]))
        if not entries:
            raise ValueError(f"no tensor of {target!r} has one of as many dimensions in {source!r}")
        # A shared tensor is written under the one of its names that has its elements.
        aliases = {entry.target: entry.shared for entry in self.report.entries if entry.shared}
        return self._with(entry._replace(target=aliases.get(entry.target, entry.target)) for entry in entries)

    def _with(self, entries: Iterable[Entry]) -> Plan:
        """The plan with these entries in place of the entries of the same target tensors."""
        new = {entry.target: entry for entry in entries}
        entries = tuple(new.get(e.target, e) for e in self.report.entries)
        return replace(self, report=replace(self.report, entries=entries))

    def to_json(self) -> str:
        """The plan as text, without the networks and their weights.

        Returns:
            JSON that `from_json` reads.
        """
        operator = next((name for name, known in OPERATORS.items() if known == self.operator), None)
        classes = {name: list(chosen.items()) for name, chosen in self.classes.items()}
        recipe = asdict(self.recipe)
        head = {"format": FORMAT, "mode": self.mode, "operator": operator, "classes": classes, "recipe": recipe}
        head["notes"] = list(self.report.notes)
        return json.dumps({**head, "entries": [entry._asdict() for entry in self.report.entries]}, indent=1)

    @classmethod
    def from_json(cls, text: str, source: Source, target: nn.Module, operator: Operator | None = None) -> Plan:
        """A plan that was kept as text, for networks with the tensors that the text names.

        Args:
            text: What `to_json` wrote.
            source: As of `transfer`.
            target: The network to fill.
            operator: The operator of a plan that was made with one of your own.

        Returns:
            The plan. What no longer fits the networks, `apply` refuses.

        Raises:
            ValueError: If the text is not a plan, or the plan needs an operator of your own.

        Examples:
            >>> Plan.from_json(Path("plan.json").read_text(), source, target).apply()
        """
        try:
            kept = json.loads(text)
            if kept["format"] != FORMAT:
                raise ValueError(f"its format is {kept['format']!r}, not {FORMAT!r}")
            plain = ("shape", "source_shape", "parts")
            entries = [Entry(**{k: tuple(v) if k in plain else v for k, v in row.items()}) for row in kept["entries"]]
            if wrong := {entry.action for entry in entries} - {*ACTIONS}:
                raise ValueError(f"there is no action {wrong.pop()!r}")
            if wrong := {rule for entry in entries for rule in entry.rule.split(RULE_AND_RULE)} - {"", *RULES}:
                raise ValueError(f"there is no rule {wrong.pop()!r}")
            operator = operator or OPERATORS.get(kept["operator"])
            mode, classes = kept["mode"], {name: dict(chosen) for name, chosen in kept["classes"].items()}
            recipe, notes = Recipe(**kept["recipe"]), tuple(kept["notes"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a plan that to_json wrote ({error})") from error
        if operator is None:
            raise ValueError("the plan was made with an operator of your own: pass it as operator=")
        report = Report(tuple(entries), notes)
        return cls(load(source, like=target), target, report, mode, operator, classes, recipe)

    def to_dataframe(self) -> DataFrame:
        """A row for each target tensor. Needs pandas.

        Returns:
            A `pandas.DataFrame` with the fields of `Entry`, `elements` and `share`.
        """
        return self.report.to_dataframe()

    def to_html(self, names: tuple[str, str] | None = None) -> str:
        """The plan as one HTML page that needs no other file: which block comes from which, what share, warnings.

        Args:
            names: The names of the source and of the target, in place of their classes'.

        Returns:
            The text of the page.

        Examples:
            >>> Path("report.html").write_text(plan(source, target).to_html(), encoding="utf-8")
        """
        source, target = read_both(self.source, self.target, self.mode, self.recipe)
        return page(self.report, source.architecture, target.architecture, names)

    def __str__(self) -> str:
        return str(self.report)


def _solved(write: Write) -> list[Tensor]:
    return solved(write.to.module, write.to.name_in_module(write.local), write.to.stored(write.local), write.by.module)


def _entry(path: str, outcomes: Sequence[Outcome]) -> Entry:
    """The entry of a stored tensor of the target, from the outcomes of its parts."""
    first = outcomes[0] if len(outcomes) == 1 else next((o for o in outcomes if o.write), outcomes[0])
    stored = first.to.stored(first.local)
    shape = tuple(stored.shape)
    if first.write is None:
        return Entry(path, shape, LEFT, note=first.note)
    if first.by is first.to and all(map(_is_silent, outcomes)):
        action = IDENTITY if first.rule == IDENTITY else ZERO
        return Entry(path, shape, action, note=first.note, zeros=sum(outcome.zeros for outcome in outcomes))
    source, source_shape = first.by.piece(first.theirs), tuple(first.by.stored(first.theirs).shape)
    if len(outcomes) == 1:
        action = PARTLY if first.filled < stored.numel() else COPIED if first.copied else CROPPED
        return Entry(path, shape, action, first.filled, source, source_shape, first.note, first.rule, zeros=first.zeros)
    filled = sum(outcome.filled for outcome in outcomes)
    copied = all(outcome.copied for outcome in outcomes)
    action = PARTLY if filled < stored.numel() else COPIED if copied else CROPPED
    parts = tuple(o.by.piece(o.theirs) if o.write else NOTHING for o in outcomes)
    source = _whole(parts, outcomes) or " + ".join(parts)
    zeros = sum(outcome.zeros for outcome in outcomes)
    return Entry(path, shape, action, filled, source, source_shape, _notes(outcomes), first.rule, "", parts, zeros)


def _silenced(outcomes: Iterable[Outcome], why: str, bias: bool) -> Iterator[Outcome]:
    """Outcomes with zeros in place of a layer's weight and bias. Its statistics are filled as they would be."""
    for outcome in outcomes:
        to, local = outcome.to, outcome.local
        if (local in ("weight", "") or (local == "bias" and bias)) and fractional(to.tensors[local]):
            zeros = to.tensors[local].numel()
            yield Outcome(to, local, why, _nothing_at(to, local), to, local, zeros=zeros)
        else:
            yield outcome


def _passed(outcomes: Iterable[Outcome], why: str) -> Iterator[Outcome]:
    """The identity in the place of a convolution's weight, and zeros in that of its bias."""
    for outcome in outcomes:
        to, local = outcome.to, outcome.local
        if local == "weight":
            write = _itself_at(to, local)
            yield Outcome(to, local, why, write, to, local, rule=IDENTITY, zeros=write.source.numel())
        elif local == "bias":
            yield Outcome(to, local, why, _nothing_at(to, local), to, local, zeros=to.tensors[local].numel())
        else:
            yield outcome


def _itself_at(to: LayerTensors, local: str) -> Write:
    values = identity(to)
    whole = tuple(slice(0, size) for size in values.shape)
    return Write(to, to, local, values, (whole, whole), made=True, layer=to)


def _nothing_at(to: LayerTensors, local: str) -> Write:
    return Write(to, to, local, torch.zeros_like(to.tensors[local]), made=True, layer=to)


def _is_silent(outcome: Outcome) -> bool:
    return outcome.write is not None and outcome.by is outcome.to


def _whole(parts: Sequence[str], outcomes: Sequence[Outcome]) -> str:
    """The name of the source's tensor, if that is stacked as the target's is and each part comes from its like."""
    stored, _, _ = parts[0].rpartition("[")
    ours = [outcome.to.piece(outcome.local).rpartition("[")[2] for outcome in outcomes]
    return stored if list(parts) == [f"{stored}[{part}" for part in ours] else ""


def _writes(outcomes: Iterable[Outcome]) -> list[Write]:
    return [outcome.write for outcome in outcomes if outcome.write]


def _first(parts: Iterable[str]) -> str:
    """The first part that receives something."""
    return next((part for part in parts if part != NOTHING), NOTHING)


def _nothing(entry: Entry, places: Iterable[Place]) -> list[Outcome] | None:
    """The outcomes of the parts of a tensor that is left, None if it is not left."""
    return [Outcome(to, local, entry.note or DROPPED) for to, local in places] if entry.action == LEFT else None


def _notes(outcomes: Iterable[Outcome]) -> str:
    """The notes of the parts of a tensor, warnings first."""
    notes = dict.fromkeys(outcome.note for outcome in outcomes if outcome.note)
    return ", ".join(sorted(notes, key=lambda note: not note.startswith(WARNING)))


def _warning(by: LayerTensors, to: LayerTensors) -> str:
    ours, theirs = to.plain and to.plain.role, by.plain and by.plain.role
    return f"{WARNING}filled from another role ({theirs}, not {ours})" if ours and theirs and ours != theirs else ""


def _joined(by: LayerTensors, to: LayerTensors, t: Tensor) -> str:
    if t.dim() < 2:
        return ""
    if to.stack == by.stack > 2 and to.plain.kind == "Linear":
        return "its outputs seem to be stacked, and its inputs may be so too, which a crop cuts across"
    if not (by.joined and to.joined):
        return ""
    return "its inputs seem to be joined from several layers, which a crop cuts across"


def _left(to: LayerTensors, reason: str) -> Iterator[Outcome]:
    for local in to.tensors:
        yield Outcome(to, local, reason)


def _writers(targets: Sequence[LayerTensors], treatments: Mapping[str, Treatment]) -> dict[int, str]:
    """Choose one name for each tensor that has several: the first whose layer has a partner, or else the first.

    The elements of a shared tensor are counted and written under this name alone. Tensors of one name are not listed.
    """
    tensors = {to.path(local): id(to.stored(local)) for to in targets for local in to.tensors}
    if len(set(tensors.values())) == len(tensors):
        return {}  # no tensor has two names
    names: dict[int, dict[str, bool]] = {}
    for to in targets:
        by = treatments[to.name].by
        for local in to.tensors:
            without = by is None or local not in by.tensors
            names.setdefault(id(to.stored(local)), {}).setdefault(to.path(local), without)
    return {key: min(found, key=found.get) for key, found in names.items() if len(found) > 1}


def _held(targets: Sequence[LayerTensors], treatments: Mapping[str, Treatment]) -> dict[int, str]:
    """The tensors that a classifier keeps, under all of their names, each with the reason.

    An embedding that is tied to a classifier is filled nevertheless, unless the head is skipped: its tokens are the
    classes.
    """
    filled = [to for to in targets if treatments[to.name].by and is_table(weights_of(to, "default").kind)]
    tokens = {id(to.stored(local)) for to in filled for local in to.tensors}
    reasons = ((to, treatments[to.name].kept) for to in targets)
    held = {
        id(to.stored(local)): reason for to, reason in reasons if reason not in ("", UNMATCHED) for local in to.tensors
    }
    return {key: reason for key, reason in held.items() if reason == SKIPPED or key not in tokens}


def _places(layers: Iterable[LayerTensors]) -> dict[str, list[Place]]:
    """The places of every stored tensor, by its name in the state dict: one place, or one for each part."""
    found: dict[str, list[Place]] = {}
    for layer in layers:
        for local in layer.tensors:
            found.setdefault(layer.path(local), []).append((layer, local))
    return found


def _pieces(layers: Iterable[LayerTensors]) -> dict[str, Place]:
    """The place of every tensor, by the name of the piece that its layer has of the stored tensor."""
    return {layer.piece(local): (layer, local) for layer in layers for local in layer.tensors}


def _changed(name: str, now: tuple[int, ...] | None, planned: tuple[int, ...]) -> str:
    there = "is gone" if now is None else f"now has shape {times(now)}"
    return f"{name} {there}; it was planned with {times(planned)}: make a new plan"


def _count(index: Index, tensor: Tensor) -> int:
    """The number of elements of a tensor that an index chooses."""
    if isinstance(index, tuple) and len(index) == tensor.dim() and {*map(type, index)} <= {slice}:
        return prod([len(range(size)[places]) for places, size in zip(index, tensor.shape, strict=True)])
    return torch.empty(tensor.shape, device="meta")[index].numel()


def _closed(*layers: LayerTensors) -> dict[str, str]:
    """The tensors that are not treated, each with the reason."""
    return {
        local: f"{'quantized' if t.is_quantized else 'sparse'} tensors are not treated"
        for layer in layers
        for local, t in layer.tensors.items()
        if t.layout is not STRIDED or t.is_quantized
    }


def _odd(cls: type[Tensor]) -> str:
    """The name of a class of tensors with operations of its own, such as a DTensor; "" for a usual class."""
    return "" if cls.__torch_dispatch__ is Tensor.__torch_dispatch__ else cls.__name__


def _cast(source: Tensor, target: Tensor) -> str:
    return f"{_dtype(source)} → {_dtype(target)}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
