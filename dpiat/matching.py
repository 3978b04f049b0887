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

from dataclasses import dataclass
from functools import cache
from math import sqrt
from typing import NamedTuple

import numpy as np

from dpiat.architecture import Architecture, Block, Compact, Layer, Positions
from dpiat.scoring import score_matrix


class LayerPair(NamedTuple):
    """A source layer and a target layer that receives its weights.

    Attributes:
        source: The layer that gives.
        target: The layer that receives.
    """

    source: Layer
    target: Layer


class BlockPair(NamedTuple):
    """A source block and a target block whose layers are matched with each other."""

    source: Block
    target: Block


@dataclass(frozen=True)
class Matching:
    """The best ordered matching of two architectures.

    Attributes:
        score: The value of Eq. 3 that the matching reaches.
        blocks: The pairs of blocks, in the target's order.
        layers: The pairs of layers, in the target's order. A target layer occurs at most once; a source layer may occur
            several times.
    """

    score: float
    blocks: tuple[BlockPair, ...]
    layers: tuple[LayerPair, ...]


def match(source: Architecture, target: Architecture) -> Matching:
    """The matching of the paper (DPMatching), with its score.

    Ties follow the authors' code: the source is skipped rather than the target, and the shortest range wins. Takes time
    O(n²m) for n target layers and m source layers: milliseconds, for networks of a few hundred layers.

    Args:
        source: The network that gives, as `standardize` reads it in paper mode.
        target: The network that receives, likewise.

    Returns:
        Which blocks and layers go to which.

    Examples:
        >>> match(standardize(source, "paper"), standardize(target, "paper")).score
    """
    return _Scores(source.compact, target.compact, score_matrix(target.compact, source.compact)).matching()


def match_both(source: Architecture, target: Architecture) -> tuple[Matching, float]:
    """`match(source, target)` and the score of `match(target, source)`."""
    by, into = source.compact, target.compact
    layers = score_matrix(into, by)
    return _Scores(by, into, layers).matching(), _Scores(into, by, layers.T).total


def match_score(source: Architecture, target: Architecture) -> float:
    """The score of `match(source, target)`, without its pairs."""
    return _Scores(source.compact, target.compact, score_matrix(target.compact, source.compact)).total


def match_scores(source: Architecture, target: Architecture) -> tuple[float, float]:
    """The scores of `match(source, target)` and of `match(target, source)`."""
    by, into = source.compact, target.compact
    layers = score_matrix(into, by)
    return _Scores(by, into, layers).total, _Scores(into, by, layers.T).total


def ordered_scores(scores: np.ndarray, positions: Positions) -> np.ndarray:
    """The recurrence above for many score matrices at once: (n, m, T, S) -> dp, (n + 1, m + 1, T, S).

    `positions` tells where the n target elements stand in each of T sequences. Elements that score 0 against everything
    can be left out of `scores`, and a range still has its true length. The sums run from target i down to k, in the
    order of the authors' loop, so that scores are equal to the last bit.
    """
    n, m, t, s = scores.shape
    if not scores.size:
        return np.zeros((n + 1, m + 1, t, s))
    # Three ways to the same numbers. For the layers of two blocks, which are few, the calls of NumPy cost more than the
    # arithmetic: all ranges are computed at once. For more, the n²m values of the ranges have to stay in the cache:
    # `scores` is cut into parts of `step` sequences of the source. Where the values of one pair of sequences alone do
    # not fit, as for the blocks of two deep networks, most ranges are not computed at all.
    if n * scores.size <= SMALL:
        return _all_at_once(scores, positions)
    method = _promising_ranges if n * n * m > LARGE else _range_by_range
    step = max(1, LARGE // (n * n * m * t))
    parts = [method(scores[..., start : start + step], positions) for start in range(0, s, step)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=3)


running_maximum = np.fmax.accumulate  # without a NaN the same as that of maximum, and faster
SMALL = 2**14  # for so many numbers, the calls of NumPy take longer than what they do
LARGE = 2**18  # so many numbers at once stay in the cache


def _all_at_once(scores: np.ndarray, positions: Positions) -> np.ndarray:
    """Compute dp from the values of all ranges at once, target by target or source by source."""
    n, m, t, s = scores.shape
    scores = scores.reshape(n, m, t * s)
    # Row d of `values` holds the scores of target i - d, so that the running sum over d adds up a range from its last
    # target to its first one, as the authors' loop does. Another order would round otherwise, and break ties otherwise.
    first, below = _starts(n)
    values = np.concatenate([np.zeros((1, m, t * s)), scores])[below]  # (d, i, source, pair)
    np.add.accumulate(values, axis=0, out=values)
    values /= positions.roots.repeat(s, axis=2)[:, :, None]
    if n <= m:
        return _by_targets(values).reshape(n + 1, m + 1, t, s)
    dp = np.zeros((m + 1, n + 1, t * s))
    for j in range(m):
        ranges = dp[j][first]
        ranges += values[:, :, j]
        best = np.maximum.reduce(ranges, axis=0)
        np.maximum(best, dp[j, 1:], out=best)
        running_maximum(best, axis=0, out=dp[j + 1, 1:])
    return dp.reshape(m + 1, n + 1, t, s).swapaxes(0, 1)


@cache
def _starts(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two tables of rows for the ranges of d + 1 targets that end at target i, both (d, i).

    The first table has the target that a range begins with, 0 for ranges that are cut off at the top. The second has
    the row of target i - d in scores with a row of zeros above them. Row 0 stands for a target that does not exist, so
    that it adds nothing to a sum.
    """
    i = np.arange(n)
    start = i - i[:, None]
    return np.maximum(start, 0), np.maximum(start + 1, 0)


def _range_by_range(scores: np.ndarray, positions: Positions) -> np.ndarray:
    """Compute the values of all ranges, from short ones to long ones, and then dp, target by target."""
    n, m, t, s = scores.shape
    scores = scores.reshape(n, m, t * s)
    roots = positions.roots.repeat(s, axis=2)  # (d, i, pair)
    values = np.empty((n, *scores.shape))  # (d, i, source, pair)
    values[0] = scores
    sums = scores.copy()
    for d in range(1, n):
        longer = sums[d:]
        longer += scores[: n - d]
        np.divide(longer, roots[d, d:, None], out=values[d, d:])
    return _by_targets(values).reshape(n + 1, m + 1, t, s)


def _by_targets(values: np.ndarray) -> np.ndarray:
    """dp (n + 1, m + 1, pair) from the values (d, i, source, pair) of ranges of d + 1 targets that end at target i."""
    n, _, m, pairs = values.shape
    dp = np.zeros((n + 1, m + 1, pairs))
    for i in range(n):
        ranges = values[: i + 1, i]
        shorter = ranges[:i]
        shorter += dp[i:0:-1, :-1]  # before a range from the first target on, there is nothing
        best = np.maximum.reduce(ranges, axis=0)
        np.maximum(best, dp[i, 1:], out=best)
        # What is left is dp[i, j-1], the case that source j is not used: a running maximum over the sources.
        if pairs < WIDE:
            running_maximum(best, axis=0, out=dp[i + 1, 1:])
        else:
            for j in range(m):
                np.maximum(dp[i + 1, j], best[j], out=dp[i + 1, j + 1])
    return dp


WIDE = 64  # for so many pairs, a call for each source is faster than accumulate


def _promising_ranges(scores: np.ndarray, positions: Positions) -> np.ndarray:
    """Compute dp source by source, with ever longer ranges for the targets that can still gain from them."""
    # Eq. 3 divides a sum by the square root of its length, so that long ranges seldom win: their values are most of the
    # n²m that the recurrence costs, and nearly all of them are computed in vain. This function keeps a window of
    # targets, first..stop-1, whose best range may still be longer than d + 1. `_reachable` bounds what any longer range
    # can give. Targets at both ends of the window whose best is above their bound are let go. The bound costs as much
    # as a step, so that it is asked for after 2, 4, 8, ... steps only. The result is exact: a target is let go only if
    # no longer range can beat what it has.
    n, m, t, s = scores.shape
    scores = np.ascontiguousarray(scores.swapaxes(0, 1)).reshape(m, n, t * s)
    without_gaps = np.all(np.diff(positions.table, axis=0) == 1)
    table = positions.table.repeat(s, axis=1)
    index = np.arange(n, dtype=float)[:, None]
    sums, values = np.empty((2, n, t * s))
    dp = np.zeros((m + 1, n + 1, t * s))
    for j in range(m):
        best, highest = dp[j + 1, 1:], scores[j].max(axis=0)
        best[:] = dp[j, 1:]
        sums.fill(0)
        first, stop = _extent(scores[j] > 0)
        next_check = 1  # 3, 7, 15, ...
        for d in range(n):  # ranges of d + 1 targets, which end at targets first..stop-1
            if first >= stop:
                break
            ends, starts = slice(first, stop), slice(first - d, stop - d)
            total, ranges, reached = sums[ends], values[ends], best[ends]
            total += scores[j, starts]
            roots = sqrt(d + 1) if without_gaps else np.sqrt(table[ends] - table[starts] + 1)
            np.divide(total, roots, out=ranges)
            ranges += dp[j, starts]
            np.maximum(reached, ranges, out=reached)
            first = max(first, d + 1)
            if d == next_check and first < stop:
                next_check += d + 1
                reachable = _reachable(dp[j], highest, index, d + 1, first, stop)
                wanted = _extent(reachable > best[first:stop])
                first, stop = first + wanted[0], first + wanted[1]
        running_maximum(best, axis=0, out=best)
    return dp.reshape(m + 1, n + 1, t, s).swapaxes(0, 1)


def _reachable(
    reached: np.ndarray, highest: np.ndarray, index: np.ndarray, length: int, first: int, stop: int
) -> np.ndarray:
    """An upper bound for ranges of more than `length` targets that end at target `first`, ..., `stop` - 1.

    Such a range of d targets adds at most highest · sqrt(d) to what the targets before it have reached. The root lies
    below its tangent at `length`, (d + length) / (2 · sqrt(length)), which is linear in the first and in the last
    target, so that one running maximum over the first gives the bounds for all of the last.
    """
    slope = highest / (2 * sqrt(length))
    places = slope * index[: stop - length]
    bound = reached[: stop - length] - places
    start = first - length
    bound[start] = bound[: start + 1].max(axis=0)
    bound = running_maximum(bound[start:], axis=0)
    bound += places[start:]
    bound += slope * (2 * length + 1) + 1e-9  # more than it is rounded off
    return bound


def _extent(wanted: np.ndarray) -> tuple[int, int]:
    """The first row that is wanted for any of the batch and the one after the last."""
    rows = wanted.any(axis=1)
    first = int(rows.argmax())
    return (first, len(rows) - int(rows[::-1].argmax())) if rows[first] else (0, 0)


def trace(dp: np.ndarray, scores: np.ndarray, positions: np.ndarray) -> list[tuple[int, int]]:
    """The pairs (target, source) behind dp[n, m], 0-based, in the target's order; pairs that score 0 are left out."""
    # Numbers are compared without a tolerance: the sums below add up in the order in which dp was computed, so that the
    # case that a cell came from is equal to the last bit. A tolerance would take another case where two are nearly
    # alike. The order of the cases is the authors' way to break ties: first skip the source, then the target.
    i, j = scores.shape
    places = positions.tolist()
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


class _Scores:
    """The score of a matching, with the tables of both phases that tracing needs.

    Equal blocks share one table: networks repeat their blocks, and phase one costs the most. `layers` are the scores of
    the layers (`score_matrix`), (target, source).
    """

    def __init__(self, source: Compact, target: Compact, layers: np.ndarray):
        self.source, self.target = source, target
        self.phase_one = {}  # (target group, source group) -> scores (n, m, T, S) and dp (n + 1, m + 1, T, S)
        different = np.empty((target.n_blocks, source.n_blocks))
        # One call computes the tables of all pairs of blocks from two groups. A group holds blocks of about one height,
        # so that few cells of its table are fillers.
        for t, into in enumerate(target.groups):
            for s, by in enumerate(source.groups):
                index = into.numbers[:, None, :, None] * layers.shape[1] + by.numbers[:, None]
                scores = np.take(layers, index)
                dp = ordered_scores(scores, into.positions)
                self.phase_one[t, s] = scores, dp
                different[into.columns, by.columns] = dp[-1, -1]
        self.blocks = different.T[
            source.block_numbers[:, None], target.block_numbers
        ].T  # of those with weights, source by source
        self.phase_two = ordered_scores(self.blocks[:, :, None, None], target.positions)[:, :, 0, 0]
        self.total = float(self.phase_two[-1, -1])

    def matching(self) -> Matching:
        source, target = self.source, self.target
        layer_pairs = cache(self._layer_pairs)
        blocks, layers = [], []
        for i, j in trace(self.phase_two, self.blocks, target.positions.table[:, 0]):
            blocks.append(BlockPair(source.blocks[j], target.blocks[i]))
            for a, b in layer_pairs(target.block_numbers[i], source.block_numbers[j]):
                layers.append(LayerPair(source.weighted[j][b], target.weighted[i][a]))
        return Matching(self.total, tuple(blocks), tuple(layers))

    def _layer_pairs(self, i: int, j: int) -> list[tuple[int, int]]:
        """The pairs of layers with weights of the different blocks i of the target and j of the source."""
        (t, row), (s, column) = self.target.place(i), self.source.place(j)
        scores, dp = (array[..., row, column] for array in self.phase_one[t, s])
        return trace(dp, scores, self.target.groups[t].positions.table[:, row])
