"""Sending the metrics of a running trial to Weights & Biases, beside the record that every trial leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.settings import LoggerSettings, UserError, first_line
from experiments.store.records import effectiveness

LOGGERS, MODES = ("none", "wandb"), ("offline", "online", "disabled")
Record = dict[str, Any]
Plot = Callable[[Record, Record], Path]  # draws the records of a target and its baseline; returns the file


class Tracker:
    """Tracks nothing. Other trackers override both methods."""

    def epoch(self, row: dict[str, float]) -> None:
        """Log the row of an epoch."""

    def end(self, record: Record, baseline: Record | None, plot: Plot | None) -> None:
        """Log the record of the trial that has ended, beside its baseline if it has one. `plot` draws both."""


class WeightsAndBiases(Tracker):
    """Logs to a run of Weights & Biases."""

    def __init__(self, run: Any):
        self.run = run

    def epoch(self, row: dict[str, float]) -> None:
        self.run.log(row, step=int(row["epoch"]))

    def end(self, record: Record, baseline: Record | None, plot: Plot | None) -> None:
        import wandb

        trained = {record["trial"]["init"]: record} | ({"baseline": baseline} if baseline else {})
        columns = ["initialization", *record["epochs"][0]]
        rows = [[init, *row.values()] for init, each in trained.items() for row in each["epochs"]]
        self.run.log({"epochs": wandb.Table(columns=columns, data=rows)})
        self.run.summary.update({"status": record["status"], **record["initialization"]})
        if plot and baseline and record["status"] == baseline["status"] == "finished":
            self.run.log({"comparison": wandb.Image(str(plot(record, baseline)))})
            self.run.summary["effectiveness"] = effectiveness(record, baseline)


@contextmanager
def tracking(settings: LoggerSettings, name: str, config: dict[str, Any], folder: Path) -> Iterator[Tracker]:
    """Open a tracker for one trial, for the time of a `with` block.

    Args:
        settings: Which tracker, and where it logs to.
        name: The id of the trial.
        config: What is known of the trial when it begins.
        folder: The folder for files that wait to be synced.

    Raises:
        UserError: Weights & Biases is not installed, or cannot start.
    """
    if settings.name == "none":
        yield Tracker()
        return
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise UserError("logger=wandb needs wandb: pip install wandb, or use logger=none") from error
    folder.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            mode=settings.mode,
            name=name,
            config={key: value for key, value in config.items() if key != "status"},  # the summary has the status
            dir=folder,
            settings=wandb.Settings(silent=True),
        )
    except wandb.errors.Error as error:
        raise UserError(f"W&B cannot start ({first_line(error)}): log in first, or use logger.mode=offline") from error
    try:
        yield WeightsAndBiases(run)
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
