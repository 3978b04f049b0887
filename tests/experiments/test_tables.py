"""Records become committed evidence, and evidence becomes tables and figures."""

import errno
import json
import math
import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from trials import record

from dpiat import rank
from dpiat.reading import VERSION
from experiments import evidence, figures, grids, models, tables
from experiments.callback import TablesAndFigures
from experiments.initialization import SAME_SINCE
from experiments.report import side_by_side
from experiments.results import (
    cells,
    drawing,
    method_effects,
    missing,
    ours,
    paper,
    similarity_modes,
    source_choice,
    source_effects,
    verdicts,
)
from experiments.settings import UserError
from experiments.store import records
from experiments.store.files import CannotWrite

METRICS = "test_accuracy", "train_loss"
DESK, METHODS, MODES = "imagenet_to_imagenette", "imagenette_methods", "imagenette_modes"


def at_paper_lr(experiment: str, accuracies: list[float], *words: str) -> dict[str, dict]:
    """Make records of random init at the paper's learning rate, which divides experiments at other rates."""
    planned = grids.grid(experiment, "init=random", "lr=4e-3", *words)
    return {cell.trial.id: record(cell.trial, accuracies) for cell in planned}


@pytest.fixture(scope="module")
def desk() -> dict[str, dict]:
    """Records of mnas from eff_lite0 and from random init, with two seeds at two rates; and of other settings."""
    found = {}
    accuracies = {0: ([0.3, 0.6], [0.2, 0.3]), 1: ([0.4, 0.3], [0.2, 0.1])}
    for seed, (own, random) in accuracies.items():
        found |= at_paper_lr(DESK, random, "target=mnas", f"seed={seed}")
        (cell,) = grids.grid(DESK, "target=mnas", "source=eff_lite0", f"seed={seed}")
        (other,) = grids.grid(DESK, "target=mnas", "source=eff_lite0", f"seed={seed}", "dataset.image_size=96")
        for trial, values in ((cell.trial, own), (cell.random, random), (other.trial, [0.9]), (other.random, [0.9])):
            found[trial.id] = record(trial, values)
    return found


@pytest.mark.slow
def test_an_experiment_is_its_files_grid():
    grid = grids.grid(DESK, "seed=0")
    assert len(grid) == 36 and len({cell.random.id for cell in grid}) == 12
    (own,) = grids.grid(DESK, "seed=0", "init=pretrained", "target=eff_lite0")  # one trial, whatever the source
    assert own.trial.init == "pretrained" and own.trial.recipe.lr == 1e-3
    assert own.trial == own.pretrained == grid[6].pretrained and grid[6].trial.model == "eff_lite0"
    assert grid[0].settings.scale == "desk" and grid[0].settings.dataset.image_size == 64


@pytest.mark.slow
def test_effectiveness_divides_by_the_mean_over_seeds_and_nothing_else_slips_in(desk):
    table = ours.table(DESK, desk)
    row = table.data.set_index(["target", "column"]).loc[("mnas", "eff_lite0")]
    assert row["accuracy ours"] == pytest.approx(0.5) and row["accuracy n"] == 2 and row["accuracy planned"] == 3
    assert row["effectiveness ours"] == pytest.approx(2)  # 0.6 and 0.4 over 0.25
    same_rate = grids.grid(DESK, "target=mnas", "seed=0", "source=eff_lite0")[0].random.id
    without = ours.table(DESK, {name: found for name, found in desk.items() if name != same_rate})
    row = without.data.set_index(["target", "column"]).loc[("mnas", "eff_lite0")]
    assert row[f"{cells.SAME_RATE} ours"] == pytest.approx(2.5)  # 0.6 and 0.4 over 0.2, the one seed of this rate
    random = "0.250 ± 0.071 (2)"
    assert f"| mnas | {random} | {random} | – | 0.500 ± 0.141 (2) | not run | not run |" in table.page
    assert "| mnas | – | 2.000 ± 0.566 (2) | not run | not run |" in table.page
    assert "9,469 training images at 64 px" in table.page and "6 of 189 trials are run" in table.page
    assert "at a learning rate of 0.004 (2 for each target; at least 5 are wanted)." in table.page
    assert "The accuracy of one seed has a standard deviation of 28% of the mean." in table.page


def test_random_init_is_compared_with_itself(desk):
    (other,) = grids.grid(DESK, "target=mnas", "init=random", "lr=4e-3", "source=eff_lite0", "seed=0")
    table = ours.table(DESK, desk | {other.trial.id: record(other.trial, [0.6])})
    found = table.data[table.data["target"] == "mnas"]
    random = found[found["column"].str.startswith("random")].set_index("lr")["effectiveness ours"]
    assert random.to_dict() == pytest.approx({1e-3: 1, 4e-3: 1})  # not with another learning rate


def test_the_time_to_what_random_init_reaches(desk):
    found = {name: each for name, each in desk.items() if each["trial"]["recipe"]["lr"] != 4e-3}
    page = ours.table(DESK, found).page
    assert "| mnas | – | not run | not run | not run |" in page  # random init is not run at both rates
    for seed, accuracies in ((0, [0.1, 0.35]), (1, [0.44])):
        found |= at_paper_lr(DESK, accuracies, "target=mnas", f"seed={seed}")
    for source, accuracies in {"eff_lite1": [0.4], "eff_lite2": [0.3, 0.34]}.items():
        (cell,) = grids.grid(DESK, "target=mnas", "seed=0", f"source={source}")
        found[cell.trial.id] = record(cell.trial, accuracies)
    table = ours.table(DESK, found)
    assert "| mnas | – | 2, 1 | 1 | not reached |" in table.page  # of 0.395, what random init reaches at 4e-3
    epochs = table.data.set_index(["target", "column"])["epochs to random init's best"]
    assert epochs["mnas", "eff_lite2"] == "not reached" and epochs["semnas", "eff_lite2"] == "not run"
    headline = ours.headline(DESK, found)
    assert "random init in 1 of 3 pairs, with each seed of the target" in headline
    assert "The mean effectiveness of the 3 pairs of different networks is 1.13." in headline  # 0.6, 0.4, 0.34 / 0.395
    assert "the mean would be 1.79." in headline  # over 0.25
    assert "at the better of both rates, 2 of 3 pairs are above 1." in headline


def test_a_row_compares_the_seeds_that_all_of_its_cells_have(desk):
    (cell,) = grids.grid(DESK, "target=mnas", "source=eff_lite2", "seed=1")
    found = desk | {cell.trial.id: record(cell.trial, [0.5])}
    row = "| mnas | 1 | 0.200 | 0.200 | – | 0.400 1.60× | not run | 0.500 2.00× |"  # seed 1 alone, over all of 0.25
    assert row in ours.headline(DESK, found)
    values = ours.transfers(ours.trials(DESK, found)).set_index("source")["value"]
    assert values.to_dict() == pytest.approx({"eff_lite0": 1.6, "eff_lite2": 2})
    assert "0.500 ± 0.141 (2) | not run | 0.500 (1) |" in ours.table(DESK, found).page  # here all that there is
    (other,) = grids.grid(DESK, "target=mnas", "source=eff_lite2", "seed=2")
    nothing_shared = desk | {other.trial.id: record(other.trial, [0.5])}
    assert "| 0.500 2.00× | not run | 0.500 2.00× |" in ours.headline(DESK, nothing_shared)


@pytest.mark.slow
def test_methods_are_compared_on_the_same_pairs(desk):
    names = MODES, METHODS, DESK
    assert [method_effects.varies_method(ours.trials(name, desk)) for name in names] == [True, True, False]
    found = at_paper_lr(MODES, [0.2], "init.mode=paper")
    for mode, accuracies in (("paper", (0.6, 0.4, 0.5)), ("default", (0.7, 0.5))):
        planned = grids.grid(MODES, f"init.mode={mode}")
        for cell, accuracy in zip(planned, accuracies, strict=False):
            found[cell.trial.id] = record(cell.trial, [accuracy])
            found[cell.random.id] = record(cell.random, [0.1])
    table = ours.table(MODES, found)
    assert "| paper mode | 3 of 33 | 2.500 ± 0.289 | 0.500 ± 0.058 |  |  |  |  |  |  |  |" in table.page
    assert "| mnas | eff_lite0 | 0.200 | 0.600 3.00× | 0.700 3.50× |" in table.page
    assert "| mnas | eff_lite2 | 0.200 | 0.500 2.50× | not run |" in table.page
    ratios = "1.21 (0.78 to 1.87) | 1.17"  # of 0.7 / 0.6 and 0.5 / 0.4
    compared = f"| 0 | +0.100 ± 0.000 | {ratios} | 0.5000 | 2 of 2 | 1 target, 1 seed |"
    assert f"| default mode | 2 of 33 | 3.000 ± 0.500 | 0.600 ± 0.100 {compared}" in table.page
    assert "at a learning rate of 0.001; random init has 0.004. ± is the standard error over pairs." in table.page
    said = method_effects.modes_in_words(method_effects.pairs(ours.trials(MODES, found)))
    assert (
        "in 2 of 33 pairs of our grid, with 1 seed: 1.21 (0.78 to 1.87) times the paper's mode, at least 1.17" in said
    )
    assert "as accurate as the best of all (0.700), the ratio would be 1.43." in said  # over 0.6 and 0.4
    figure = drawing.method_differences(
        method_effects.pairs(ours.trials(MODES, found)).dropna(subset="accuracy"), "settings."
    )
    (axes,) = figure.axes
    assert axes.containers[0].lines[0].get_xdata() == pytest.approx([0.1, 0.1])
    labels = [text.get_text() for text in figure.subfigs[0].legends[0].get_texts()]
    assert labels == ["default mode: +0.100"]
    assert figure.subfigs[0].legends[0].get_title().get_text() == "mean over the 2 pairs that are run with each"
    title = "default mode: +0.100 in test accuracy, on average, to paper mode"
    assert figure.subfigs[0].get_suptitle() == title
    assert [text.get_text()[:-6] for text in axes.get_yticklabels()] == ["Mnas from Eff-Lite0", "Mnas from Eff-Lite1"]


def test_trials_that_begin_alike_count_once_for_a_pair():
    method = {"init": "dpiat", "mode": "paper", "head": "auto", "operator": "clip", "version": 1}
    rows = [
        {
            "target": "eff_b0",
            "source": "eff_lite0",
            **method,
            "matching": matching,
            "method": matching,
            "accuracy": value,
        }
        for matching, value in (("dp", 0.5), ("bipartite", 0.6), ("nbipartite", 0.6))
    ]
    (line,) = method_effects.noise_line(pd.DataFrame(rows).assign(same=True))
    assert line.startswith("Where the start is the same, the difference is +0.100 over 1 pair, at most 0.100.")


def test_methods_that_give_the_same_weights_begin_alike():
    method = {"init": "dpiat", "mode": "paper", "operator": "clip", "head": "auto", "version": 1, "n": 1}
    matchings = "dp", "random", "bipartite"
    rows = [{"target": "eff_b0", "source": "eff_lite0", "matching": name, **method} for name in matchings]
    assert method_effects.same_start(pd.DataFrame(rows)) == [True, False, True]


@pytest.mark.slow
def test_methods_stand_beside_those_of_the_paper(desk):
    found = at_paper_lr(METHODS, [0.2], "together.method={operator:clip,matching:dp}")
    for k, (operator, matching) in enumerate((("clip", "dp"), ("clip", "random"), ("full", "dp"), ("magnitude", "dp"))):
        for cell in grids.grid(METHODS, f"together.method={{operator:{operator},matching:{matching}}}")[:2]:
            found[cell.trial.id] = record(cell.trial, [0.4 - 0.1 * k])
            found[cell.random.id] = record(cell.random, [0.2])
    page = ours.table(METHODS, found).page
    assert re.search(
        r"\| full operator, dp matching \| 2 of 20 \| 1\.000 ± 0\.000 \| 1\.59 ± 0\.09 \| 0\.200 ± 0\.000 \| \d+ "
        r"\| -0\.200 ± 0\.000 \| 0\.50 \(\d\.\d\d to \d\.\d\d\) \| 0\.50 \| 1\.0000 \| 0 of 2 \| 2 targets, 1 seed \|",
        page,
    )
    assert "No pair is run with every method yet" in page
    data = method_effects.pairs(ours.trials(METHODS, found)).dropna(subset="accuracy")
    ranks = [4, 3, 2, 1], [3.5, 1, 3.5, 2]  # ours, and the paper's 1.59, 0.64, 1.59, 1.55
    said = method_effects.agreement_lines(data)
    assert f"over 2 pairs: {np.corrcoef(*ranks)[0, 1]:.2f}. We disagree on a method where" in said[0]
    assert said[1].startswith(
        "We disagree on `clip operator, random matching`: its effectiveness over the effectiveness of `clip operator"
    )
    assert "is 0.75 ± 0.00 here and 0.40 ± 0.03 in the paper" in said[1] and len(said) == 4  # no agreement


@pytest.mark.slow
def test_a_difference_is_compared_with_similarity():
    found = {}
    for operator in ("clip", "clip_normalized"):
        for k, cell in enumerate(grids.grid(METHODS, f"together.method={{operator:{operator},matching:dp}}")[:12]):
            gain = 0.01 * (6 - k) if operator == "clip_normalized" else 0  # helps the less similar ones
            initialization = {"similarity": 0.4 + 0.05 * k}
            found[cell.trial.id] = record(cell.trial, [0.5 + gain], initialization=initialization)
            found[cell.random.id] = record(cell.random, [0.2])
    page = ours.table(METHODS, found).page
    assert re.search(r"\| clip_normalized operator, dp matching \| 12 of 20 .* \| 6 of 12 \| .* \| -1\.00 \|\n", page)
    assert "`with similarity` is the rank correlation of the difference with the similarity of the pair.\n" in page
    run = method_effects.pairs(ours.trials(METHODS, found)).dropna(subset="accuracy")
    figure = drawing.differences_over_similarity(run.assign(same=False), "settings.")
    assert "depends most on similarity (rank correlation -1.00)" in figure.subfigs[0].get_suptitle()
    (axes,) = (axes for axes in figure.axes if axes.get_visible())
    drawn = axes.lines[0].get_xydata()
    assert axes.get_title().startswith("clip_normalized operator") and len(drawn) == 12
    assert drawn[0] == pytest.approx([0.4, 0.06]) and drawn[-1] == pytest.approx([0.95, -0.05])
    few = method_effects.pairs(ours.trials(METHODS, dict(list(found.items())[:8])))
    assert "with similarity" not in method_effects.summary(few.assign(same=False))


def test_whatever_of_a_method_varies_names_it(desk):
    planned = [cell for head in ("auto", "skip") for cell in grids.grid(DESK, "target=mnas", f"init.head={head}")]
    frame = cells.with_effectiveness(cells.trials(planned, desk))
    assert method_effects.varies_method(frame) and set(method_effects.pairs(frame)["method"]) == {
        "auto head",
        "skip head",
    }


def test_a_version_of_the_default_mode_is_a_method(desk):
    words = [("init.mode=paper",), *(("init.mode=default", f"init.version={version}") for version in (1, VERSION))]
    planned = [cell for more in words for cell in grids.grid(DESK, "target=mnas", *more)]
    trials = cells.with_effectiveness(cells.trials(planned, desk))
    names = ["paper mode, version 1", "default mode, version 1", f"default mode, version {VERSION}"]
    assert list(method_effects.pairs(trials)["method"].unique()) == names
    without = trials[(trials["mode"] != "default") | (trials["version"] == VERSION)]
    assert list(method_effects.pairs(without)["method"].unique()) == ["paper mode", "default mode"]


def test_the_starts_of_old_rules_count_as_different():
    start = partial(method_effects._start, "mnas", "eff_lite1", "dpiat", "default", "clip", "dp", "auto")
    assert start(SAME_SINCE - 1) == "another"  # whose rules are no longer in the code
    assert len(start(VERSION)) == 64  # a digest of what today's rules write
    assert start(SAME_SINCE) == start(VERSION)


def test_choosing_by_similarity():
    rows = [
        ("a", "x", 0.5, 1.0),
        ("a", "y", 0.9, 2.0),
        ("b", "x", 0.9, 10.0),
        ("b", "y", 0.5, 8.0),
        ("a", "a", 1.0, 9.0),
    ]
    rows.append(("c", "x", 0.1, 5.0))  # no choice
    found = source_choice.prediction_quality(pd.DataFrame(rows, columns=["target", "source", "similarity", "value"]))
    assert found["cells"] == 6 and found["within a row"] == pytest.approx(0.6 / (0.16 * 2.5) ** 0.5)
    assert found["regret"] == 0 and found["regret of chance"] == pytest.approx((1 / 4 + 1 / 10) / 2)
    worst = pd.DataFrame(
        [("a", "x", 0.5, 2.0), ("a", "y", 0.9, 1.0)], columns=["target", "source", "similarity", "value"]
    )
    assert source_choice.prediction_quality(worst)["regret"] == 0.5


def test_the_scale_of_similarity_is_the_mean_of_each_band(monkeypatch):
    pairs = [("mnas", "rex", 0.45, 1.0), ("mnas", "mix_m", 0.5, 1.5), ("rex", "mnas", 0.55, 2.5), ("rex", "rex", 1, 9)]
    cells = pd.DataFrame(pairs, columns=["target", "source", "similarity", "value"])
    similarity = cells.drop(columns="value").assign(measure="similarity")
    monkeypatch.setattr(source_choice, "measures_of_results", lambda results: similarity)
    values = cells[["target", "source", "value"]]
    found = source_choice.scale(
        [source_choice.SourceEffects("all", values), source_choice.SourceEffects("one", values[:1])]
    )
    assert found["similarity"].tolist() == ["0.5 to 0.6", "0.45 to 0.5"]
    assert found["all"].tolist() == ["2.00 (2)", "1.00 (1)"] and found["one"].tolist() == ["–", "1.00 (1)"]
    assert found["a pair"].tolist() == ["mnasnet_100 → rexnet_100, 0.55", "rexnet_100 → mnasnet_100, 0.45"]


@pytest.mark.slow
def test_the_papers_table_11(desk):
    table = source_effects.table11(desk, [DESK]).data.set_index("results")
    assert list(table["correlation"].round(3)) == [0.765, 0.676, 0.546, 0.879, 0.917, 0.832]  # one cell of ours is none
    assert (table["correlation"] - table["printed"]).abs().max() < 0.006


def test_how_similarity_tells_in_each_mode(monkeypatch):
    """Against the numbers by hand, with both modes' similarities given; a target as its own source does not count."""
    value = {"a": (1.0, 2.0, 4.0), "b": (3.0, 3.5, 5.0), "c": (2.0, 1.0, 1.5), "d": (1.0, 1.1, 2.0)}
    default = {"a": (0.1, 0.2, 0.3), "b": (0.5, 0.6, 0.9), "c": (0.4, 0.2, 0.3), "d": (0.1, 0.2, 0.4)}
    paper_mode = {"a": (0.3, 0.2, 0.1), "b": (0.9, 0.6, 0.5), "c": (0.2, 0.4, 0.3), "d": (0.4, 0.2, 0.1)}
    pairs = [(target, source) for target in value for source in "xyz"]

    def column(numbers: dict) -> list[float]:
        return [numbers[target]["xyz".index(source)] for target, source in pairs]

    values = pd.DataFrame(pairs, columns=["target", "source"]).assign(value=column(value))
    itself = pd.DataFrame({"target": ["a"], "source": ["a"], "value": [99.0]})
    measured = [
        values[["target", "source"]].assign(measure=measure, similarity=column(numbers))
        for measure, numbers in (("similarity", default), ("similarity, paper mode", paper_mode))
    ]
    same = itself[["target", "source"]]
    measured += [same.assign(measure=measure, similarity=1.0) for measure in ("similarity", "similarity, paper mode")]
    monkeypatch.setattr(source_choice, "measures_of_results", lambda results: pd.concat(measured))
    one_source = values[values["source"] == "x"]
    made = similarity_modes.table(
        [
            source_choice.SourceEffects("ours", pd.concat([values, itself])),
            source_choice.SourceEffects("one source", one_source, 0.5),
        ]
    )
    data = made.data.set_index(["results", "mode"])

    def within(numbers: dict) -> float:
        rows = [(np.log(value[t]) - np.log(value[t]).mean(), numbers[t] - np.mean(numbers[t])) for t in value]
        return np.corrcoef(*map(np.concatenate, zip(*rows, strict=True)))[0, 1]

    for mode, numbers in (("default", default), ("paper", paper_mode)):
        row = data.loc[("ours", mode)]
        assert row["within rows"] == pytest.approx(within(numbers))
        assert row["all cells"] == pytest.approx(np.corrcoef(np.log(column(value)), column(numbers))[0, 1])
        assert (row["targets"], row["cells in rows"], row["cells"]) == (4, 12, 12)
        assert row["within rows, low"] <= row["within rows"] <= row["within rows, high"]
    difference = data.loc[("ours", similarity_modes.DIFFERENCE)]
    assert difference["within rows"] == pytest.approx(within(default) - within(paper_mode))
    assert difference["within rows, low"] > 0 and data.loc[("ours", "default"), "best chosen"] == 4
    assert data.loc[("ours", "paper"), "best chosen"] == 0
    assert np.isnan(data.loc[("one source", "default"), "within rows"])
    assert "tells more in 1 of 1 results" in made.page and "too few sources: one source." in made.page
    assert "| 12 of 4 |" in made.page and "| one source | 0.500 | 0 of 0 |  |  |  | 4 |" in made.page


@pytest.mark.slow
def test_similarity_in_paper_mode_is_that_of_the_verdicts(desk):
    data = similarity_modes.table(source_effects.all_effects(desk, [])).data.set_index(["results", "mode"])
    networks = list(paper.LABELS.values())
    values, similar = paper.matrix("table01"), paper.similarity()
    verdict, _ = verdicts.by_similarity(
        verdicts.as_matrix(values, "value", networks), verdicts.as_matrix(similar, "similarity", networks)
    )
    row = data.loc[("Table 1: CIFAR100, sources from random init", "paper")]
    assert row["within rows"] == pytest.approx(verdict.value, abs=1e-5) and row["cells in rows"] == verdict.cells
    assert (row["within rows, low"], row["within rows, high"]) == pytest.approx((verdict.low, verdict.high), abs=0.05)


@pytest.mark.slow
def test_by_which_number_to_choose(desk):
    values = pd.DataFrame(
        [("mnas", "semnas", 2.0), ("mnas", "mix_l", 1.0), ("mnas", "rex", 1.5)], columns=["target", "source", "value"]
    )
    results = [source_choice.SourceEffects("a table", values), *source_effects.all_effects(desk, [])]
    made = source_choice.measures_table(results)
    data = made.data.set_index(["results", "measure"])
    table = source_effects.table11(desk, []).data.set_index("results")
    paper_mode = data.xs("similarity, paper mode", level="measure").loc[table.index]
    assert np.allclose(paper_mode[["correlation", "regret"]], table[["correlation", "regret"]])
    networks = {name: models.build(name, 1000) for name in ("mnas", "semnas", "mix_l", "rex")}
    found = rank(networks.pop("mnas"), networks)
    for number in ("similarity", "to_target", "to_source", "filled"):
        expected = np.corrcoef(
            [getattr(each, number) for each in found],
            [values.set_index("source").loc[each.source, "value"] for each in found],
        )
        assert data.loc[("a table", number), "within a row"] == pytest.approx(expected[0, 1])
    assert made.page.count("| a table |") == 2 and made.page.count("| mean |") == 2


def test_curves_show_what_is_run(desk):
    figure = drawing.curves(ours.trials(DESK, desk), desk)
    (axes,) = figure.axes
    (top, below) = figure.subfigs
    labels = [text.get_text() for text in top.legends[0].get_texts()]
    random = [f"random init, lr {rate} (n = 2)" for rate in (0.001, 0.004)]
    assert labels == [*random, "Eff-Lite0, with ImageNet weights, lr 0.001 (n = 2)"]
    assert axes.get_title() == "Mnas" and axes.lines[0].get_ydata() == pytest.approx([0.35, 0.45])
    assert top.get_suptitle() == "Test accuracy: 1 of 1 transfers to another network end above random init"
    assert below.texts[0].get_text().startswith("Scale desk: imagenette, 9,469 training images at 64 px")
    assert figures.svg(figure) == figures.svg(drawing.curves(ours.trials(DESK, desk), desk))


def test_a_caption_leaves_no_word_alone():
    text = "one two three four five six seven eight nine ten EPYC."
    assert drawing.wrapped(text, 49) == ["one two three four five six", "seven eight nine ten EPYC."]
    assert drawing.wrapped("one", 9) == ["one"] and " ".join(drawing.wrapped(text, 12)) == text
    assert drawing.wrapped("a_word_that_is_longer_than_a_line", 10)[0] == "a_word_that_is_longer_than_a_line"[:10]


def test_families_stand_together():
    names = ["semnas", "eff_lite1", "mix_m", "eff_b2", "a_new_one", "mnas", "eff_b0"]
    ordered = ["eff_b0", "eff_b2", "eff_lite1", "mix_m", "mnas", "semnas", "a_new_one"]
    assert (
        paper.in_order(names) == ordered and paper.label("mix_m") == "Mix-M" and paper.label("resnet18") == "resnet18"
    )


def test_a_figure_that_was_not_wholly_written_is_written_again(desk, tmp_path, monkeypatch):
    figure = {"curves": drawing.curves(ours.trials(DESK, desk), desk)}

    def full(*_, **__) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(figure["curves"], "savefig", full)
    text = "<svg/>"
    monkeypatch.setattr(figures, "svg", lambda _: text)
    with pytest.raises(CannotWrite, match=r"cannot write .*curves\.png \(No space left on device\)"):
        figures.write(figure, tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    figures.write(figure, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"curves.png", "curves.svg"}
    assert not figures.outdated(figure, tmp_path)


@pytest.mark.slow
def test_a_picture_of_another_figure_is_made_again(desk, tmp_path):
    one, other = ({"curves": drawing.curves(ours.trials(DESK, desk), desk, metric)} for metric in METRICS)
    figures.write(other, tmp_path)
    stale = (tmp_path / "curves.png").read_bytes()
    figures.write(one, tmp_path)
    for change in (partial((tmp_path / "curves.png").write_bytes, stale), (tmp_path / "curves.png").unlink):
        change()  # what a merge leaves, say
        assert [file.name for file in figures.outdated(one, tmp_path)] == ["curves.svg"]
        figures.write(one, tmp_path)
        assert not figures.outdated(one, tmp_path)


def test_a_figure_is_the_same_on_another_processor_and_differs_where_one_sees_it():
    def curve(*values):
        figure = Figure()
        figure.subplots().plot(values, "o")
        return figures.svg(figure)

    drawn = curve(0.3, 0.5)
    assert curve(0.3, 0.5 + 1e-8) != drawn and figures.alike(curve(0.3, 0.5 + 1e-8), drawn)
    assert not figures.alike(curve(0.31, 0.5), drawn) and not figures.alike(curve(0.3, 0.5, 0.4), drawn)
    assert not figures.alike(drawn.replace("stroke-width", "stroke"), drawn)


def test_the_last_bits_of_equal_values_give_them_no_order():
    similarity = [0.1, 0.2, 0.3, 0.4]
    assert verdicts.rank_correlation([0.5, 0.5 + 1e-16, 0.7, 0.7 - 1e-16], similarity) == pytest.approx(2 / 5**0.5)
    assert verdicts.rank_correlation([0.5, float("nan"), 0.7, 0.9], similarity) == pytest.approx(1)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder of results without any evidence, in the place of the committed one."""
    monkeypatch.setattr(paper, "RESULTS", tmp_path / "results")
    cells.all_evidence.cache_clear()
    yield tmp_path / "results"
    cells.all_evidence.cache_clear()


@pytest.mark.slow
def test_evidence_can_be_traced(desk, tmp_path, results):
    for found in desk.values():
        hours = [row | {"seconds": 3600.0} for row in found["epochs"]]
        records.save(found | {"epochs": hours}, tmp_path / "runs" / f"{found['id']}.json")
    evidence.collect(DESK, tmp_path / "runs")
    rows = tables.provenance_table(cells.all_evidence())
    row = rows[rows["command"].str.startswith(f"`python run.py -m experiment={DESK} dataset.root=FOLDER`<br>")].iloc[0]
    assert set(rows.loc[rows["commit"] == "", "status"]) == {"not run"}
    assert row["commit"] == "0123456789" and row["hardware"] == "a processor"
    assert row["status"] == "6 of 189 trials, 12.0 h"


def test_the_effectiveness_window_is_four_epochs():
    late, random = ({"epochs": [{"epoch": 1, "test_accuracy": a} for a in row]} for row in ((1, 2, 3, 4, 9), (1, 2, 1)))
    assert records.best_accuracy(late) == 4 and records.effectiveness(late, random) == 2
    assert "effectiveness within 4 epochs: 2.00" in side_by_side(late | {"trial": {"init": "dpiat"}}, random)


def test_evidence_goes_back_to_records_and_grows(desk, tmp_path, results):
    wanted = evidence.planned_ids(DESK)
    planned = {name: found for name, found in desk.items() if name in wanted}
    first, *others = planned.values()
    records.save(first, tmp_path / "runs" / f"{first['id']}.json")
    assert evidence.collect(DESK, tmp_path / "runs") == f"{DESK}: 1 records added, 0 there before"
    assert evidence.restore(DESK, tmp_path / "again").startswith(f"{DESK}: 1 records written to ")
    (tmp_path / "again" / f"{first['id']}.json").write_text("{")
    assert evidence.restore(DESK, tmp_path / "again").startswith(f"{DESK}: 1 records written to ")
    for folder in ("runs", "again"):
        assert records.read(tmp_path / folder / f"{first['id']}.json") == first
    changed = first | {"seconds": 1.0, "dirty": True}  # what is evidence stays as it is
    other_settings = [found for name, found in desk.items() if name not in wanted]
    for other in (*others, changed, *other_settings):
        records.save(other, tmp_path / "more" / f"{other['id']}.json")
    assert "4 of other settings left out" in evidence.collect(DESK, tmp_path / "more")
    assert {found["id"]: found for found in records.read_evidence(results / "trials" / DESK)} == planned


def signed(line: str, **changes) -> str:
    """Change values in a line of evidence, and sign the line with the digest of the new values."""
    record = json.loads(line) | changes
    del record["sha256"]
    return records.evidence_line(record).strip()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line.replace('"test_accuracy": 0.6', '"test_accuracy": 0.9'), "it is not what was written"),
        (lambda line: json.dumps(json.loads(line) | {"sha256": None, "trial": {}}), "its id is not that of its trial"),
        (lambda line: line[:100], "Unterminated string|Expecting"),
        (lambda line: signed(line, status="unfinished"), "its trial has not ended"),
        (lambda line: signed(line, dirty=True), "it was not run from a clean commit"),
        (lambda line: signed(line, commit=None), "it was not run from a clean commit"),
        (lambda line: signed(line, epochs=[]), "its test accuracies are not all there"),
        (lambda line: signed(line, epochs=[{"test_accuracy": math.nan}]), "its test accuracies are not all there"),
    ],
)
def test_evidence_that_was_changed_is_refused(desk, tmp_path, results, change, message):
    kept = next(found for found in desk.values() if found["epochs"][-1]["test_accuracy"] == 0.6)
    records.save(kept, tmp_path / "runs" / "a.json")
    evidence.collect(DESK, tmp_path / "runs")
    file = results / "trials" / DESK / "records.jsonl"
    assert records.read_evidence(file.parent) == [kept]
    file.write_text(change(file.read_text().strip()) + "\n")
    with pytest.raises(ValueError, match=rf"records\.jsonl, line 1: ({message})"):
        records.read_evidence(file.parent)


@pytest.mark.slow
def test_experiments_share_evidence(desk, tmp_path, results):
    found, *_ = (found for found in desk.values() if found["id"] in evidence.planned_ids(METHODS))
    records.save(found, tmp_path / "runs" / "a.json")
    evidence.collect(DESK, tmp_path / "runs")
    assert "0 records added, 1 there before" in evidence.collect(METHODS, tmp_path / "runs")
    assert not (results / "trials" / METHODS).exists()
    assert "1 records written" in evidence.restore(METHODS, tmp_path / "again")
    with pytest.raises(ValueError, match=r"no trial of table01 is in .*trials: there is nothing to bring back"):
        evidence.restore("table01", tmp_path / "again")


@pytest.mark.parametrize("other", [DESK, METHODS])
def test_a_trial_that_is_there_twice_is_refused(desk, results, other, monkeypatch):
    one = next(iter(desk.values()))
    for folder, seconds in ((DESK, 1.0), (other, 2.0)):
        file = results / "trials" / folder / "records.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a") as f:
            f.write(records.evidence_line(one | {"seconds": seconds}))
    monkeypatch.setattr("sys.argv", ["tables", "--check"])
    with pytest.raises(SystemExit, match=rf"error: {one['id']} is twice in .*trials, in {DESK} and in {other}: keep"):
        tables.main()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dirty": True}, "was not run from a clean commit"),
        ({"commit": None}, "was not run from a clean commit"),
        ({"epochs": []}, "its test accuracies are not all there"),
    ],
)
def test_only_what_counts_becomes_evidence(desk, tmp_path, results, changes, message):
    records.save(next(iter(desk.values())) | changes, tmp_path / "runs" / "a.json")
    with pytest.raises(ValueError, match=message):
        evidence.collect(DESK, tmp_path / "runs")
    assert not results.exists()
    with pytest.raises(ValueError, match="no records in"):
        evidence.collect(DESK, tmp_path / "nothing")


def test_a_diverged_trial_keeps_its_place_and_is_marked(desk, tmp_path, results):
    record = next(record for record in desk.values() if record["trial"]["init"] == "dpiat")
    rows = [dict(row, train_loss=math.nan) if row["epoch"] == 3 else row for row in record["epochs"][:3]]
    records.save(record | {"status": "diverged", "epochs": rows}, tmp_path / "runs" / "a.json")
    evidence.collect(DESK, tmp_path / "runs")
    (found,) = records.read_evidence(results / "trials" / DESK)
    table = ours.table(DESK, {**desk, found["id"]: found})
    assert "1 of them diverged and count with their best epoch" in table.page
    assert records.best_accuracy(found) == max(row["test_accuracy"] for row in record["epochs"][:3])


def test_what_has_no_source_is_not_missing():
    words = "scale=gpu", "target=mnas", "source=rex,eff_b0", "seed=0"
    rex, eff_b0 = grids.grid("table01", *words)
    found = {rex.trial.source.id: record(rex.trial.source, [0.1], status="diverged", scale="gpu")}
    assert rex.trial.id not in missing.missing_trials("table01", found, *words)
    assert eff_b0.trial.id in missing.missing_trials("table01", found, *words)
    line = cells.scale_line(cells.trials([rex, eff_b0], found), found)
    assert line.endswith("1 of 5 trials are run, 1 cannot be run, as their source diverged.")


def test_unfinished_and_damaged_records_do_not_count(tmp_path, capsys):
    file = tmp_path / "a.json"
    assert records.read(file) is None
    file.write_text(json.dumps({"id": "a", "status": "running"}))
    assert records.read(file) is None
    file.write_bytes(file.read_bytes()[:10])
    assert records.read(file) is None and "cannot be read" in capsys.readouterr().out


def test_generated_parts_of_a_readme_are_replaced(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("a\n<!-- one -->\nold\n<!-- /one -->\nb\n")
    assert tables.with_blocks(file, {"one": "new\n", "two": "x"}) == "a\n<!-- one -->\nnew\n<!-- /one -->\nb\n"


@pytest.mark.parametrize(
    "text", ["<!-- one -->\n", "<!-- /one -->\n<!-- one -->\n", 2 * "<!-- one -->\n<!-- /one -->\n"]
)
def test_a_generated_part_begins_and_ends_once(text, tmp_path):
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(UserError, match=r"README\.md: <!-- one --> must stand once"):
        tables.with_blocks(tmp_path / "README.md", {"one": "new\n"})


@pytest.mark.parametrize("changed", [b"a\r\n", b"\xff\n", b"b\n", None])
def test_a_generated_file_is_compared_byte_for_byte(changed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paper, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    file = tmp_path / "tables" / "a.md"
    monkeypatch.setattr(tables, "generated_files", lambda _: {file: "a\n"})
    monkeypatch.setattr("sys.argv", ["tables"])
    tables.main()
    assert file.read_bytes() == b"a\n"
    file.write_bytes(changed) if changed else file.unlink()
    monkeypatch.setattr("sys.argv", ["tables", "--check"])
    with pytest.raises(SystemExit, match=r"error: not what the records give: tables/a\.md; run `make tables`"):
        tables.main()


@pytest.mark.parametrize("module", [tables, figures])
def test_results_that_cannot_be_written_are_one_line(module, results, monkeypatch):
    results.write_text("a file where the folder goes")
    monkeypatch.setattr(tables, "generated_files", lambda _: {results / "tables" / "a.md": "a\n"})
    monkeypatch.setattr(figures, "all_figures", lambda *_: {"a": figures.Figure()})
    monkeypatch.setattr("sys.argv", ["command"])
    with pytest.raises(SystemExit, match=r"error: cannot write .*/a\.(md|png) \("):
        module.main()


def test_words_go_with_missing(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tables", "table01", "scale=gpu"])
    with pytest.raises(SystemExit):
        tables.main()
    assert "scale=gpu: further words go with --missing" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_missing_and_what_it_costs(desk, monkeypatch):
    words = ("target=mnas,rex", "source=eff_lite0", "seed=0")
    needed = missing.missing_trials(DESK, desk, *words)
    assert {(trial.model, trial.init) for trial in needed.values()} >= {("rex", "dpiat"), ("rex", "random")}
    assert not {name for name in needed if name in desk}
    monkeypatch.setattr(missing, "this_hardware", lambda: "a processor")
    mine = {name: found for name, found in desk.items() if found["trial"]["recipe"]["image_size"] == 64}
    speeds = missing.measured_speeds(mine, "a processor")
    assert speeds == {("mnas", 64): pytest.approx(2 / 9469)}  # an epoch takes 2 seconds
    hours = sum(trial.recipe.epochs for trial in needed.values()) * 2 / 3600
    text = missing.report(DESK, mine, *words)
    assert f"; {hours:.1f} h one after the other" in text and "by what other networks or sizes took" in text
    assert f"python run.py -m experiment={DESK} dataset.root=FOLDER {' '.join(words)}\n" in text
    (large,) = grids.grid(DESK, *words[1:], "target=rex", "dataset.image_size=128")
    assert missing.seconds(large.trial, speeds) == pytest.approx(4 * 2 * 4)
    assert "cannot be said: there is no record" in missing.report(DESK, {}, *words)
    monkeypatch.setattr(missing, "this_hardware", lambda: "a processor that nothing was run on")
    assert f"; {hours:.1f} h one after the other at the speed of the records of a processor, as" in missing.report(
        DESK, mine, *words
    )
    monkeypatch.undo()
    assert missing.report(DESK, mine, *words, names=True).splitlines()[-len(needed) :] == list(needed)
    random = next(cell for cell in cells.planned_cells(DESK) if cell.trial.init == "random").random.id
    others = {
        trial.id: record(trial, [0.5])
        for cell in cells.planned_cells(DESK)
        for trial in (cell.trial, cell.random)
        if trial.id != random
    }
    assert missing.report(DESK, others).count("python run.py") == 1  # what trains this baseline
    run = {name: record(trial, [0.5]) for name, trial in needed.items()}
    text = missing.report(DESK, mine, *words, run=run)
    assert "all of them are run and not collected yet" in text and "python run.py" not in text
    assert text.endswith(f"  python -m experiments.evidence collect {DESK}")
    done = {cell.trial.id: {} for cell in cells.planned_cells(DESK)} | {
        cell.random.id: {} for cell in cells.planned_cells(DESK)
    }
    assert missing.report(DESK, done) == f"{DESK}: every trial is run"


@pytest.mark.parametrize("words", [["table01"], ["--missing"]])
def test_a_check_is_of_all_files(words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tables", "--check", *words])
    with pytest.raises(SystemExit):
        tables.main()
    assert "--check is of all files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words"),
    [(tables, ["table99"]), (tables, ["--missing", "table99"]), (evidence, ["collect", "table99"])],
)
def test_the_command_names_what_it_does_not_know(command, words, monkeypatch):
    monkeypatch.setattr("sys.argv", ["command", *words])
    with pytest.raises(SystemExit, match=r"error: no (table|experiment) 'table99': there are .*table01"):
        command.main()


@pytest.mark.slow
def test_a_multirun_ends_with_tables_and_figures(tmp_path, capsys):
    for cell in grids.grid("smoke"):
        for trial in (cell.trial, cell.random):
            accuracy = 0.6 if trial.source and trial.source.model == "mnas" else 0.3
            records.save(record(trial, [accuracy], scale="smoke"), tmp_path / "records" / f"{trial.id}.json")
    hydra = {"runtime": {"choices": {"experiment": "smoke"}}, "overrides": {"task": ["experiment=smoke", "seed=3"]}}
    TablesAndFigures().on_multirun_end(OmegaConf.create({"output_dir": str(tmp_path), "hydra": hydra}))
    out = capsys.readouterr().out
    assert "| mnas | 1.000 (1) | 2.000 (1) |" in out
    assert "(of the trials that smoke.yaml plans; others, with seed=3, have records alone)" in out
    files = {file.name for folder in ("tables", "figures") for file in (tmp_path / folder).iterdir()}
    assert files >= {"table01.md", "table13.csv", "smoke.csv", "figure16.svg", "smoke.svg", "smoke_similarity.png"}
