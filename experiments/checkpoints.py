"""What a training leaves on disk: weights and unfinished states, with a digest that is checked before they are used."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch

from experiments.records import atomic_write
from experiments.settings import UserError, first_line

# A file is what torch.save writes, and torch.load reads, followed by this and the SHA-256 of all before it.
MARK = b"\nsha256 "


def write(content: dict[str, Any], file: Path) -> None:
    """Raises CannotWrite, with the file as it was, if the disk does not take it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getbuffer()

    def save(f: io.BufferedWriter) -> None:
        f.write(payload)
        f.write(MARK + hashlib.sha256(payload).hexdigest().encode())

    atomic_write(file, save)


def read(file: Path) -> dict[str, Any] | None:
    """What `write` left in `file`; None if there is no such file, or, with a line that names it, if it is damaged."""
    try:
        return _checked(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
        print(f"{file} is damaged and cannot be read: not using it", flush=True)
        return None


def _checked(content: bytes) -> dict[str, Any]:
    payload, mark, digest = content.rpartition(MARK)
    if not mark or hashlib.sha256(payload).hexdigest().encode() != digest:
        raise ValueError("it is not what was written")
    return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)


def read_users(file: Path) -> dict[str, Any] | None:
    """What `write` left in a file that the user names; None if something else wrote it.

    Raises UserError if it is damaged.
    """
    try:
        content = file.read_bytes()
        return _checked(content) if content[-64 - len(MARK) :].startswith(MARK) else None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{file} is not a complete checkpoint of weights: {first_line(error)}") from error


class Unfinished:
    """The states of one trial between its epochs: a file each, the last two of them, until the trial has its record."""

    def __init__(self, folder: Path, trial_id: str):
        self.folder, self.trial_id = folder, trial_id

    def _files(self) -> list[Path]:
        """The oldest first."""
        return sorted(self.folder.glob(f"{self.trial_id}.epoch-*.pt"))

    def write(self, state: dict[str, Any], epoch: int) -> None:
        """Keeps the state before it as well, in case this one is damaged."""
        write(state, self.folder / f"{self.trial_id}.epoch-{epoch:06}.pt")
        for file in self._files()[:-2]:
            file.unlink(missing_ok=True)

    def read(self) -> dict[str, Any] | None:
        """The last state that is whole."""
        return next(filter(None, map(read, reversed(self._files()))), None)

    def remove(self) -> None:
        for file in self._files():
            file.unlink(missing_ok=True)
