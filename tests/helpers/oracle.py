"""A literal transcription of Eq. 2 and 3, loop by loop, with the ties of the authors' code; and brute force.

Slow and plain. `dpiat.matching` must give the same scores and the same pairs.
"""

from functools import cache

from dpiat.architecture import Architecture, Layer


def score(target: Layer, source: Layer) -> float:
    if not target.shape or target.kind != source.kind or len(target.shape) != len(source.shape):
        return 0.0
    product = 1.0
    for t, s in zip(target.shape, source.shape, strict=True):
        product *= min(t / s, s / t)
    return product


def ordered_matching(n: int, m: int, score) -> tuple[float, list[tuple[int, int]]]:
    """The best score of n target elements against m source elements, and the pairs (target, source) that score."""
    dp = [[0.0] * (m + 1) for _ in range(n + 1)]
    action = [[""] * (m + 1) for _ in range(n + 1)]
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            best, act = dp[i][j - 1], "skip source"
            if dp[i - 1][j] > best:
                best, act = dp[i - 1][j], "skip target"
            total = 0.0
            for d in range(i):
                total += score(i - 1 - d, j - 1)
                value = dp[i - 1 - d][j - 1] + total / (d + 1) ** 0.5
                if value > best:
                    best, act = value, d + 1
            dp[i][j], action[i][j] = best, act
    pairs, i, j = [], n, m
    while i and j:
        if action[i][j] == "skip source":
            j -= 1
        elif action[i][j] == "skip target":
            i -= 1
        else:
            length = action[i][j]
            pairs += [(k, j - 1) for k in range(i - 1, i - 1 - length, -1) if score(k, j - 1) > 0]
            i, j = i - length, j - 1
    return dp[n][m], pairs[::-1]


def match(source: Architecture, target: Architecture) -> tuple[float, list[tuple[str, str]]]:
    """The score of the matching of two architectures and the names (source layer, target layer) of its pairs."""

    @cache
    def blocks(i: int, j: int):
        t, s = target.blocks[i].layers, source.blocks[j].layers
        return ordered_matching(len(t), len(s), lambda a, b: score(t[a], s[b]))

    total, pairs = ordered_matching(len(target.blocks), len(source.blocks), lambda i, j: blocks(i, j)[0])
    names = []
    for i, j in pairs:
        t, s = target.blocks[i].layers, source.blocks[j].layers
        names += [(s[b].name, t[a].name) for a, b in blocks(i, j)[1]]
    return total, names


def all_matchings(n: int, m: int, source: int = 0, start: int = 0):
    """Every ordered matching: lists of (source, first target, last target), by plain enumeration."""
    if source == m:
        yield []
        return
    yield from all_matchings(n, m, source + 1, start)
    for first in range(start, n):
        for last in range(first, n):
            for rest in all_matchings(n, m, source + 1, last + 1):
                yield [(source, first, last), *rest]


def value(matching, scores) -> float:
    """The value of a matching: the sum over sources of the summed score over the root of the range's length."""
    return sum(sum(scores[i][j] for i in range(a, b + 1)) / (b - a + 1) ** 0.5 for j, a, b in matching)


def brute_force(scores) -> float:
    """The best value over all ordered matchings of a score matrix (targets × sources)."""
    return max(value(matching, scores) for matching in _enumerated(len(scores), len(scores[0])))


@cache
def _enumerated(n: int, m: int):
    return list(all_matchings(n, m))
