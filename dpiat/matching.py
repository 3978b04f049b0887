"""Which source layer goes to which target layer: dynamic programming in two phases (section 3.3, Eq. 2 and 3).

Phase one scores every pair of blocks by matching the layers inside; phase two matches the blocks by these scores.
Both are the same recurrence: cell (i, j) is the best score of the first i target elements against the first j source
elements,

    dp[i, j] = max( dp[i, j-1],                                           source j is not used
                    dp[i-1, j],                                           target i receives nothing
                    max_k dp[k-1, j-1] + sum_{l=k..i} score(l, j) / sqrt(i-k+1) )   source j fills targets k..i

The recurrence runs for all pairs of different blocks at once, in NumPy, one source position after the other.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dpiat.architecture import Architecture, Block, Layer
from dpiat.scoring import score_matrix


class LayerPair(NamedTuple):
    """A source layer and a target layer that receives its weights."""

    source: Layer
    target: Layer


class BlockPair(NamedTuple):
    """A source block and a target block whose layers are matched with each other."""

    source: Block
    target: Block


@dataclass(frozen=True)
class Matching:
    """The best ordered matching of two architectures.

    `score` is the value of Eq. 3 that it reaches, `blocks` and `layers` the pairs in the target's order. A target
    layer occurs at most once; a source layer may occur several times.
    """

    score: float
    blocks: tuple[BlockPair, ...]
    layers: tuple[LayerPair, ...]


def match(source: Architecture, target: Architecture) -> Matching:
    """The matching of the paper (DPMatching), with its score.

    Ties follow the authors' code: the source is skipped rather than the target, and the shortest range wins.
    Time O(n²m) for n target and m source layers; for networks of a few hundred layers, milliseconds.
    """
    phase_one = _PhaseOne(source, target)
    dp = ordered_scores(phase_one.block_scores)
    blocks, layers = [], []
    for i, j in trace(dp, phase_one.block_scores):
        blocks.append(BlockPair(source.blocks[j], target.blocks[i]))
        layers += phase_one.layer_pairs(i, j)
    return Matching(float(dp[-1, -1]), tuple(blocks), tuple(layers))


def match_score(source: Architecture, target: Architecture) -> float:
    """The score of `match(source, target)`, without its pairs."""
    return float(ordered_scores(_PhaseOne(source, target).block_scores)[-1, -1])


def ordered_scores(scores: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
    """The recurrence above for a batch of score matrices: (..., n, m) -> dp, (..., n + 1, m + 1).

    `positions` (..., n) are the places of the target elements in their sequence, 0..n-1 if None: elements that
    score 0 against everything can be left out of `scores`, while a range keeps its true length.
    """
    n, m = scores.shape[-2:]
    gains = _range_gains(scores, positions)  # (..., m, k, i)
    dp = np.zeros((*scores.shape[:-2], n + 1, m + 1))
    for j in range(m):
        ranges = (dp[..., :-1, j, None] + gains[..., j, :, :]).max(axis=-2, initial=0.0)  # (..., i)
        column = np.maximum(dp[..., 1:, j], ranges)
        dp[..., 1:, j + 1] = np.maximum.accumulate(column, axis=-1)
    return dp


def _range_gains(scores: np.ndarray, positions: np.ndarray | None) -> np.ndarray:
    """What source j gains from the targets k..i: (..., n, m) -> (..., m, k, i), -inf where k > i.

    The sums run from i down to k, in the order of the authors' loop, so that scores are equal to the last bit.
    """
    n = scores.shape[-2]
    p = np.arange(n) if positions is None else positions
    length = p[..., None, :] - p[..., :, None] + 1  # (..., k, i)
    valid = np.triu(np.ones((n, n), dtype=bool))
    by_source = np.swapaxes(scores, -1, -2)[..., None]  # (..., m, k, 1)
    sums = np.cumsum(np.where(valid, by_source, 0.0)[..., ::-1, :], axis=-2)[..., ::-1, :]  # (..., m, k, i)
    root = np.where(valid, np.sqrt(np.maximum(length, 1)), 1.0)
    return np.where(valid, sums / root[..., None, :, :], -np.inf)


def trace(dp: np.ndarray, scores: np.ndarray, positions: np.ndarray | None = None) -> list[tuple[int, int]]:
    """The pairs (target, source) behind dp[n, m], 0-based, in the target's order; pairs that score 0 are left out."""
    gains = _range_gains(scores, positions)  # (m, k, i)
    pairs = []
    i, j = scores.shape
    while i > 0 and j > 0:
        if dp[i, j] == dp[i, j - 1]:
            j -= 1
        elif dp[i, j] == dp[i - 1, j]:
            i -= 1
        else:
            ways = dp[:i, j - 1] + gains[j - 1, :i, i - 1]
            k = int(np.flatnonzero(ways == dp[i, j])[-1])  # the shortest range
            pairs += [(target, j - 1) for target in range(i - 1, k - 1, -1) if scores[target, j - 1] > 0]
            i, j = k, j - 1
    return pairs[::-1]


class _PhaseOne:
    """The scores of all pairs of blocks. Equal blocks are computed once; layers without weights are left out."""

    def __init__(self, source: Architecture, target: Architecture):
        self.source, self.target = _Blocks(source.blocks), _Blocks(target.blocks)
        by_layer = score_matrix(self.target.layers, self.source.layers)
        by_layer = np.pad(by_layer, ((0, 1), (0, 1)))  # the last row and column stand for "no layer here"
        t, s = self.target.table, self.source.table  # (blocks, layers), indices into by_layer
        self.scores = by_layer[t[:, None, :, None], s[None, :, None, :]]  # (target, source, n, m)
        self.positions = self.target.positions[:, None, :]  # (target, 1, n)
        self.dp = ordered_scores(self.scores, self.positions)  # (target, source, n + 1, m + 1)
        self.block_scores = self.dp[:, :, -1, -1][np.ix_(self.target.index, self.source.index)]

    def layer_pairs(self, i: int, j: int) -> Iterable[LayerPair]:
        """The matched layers of target block i and source block j."""
        t, s = self.target.index[i], self.source.index[j]
        for a, b in trace(self.dp[t, s], self.scores[t, s], self.positions[t, 0]):
            yield LayerPair(self.source.weighted[j][b], self.target.weighted[i][a])


class _Blocks:
    """The blocks of a network as a table: a row for each different block, a column for each layer with weights."""

    def __init__(self, blocks: Sequence[Block]):
        self.weighted = [[layer for layer in block.layers if layer.shape] for block in blocks]
        different, self.index = _unique(block.signature for block in blocks)
        self.index = np.array(self.index, dtype=int)
        first = [next(b for b, u in enumerate(self.index) if u == unique) for unique in range(len(different))]
        places = [[p for p, layer in enumerate(blocks[b].layers) if layer.shape] for b in first]
        width = max(map(len, places), default=0)
        signatures, numbers = _unique(layer.signature for b in first for layer in self.weighted[b])
        self.layers = [Layer("", kind, shape) for kind, shape in signatures]
        self.table = np.full((len(first), width), -1)
        self.positions = np.zeros((len(first), width), dtype=int)
        row = iter(numbers)
        for u, place in enumerate(places):
            self.table[u, : len(place)] = [next(row) for _ in place]
            self.positions[u, : len(place)] = place
            self.positions[u, len(place) :] = np.arange(len(place), width) + (place[-1] + 1 if place else 0)


def _unique(items: Iterable[Hashable]) -> tuple[list, list[int]]:
    """The different items in the order of their first occurrence, and for each item its index among them."""
    numbers: dict = {}
    index = [numbers.setdefault(item, len(numbers)) for item in items]
    return list(numbers), index
