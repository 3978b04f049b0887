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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
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
    roots = np.sqrt(np.maximum(positions[:, None] - positions + 1, 1))[:, :, None] if n <= SHORT else None
    highest = scores.max(axis=0, initial=0.0)  # (m, ...)
    dp = np.zeros((n + 1, m + 1, *batch))
    for i in range(n):
        if roots is not None:
            ranges = np.cumsum(scores[i::-1], axis=0)  # (i + 1, m, ...): of targets i; i-1, i; i-2, i-1, i; ...
            ranges /= roots[i, i::-1]
            ranges += dp[i::-1, :-1]
            best = ranges.max(axis=0)
        else:
            best = _best_ranges(scores[: i + 1], highest, positions[: i + 1], dp[: i + 1, :-1])
        np.maximum.accumulate(np.maximum(best, dp[i, 1:]), axis=0, out=dp[i + 1, 1:])
    return dp


SHORT = 64  # up to so many targets it is fastest to sum up all ranges


def _best_ranges(scores: np.ndarray, highest: np.ndarray, positions: np.ndarray, dp: np.ndarray) -> np.ndarray:
    """What the best range that ends at the last target gives for each source, (i, m, ...) of scores and dp -> (m, ...).

    Sums up the shorter ranges first, and longer ones only for the first sources, as far as one can gain from them.
    """
    i, width = scores.shape[:2]
    best, sums = dp[-1].copy(), np.zeros_like(dp[-1])
    start, stop = 0, 8
    while start < i and width:  # ranges of start + 1 to stop targets
        k = slice(-1 - start, -1 - min(stop, i), -1)
        terms = scores[k, :width].copy()  # (stop - start, width, ...)
        terms[0] += sums[:width]
        ranges = np.cumsum(terms, axis=0)
        sums = ranges[-1].copy()
        ranges /= np.sqrt(positions[-1] - positions[k] + 1)[:, None]
        ranges += dp[k, :width]
        np.maximum(best[:width], ranges.max(axis=0), out=best[:width])
        width = _still_open(dp[:, :width], highest[:width], best[:width], stop)
        start, stop = stop, 2 * stop
    return best


def _still_open(dp: np.ndarray, highest: np.ndarray, best: np.ndarray, length: int) -> int:
    """How many of the first sources there are up to the last that can gain from a range of more than `length` targets.

    A range of d targets, length < d <= 2 · length, adds at most sqrt(2 · length) · highest to what the targets before
    it have reached, which is at most dp[-1 - length]; likewise for twice the length, and so on.
    """
    wins = np.zeros(best.shape, dtype=bool)
    while length < len(dp):
        wins |= dp[-1 - length] + sqrt(2 * length) * highest * (1 + 1e-12) > best
        length *= 2
    places = np.flatnonzero(wins.reshape(len(wins), -1).any(axis=1))
    return int(places[-1]) + 1 if len(places) else 0


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
    """The scores of all pairs of blocks; equal blocks are computed once."""

    def __init__(self, source: Architecture, target: Architecture):
        self.source, self.target = source.compact, target.compact
        layers = np.pad(score_matrix(self.target, self.source), ((0, 1), (0, 1)))  # numbers of -1 find a zero there
        self.groups = {}  # (target group, source group) -> scores (n, m, T, S) and dp (n + 1, m + 1, T, S)
        for t, s in product(range(len(self.target.groups)), range(len(self.source.groups))):
            into, by = self.target.groups[t], self.source.groups[s]
            scores = layers[into.numbers[:, None, :, None], by.numbers[None, :, None, :]]
            self.groups[t, s] = scores, ordered_scores(scores, into.positions[:, :, None])
        self.block_scores = np.zeros((len(target.blocks), len(source.blocks)))
        for (t, s), (_, dp) in self.groups.items():
            into, rows = _columns(self.target.place, t)
            by, columns = _columns(self.source.place, s)
            self.block_scores[np.ix_(into, by)] = dp[-1, -1][np.ix_(rows, columns)]
        self.pairs: dict[tuple, list[tuple[int, int]]] = {}

    def layer_pairs(self, i: int, j: int) -> Iterable[LayerPair]:
        """The matched layers of target block i and source block j."""
        key = (t, row), (s, column) = self.target.place[i], self.source.place[j]
        if key not in self.pairs:
            scores, dp = (array[..., row, column] for array in self.groups[t, s])
            self.pairs[key] = trace(dp, scores, self.target.groups[t].positions[:, row])
        for a, b in self.pairs[key]:
            yield LayerPair(self.source.weighted[j][b], self.target.weighted[i][a])


def _columns(places: Sequence[tuple[int, int] | None], group: int) -> tuple[list[int], list[int]]:
    """The blocks of a group: their indices in the architecture, and their columns in the group."""
    found = [(block, place[1]) for block, place in enumerate(places) if place and place[0] == group]
    return [block for block, _ in found], [column for _, column in found]
