"""The verdicts on a table of effectiveness agree with plain transcriptions of their rules."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr, ttest_1samp

from experiments.results import paper, verdicts

NETWORKS = list(paper.LABELS.values())


@pytest.fixture(scope="module")
def printed() -> np.ndarray:
    return verdicts.as_matrix(paper.matrix("table01"), "value", NETWORKS)


@pytest.fixture(scope="module")
def similarity() -> np.ndarray:
    return verdicts.as_matrix(paper.similarity(), "similarity", NETWORKS)


def by_name(found: list[verdicts.Verdict]) -> dict[str, verdicts.Verdict]:
    return {verdict.verdict: verdict for verdict in found}


def rows_of(values: np.ndarray) -> list[list[tuple[int, int]]]:
    """The places of cells that are run, off the diagonal, row by row."""
    size = len(values)
    return [[(i, j) for j in range(size) if i != j and np.isfinite(values[i, j])] for i in range(size)]


def plainly_within_rows(a: np.ndarray, b: np.ndarray, run: np.ndarray) -> float:
    left, right = [], []
    for row in rows_of(run):
        left += [a[at] - np.mean([a[each] for each in row]) for at in row]
        right += [b[at] - np.mean([b[each] for each in row]) for at in row]
    return pearsonr(left, right)[0]


def test_the_papers_own_table_1(printed, similarity):
    found = by_name(verdicts.all_verdicts(printed, printed, similarity))
    assert found["similarity: within rows"].value == pytest.approx(0.76, abs=0.005)
    assert found["similarity: all cells"].value == pytest.approx(0.68, abs=0.005)
    assert found["direction: share above 1"].value == 1 and found["direction: mean log"].cells == 72
    assert found["similarity: within rows"].p < 0.001 and found["agreement: rank of all cells"].cells == 81


@pytest.mark.parametrize("columns", [2, 5, 9])
def test_verdicts_are_of_the_cells_that_are_run(printed, similarity, columns):
    ours = np.exp(np.log(printed) * 0.7 + np.random.default_rng(1).normal(0, 0.2, printed.shape))
    ours[:, columns:] = np.nan
    ours[3, 1] = np.nan
    found = by_name(verdicts.all_verdicts(ours, printed, similarity))
    places = [at for row in rows_of(ours) for at in row]
    logs = [np.log(ours[at]) for at in places]
    assert found["direction: share above 1"].value == pytest.approx(np.mean(np.array(logs) > 0))
    assert found["direction: mean log"][1:3] == (len(places), pytest.approx(np.mean(logs)))
    within = plainly_within_rows(np.log(ours), similarity, ours)
    assert found["similarity: within rows"].value == pytest.approx(within)
    assert found["agreement: within rows"].value == pytest.approx(
        plainly_within_rows(np.log(ours), np.log(printed), ours)
    )
    rows = [row for row in rows_of(ours) if row]
    means = ([np.mean([np.log(values[at]) for at in row]) for row in rows] for values in (ours, printed))
    assert found["agreement: rank of row means"].value == pytest.approx(spearmanr(*means)[0])
    run = np.isfinite(ours)
    assert found["agreement: rank of all cells"].value == pytest.approx(spearmanr(ours[run], printed[run])[0])
    for verdict in found.values():
        assert np.isnan(verdict.low) or verdict.low <= verdict.value <= verdict.high


def test_a_permutation_renames_the_networks(printed, similarity, monkeypatch):
    monkeypatch.setattr(verdicts, "PERMUTATIONS", 200)
    logs = np.log(np.where(np.arange(9) < 4, printed, np.nan))
    rng = np.random.default_rng(verdicts.SEED)
    named = rng.permuted(np.tile(np.arange(9), (200, 1)), axis=1)
    value = plainly_within_rows(logs, similarity, logs)
    reached = sum(plainly_within_rows(logs, similarity[np.ix_(each, each)], logs) >= value - 1e-12 for each in named)
    assert verdicts.permutation_p(verdicts.off_diagonal(logs), similarity) == pytest.approx((1 + reached) / 201)


def test_what_cannot_be_told_is_not_said(printed, similarity):
    nothing = np.full_like(printed, np.nan)
    for verdict in verdicts.all_verdicts(nothing, printed, similarity):
        assert verdict.cells == 0 and np.isnan(verdict.value) and verdict.reading == ""
    column = np.where(np.arange(9) == 7, printed, np.nan)
    found = by_name(verdicts.all_verdicts(column, printed, similarity))
    assert found["direction: mean log"].cells == 8 and found["direction: mean log"].reading == "holds"
    within = found["similarity: within rows"]
    assert within.cells == 0 and np.isnan(within.value) and np.isnan(within.p) and within.reading == ""


def test_correlations_within_rows_have_an_interval_from_five_sources_on(printed, similarity):
    names = "similarity: within rows", "agreement: within rows"
    for sources in (4, 5):
        found = by_name(verdicts.all_verdicts(np.where(np.arange(9) < sources, printed, np.nan), printed, similarity))
        assert [np.isfinite(found[name].low) for name in names] == [sources == 5] * 2
        assert [found[name].reading for name in names] == ["holds", "holds" if sources == 5 else "open"]
        assert np.isfinite(found["direction: mean log"].low)


def test_three_values_are_enough_though_one_is_their_mean():
    ours, paper = np.full((9, 9), np.nan), np.full((9, 9), 2.0)
    ours[:3, 7], paper[:3, 7] = (1.1, 1.2, 1.3), (1.5, 1.7, 1.6)
    found = by_name(verdicts.agreement(ours, paper))
    assert found["agreement: rank of row means"].value == pytest.approx(0.5)
    assert found["agreement: rank of all cells"].value == pytest.approx(0.5)
    ours[2, 7] = np.nan
    assert np.isnan(by_name(verdicts.agreement(ours, paper))["agreement: rank of row means"].value)


def test_the_same_records_give_the_same_page(printed, similarity):
    assert repr(verdicts.all_verdicts(printed, printed, similarity)) == repr(
        verdicts.all_verdicts(printed, printed, similarity)
    )


def test_a_verdict_is_open_where_its_interval_holds_0():
    for low, high, reading in ((0.1, 0.3, "holds"), (-0.1, 0.3, "open"), (-0.3, -0.1, "the opposite holds")):
        assert verdicts.Verdict("a", 9, 0.0, low, high).reading == reading
    assert verdicts.Verdict("a", 9, 0.5, 0.1, 0.9, 0.2).reading == "open"


def test_signs_are_flipped_pair_by_pair():
    assert verdicts.sign_flip_p([1, 1, 1, 1]) == 2 / 16 and np.isnan(verdicts.sign_flip_p([]))
    assert verdicts.sign_flip_p([1, -1]) == 1
    few, many = [0.3, -0.1, 0.2, 0.4, -0.2, 0.1], list(np.linspace(-0.5, 1, 20))
    reached = [abs(np.dot(signs, few)) >= sum(few) - 1e-9 for signs in product((1, -1), repeat=6)]
    assert verdicts.sign_flip_p(few) == pytest.approx(np.mean(reached))
    assert verdicts.sign_flip_p(many) == pytest.approx(ttest_1samp(many, 0).pvalue, abs=0.01)


def test_holms_correction():
    assert verdicts.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert verdicts.holm([0.5, np.nan, 0.6])[[0, 2]] == pytest.approx([1, 1])


def test_a_ratio_of_means_is_of_the_same_pairs():
    a, b = np.array([2.0, 4, 6]), np.array([1.0, 2, 3])
    assert verdicts.ratio_of_means(a, b) == pytest.approx((2, 0))
    assert verdicts.ratio_of_means(a, b[::-1])[1] > 0.1
