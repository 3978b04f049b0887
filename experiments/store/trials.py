"""What the trials of one folder have left: their records, checkpoints and unfinished states, and whose turn it is."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from experiments.settings import UserError
from experiments.store import checkpoints, records
from experiments.store.locks import exclusive


class Identified(Protocol):
    """What is known here of a trial: a name for its files, and what tells it from all others."""

    @property
    def id(self) -> str: ...

    def identity(self) -> dict[str, Any]: ...


class Store:
    """The folder that `output_dir` names."""

    def __init__(self, folder: Path):
        self.folder = folder

    def exclusive(self, trial: Identified) -> AbstractContextManager[None]:
        """No other process trains this trial meanwhile."""
        return exclusive(self.folder / "locks" / f"{trial.id}.lock", f"it trains {trial.id}")

    def record_file(self, trial: Identified) -> Path:
        return self.folder / "records" / f"{trial.id}.json"

    def record(self, trial: Identified) -> dict[str, Any] | None:
        """The record of a trial that is not to be run again; None if it has not ended."""
        return records.read(self.record_file(trial))

    def checkpoint(self, trial: Identified) -> dict[str, Tensor] | None:
        """The weights in the checkpoint of exactly this trial; None if there is no readable one."""
        file = self._checkpoint_file(trial)
        checkpoint = checkpoints.read(file)
        if checkpoint is None:
            return None
        check_same_trial(file, checkpoint["trial"], trial.identity(), list(trial.identity()))
        return checkpoint["state"]

    def write_checkpoint(self, trial: Identified, state: dict[str, Tensor]) -> None:
        """Write the checkpoint of a trial, from which others start."""
        checkpoints.write({"trial": trial.identity(), "state": state}, self._checkpoint_file(trial))

    def _checkpoint_file(self, trial: Identified) -> Path:
        return self.folder / "checkpoints" / f"{trial.id}.pt"

    def unfinished(self, trial: Identified) -> checkpoints.Unfinished:
        return checkpoints.Unfinished(self.folder / "unfinished", trial.id)

    def clean_up(self, trial: Identified) -> None:
        """Remove what is of no use when a trial has ended, files that a killed process was writing among it."""
        self.unfinished(trial).remove()
        for file in self.folder.glob(f"*/.{trial.id}.*"):
            file.unlink(missing_ok=True)


def check_same_trial(file: Path, found: dict[str, Any], wanted: dict[str, Any], keys: list[str]) -> None:
    """Raise UserError if a checkpoint is of another trial, by these entries of its identity."""
    for key in keys:
        if found.get(key) != wanted[key]:
            raise UserError(f"{file} is of other settings: {key} is {found.get(key)!r} there, not {wanted[key]!r}")
