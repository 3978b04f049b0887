"""The matchings that the paper compares with its own (Table 12): bipartite ones, and a random one.

Each is a function of two architectures, source and target, that gives a `Matching`, as `dpiat.matching.match` does. A
matching of your own is such a function: `transfer(source, target, matching=mine)`.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any, Literal

import numpy as np

from dpiat.alignment import align
from dpiat.architecture import Architecture, Block, Layer
from dpiat.matching import BlockPair, LayerPair, Matching, match
from dpiat.scoring import score

Matcher = Callable[[Architecture, Architecture], Matching]
MatchingName = Literal["dp", "bipartite", "nbipartite", "random"]


def bipartite(source: Architecture, target: Architecture) -> Matching:
    """BipartiteMatching: blocks as in `match`, the layers of two blocks by the assignment of greatest weight.

    The weight of two layers is Eq. 1 times 1 - (i / n - j / m)², i and j their places among n target and m source
    layers. Every layer is used at most once. Needs SciPy.
    """
    pairs = match(source, target).blocks
    return _matching([(pair, _assigned(pair.source.layers, pair.target.layers, score)) for pair in pairs])


def nbipartite(source: Architecture, target: Architecture) -> Matching:
    """NBipartiteMatching: blocks by an assignment too, where the sum of their layers' weights takes Eq. 1's place."""
    inner: dict[tuple, list[tuple[int, int, float]]] = {}

    def layers(t: Block, s: Block) -> list[tuple[int, int, float]]:
        key = t.signature, s.signature
        if key not in inner:
            inner[key] = _assigned(s.layers, t.layers, score)
        return inner[key]

    def worth(t: Block, s: Block) -> float:
        return fsum(weight for _, _, weight in layers(t, s))

    pairs = _assigned(source.blocks, target.blocks, worth)
    chosen = [BlockPair(source.blocks[j], target.blocks[i]) for i, j, _ in pairs]
    return _matching([(pair, layers(pair.target, pair.source)) for pair in chosen])


@dataclass(frozen=True)
class RandomMatching:
    """RandomMatching: the layers of each kind in random order, paired until one network has no more of the kind."""

    seed: int = 0

    def __call__(self, source: Architecture, target: Architecture) -> Matching:
        rng = random.Random(self.seed)
        ours, theirs = (_shuffled_kinds(network, rng) for network in (target, source))
        partner = {t: s for kind, layers in ours.items() for t, s in zip(layers, theirs[kind], strict=False)}
        pairs = tuple(LayerPair(partner[layer], layer) for layer in target.layers if layer in partner)
        return Matching(fsum(score(pair.target, pair.source) for pair in pairs), (), pairs)


def _shuffled_kinds(network: Architecture, rng: random.Random) -> defaultdict[tuple[str, int], list[Layer]]:
    kinds: defaultdict[tuple[str, int], list[Layer]] = defaultdict(list)
    for layer in network.layers:
        if layer.shape:
            kinds[layer.kind, len(layer.shape)].append(layer)
    for layers in kinds.values():
        rng.shuffle(layers)
    return kinds


def _assigned(source: Sequence, target: Sequence, worth: Callable) -> list[tuple[int, int, float]]:
    """The assignment of greatest weight: places of target and source and their weight, in the target's order."""
    from scipy.optimize import linear_sum_assignment

    if not source or not target:
        return []
    values = np.array([[worth(t, s) for s in source] for t in target])
    places = [np.arange(len(elements)) / len(elements) for elements in (target, source)]
    weights = values * (1 - (places[0][:, None] - places[1]) ** 2)
    chosen = zip(*linear_sum_assignment(weights, maximize=True), strict=True)
    return [(int(i), int(j), float(weights[i, j])) for i, j in chosen if weights[i, j] > 0]


def _matching(blocks: Sequence[tuple[BlockPair, list[tuple[int, int, float]]]]) -> Matching:
    layers = [LayerPair(pair.source.layers[j], pair.target.layers[i]) for pair, inner in blocks for i, j, _ in inner]
    total = fsum(weight for _, inner in blocks for _, _, weight in inner)
    return Matching(total, tuple(pair for pair, _ in blocks), tuple(layers))


def check_matching(matched: Any, source: Architecture, target: Architecture) -> None:
    """Raise TypeError or ValueError for what a matching of the user's must not return."""
    if not isinstance(matched, Matching):
        raise TypeError(f"a matching must give a dpiat.matching.Matching, got {type(matched).__name__}")
    roles = ("source", source), ("target", target)
    known = [(role, {layer.name for layer in network.layers}) for role, network in roles]
    filled = set()
    for pair in matched.layers:
        if not (isinstance(pair, LayerPair) and isinstance(pair.source, Layer) and isinstance(pair.target, Layer)):
            raise TypeError(f"the layers of a matching must be dpiat.LayerPair of two dpiat.Layer, got {pair!r}")
        for (role, names), layer in zip(known, pair, strict=True):
            if layer.name not in names:
                raise ValueError(f"the matching pairs {layer.name!r}, and the {role} has no such layer")
        if pair.target.name in filled:
            raise ValueError(f"the matching fills {pair.target.name!r} of the target more than once")
        filled.add(pair.target.name)


def best(source: Architecture, target: Architecture) -> Matching:
    """The paper's matching in paper mode, `dpiat.alignment` in default mode."""
    return (align if source.structured and target.structured else match)(source, target)


MATCHINGS: dict[MatchingName, Matcher] = {
    "dp": best,
    "bipartite": bipartite,
    "nbipartite": nbipartite,
    "random": RandomMatching(),
}
