"""What a table still needs: the trials without a record, the commands that run them, and their cost in hours."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from experiments import grids
from experiments.datasets import DATASETS, STREAMED
from experiments.results import cells
from experiments.store.records import provenance

if TYPE_CHECKING:
    from experiments.planning import Trial

Speeds = dict[tuple[str, int], float]  # seconds of an epoch for each image, by network and pixels of an image's side


def missing_trials(experiment: str, records: cells.Records, *words: str) -> dict[str, Trial]:
    """Return the trials that have no record, by id: targets, baselines, and the sources that these need.

    A target whose source diverged is left out, as it will never have a record.
    """
    needed = {}
    for cell in cells.planned_cells(experiment, *words):
        wanted = (cell.random,) if cells.source_diverged(cell, records) else (cell.trial, cell.random)
        targets = [trial for trial in wanted if trial.id not in records]
        sources = [trial.source for trial in targets if trial.source and trial.source.recipe.epochs]
        needed |= {trial.id: trial for trial in (*targets, *sources)}
    return needed


def report(
    experiment: str, records: cells.Records, *words: str, names: bool = False, run: cells.Records | None = None
) -> str:
    """Describe what an experiment still needs.

    Args:
        experiment: The name of the experiment.
        records: The committed records, by id.
        words: Further words of the command, such as scale=gpu.
        names: Whether to list the id of each missing trial.
        run: Records that are not committed yet.

    Returns:
        The number of missing trials, the hours at this machine's speed, and the commands that run them.
    """
    needed, run = missing_trials(experiment, records, *words), run or {}
    if not needed:
        return f"{experiment}: every trial is run"
    to_run = {name: trial for name, trial in needed.items() if name not in run}
    epochs = sum(trial.recipe.epochs for trial in needed.values())
    lines = [
        f"{experiment}: {len(needed)} trials of {epochs:,} epochs in all are missing; {_hours(to_run, records, run)}"
    ]
    plan = cells.planned_cells(experiment, *words)
    if any(trial.id in records for cell in plan for trial in (cell.trial, cell.random)):
        lines.append(f"  python -m experiments.evidence restore {experiment}")
    for command, line in zip(cells.commands(experiment, *words), cells.command_lines(experiment, *words), strict=True):
        if any(to_run.keys() & _run_by(cell) for cell in grids.grid(experiment, *command)):
            lines.append(f"  {line}")
    if len(to_run) < len(needed):
        lines.append(f"  python -m experiments.evidence collect {experiment}")
    lines += needed if names else ()
    return "\n".join(lines)


def _run_by(cell: grids.PlannedCell) -> set[str]:
    """The ids of the trials that a cell's command runs. A target from random init has no baseline."""
    return {cell.trial.id} if cell.trial.init == "random" else {cell.trial.id, cell.random.id}


def this_hardware() -> str:
    """Return what `cells.hardware` will say of records that are made on this machine."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else provenance()["cpu"]


def measured_speeds(records: cells.Records, hardware: str) -> Speeds:
    """Return the seconds of an epoch, test included, for each training image: medians over records of a hardware."""
    seconds: dict[tuple[str, int], list[float]] = {}
    for record in records.values():
        if cells.hardware(record) == hardware:
            key = record["trial"]["model"], record["trial"]["recipe"]["image_size"]
            found = seconds.setdefault(key, [])
            found += [epoch["seconds"] / record["train_images"] for epoch in record["epochs"]]
    return {key: statistics.median(found) for key, found in seconds.items()}


def seconds(trial: Trial, speeds: Speeds) -> float:
    """Estimate the seconds that a trial will take.

    The speed is the speed of the same network at this size; else the mean over networks at this size; else the mean
    over all, in proportion to the pixels. NaN if the number of images is not known.
    """
    size = trial.recipe.image_size
    same_size = [speed for (_, its_size), speed in speeds.items() if its_size == size]
    scaled = same_size or [speed * (size / its_size) ** 2 for (_, its_size), speed in speeds.items()]
    speed = speeds.get((trial.model, size), statistics.mean(scaled))
    known = DATASETS.get(trial.dataset.removesuffix(STREAMED))
    images = trial.train_subset or (known.train_images if known else math.nan)
    return trial.recipe.epochs * images * speed


def _hours(needed: dict[str, Trial], records: cells.Records, run: cells.Records) -> str:
    if not needed:
        return "all of them are run and not collected yet"
    hardware, known = this_hardware(), {**records, **run}
    whose = "this machine's records"
    speeds = measured_speeds(known, hardware)
    if not speeds and known:
        hardware = statistics.mode(map(cells.hardware, known.values()))
        whose = f"the records of {hardware}, as none is of this machine's hardware"
        speeds = measured_speeds(known, hardware)
    if not speeds:
        return "what they cost cannot be said: there is no record yet"
    hours = sum(seconds(trial, speeds) for trial in needed.values()) / 3600
    if math.isnan(hours):
        return "what they cost cannot be said: the images of a folder are not counted before it is read"
    guessed = sum((trial.model, trial.recipe.image_size) not in speeds for trial in needed.values())
    rough = f", {guessed} of them by what other networks or sizes took" if guessed else ""
    return f"{hours:,.1f} h one after the other at the speed of {whose}{rough}"
