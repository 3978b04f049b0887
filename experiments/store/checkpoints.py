"""Tensors on disk with a digest that is checked before use: checkpoints, unfinished states, decoded images."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import IO, Any

import torch

from experiments.settings import UserError, first_line
from experiments.store.files import atomic_write

# A file is what torch.save writes, and torch.load reads, followed by this and the SHA-256 of all before it.
MARK = b"\nsha256 "
TAIL = len(MARK) + 64  # bytes
BROKEN = (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError)  # what a damaged file may raise


class _Hashed:
    """A file that is written to, and the digest of what was."""

    def __init__(self, file: IO[bytes]):
        self.file, self.digest = file, hashlib.sha256()

    def write(self, content: Any) -> int:
        self.digest.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


def write(content: dict[str, Any], file: Path) -> None:
    """Raises CannotWrite, with the file as it was, if the disk does not take it."""

    def save(f: IO[bytes]) -> None:
        hashed = _Hashed(f)
        torch.save(content, hashed)
        f.write(MARK + hashed.digest.hexdigest().encode())

    atomic_write(file, save)


def read(file: Path, mmap: bool = False) -> dict[str, Any] | None:
    """What `write` left in `file`; None if there is no such file, or, with a line that names it, if it is damaged.

    With `mmap`, tensors are read when they are used, and shared with other processes.
    """
    try:
        return _checked(file, mmap)
    except FileNotFoundError:
        return None
    except BROKEN:
        print(f"{file} is damaged and cannot be read: not using it", flush=True)
        return None


def _checked(file: Path, mmap: bool = False) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open(file, "rb") as f:
        left = os.fstat(f.fileno()).st_size - TAIL
        while left > 0 and (part := f.read(min(left, 2**20))):
            digest.update(part)
            left -= len(part)
        if f.read() != MARK + digest.hexdigest().encode():
            raise ValueError("it is not what was written")
    return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)


def read_users_file(file: Path) -> dict[str, Any] | None:
    """What `write` left in a file that the user names; None if something else wrote it.

    Raises UserError if it is damaged.
    """
    try:
        with open(file, "rb") as f:
            f.seek(-min(TAIL, os.fstat(f.fileno()).st_size), os.SEEK_END)
            ours = f.read().startswith(MARK)
        return _checked(file) if ours else None
    except BROKEN as error:
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
