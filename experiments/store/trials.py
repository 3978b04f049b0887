"""The folder in which trials keep their records, checkpoints, unfinished states and locks."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from experiments.settings import UserError
from experiments.store import checkpoints, records
from experiments.store.locks import exclusive


class Identified(Protocol):
    """What the store knows of a trial: a name for files, and all that tells the trial from others."""

    @property
    def id(self) -> str: ...

    def identity(self) -> dict[str, Any]: ...


class Store:
    """The folder that `output_dir` names."""

    def __init__(self, folder: Path):
        self.folder = folder

    def exclusive(self, trial: Identified) -> AbstractContextManager[None]:
        """Keep other processes from training this trial, for the time of a `with` block."""
        return exclusive(self.folder / "locks" / f"{trial.id}.lock", f"it trains {trial.id}")

    def record_file(self, trial: Identified) -> Path:
        """Return where the record of a trial is, or will be."""
        return self.folder / "records" / f"{trial.id}.json"

    def record(self, trial: Identified) -> dict[str, Any] | None:
        """Return the record of a trial that has ended, or None."""
        return records.read(self.record_file(trial))

    def checkpoint(self, trial: Identified) -> dict[str, Tensor] | None:
        """Return the weights in the checkpoint of exactly this trial; None if there is no readable checkpoint.

        Raises UserError if the file is of a trial with other settings.
        """
        file = self._checkpoint_file(trial)
        checkpoint = checkpoints.read(file)
        if checkpoint is None:
            return None
        check_same_trial(file, checkpoint["trial"], trial.identity(), list(trial.identity()))
        return checkpoint["state"]

    def write_checkpoint(self, trial: Identified, state: dict[str, Tensor]) -> None:
        """Write the checkpoint of a trial, from which other trials start."""
        checkpoints.write({"trial": trial.identity(), "state": state}, self._checkpoint_file(trial))

    def _checkpoint_file(self, trial: Identified) -> Path:
        return self.folder / "checkpoints" / f"{trial.id}.pt"

    def unfinished(self, trial: Identified) -> checkpoints.Unfinished:
        """Return the states that a trial keeps while it runs."""
        return checkpoints.Unfinished(self.folder / "unfinished", trial.id)

    def clean_up(self, trial: Identified) -> None:
        """Remove what an ended trial has no use for: its states, and what a killed process had half written."""
        self.unfinished(trial).remove()
        for file in self.folder.glob(f"*/.{trial.id}.*"):
            file.unlink(missing_ok=True)


def check_same_trial(file: Path, found: dict[str, Any], wanted: dict[str, Any], keys: list[str]) -> None:
    """Raise UserError if a checkpoint is of another trial: if one of these keys of the identities differs."""
    for key in keys:
        if found.get(key) != wanted[key]:
            raise UserError(f"{file} is of other settings: {key} is {found.get(key)!r} there, not {wanted[key]!r}")
