"""Where the metrics of a running trial go besides its record: nowhere, or to Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.settings import LoggerSettings, UserError, first_line
from experiments.store.records import effectiveness

LOGGERS, MODES = ("none", "wandb"), ("offline", "online", "disabled")
Record = dict[str, Any]
Plot = Callable[[Record, Record], Path]  # draws two records; the path of the picture


class Tracker:
    def epoch(self, row: dict[str, float]) -> None:
        """Log what one epoch came to."""

    def end(self, record: Record, baseline: Record | None, plot: Plot | None) -> None:
        """Log what the trial came to, beside its random-init baseline if it has one; `plot` draws both."""


class WeightsAndBiases(Tracker):
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
    """Where to log one trial, for as long as it runs."""
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
            config={key: value for key, value in config.items() if key != "status"},  # which the summary has
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
