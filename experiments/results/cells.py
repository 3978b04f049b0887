"""Planned trials and committed records -> a data frame with one row for each trial, and the text of a cell.

A cell takes exactly the trials that its experiment plans at one scale. Trials are found by their ids, so that results
of other settings cannot slip in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import pandas as pd

from experiments import grids
from experiments.datasets import DATASETS
from experiments.results import paper
from experiments.store.records import best_accuracy, read_evidence

Records = Mapping[str, dict[str, Any]]
NOT_RUN, NOT_PLANNED = "not run", "–"


class Table(NamedTuple):
    """The content of the two files of a table."""

    data: pd.DataFrame  # one row for each cell, for the CSV
    page: str  # Markdown


# Random init divides all cells of a row, and is the noisiest number of the row. So it is run with more seeds than a
# target.
SEEDS_WANTED = 5
BASELINES = ("init=random", "source=eff_b0", f"seed={','.join(map(str, range(SEEDS_WANTED)))}")
# The words of the multiruns that an experiment needs besides `run.py -m experiment=NAME`.
MORE_COMMANDS = {
    **dict.fromkeys(("table01", "table06", "table07"), (BASELINES,)),
    "imagenet_to_imagenette": (
        ("init=random", "lr=4e-3", "source=eff_lite0"),
        ("init=pretrained", "target=eff_lite0,eff_lite1,eff_lite2", "source=eff_lite0"),
    ),
    **dict.fromkeys(("imagenette_modes", "imagenette_methods"), (("init=random", "lr=4e-3"),)),
    "imagenette_growing": (("together.method={name:random}", "lr=4e-3"),),
}
SAME_RATE = "ratio to random init at the same rate"  # the name of a column

# The words that limit an experiment at a scale that lacks the hours, or the weights to download, for all of it.
AT_SCALE = {
    ("table01", "scale=cpu"): ("seed=0",),
    ("table12", "scale=cpu"): ("seed=0,1,2",),
    ("figure15", "scale=cpu"): ("source_weights=scratch", "init=dpiat"),
}

# The experiments that show GHN-2, and the checkpoint that they show; None shows each checkpoint in a row of its own.
WITH_GHN2 = {"table02": None, "table03": "ImageNet"}
GHN2_BATCH = {"eff_b2": 32}  # images; 64 for other networks

# What tables and figures call the values of source_weights.
WEIGHTS_IN_WORDS = {
    "scratch": "trained from scratch",
    "imagenet": "with ImageNet weights",
    "imagenet_finetuned": "fine-tuned from ImageNet weights",
}


@cache
def all_evidence() -> Records:
    """Read every committed record, by its id. Raises ValueError for a record that does not count, or is there twice."""
    found, places = {}, {}
    for folder in sorted(file.parent for file in (paper.RESULTS / "trials").glob("*/records.jsonl")):
        for record in read_evidence(folder):
            name, before = record["id"], places.setdefault(record["id"], folder.name)
            if name in found:
                raise ValueError(f"{name} is twice in {folder.parent}, in {before} and in {folder.name}: keep one line")
            found[name] = record
    return found


def commands(experiment: str, *scale: str) -> list[tuple[str, ...]]:
    """Return the words after `run.py -m experiment=NAME` of each multirun that an experiment consists of."""
    said = {word.partition("=")[0] for word in scale}
    limits = [word for name in scale for word in AT_SCALE.get((experiment, name), ())]
    first = [word for word in limits if word.partition("=")[0] not in said]
    return [(*scale, *more) for more in (first, *MORE_COMMANDS.get(experiment, ()))]


def command_lines(experiment: str, *scale: str) -> list[str]:
    """Return the command of each multirun of an experiment."""
    dataset = next(grids.sweep(experiment, *scale)).dataset.name
    root = ("dataset.root=FOLDER",) if DATASETS[dataset].provided_by == "the user" else ()
    runs = ((f"experiment={experiment}", *root, *words) for words in commands(experiment, *scale))
    return [f"python run.py -m {' '.join(words)}" for words in runs]


def planned_cells(experiment: str, *scale: str) -> list[grids.PlannedCell]:
    """Plan the targets of all multiruns of an experiment, at a scale such as "scale=cpu"."""
    return [cell for words in commands(experiment, *scale) for cell in grids.grid(experiment, *words)]


def frames_by_scale(experiment: str, records: Records) -> dict[str, pd.DataFrame]:
    """Return `trials` of one of the paper's experiments, for each scale at which some of them are run."""
    # Two scales plan the same trials if they differ in nothing that the experiment uses. Such a trial must not count at
    # both. The scales are visited by the number of records that name them, and a scale counts only if it has a trial
    # that no scale before it has.
    here = [record["scale"] for record in records.values() if record["trial"]["dataset"] == paper.DATASETS[experiment]]
    found, taken = {}, set()
    for scale in sorted({*here} & {*grids.names("scale")}, key=lambda scale: (-here.count(scale), scale)):
        planned = planned_cells(experiment, f"scale={scale}")
        run = {cell.trial.id for cell in planned} & records.keys()
        if run - taken:
            found[scale] = trials(planned, records, ghn2_cells(experiment, planned, records))
        taken |= run
    return found


def ghn2_cells(experiment: str, planned: Iterable[grids.PlannedCell], records: Records) -> list[grids.PlannedCell]:
    """Return the cells that were run from GHN-2, for the targets of planned cells."""
    # These cells cannot be planned as others are: the id of a trial from GHN-2 has the digest of a checkpoint, a file
    # that not everyone has. So the digests are taken from the records. For each target and digest, the id is computed
    # that the trial would have with nothing changed but the start and the paper's batch size. If a record has this id,
    # the trial was run with exactly these settings. Its baseline is random init in batches of the same size.
    if experiment not in WITH_GHN2:
        return []
    run = [record for record in records.values() if record["trial"]["init"] == "ghn2"]
    learned = {record["trial"]["checkpoint"]: record["initialization"]["ghn2"] for record in run}
    shown = sorted(digest for digest, name in learned.items() if WITH_GHN2[experiment] in (None, name))
    if not shown:
        return []
    found = []
    for cell in {cell.random.id: cell for cell in planned}.values():
        schedule = replace(cell.random.recipe, batch_size=GHN2_BATCH.get(cell.random.model, 64))
        random = replace(cell.random, recipe=schedule)
        for digest in shown:
            trial = replace(random, init="ghn2", checkpoint=digest)
            if trial.id in records:
                found.append(cell._replace(trial=trial, random=random))
    return found


def trials(
    planned: Iterable[grids.PlannedCell], records: Records, alone: Iterable[grids.PlannedCell] = ()
) -> pd.DataFrame:
    """Make a data frame with a row for each target and each random-init baseline.

    Args:
        planned: Targets, whose baselines get rows too.
        records: The records of trials, by id. A trial without a record has no accuracy.
        alone: Targets whose baselines get no rows.

    Returns:
        The columns COLUMNS. `accuracy` is the best test accuracy within 4 epochs and `best` within all epochs, both in
        [0, 1]. `of random` is the mean `accuracy` of random init over all its seeds that are run, `random sd` their
        standard deviation and `random n` their number. `of pretrained` is the accuracy of the same seed from the
        target's own ImageNet weights.
    """
    # Why the mean over all seeds of random init, and not the baseline of the same seed? At the paper's learning rate,
    # the accuracy of random init within 4 epochs varies much between seeds, and every page says how much. One seed in
    # the denominator would move a whole row up or down. ImageNet weights give almost the same accuracy with every seed,
    # and are run as often as the cells that are divided by them, so there the same seed is the fairer comparison.
    rows, repeats = {}, random_accuracies(records)
    for cell in planned:
        rows.setdefault(cell.trial.id, _row(cell, records, repeats))
        baseline = cell._replace(trial=cell.random)
        rows.setdefault(cell.random.id, _row(baseline, records, repeats))
    rows |= {cell.trial.id: _row(cell, records, repeats) for cell in alone}
    return pd.DataFrame(list(rows.values()), columns=COLUMNS)


COLUMNS = (
    *("id", "target", "init", "source", "weights", "mode", "operator", "matching", "head", "version", "lr", "seed"),
    *("random", "similarity", "accuracy", "of random", "random sd", "random n", "of pretrained", "best", "sourceless"),
    *("source id", "ghn2"),
)


def random_accuracies(records: Records) -> dict[str, pd.Series]:
    """Return the accuracies of random init within 4 epochs, one for each seed, by the rest of the trial."""
    found: dict[str, list[float]] = {}
    for record in records.values():
        if record["trial"]["init"] == "random":
            found.setdefault(_but_for_the_seed(record["trial"]), []).append(best_accuracy(record))
    return {trial: pd.Series(accuracies) for trial, accuracies in found.items()}


def _but_for_the_seed(trial: dict[str, Any]) -> str:
    return json.dumps(trial | {"recipe": trial["recipe"] | {"seed": None}}, sort_keys=True)


def with_effectiveness(frame: pd.DataFrame) -> pd.DataFrame:
    """Add columns to `trials`: the effectiveness, and what it divides by.

    `effectiveness` is `accuracy` over `random init`, the accuracy of random init at the learning rate `random lr`.
    SAME_RATE is the ratio to random init at the transfer's own learning rate.
    """
    # A learning rate that suits random init badly flatters the transfer. So `random lr` is the paper's rate for random
    # init, wherever the experiment plans random init at this rate, whatever the rate of the transfer is.
    random = frame["init"] == "random"
    at_paper_lr = frame[random & (frame["lr"] == paper.RANDOM_LR)].groupby("target")["of random"].first()
    planned = frame["target"].isin(at_paper_lr.index) & ~random
    divisor = frame["of random"].where(~planned, frame["target"].map(at_paper_lr)).astype(float)
    rate = frame["random"].map(frame.set_index("id")["lr"]).where(~planned, paper.RANDOM_LR)
    frame = frame.assign(**{"random init": divisor, "random lr": rate})
    return frame.assign(
        effectiveness=frame["accuracy"].astype(float) / divisor,
        **{SAME_RATE: frame["accuracy"].astype(float) / frame["of random"].astype(float)},
    )


def _row(cell: grids.PlannedCell, records: Records, repeats: Mapping[str, pd.Series]) -> dict[str, Any]:
    trial, record = cell.trial, records.get(cell.trial.id)
    accuracies = {
        name: best_accuracy(records[each.id]) if each.id in records else None
        for name, each in (("accuracy", trial), ("of pretrained", cell.pretrained))
    }
    random = repeats.get(_but_for_the_seed(cell.random.identity()), pd.Series(dtype=float))
    return {
        "id": trial.id,
        "target": trial.model,
        "init": trial.init,
        "source": trial.source.model if trial.source else "",
        "weights": cell.settings.source_weights if trial.source else "",
        "mode": trial.mode,
        "operator": trial.operator,
        "matching": trial.matching,
        "head": trial.head,
        "version": trial.version,
        "lr": trial.recipe.lr,
        "seed": trial.recipe.seed,
        "random": cell.random.id,
        "similarity": record["initialization"].get("similarity") if record else None,
        **accuracies,
        "of random": random.mean(),
        "random sd": random.std(),
        "random n": len(random),
        "best": best_accuracy(record, trial.recipe.epochs) if record else None,
        "sourceless": source_diverged(cell, records),
        "source id": trial.source.id if trial.source and trial.source.recipe.epochs else "",
        "ghn2": record["initialization"].get("ghn2", "") if record else "",
    }


def with_sources(frame: pd.DataFrame) -> set[str]:
    """Return the ids of all trials that rows of `trials` need: targets, random init, and the trainings of sources."""
    return {*frame["id"], *frame["source id"]} - {""}


def source_diverged(cell: grids.PlannedCell, records: Records) -> bool:
    """Whether a trial cannot be run because the training of its source diverged."""
    source = cell.trial.source
    return source is not None and records.get(source.id, {}).get("status") == "diverged"


def summarize(values: pd.Series) -> dict[str, float]:
    """Return the mean, the standard deviation and the number of the values that are there, and the planned number."""
    return {"ours": values.mean(), "sd": values.std(), "n": int(values.count()), "planned": len(values)}


def mean_and_spread(values: pd.Series) -> str:
    """Return "mean ± standard deviation (number)" of the values that are there, or "not run"."""
    found = values.dropna()
    spread = f" ± {found.std():.3f}" if len(found) > 1 else ""
    return f"{found.mean():.3f}{spread} ({len(found)})" if len(found) else NOT_RUN


def hardware(record: dict[str, Any]) -> str:
    """Return the processor or GPU that a trial ran on; several if the trial went on elsewhere."""
    machines = [record, *record.get("continued", ())]
    return ", then ".join(each["cpu"] if each["device"] == "cpu" else each["device"] for each in machines)


def baseline_line(frame: pd.DataFrame) -> str:
    """Return the sentences that say what effectiveness divides by, and how sure this number is."""
    random = frame[frame["init"] == "random"]
    rows = random[random["lr"] == paper.RANDOM_LR].drop_duplicates("target")
    rows = (rows if len(rows) else random.drop_duplicates("target")).query("`random n` > 0")
    if rows.empty:
        return "Effectiveness divides by the mean accuracy of random init over its seeds, and no seed is run yet."
    few, many = rows["random n"].min(), rows["random n"].max()
    wanted = "" if few >= SEEDS_WANTED else f"; at least {SEEDS_WANTED} are wanted"
    relative = rows["random sd"] / rows["of random"]
    spread = (relative**2).mean() ** 0.5
    apart = f" The accuracy of one seed has a standard deviation of {spread:.0%} of the mean." if spread > 0 else ""
    return (
        "Effectiveness divides by the mean accuracy of random init over all its seeds, at a learning rate of "
        f"{rows['lr'].iloc[0]:g} ({few if few == many else f'{few} to {many}'} for each target{wanted}).{apart}"
    )


def scale_line(frame: pd.DataFrame, records: Records, scale: str = "") -> str:
    """Return the sentences on the scale of trials: data, epochs, sources, hardware, and how many trials are run.

    The trainings of sources are trials too, and count.

    Args:
        frame: The rows of `trials`.
        records: The records of trials, by id.
        scale: The name of the scale. "" takes the names from the records.
    """
    found = [records[name] for name in frame["id"] if name in records]
    trials = [record["trial"] for record in found]
    weights = frame.loc[frame["weights"] != "", "weights"].map(WEIGHTS_IN_WORDS)

    def each(values: Iterable[Any]) -> str:
        return ", ".join(dict.fromkeys(f"{value:,}" if isinstance(value, int) else value for value in values))

    parts = (
        f"Scale {scale or each(record['scale'] for record in found)}: {each(trial['dataset'] for trial in trials)}",
        f"{each(record['train_images'] for record in found)} training images at "
        f"{each(trial['recipe']['image_size'] for trial in trials)} px",
        f"{each(record['test_images'] for record in found)} test images",
        f"{each(trial['recipe']['epochs'] for trial in trials)} epochs",
        *([f"sources {each(weights)}"] if len(weights) else []),
        each(hardware(record) for record in found),
    )
    diverged = sum(record["status"] == "diverged" for record in found)
    more = f", {diverged} of them diverged and count with their best epoch" if diverged else ""
    if without := int(frame["sourceless"].sum()):
        more += f", {without} cannot be run, as their source diverged"
    line = f"{', '.join(parts)}. " if found else ""
    every = with_sources(frame)
    return f"{line}{len(every & records.keys())} of {len(every)} trials are run{more}."


def markdown(table: pd.DataFrame, digits: int = 3) -> str:
    """Write a table as Markdown. Floats are rounded, and a missing number is an empty cell."""

    def text(value: Any) -> str:
        if isinstance(value, float):
            return "" if pd.isna(value) else f"{value:.{digits}f}"
        return str(value)

    rows = [list(table.columns), ["---"] * len(table.columns)]
    rows += [[text(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
