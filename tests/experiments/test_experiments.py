"""The files of configs/experiment compose, plan what their comments say, and share trials where they say so."""

import json
import re

import pytest

from dpiat.reading import VERSION
from experiments import grids
from experiments.results import paper
from experiments.settings import UserError, aliases

MODES = paper.RESULTS / "trials" / "imagenette_modes" / "records.jsonl"

ALIASES = aliases()
PAPERS = [name for name in grids.names() if grids.is_of_paper(name)]
TABLE, FIGURE = "table of the paper", "figure of the paper"
KINDS = {TABLE, FIGURE, "ours", "demonstration"}
OURS = [
    *("imagenet_to_imagenette", "imagenette_modes", "imagenette_methods", "imagenette_growing"),
    *("cifar100_classifier", "cifar100_growing", "cifar100_modes"),
]


def epochs(name: str) -> int:
    """The epochs of all trials of a grid. A trial that occurs twice counts once."""
    trials = {}
    for cell in grids.grid(name):
        trials |= {each.id: each for each in (cell.trial, cell.random, cell.trial.source) if each is not None}
    return sum(trial.recipe.epochs for trial in trials.values())


def test_every_table_and_figure_with_trials_has_a_file():
    tables = [f"table{number:02}" for number in range(1, 13)]
    figures = [f"figure{number:02}" for number in (4, 5, 6, *range(9, 17))]
    assert sorted(tables + figures) == sorted(PAPERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(name for name in PAPERS if name not in ALIASES), "smoke", *OURS])
def test_a_file_says_what_it_plans(name):
    text = (grids.CONFIGS / "experiment" / f"{name}.yaml").read_text()
    comment = text[: text.index("defaults:")]
    for field in ("kind", "command", "trials", "hardware", "expected", "deviations"):
        assert f"\n# {field} " in comment
    assert f"python run.py -m experiment={name}" in comment
    assert int(re.search(r"# trials +(\d+) targets", comment)[1]) == len(grids.grid(name))
    for found in re.findall(r"([\d,]+) epochs\s+(?:#\s+)?in all[.,\n]", comment):
        assert int(found.replace(",", "")) == epochs(name)


def test_every_experiment_says_what_it_is():
    kinds = {name: grids.kind(name) for name in grids.names()}
    assert (
        set(kinds.values()) == KINDS and kinds["figure04"] == "figure of the paper" and kinds["demo"] == "demonstration"
    )
    assert grids.our_experiments() == sorted(name for name in kinds if name.startswith(("cifar100", "imagenet")))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIASES)
def test_an_alias_runs_the_trials_of_its_experiment(name):
    alias = ALIASES[name]
    assert alias["trials_of"] in set(grids.names()) - ALIASES.keys() and alias["expected"]
    assert grids.title(name) == alias["title"] and not (grids.CONFIGS / "experiment" / f"{name}.yaml").exists()
    ours, theirs = (list(grids.sweep(each, "seed=0", "dataset=cifar100")) for each in (name, alias["trials_of"]))
    assert ours == theirs and len(ours) > 2


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(paper.DATASETS))
def test_the_data_set_is_the_papers(name):
    assert {cell.trial.dataset for cell in grids.grid(name)} == {paper.DATASETS[name]}


@pytest.mark.slow
def test_tables_share_trials():
    baselines = {cell.random.id for cell in grids.grid("table01")}
    assert {cell.trial.id for cell in grids.grid("table02")} < baselines
    assert {cell.random.id for cell in grids.grid("table09")} < baselines
    assert {cell.trial.id for cell in grids.grid("table04")} == {cell.trial.id for cell in grids.grid("table03")}
    assert {cell.trial.id for cell in grids.grid("table03")} < {cell.trial.id for cell in grids.grid("figure15")}


@pytest.mark.slow
def test_the_recipe_is_the_papers():
    (cell,) = grids.grid("table01", "source=eff_b2", "target=eff_b1", "seed=0")
    assert (cell.trial.recipe.lr, cell.trial.recipe.epochs, cell.trial.recipe.image_size) == (4e-3, 4, 240)
    assert (cell.trial.source.recipe.epochs, cell.trial.source.recipe.image_size) == (100, 260)
    (cell,) = grids.grid("table09", "source=eff_b2", "target=eff_b1", "seed=0", "init=dpiat")
    assert (cell.trial.recipe.lr, cell.random.recipe.lr, cell.pretrained.recipe.lr) == (1e-3, 4e-3, 1e-3)
    assert cell.trial.source.init == "pretrained" and cell.trial.source.recipe.epochs == 100
    assert {cell.trial.recipe.image_size for cell in grids.grid("table01", "scale=gpu", "seed=0")} == {64}


def test_the_pairs_of_table_12_are_the_papers():
    text = (grids.CONFIGS / "experiment" / "table12.yaml").read_text()
    pairs = re.findall(r"\{source:(\w+),target:(\w+)\}", text)
    printed = paper.printed("ablation_pairs")
    assert sorted(pairs) == sorted(zip(printed["source"], printed["target"], strict=True))


def test_at_scale_cpu_a_source_has_a_schedule_of_its_own():
    (cell,) = grids.grid("table01", "scale=cpu", "source=mnas", "target=eff_b0", "seed=0")
    source, target = cell.trial.source.recipe, cell.trial.recipe
    assert (source.epochs, source.schedule_epochs, source.image_size) == (30, 30, 32)
    assert source.learning_rate(30) == pytest.approx(source.lr / 10)
    assert (target.epochs, target.schedule_epochs, target.image_size) == (4, 100, 32)
    assert cell.random.recipe == target


def test_records_of_older_rules_are_of_trials_of_their_own():
    kept = {line["id"] for line in map(json.loads, MODES.read_text().splitlines())}
    planned = {cell.trial.id for cell in grids.grid("imagenette_modes", "init.mode=default")}
    older = {cell.trial.id for cell in grids.grid("imagenette_modes", "init.mode=default", "init.version=4")}
    assert kept and kept <= planned and len(older) == len(planned) and not older & planned
    with pytest.raises(UserError, match=rf"init\.version must be from 1 to {VERSION}, got {VERSION + 1}"):
        grids.grid("imagenette_modes", "init.mode=default", f"init.version={VERSION + 1}")
