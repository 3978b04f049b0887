"""Where the metrics of a running trial go besides its record: nowhere, or to Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.settings import LoggerSettings, UserError

Log = Callable[[dict[str, float]], None]


@contextmanager
def tracking(settings: LoggerSettings, name: str, config: dict[str, Any], folder: Path) -> Iterator[Log]:
    """A function that logs one epoch's row, for the time of one trial."""
    if settings.name == "none":
        yield lambda row: None
        return
    if settings.name != "wandb":
        raise UserError(f"unknown logger {settings.name!r}: known are none, wandb")
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise UserError("logger=wandb needs wandb: pip install wandb, or use logger=none") from error
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=settings.project,
        entity=settings.entity,
        mode=settings.mode,
        name=name,
        config=config,
        dir=folder,
        settings=wandb.Settings(silent=True),
    )
    try:
        yield lambda row: run.log(row, step=int(row["epoch"]))
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
