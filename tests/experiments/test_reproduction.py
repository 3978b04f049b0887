"""Our tables beside the paper's, from made-up records of planned trials."""

from dataclasses import replace

import pytest
from trials import record

from experiments import evidence, figures, grids
from experiments.results import cells, drawing, method_effects, paper, reproduction, source_effects, verdicts


def records_of(experiment: str, *words: str, accuracy) -> dict[str, dict]:
    """Make records of planned cells at scale=gpu. `accuracy(trial)` returns the accuracies of a trial's epochs."""
    found = {}
    for cell in grids.grid(experiment, "scale=gpu", *words):
        for trial in (cell.trial, cell.random):
            found[trial.id] = record(trial, accuracy(trial), scale="gpu")
    return found


@pytest.fixture(scope="module")
def table01() -> dict[str, dict]:
    """Two seeds of six pairs. One pair is worse than random init."""
    gain = {("eff_b0", "mnas"): 0.45, ("eff_b0", "mix_l"): 0.1, ("eff_b0", "rex"): 0.3}

    def accuracy(trial) -> list[float]:
        return [gain.get((trial.model, trial.source.model), 0.4) if trial.source else 0.2]

    return records_of("table01", "target=eff_b0,mnas", "source=mnas,mix_l,rex", "seed=0,1", accuracy=accuracy)


@pytest.mark.slow
def test_a_matrix_stands_beside_the_papers(table01):
    table = reproduction.matrix("table01", table01)
    cell = table.data.set_index(["target", "source"]).loc[("eff_b0", "mnas")]
    assert cell["ours"] == pytest.approx(2.25) and (cell["n"], cell["planned"]) == (2, 3)
    assert (cell["paper"], cell["scale"]) == (2.15, "gpu") and cell["difference"] == pytest.approx(0.1)
    assert "2.250 ± 0.000 (2)<br>paper 2.15, +0.10" in table.page and "not run<br>paper 2.11" in table.page
    assert "6 of 81 cells are run." in table.page and "Scale gpu: cifar100" in table.page
    assert "over all its seeds, at a learning rate of 0.004 (2 for each target; at least 5 are wanted)." in table.page
    assert "| direction: share above 1 | 5 | 0.80 |  |  | too few cells | 1.00 | 1.00 |" in table.page
    assert "not run<br>paper 2.11" in table.page and "| mnas | 0.200 ± 0.000 (2) | not run<br>" in table.page


@pytest.mark.slow
def test_all_seeds_of_random_init_divide_each_cell():
    words = "target=mnas", "source=rex"
    (cell,) = grids.grid("table01", "scale=cpu", *words, "seed=0")
    more = grids.grid("table01", "scale=cpu", *words, "init=random", "seed=0,1,2,3,4")
    other_rate = grids.grid("table01", "scale=cpu", *words, "init=random", "lr=1e-3", "seed=0")
    found = {cell.trial.id: record(cell.trial, [0.3], scale="cpu")}
    for k, random in enumerate(more[1:]):  # the same seed's own is not run yet
        found[random.trial.id] = record(random.trial, [0.1 + 0.02 * k], scale="cpu")
    found[other_rate[0].trial.id] = record(other_rate[0].trial, [0.9], scale="cpu")
    table = reproduction.matrix("table01", found)
    row = table.data.set_index(["target", "source"]).loc[("mnas", "rex")]
    assert row["ours"] == pytest.approx(0.3 / 0.13) and row["random n"] == 4 and row["planned"] == 1
    assert "| mnas | 0.130 ± 0.026 (4) |" in table.page and "5 of 135 trials are run" in table.page
    assert "The accuracy of one seed has a standard deviation of 20% of the mean." in table.page


def test_a_scale_runs_what_it_can_afford():
    assert cells.commands("table01", "scale=cpu") == [
        ("scale=cpu", "seed=0"),
        ("scale=cpu", "init=random", "source=eff_b0", "seed=0,1,2,3,4"),
    ]
    assert cells.commands("table01", "scale=cpu", "seed=1")[0] == ("scale=cpu", "seed=1")
    assert cells.commands("table12", "scale=gpu") == [("scale=gpu",)]


@pytest.mark.slow
def test_other_tables_take_nothing_from_it(table01):
    for name in ("table06", "table09"):
        assert f"Not run: `python run.py -m experiment={name}`" in reproduction.matrix(name, table01).page
    assert "Not run: `python run.py -m experiment=table03`" in reproduction.table03(table01).page


@pytest.mark.slow
def test_our_correlation_stands_in_table_11(table01):
    page, table = (made := source_effects.table11(table01, [])).page, made.data.set_index("results")
    assert "Our own tables that are not run yet: 6, 7, 8, 9, 10." in page
    ours = table.loc["ours, scale gpu: Table 1: CIFAR100, sources from random init"]
    assert ours["cells"] == 6 and ours["regret"] == pytest.approx(0)


@pytest.mark.slow
def test_our_figure_16_stands_beside_the_papers(table01):
    found = drawing.figures16(paper.similarity(), table01)
    assert set(found) == {"figure16", "figure16_table01_gpu"}
    ours, printed = found["figure16_table01_gpu"].axes
    assert [len(axes.lines[0].get_xdata()) for axes in (ours, printed)] == [5, 5]
    assert ours.get_title() == "ours" and printed.get_title() == "the paper's, the same cells"
    assert found["figure16_table01_gpu"].subfigs[0].get_suptitle().startswith("Table 1 over similarity: r = 0.")
    assert [len(axes.lines[0].get_xdata()) for axes in found["figure16"].axes] == [72, 72, 72, 42, 42, 72]
    assert found["figure16"].axes[1].get_title().startswith("Table 1: CIFAR100, r = 0.68\n")


@pytest.mark.slow
def test_the_readmes_first_table_fills_as_records_come(table01):
    waiting = reproduction.first_table(table01)  # of another scale
    assert (
        waiting.startswith("Being run, and no record is here yet: 135 trials, ") and "scale=cpu seed=0` and" in waiting
    )
    assert "at scale=cpu, both commands make 135 trials" in (grids.CONFIGS / "experiment" / "table01.yaml").read_text()
    cells_run = grids.grid("table01", "scale=cpu", "seed=0", "source=mnas", "target=mnas,mix_m")
    found = {trial.id: record(trial, [0.3], scale="cpu") for cell in cells_run for trial in (cell.trial, cell.random)}
    text = reproduction.first_table(found)
    assert "2 of 81 cells, 1 seed of each target; the other trials are sources and random init." in text
    assert "| Mix-M | – / 1.35 |" in text
    assert "**1.00** / 1.52 |" in text and "| direction: share above 1 | 1 | 0.00 |" in text
    short = reproduction.short_table(found)
    assert "2 of 81 cells, 1 seed of each target; " in short and verdicts.READINGS in short
    assert "| direction: share above 1 | 1 | 0.00 |" in short
    assert "Mix-M" not in short and reproduction.short_table(table01) == waiting


def test_ghn2_is_not_run(table01):
    page = reproduction.table02(table01).page
    assert page.count("not run: needs GHN-2") == 6 and "| eff_b0 | random | 1.000 | 1.000 ± 0.000 (2) |" in page


def from_ghn2(randoms: dict[str, dict], cells_of: list, learned: str, accuracies: list[float]) -> dict[str, dict]:
    """Add records of GHN-2 and of its random init, in the paper's batches, to records of planned random init."""
    found = {}
    for cell in cells_of:
        recipe = replace(cell.random.recipe, batch_size=32 if cell.random.model == "eff_b2" else 64)
        random = replace(cell.random, recipe=recipe)
        trial = replace(random, init="ghn2", checkpoint=f"{learned:0>64}")
        facts = {"initialization": {"ghn2": learned}}
        found[random.id] = record(random, [0.4] * len(accuracies), scale="gpu")
        found[trial.id] = record(trial, accuracies, scale="gpu", **facts)
    return randoms | found


@pytest.mark.slow
def test_ghn2_stands_beside_the_papers(table01):
    planned = grids.grid("table02", "scale=gpu", "seed=0,1", "target=eff_b0,eff_b2")
    run = from_ghn2(table01, planned, "ImageNet", [0.3])
    run = from_ghn2(run, planned[:1], "CIFAR100, 32 px", [0.2])
    table = reproduction.table02(run)
    found = table.data.set_index(["target", "initialization"])
    for target in ("eff_b0", "eff_b2"):
        cell = found.loc[(target, "GHN2-ImageNet")]
        assert cell["ours"] == pytest.approx(0.75) and cell["n"] == 2
    assert found.loc[("eff_b0", "GHN2-CIFAR100, 32 px"), "ours"] == pytest.approx(0.5)
    assert found.loc[("eff_b0", "random"), ["n", "planned"]].tolist() == [2, 3]
    assert (
        table.page.count("not run: needs GHN-2") == 4
        and "| eff_b0 | GHN2-CIFAR100, 32 px |  | 0.500 (1) |  |" in table.page
    )
    assert run.keys() - table01.keys() <= evidence.planned_ids("table02", run)
    assert reproduction.matrix("table01", run).data.equals(reproduction.matrix("table01", table01).data)
    assert cells.ghn2_cells("table02", planned, run) and not cells.ghn2_cells("table01", planned, run)
    moved = {f"{name}x": found for name, found in run.items()}
    assert not cells.ghn2_cells("table02", planned, moved)  # ids of other settings


@pytest.fixture(scope="module")
def table03() -> dict[str, dict]:
    """Random init reaches 0.68 in 100 epochs, and transfers reach it in half of the time."""

    def accuracy(trial) -> list[float]:
        gain = {"random": 1, "pretrained": 4, "dpiat": 2}[trial.init]
        return [min(0.0068 * gain * (epoch + 1), 0.7) for epoch in range(100)]

    return records_of("table03", accuracy=accuracy)


def test_table_03(table03):
    table = reproduction.table03(table03)
    cells = table.data.set_index(["target", "init", "source", "weights"])
    assert cells.loc[("eff_b0", "random", "", ""), "ours"] == pytest.approx(0.68)
    assert cells.loc[("eff_b0", "pretrained", "", ""), "ours"] == pytest.approx(0.7)
    assert cells.loc[("eff_b2", "dpiat", "mix_l", "imagenet"), ["n", "paper"]].tolist() == [1, 0.713]
    assert cells["n"].sum() == 16 and table.page.count("needs GHN-2") == 2
    assert "Ratios to random init: 14 of 16 cells are run. Rank correlation with the paper's " in table.page


@pytest.mark.slow
def test_time_to_accuracy_is_relative_to_random_init(table03):
    data = reproduction.times("table04", table03).data.set_index(["target", "init", "source", "weights"])
    row = data.loc[("eff_b0", "dpiat", "eff_b2", "imagenet")]
    assert row["accuracy"] == 0.65 and (row["epochs"], row["random init's epochs"]) == (48, 96)
    assert row["speed-up in epochs"] == row["speed-up in seconds"] == 2
    assert row["paper's speed-up"] == pytest.approx(113 / 34)
    slow = {name: found | {"epochs": found["epochs"][:10]} for name, found in table03.items() if "dpiat" in name}
    slow |= {name: found for name, found in table03.items() if "dpiat" not in name}
    data = reproduction.times("table04", slow).data.set_index(["target", "init", "source", "weights"])
    assert data.loc[("eff_b0", "dpiat", "eff_b2", "imagenet"), "epochs"] == "not reached"
    assert data.loc[("eff_b0", "GHN2", "", ""), "epochs"] == "not run: needs GHN-2"


@pytest.mark.slow
def test_ghn2_over_100_epochs(table03):
    (cell,) = (cell for cell in grids.grid("table03", "scale=gpu", "init=pretrained") if cell.trial.model == "eff_b0")
    growing = [0.0065 * (epoch + 1) for epoch in range(100)]
    run = from_ghn2(table03, [cell], "ImageNet", growing)
    run = from_ghn2(run, [cell], "CIFAR10", [0.9])  # not what Table 3 shows
    data = reproduction.table03(run).data.set_index(["target", "init", "source", "weights"])
    assert data.loc[("eff_b0", "GHN2", "", ""), "ours"] == pytest.approx(0.65)
    assert data.loc[("eff_b0", "random", "", ""), "n"] == 1
    data = reproduction.times("table04", run).data.set_index(["target", "init", "source", "weights"])
    assert data.loc[("eff_b0", "GHN2", "", ""), "epochs"] == 62  # to 0.4
    assert data.loc[("eff_b2", "GHN2", "", ""), "epochs"] == "not run: needs GHN-2"
    (frame,) = cells.frames_by_scale("table03", run).values()
    assert "GHN-2, lr 0.004 (n = 1)" in [
        text.get_text() for text in drawing.curves(frame, run).subfigs[0].legends[0].texts
    ]


@pytest.mark.slow
def test_figure_15_at_scale_cpu_trains_as_long_as_its_sources():
    (words,) = cells.commands("figure15", "scale=cpu")
    grid = grids.grid("figure15", *words)
    assert {cell.trial.recipe.epochs for cell in grid} == {cell.trial.source.recipe.epochs for cell in grid} == {30}
    assert {cell.trial.recipe.schedule_epochs for cell in grid} == {30} and len(grid) == 6
    by_source = {cell.trial.source.model: cell.trial.source.id for cell in grid}
    assert {cell.random.id for cell in grid} == {by_source["eff_b0"], by_source["eff_b2"]}  # random init is the source
    assert {cell.trial.recipe.epochs for cell in grids.grid("figure15")} == {100}


@pytest.mark.slow
def test_table_4_has_a_counterpart_from_scratch():
    words = "together.pair={source:mix_l,target:eff_b0}"
    (cell,) = grids.grid("figure15", *cells.commands("figure15", "scale=cpu")[0], words)
    found = {}
    for trial, gain in ((cell.random, 0.01), (cell.trial, 0.02)):
        made = record(trial, [gain * (k + 1) for k in range(30)], scale="cpu")
        rows = [row | {"train_loss": 1 - 9 * gain, "test_loss": 1.0, "train_accuracy": 0.5} for row in made["epochs"]]
        found[trial.id] = made | {"epochs": rows}
    page = reproduction.times("table04", found).page
    assert "| eff_b0 | mix_l | scratch | 0.80 | 0 | 0.300 | 15 | 30 | 2.00 |" in page
    assert reproduction.curves_said({}).startswith(
        "Figure 15 is to be run: `python run.py -m experiment=figure15 scale="
    )
    said = reproduction.curves_said(found)
    assert said.startswith("Figure 15: 1 of 1 transfers reach the accuracy that random init has in the end, 2.0 to 2.0")
    drawn = figures.all_figures(found, [])
    assert {"figure15_cpu", "figure09_cpu", "figure10_cpu", "figure11_cpu"} < set(drawn) and "figure04_cpu" not in drawn
    titles = {name: drawn[name].subfigs[0].get_suptitle() for name in ("figure15_cpu", "figure09_cpu")}
    assert titles["figure15_cpu"].startswith("Test accuracy: 1 of 1 transfers to another network end above")
    assert titles["figure09_cpu"].startswith("Train loss: 1 of 1 transfers to another network end below")


@pytest.mark.slow
def test_methods_of_table_12_are_compared_pair_by_pair(monkeypatch):
    monkeypatch.setattr(method_effects, "same_start", lambda data: [False] * len(data))
    gains = {"clip": (0.30, 0.32, 0.28, 0.34), "clip_normalized": (0.29, 0.32, 0.27, 0.35)}
    found = {}
    for operator, accuracies in gains.items():
        planned = grids.grid("table12", "scale=cpu", "seed=0", f"together.method={{operator:{operator},matching:dp}}")
        for cell, accuracy in zip(planned, accuracies, strict=False):
            found[cell.trial.id] = record(cell.trial, [accuracy], scale="cpu")
            found[cell.random.id] = record(cell.random, [0.2], scale="cpu")
    made = reproduction.table12(found)
    row = made.data.set_index(["operator", "matching"]).loc[("clip_normalized", "dp")]
    assert row["ours"] == pytest.approx(1.5375) and row["n"] == 4 and row["paper"] == 1.05
    assert "| clip operator, dp matching | 4 of 20 | 1.550 ± 0.065 | 1.59 ± 0.09 | 0.310 ± 0.013 |" in made.page
    assert "-0.003 ± 0.005 | 0.99 (0.94 to 1.04) | 0.96 | 1.0000 | 1 of 4 | 2 targets, 1 seed |" in made.page
    assert "No pair is run with every method yet" in made.page
    assert (
        "We disagree on `clip_normalized operator, dp matching`: its effectiveness over the effectiveness of `clip oper"
        in made.page
    )
    assert "matching` is 0.99 ± 0.01 here and 0.66 ± 0.11 in the paper. What was checked: " in made.page


def test_curves_of_the_paper_are_drawn_from_its_trials(table03):
    (frame,) = cells.frames_by_scale("table03", table03).values()
    figure = drawing.curves(frame, table03, "train_loss")
    assert [axes.get_title() for axes in figure.axes] == ["Eff-B0", "Eff-B2"]
    assert figure.axes[0].get_ylabel() == "train loss" and len(figure.axes[0].lines) == 8


def test_table_13_is_the_papers():
    assert (
        "| DPIAT | DP matching & transform & transfer | fast | defined by user | any |" in reproduction.table13().page
    )


def test_table_13_shows_what_is_measured_beside_it(tmp_path, monkeypatch):
    rows = [
        "method,source,target,admissible,milliseconds,share,difference,same function,reason",
        *("DPIAT,rex,rex,True,100,1.0,0.0,True,", "DPIAT,rex,rex_150,True,300,0.5,1.0,False,"),
        *("Net2Net,rex,rex_150,True,50,1.0,1e-7,True,", "Net2Net,rex_150,rex,False,,,,,narrower"),
    ]
    monkeypatch.setattr(reproduction, "MEASURED", tmp_path / "measured.csv")
    (tmp_path / "measured.csv").write_text("\n".join(rows))
    page = reproduction.table13().page
    assert "| defined by user | any | 2 of 2 pairs | 200, at most 300 | 1 of 2 |" in page
    assert "only wider or deeper | 1 of 2 pairs | 50, at most 50 | 1 of 1 |" in page
    assert "Between different networks, Net2Net: rex → rex_150." in page


@pytest.mark.slow
def test_seconds_are_compared_on_one_machine_and_cells_at_one_scale(table03, table01):
    moved = {
        name: found | {"continued": [found | {"cpu": "another processor"}]} if "dpiat" in name else found
        for name, found in table03.items()
    }
    assert cells.hardware(next(iter(moved.values()))) == "a processor, then another processor"
    data = reproduction.times("table04", moved).data.set_index(["target", "init", "source", "weights"])
    row = data.loc[("eff_b0", "dpiat", "eff_b2", "imagenet")]
    assert row["speed-up in epochs"] == 2 and row.isna()["speed-up in seconds"]
    first, *rest = table01
    split = table01 | {first: table01[first] | {"scale": "desk"}}  # two scales that plan the same trials
    ((scale, frame),) = cells.frames_by_scale("table01", split).items()
    assert scale == "gpu" and frame["accuracy"].count() == len(rest) + 1
