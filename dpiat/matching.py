"""Which source layer goes to which target layer: dynamic programming in two phases (section 3.3, Eq. 2 and 3).

Phase one scores every pair of blocks by matching the layers inside; phase two matches the blocks by these scores.
Both are the same recurrence: cell (i, j) is the best score of the first i target elements against the first j source
elements,

    dp[i, j] = max( dp[i, j-1],                                           source j is not used
                    dp[i-1, j],                                           target i receives nothing
                    max_k dp[k-1, j-1] + sum_{l=k..i} score(l, j) / sqrt(i-k+1) )   source j fills targets k..i

The recurrence runs in NumPy, one target element after the other, for all pairs of different blocks at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
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
    """The recurrence above for a batch of score matrices: (n, m, ...) -> dp, (n + 1, m + 1, ...).

    `positions` (n, ...) are the places of the target elements in their sequence, 0..n-1 if None: elements that score 0
    against everything can be left out of `scores` while a range keeps its true length. The sums run from target i down
    to k, in the order of the authors' loop, so that scores are equal to the last bit.
    """
    n, m, *batch = scores.shape
    if positions is None:
        positions = np.arange(n).reshape(n, *(1 for _ in batch))
    dp = np.zeros((n + 1, m + 1, *batch))
    for i in range(n):
        sums = np.cumsum(scores[i::-1], axis=0)  # (i + 1, m, ...): of targets i; i-1, i; i-2, i-1, i; ...
        roots = np.sqrt(positions[i] - positions[i::-1] + 1)  # (i + 1, ...)
        ranges = dp[i::-1, :-1] + sums / roots[:, None]  # (i + 1, m, ...)
        best = np.maximum(ranges.max(axis=0), dp[i, 1:])
        np.maximum.accumulate(best, axis=0, out=dp[i + 1, 1:])
    return dp


def trace(dp: np.ndarray, scores: np.ndarray, positions: np.ndarray | None = None) -> list[tuple[int, int]]:
    """The pairs (target, source) behind dp[n, m], 0-based, in the target's order; pairs that score 0 are left out."""
    i, j = scores.shape
    places = range(i) if positions is None else positions.tolist()
    pairs = []
    while i > 0 and j > 0:
        if dp[i, j] == dp[i, j - 1]:
            j -= 1
        elif dp[i, j] == dp[i - 1, j]:
            i -= 1
        else:
            end, j, total = i, j - 1, 0.0
            while True:  # the shortest range that reaches the score
                i -= 1
                total += scores[i, j]
                if dp[i, j] + total / sqrt(places[end - 1] - places[i] + 1) == dp[end, j + 1]:
                    break
            pairs += [(target, j) for target in range(end - 1, i - 1, -1) if scores[target, j] > 0]
    return pairs[::-1]


class _PhaseOne:
    """The scores of all pairs of blocks. Equal blocks are computed once; layers without weights are left out."""

    def __init__(self, source: Architecture, target: Architecture):
        self.source, self.target = source.compact, target.compact
        by_layer = np.pad(score_matrix(self.target.layers, self.source.layers), ((0, 1), (0, 1)))
        # A -1 in the tables means "no layer here" and takes the last row or column, which is 0.
        rows, columns = self.target.table[:, None, :, None], self.source.table[None, :, None, :]
        self.scores = by_layer[rows, columns]  # (n, m, target blocks, source blocks)
        self.positions = self.target.positions[:, :, None]  # (n, target blocks, 1)
        self.dp = ordered_scores(self.scores, self.positions)  # (n + 1, m + 1, target blocks, source blocks)
        self.block_scores = self.dp[-1, -1][np.ix_(self.target.index, self.source.index)]
        self.pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def layer_pairs(self, i: int, j: int) -> Iterable[LayerPair]:
        """The matched layers of target block i and source block j."""
        t, s = self.target.index[i], self.source.index[j]
        if (t, s) not in self.pairs:
            self.pairs[t, s] = trace(self.dp[..., t, s], self.scores[..., t, s], self.positions[:, t, 0])
        for a, b in self.pairs[t, s]:
            yield LayerPair(self.source.weighted[j][b], self.target.weighted[i][a])
