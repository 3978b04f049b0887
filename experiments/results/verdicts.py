"""Verdicts on a table of effectiveness, by rules of which all but one were written down before any of our numbers came.

A table is a square matrix: a row for each target, a column for each source, NaN where nothing is run. Every verdict is
on the cells that are run, so that a page fills column by column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata, t

SEED, DRAWS, PERMUTATIONS = 0, 2_000, 10_000  # fixed, so that the same records give the same page
LEVEL = 0.95  # of intervals
DIGITS = 9  # decimals by which two values are told apart
NORMAL = norm.ppf((1 + LEVEL) / 2)  # half of an interval of a normal distribution, in standard deviations
ENOUGH = 3  # the least number of rows, or cells, for a correlation
LEAST = 8  # the least number of cells for a verdict: one source and every target but itself
TOLD = 0.75  # the share of draws of the bootstrap that must give a number, or there is no interval
# The least number of sources for an interval of a correlation within rows. With three, most draws name only one or two
# of them, where such a correlation is none or that of pairs, and the ends of the interval jump with the random numbers.
SOURCES = 5
UNJUDGED = ("direction: share above 1", "similarity: all cells")  # verdicts that the rules show and do not judge

RULES = f"""\
The verdicts. Their rules, except the last, were fixed before any of our numbers came:

1. Direction, for a table that is divided by random init: the share of cells above 1, and the mean of the natural
   logarithm of effectiveness, both off the diagonal. Direction holds if the interval of the mean is above 0.
2. Similarity: the correlation of similarity (Eq. 5) with log effectiveness within rows, off the diagonal. The mean of
   its row is taken off each value of both, so that random init drops out. Its p is the share of {PERMUTATIONS:,}
   permutations of the networks with at least this correlation. Similarity holds if p is below {1 - LEVEL:.2f}.
   Beside it stands the correlation over all cells, as in the paper's Table 11.
3. Agreement with the paper: the correlation of the paper's log effectiveness with ours within rows, off the diagonal;
   the rank correlation of the row means, off the diagonal; the rank correlation over all cells. Each holds if its
   interval is above 0.

Fewer than {LEAST} cells say nothing. Intervals are at {LEVEL:.0%}, by a bootstrap of {DRAWS:,} draws over targets and
sources. The paper's own numbers stand beside ours, over the cells that we have and over all cells of its table.

The last rule came when three sources were in: a correlation within rows has an interval from {SOURCES} sources on.
With fewer, the ends of the interval depend on the random numbers.
"""

# `RULES` in one line, for a table without intervals.
READINGS = (
    f"A claim `holds` if the {LEVEL:.0%} interval of its value is above 0 (similarity: if p is below {1 - LEVEL:.2f}), "
    "and is `open` if our cells cannot tell."
)

Matrix: TypeAlias = np.ndarray  # (targets, sources)


class Verdict(NamedTuple):
    """One number with its interval or its p. NaN stands for what cannot be told yet."""

    verdict: str  # the name
    cells: int  # the number of cells behind the value
    value: float
    low: float = np.nan
    high: float = np.nan
    p: float = np.nan

    @property
    def reading(self) -> str:
        """The verdict in words: "holds", "open", "the opposite holds", "too few cells", or "" for none."""
        if 0 < self.cells < LEAST:
            return "too few cells"
        if not self.cells or self.verdict in UNJUDGED:
            return ""
        if not np.isnan(self.p):
            return "holds" if self.p < 1 - LEVEL else "open"
        return "holds" if self.low > 0 else "the opposite holds" if self.high < 0 else "open"


def as_matrix(cells: pd.DataFrame, column: str, networks: Sequence[str]) -> Matrix:
    """Arrange a column of cells (target, source, ...) as a matrix, networks by networks, with NaN for missing cells."""
    return cells.pivot(index="target", columns="source", values=column).reindex(networks, columns=networks).to_numpy()


def all_verdicts(ours: Matrix, paper: Matrix, similarity: Matrix, over_random: bool = True) -> list[Verdict]:
    """Return all verdicts on a table of ours.

    Args:
        ours: Our effectiveness.
        paper: The paper's effectiveness.
        similarity: The similarities of the networks (Eq. 5).
        over_random: Whether the table divides by random init. Other tables get no verdict on direction.
    """
    found = direction(ours) if over_random else []
    return [*found, *by_similarity(ours, similarity), *agreement(ours, paper)]


def direction(values: Matrix) -> list[Verdict]:
    """Return the verdicts on whether transfers help."""
    logs = off_diagonal(np.log(values))
    gains = np.where(np.isnan(logs), np.nan, logs > 0)
    return [
        Verdict("direction: share above 1", _count(logs), float(mean(gains))),
        Verdict("direction: mean log", _count(logs), float(mean(logs)), *interval(mean, logs)),
    ]


def by_similarity(values: Matrix, similarity: Matrix) -> list[Verdict]:
    """Return the verdicts on whether transfers help more between similar networks."""
    logs = off_diagonal(np.log(values))
    value, p = float(within_rows(logs, similarity)), permutation_p(logs, similarity)
    return [
        Verdict("similarity: within rows", in_rows(logs), value, *interval(within_rows, logs, similarity), p),
        Verdict("similarity: all cells", _count(values), float(correlation(values, similarity))),
    ]


def agreement(ours: Matrix, paper: Matrix) -> list[Verdict]:
    """Return the verdicts on whether our table agrees with the paper's."""
    every = np.log(ours), np.log(paper)
    others = off_diagonal(every[0]), off_diagonal(every[1])
    parts = (
        ("within rows", within_rows, others, in_rows(others[0])),
        ("rank of row means", row_ranks, others, _count(others[0])),
        ("rank of all cells", ranks, every, _count(ours)),
    )
    return [
        Verdict(f"agreement: {name}", cells, float(statistic(*both)), *interval(statistic, *both))
        for name, statistic, both, cells in parts
    ]


# --- statistics of matrices, or of stacks of them: (..., targets, sources) -> (...) -----------------------------------


def off_diagonal(values: Matrix) -> Matrix:
    """Replace the diagonal, a network's transfer to itself, by NaN."""
    return np.where(np.eye(len(values), dtype=bool), np.nan, values)


def mean(values: Matrix) -> Matrix:
    """The mean over the cells that are there."""
    there = np.isfinite(values)
    return _ratio(np.where(there, values, 0).sum((-2, -1)), there.sum((-2, -1)))


def correlation(a: Matrix, b: Matrix) -> Matrix:
    """Pearson's correlation over the cells that both have."""
    a, b = _shared(a, b)
    return _cosine(_centred(a, (-2, -1)), _centred(b, (-2, -1)), np.isfinite(a).sum((-2, -1)))


def within_rows(a: Matrix, b: Matrix) -> Matrix:
    """Pearson's correlation over the cells that both have, after the mean of its row is taken off each value."""
    a, b = _shared(a, b)
    counts = np.isfinite(a).sum(-1)
    return _cosine(_centred(a, -1), _centred(b, -1), np.where(counts > 1, counts, 0).sum(-1))


def ranks(a: Matrix, b: Matrix) -> Matrix:
    """Spearman's correlation over the cells that both have."""
    a, b = _shared(a, b)
    return correlation(_ranked(a), _ranked(b))


def _ranked(values: Matrix) -> Matrix:
    """The ranks of the cells of each matrix, (..., 1, cells); NaN stays NaN, and ranks behind all others."""
    flat = values.reshape(*values.shape[:-2], 1, -1)
    # Rounded: equal values differ in their last bits, by the order of a sum, and a processor would decide their order.
    return np.where(np.isnan(flat), np.nan, rankdata(np.nan_to_num(flat, nan=np.inf).round(DIGITS), axis=-1))


def row_ranks(a: Matrix, b: Matrix) -> Matrix:
    """Spearman's correlation of the row means over the cells that both have."""
    a, b = _shared(a, b)
    return ranks(_row_means(a), _row_means(b))


def _row_means(values: Matrix) -> Matrix:
    """The mean of each row, (..., targets, 1); NaN for an empty row."""
    return _ratio(np.nansum(values, -1, keepdims=True), np.isfinite(values).sum(-1, keepdims=True))


def interval(statistic: Callable[..., Matrix], *matrices: Matrix) -> tuple[float, float]:
    """Return the bootstrap's interval of a statistic of matrices; NaN where the draws cannot tell it.

    Args:
        statistic: Takes stacks of matrices, (draws, targets, sources), and returns (draws,).
        matrices: The matrices that the statistic takes. Empty rows and columns of the first are left out of all.
    """
    # What is drawn? The cells of a row share a target and a divisor, and the cells of a column share a source. They are
    # not independent: a bootstrap that drew cells would take 72 cells for 72 observations, and its intervals would be
    # too narrow. So whole targets and whole sources are drawn, each with replacement, and a draw has the cells where
    # they meet. The interval then says how the statistic would vary with other networks, which is the question, and not
    # how it would vary with other seeds. The draws are computed at once, as one stack of matrices.
    there = np.isfinite(matrices[0])
    matrices = tuple(matrix[there.any(axis=1)][:, there.any(axis=0)] for matrix in matrices)
    rng, (rows, columns) = np.random.default_rng(SEED), matrices[0].shape
    if not rows or (statistic is within_rows and columns < SOURCES):
        return np.nan, np.nan
    targets, sources = (rng.integers(count, size=(DRAWS, count)) for count in (rows, columns))
    draws = statistic(*(matrix[targets[:, :, None], sources[:, None, :]] for matrix in matrices))
    told = draws[np.isfinite(draws)]
    if len(told) < TOLD * DRAWS:
        return np.nan, np.nan
    low, high = np.quantile(told, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def permutation_p(logs: Matrix, similarity: Matrix) -> float:
    """Return how often similarities of renamed networks correlate with `logs` within rows at least as much."""
    # Cells of a similarity matrix cannot be shuffled one by one: a network that is similar to one of a family is
    # similar to the rest of it, and a shuffle of cells would destroy this structure and give a p that is too small. So
    # the networks are renamed, which moves rows and columns alike and keeps the matrix a similarity of networks
    # (Mantel's test). The identity counts as one of the permutations, hence the 1 in both places, so that p is never 0.
    rng, value = np.random.default_rng(SEED), within_rows(logs, similarity)
    named = rng.permuted(np.tile(np.arange(len(similarity)), (PERMUTATIONS, 1)), axis=1)
    renamed = similarity[named[:, :, None], named[:, None]]  # (permutations, targets, sources)
    found = within_rows(np.broadcast_to(logs, renamed.shape), renamed)
    reached = (found >= value - 1e-12).sum()
    return float((1 + reached) / (1 + PERMUTATIONS)) if np.isfinite(value) else np.nan


# --- pairs of networks, with one method and with another -------------------------------------------------------------


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's correlation of two sequences over the places that both have."""
    return float(ranks(*(np.asarray(values, dtype=float)[None] for values in (a, b))))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the p of a mean difference: how often it is as far from 0 with other signs. NaN for no differences."""
    # If two methods were alike, the difference of each pair could as well have the other sign. A t-test would ask that
    # the differences are normal, and there are about twenty of them with long tails. All signs are tried where that is
    # cheap, and the p is exact; else so many are drawn as there are permutations above.
    values = np.asarray(differences, dtype=float)
    if not len(values):
        return np.nan
    if 2 ** len(values) <= PERMUTATIONS:
        bits = np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1
        signs = 1 - 2 * bits  # (all combinations, values)
        extra = 0
    else:
        signs = np.random.default_rng(SEED).choice((-1, 1), size=(PERMUTATIONS, len(values)))
        extra = 1  # the true signs count as one of the draws
    reached = (np.abs(signs @ values) >= abs(values.sum()) - 1e-12).sum()
    return float((extra + reached) / (extra + len(signs)))


def holm(ps: Sequence[float]) -> np.ndarray:
    """Correct several p for each other by Holm's method. NaN stays NaN and does not count."""
    ps = np.asarray(ps, dtype=float)
    order = [k for k in np.argsort(ps) if np.isfinite(ps[k])]
    corrected, largest = np.full(len(ps), np.nan), 0.0
    for rank, k in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * ps[k]))
        corrected[k] = largest
    return corrected


def geometric_mean(ratios: Sequence[float], digits: int = 2) -> str:
    """Return the geometric mean of ratios with its interval of Student's t, as text; one ratio has no interval."""
    logs = np.log(np.asarray(ratios, dtype=float))
    if len(logs) == 1:
        return f"{np.exp(logs[0]):.{digits}f}"
    reach = t.ppf((1 + LEVEL) / 2, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5
    return "{} ({} to {})".format(*(f"{np.exp(logs.mean() + each):.{digits}f}" for each in (0, -reach, reach)))


def ratio_of_means(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Return the mean of `a` over the mean of `b`, and the standard error of the ratio's logarithm, by a bootstrap.

    `a` and `b` are values of the same pairs, in the same order: a draw takes both values of a pair.
    """
    above, below = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    drawn = np.random.default_rng(SEED).integers(len(above), size=(DRAWS, len(above)))
    return float(above.mean() / below.mean()), float(np.log(above[drawn].mean(1) / below[drawn].mean(1)).std())


# --- shared -----------------------------------------------------------------------------------------------------------


def in_rows(values: Matrix) -> int:
    """Return the number of cells that have another cell in their row."""
    counts = np.isfinite(values).sum(axis=1)
    return int(counts[counts > 1].sum())


def _count(values: Matrix) -> int:
    return int(np.isfinite(values).sum())


def _shared(a: Matrix, b: Matrix) -> tuple[Matrix, Matrix]:
    """Both matrices, with NaN where either has NaN."""
    both = np.isfinite(a) & np.isfinite(b)
    return np.where(both, a, np.nan), np.where(both, b, np.nan)


def _centred(values: Matrix, axes: int | tuple[int, int]) -> Matrix:
    """The values less their mean over some axes, and 0 for NaN."""
    there = np.isfinite(values)
    means = _ratio(np.where(there, values, 0).sum(axes, keepdims=True), there.sum(axes, keepdims=True))
    return np.where(there, values - means, 0)


def _cosine(a: Matrix, b: Matrix, cells: Matrix) -> Matrix:
    """The cosine of two matrices; NaN where there is no variance, or where there are too few cells."""
    lengths = np.sqrt((a**2).sum((-2, -1)) * (b**2).sum((-2, -1)))
    told = (cells >= ENOUGH) & (lengths > 1e-12)
    return _ratio((a * b).sum((-2, -1)), np.where(told, lengths, 0))


def _ratio(a: Matrix, b: Matrix) -> Matrix:
    """a / b, and NaN where b is 0."""
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=np.asarray(b) != 0)
