"""What survived a transfer, before training: one forward pass of both networks over the same images.

Each stage of the target is compared with the source's stage of the same resolution or, where modules tell no
resolutions, of the same depth.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

import torch
from torch import nn

from dpiat.agreement import cka, probe
from dpiat.observing import CLASSIFIER, FEATURES, STEM, Images, Stage, outputs, stages_of
from dpiat.reading import unwrapped
from dpiat.report import Check, Report, StageCheck
from dpiat.sources import Source, load
from dpiat.stored import Stored

LEAST = 4  # images: agreement is not defined for fewer


class Networks:
    """The networks of a report, as long as others hold them: a report keeps no network in memory."""

    def __init__(self, source: nn.Module | None = None, target: nn.Module | None = None):
        self.held = {role: weakref.ref(n) for role, n in (("source", source), ("target", target)) if n is not None}

    def __reduce__(self) -> tuple[type[Networks], tuple[()]]:
        return Networks, ()  # another process does not have the networks

    def check(self, report: Report, images: Images, labels: Any, **given: Source | None) -> Check:
        source, target = (self._network(role, given.get(role)) for role in ("source", "target"))
        return check(report, source, target, images, labels)

    def _network(self, role: str, given: Source | None) -> nn.Module:
        network = load(given) if given is not None else self.held[role]() if role in self.held else None
        if network is None:
            raise ValueError(f"the {role} is not in memory any more: check(images, {role}=network) gives it")
        if isinstance(network, Stored):
            why = "is a state dict and cannot compute"
            raise ValueError(f"the {role} {why}: check(images, {role}=network) gives a network that can")
        if any(tensor.is_meta for tensor in network.parameters()):
            raise ValueError(f"the {role} is on the meta device and cannot compute")
        return unwrapped(network)


def check(report: Report, source: nn.Module, target: nn.Module, images: Images, labels: Any = None) -> Check:
    """What `Report.check` gives, for networks that can compute."""
    count = len(next(iter(images.values())) if isinstance(images, Mapping) else images)
    if count < LEAST:
        raise ValueError(f"a check needs at least {LEAST} images, got {count}")
    if labels is not None and len(labels := torch.as_tensor(labels, device="cpu").flatten()) != count:
        raise ValueError(f"{count} images need as many labels, got {len(labels)}")
    theirs, ours = stages_of(source), stages_of(target)
    given, found = outputs("source", source, theirs, images, count), outputs("target", target, ours, images, count)
    own, rows = _own_values(report, target, ours), []
    for stage in ours:
        other = _counterpart(stage, ours, theirs)
        known = stage.name in found and other in given
        agreement = cka(found[stage.name], given[other]) if known else nan
        rows.append(StageCheck(stage.name, other, agreement, *own[stage.name]))
    if labels is None:
        return Check(tuple(rows), count)
    if FEATURES not in given or FEATURES not in found:
        raise ValueError("labels ask for what comes before a classifier, which one of the networks does not show")
    chance = int(labels.unique(return_counts=True)[1].max()) / count
    return Check(tuple(rows), count, (probe(given[FEATURES], labels), probe(found[FEATURES], labels)), chance)


def _counterpart(stage: Stage, ours: Sequence[Stage], theirs: Sequence[Stage]) -> str:
    """The source's stage of the nearest resolution; of several, the nearest in depth; of two, the later one."""
    apart = (STEM, FEATURES, CLASSIFIER)
    if stage.name in apart:
        return stage.name if stage.name != CLASSIFIER and stage.name in {other.name for other in theirs} else ""
    mine, others = ([each for each in stages if each.name not in apart] for stages in (ours, theirs))
    depth = (mine.index(stage) + 1) / len(mine)
    distances = {}
    for number, other in enumerate(others, 1):
        levels = 0 if stage.level is None or other.level is None else abs(stage.level - other.level)
        distances[other.name] = levels, abs(number / len(others) - depth), -number
    return min(distances, key=distances.get, default="")


def _own_values(report: Report, target: nn.Module, stages: Sequence[Stage]) -> dict[str, tuple[float, int]]:
    """Count, stage by stage, the share of the parameters' elements that the transfer left, and all elements."""
    buffers = {name for name, _ in target.named_buffers(remove_duplicate=False)}
    stage_of = {name.partition("[")[0]: stage.name for stage in stages for name in stage.inside}
    left, total = ({stage.name: 0 for stage in stages} for _ in range(2))
    for entry in report.entries:
        name = entry.target
        while name and name not in stage_of:
            name = name.rpartition(".")[0]
        if name and entry.target not in buffers:
            left[stage_of[name]] += entry.elements - entry.filled - entry.zeros
            total[stage_of[name]] += entry.elements
    return {name: (left[name] / total[name] if total[name] else 0.0, total[name]) for name in total}
