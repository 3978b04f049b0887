"""What a table of effectiveness says, by rules that were written down before any of our numbers was in.

A table is a square of networks: a row for each target, a column for each source, NaN where nothing is run. All is said
of the cells that are there, so that a page fills column by column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata

SEED, DRAWS, PERMUTATIONS = 0, 2_000, 10_000  # fixed, so that the same records give the same page
LEVEL = 0.95
NORMAL = norm.ppf((1 + LEVEL) / 2)  # standard deviations
ENOUGH = 3  # rows, or cells, of which a correlation can be told
TOLD = 0.75  # of the draws must tell something for an interval; with two sources half of them name one source twice

LEAST = 8  # cells: those of one source, itself left out
RULES = f"""\
The verdicts, fixed before any of our numbers was in:

1. Direction, of a table that is divided by random init: of the cells off the diagonal, the share above 1, and the mean
   of the natural logarithm of effectiveness. It holds if the interval of the mean is above 0.
2. Similarity: the correlation of similarity (Eq. 5) with log effectiveness within rows, off the diagonal. The mean of
   its row is taken off each of both, so that random init drops out. Its p is the share of {PERMUTATIONS:,} permutations
   of the networks that reach it; it holds if p is below {1 - LEVEL:.2f}. Beside it, the correlation over all cells, as
   in the paper's Table 11.
3. Agreement with the paper: the correlation of its log effectiveness with ours within rows, off the diagonal; the rank
   correlation of the row means, off the diagonal; the rank correlation over all cells. Each holds if its interval is
   above 0.

Of fewer than {LEAST} cells, none says anything. Intervals are of {LEVEL:.0%}, by a bootstrap of {DRAWS:,} draws over
targets and sources. The paper's own numbers stand beside ours, over the cells that we have and over all of its table.
"""

Matrix: TypeAlias = np.ndarray  # (targets, sources)


class Verdict(NamedTuple):
    """One number, its interval or its p, and the cells that it is of. NaN is what cannot be told yet."""

    verdict: str
    cells: int
    value: float
    low: float = np.nan
    high: float = np.nan
    p: float = np.nan

    @property
    def reading(self) -> str:
        if 0 < self.cells < LEAST:
            return "too few cells"
        if not np.isnan(self.p):
            return "holds" if self.p < 1 - LEVEL else "open"
        if np.isnan(self.low):
            return ""
        return "holds" if self.low > 0 else "the opposite holds" if self.high < 0 else "open"


def as_matrix(cells: pd.DataFrame, column: str, networks: Sequence[str]) -> Matrix:
    """A column of cells (target, source, ...) as a matrix of `networks` by `networks`, NaN where there is none."""
    return cells.pivot(index="target", columns="source", values=column).reindex(networks, columns=networks).to_numpy()


def all_verdicts(ours: Matrix, paper: Matrix, similarity: Matrix, over_random: bool = True) -> list[Verdict]:
    """The verdicts on a table of ours. Direction is of tables that are divided by random init alone."""
    found = direction(ours) if over_random else []
    return [*found, *by_similarity(ours, similarity), *agreement(ours, paper)]


def direction(values: Matrix) -> list[Verdict]:
    logs = off_diagonal(np.log(values))
    return [
        Verdict("direction: share above 1", _count(logs), float(mean(np.where(np.isnan(logs), np.nan, logs > 0)))),
        Verdict("direction: mean log", _count(logs), float(mean(logs)), *interval(mean, logs)),
    ]


def by_similarity(values: Matrix, similarity: Matrix) -> list[Verdict]:
    logs = off_diagonal(np.log(values))
    value, p = float(within_rows(logs, similarity)), permutation_p(logs, similarity)
    return [
        Verdict("similarity: within rows", in_rows(logs), value, *interval(within_rows, logs, similarity), p),
        Verdict("similarity: all cells", _count(values), float(correlation(values, similarity))),
    ]


def agreement(ours: Matrix, paper: Matrix) -> list[Verdict]:
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
    """Without what a network gives to itself."""
    return np.where(np.eye(len(values), dtype=bool), np.nan, values)


def mean(values: Matrix) -> Matrix:
    there = np.isfinite(values)
    return _ratio(np.where(there, values, 0).sum((-2, -1)), there.sum((-2, -1)))


def correlation(a: Matrix, b: Matrix) -> Matrix:
    """Pearson's, over the cells that both have."""
    a, b = _shared(a, b)
    return _cosine(_centred(a, (-2, -1)), _centred(b, (-2, -1)), np.isfinite(a).sum((-2, -1)))


def within_rows(a: Matrix, b: Matrix) -> Matrix:
    """Pearson's after the mean of its row is taken off each value, over the cells that both have."""
    a, b = _shared(a, b)
    counts = np.isfinite(a).sum(-1)
    return _cosine(_centred(a, -1), _centred(b, -1), np.where(counts > 1, counts, 0).sum(-1))


def ranks(a: Matrix, b: Matrix) -> Matrix:
    """Spearman's, over the cells that both have."""
    flat = (x.reshape(*x.shape[:-2], 1, -1) for x in _shared(a, b))
    return correlation(*(np.where(np.isnan(x), np.nan, rankdata(np.nan_to_num(x, nan=np.inf), axis=-1)) for x in flat))


def row_ranks(a: Matrix, b: Matrix) -> Matrix:
    """Spearman's of the row means, over the cells that both have."""
    means = (_ratio(np.nansum(x, -1, keepdims=True), np.isfinite(x).sum(-1, keepdims=True)) for x in _shared(a, b))
    return ranks(*means)


def interval(statistic: Callable[..., Matrix], *matrices: Matrix) -> tuple[float, float]:
    """The bootstrap's interval of a statistic of matrices: targets and sources are drawn anew, with replacement.

    Those of which nothing is run are not drawn. NaN where too many draws tell nothing.
    """
    there = np.isfinite(matrices[0])
    matrices = tuple(matrix[there.any(axis=1)][:, there.any(axis=0)] for matrix in matrices)
    rng, (rows, columns) = np.random.default_rng(SEED), matrices[0].shape
    if not rows:
        return np.nan, np.nan
    targets, sources = (rng.integers(count, size=(DRAWS, count)) for count in (rows, columns))
    draws = statistic(*(matrix[targets[:, :, None], sources[:, None, :]] for matrix in matrices))
    told = draws[np.isfinite(draws)]
    if len(told) < TOLD * DRAWS:
        return np.nan, np.nan
    low, high = np.quantile(told, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def permutation_p(logs: Matrix, similarity: Matrix) -> float:
    """How often the networks, named anew in `similarity`, correlate as much within rows."""
    rng, value = np.random.default_rng(SEED), within_rows(logs, similarity)
    named = rng.permuted(np.tile(np.arange(len(similarity)), (PERMUTATIONS, 1)), axis=1)
    found = within_rows(
        np.broadcast_to(logs, (PERMUTATIONS, *logs.shape)), similarity[named[:, :, None], named[:, None]]
    )
    reached = (found >= value - 1e-12).sum()
    return float((1 + reached) / (1 + PERMUTATIONS)) if np.isfinite(value) else np.nan


# --- pairs of networks, with and without something -------------------------------------------------------------------


def sign_flip_p(differences: Sequence[float]) -> float:
    """How often their mean would be as far from 0 if each could as well have the other sign. NaN for none.

    All signs are tried if that is no more than the permutations, else so many are drawn.
    """
    values = np.asarray(differences, dtype=float)
    if not len(values):
        return np.nan
    if 2 ** len(values) <= PERMUTATIONS:
        signs = 1 - 2 * (np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1)
        extra = 0
    else:
        signs = np.random.default_rng(SEED).choice((-1, 1), size=(PERMUTATIONS, len(values)))
        extra = 1  # the signs that there are
    reached = (np.abs(signs @ values) >= abs(values.sum()) - 1e-12).sum()
    return float((extra + reached) / (extra + len(signs)))


def holm(ps: Sequence[float]) -> np.ndarray:
    """Holm's correction of several p for each other; NaN stays, and counts as none."""
    ps = np.asarray(ps, dtype=float)
    order = [k for k in np.argsort(ps) if np.isfinite(ps[k])]
    corrected, largest = np.full(len(ps), np.nan), 0.0
    for rank, k in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * ps[k]))
        corrected[k] = largest
    return corrected


def ratio_of_means(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """The mean of a over that of b, of the same pairs, and the standard error of its logarithm, by a bootstrap."""
    above, below = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    drawn = np.random.default_rng(SEED).integers(len(above), size=(DRAWS, len(above)))
    return float(above.mean() / below.mean()), float(np.log(above[drawn].mean(1) / below[drawn].mean(1)).std())


# --- shared -----------------------------------------------------------------------------------------------------------


def in_rows(values: Matrix) -> int:
    """The cells that have another one in their row to be compared with."""
    counts = np.isfinite(values).sum(axis=1)
    return int(counts[counts > 1].sum())


def _count(values: Matrix) -> int:
    return int(np.isfinite(values).sum())


def _shared(a: Matrix, b: Matrix) -> tuple[Matrix, Matrix]:
    """Both, NaN where either is."""
    both = np.isfinite(a) & np.isfinite(b)
    return np.where(both, a, np.nan), np.where(both, b, np.nan)


def _centred(values: Matrix, axes: int | tuple[int, int]) -> Matrix:
    """Less their mean over some axes, 0 where there is none."""
    there = np.isfinite(values)
    means = _ratio(np.where(there, values, 0).sum(axes, keepdims=True), there.sum(axes, keepdims=True))
    return np.where(there, values - means, 0)


def _cosine(a: Matrix, b: Matrix, cells: Matrix) -> Matrix:
    """NaN where there is no variance, or where it is of too few cells."""
    lengths = np.sqrt((a**2).sum((-2, -1)) * (b**2).sum((-2, -1)))
    told = (cells >= ENOUGH) & (lengths > 1e-12)
    return _ratio((a * b).sum((-2, -1)), np.where(told, lengths, 0))


def _ratio(a: Matrix, b: Matrix) -> Matrix:
    """NaN over 0."""
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=np.asarray(b) != 0)
