"""Files of tensors with a digest that is checked before use: checkpoints, unfinished states, decoded images."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import IO, Any

import torch

from experiments.settings import UserError, first_line
from experiments.store.files import atomic_write

# A file is what torch.save writes, then MARK, then the SHA-256 of everything before MARK. torch.load reads such a file,
# as a zip may have anything behind it.
#
# Why a digest, when torch.save writes a zip with checksums? torch.load does not check them. A flipped bit in a weight
# or in a cached image would go unnoticed into a training, and from there into a record. A file cut short, by a full
# disk or a copy that broke off, is found in the same way.
MARK = b"\nsha256 "
TAIL = len(MARK) + 64  # bytes
BROKEN = (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError)  # what a damaged file may raise


class _Hashed:
    """A file that is written to, and the digest of what was written so far."""

    def __init__(self, file: IO[bytes]):
        self.file, self.digest = file, hashlib.sha256()

    def write(self, content: Any) -> int:
        self.digest.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


def write(content: dict[str, Any], file: Path) -> None:
    """Write tensors and plain values to `file`. Raises CannotWrite, with the old file intact, if the disk refuses."""

    def save(f: IO[bytes]) -> None:
        hashed = _Hashed(f)
        torch.save(content, hashed)
        f.write(MARK + hashed.digest.hexdigest().encode())

    atomic_write(file, save)


def read(file: Path, mmap: bool = False) -> dict[str, Any] | None:
    """Read what `write` left in `file`.

    Args:
        file: The file.
        mmap: True reads tensors when they are used, and shares their memory with other processes.

    Returns:
        The content, on the CPU. None if there is no such file, or if it is damaged: then a line names the file.
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
    """Read a file that the user names. Returns None if the file was not written by `write`.

    Raises UserError if the file was written by `write` and is damaged.
    """
    try:
        with open(file, "rb") as f:
            f.seek(-min(TAIL, os.fstat(f.fileno()).st_size), os.SEEK_END)
            ours = f.read().startswith(MARK)
        return _checked(file) if ours else None
    except BROKEN as error:
        raise UserError(f"{file} is not a complete checkpoint of weights: {first_line(error)}") from error


class Unfinished:
    """The states of one trial after its last two epochs, until the trial has its record."""

    # Two files, not one: the newest may be damaged by a crash of the machine or the disk. Then one epoch is trained
    # again instead of all. A state is written to a file of its own and never over the one before it.

    def __init__(self, folder: Path, trial_id: str):
        self.folder, self.trial_id = folder, trial_id

    def _files(self) -> list[Path]:
        """The files of the states, the oldest first."""
        return sorted(self.folder.glob(f"{self.trial_id}.epoch-*.pt"))

    def write(self, state: dict[str, Any], epoch: int) -> None:
        """Write the state after `epoch`, and remove all others but the one before it."""
        write(state, self.folder / f"{self.trial_id}.epoch-{epoch:06}.pt")
        for file in self._files()[:-2]:
            file.unlink(missing_ok=True)

    def read(self) -> dict[str, Any] | None:
        """Return the newest state that is whole, or None."""
        return next(filter(None, map(read, reversed(self._files()))), None)

    def remove(self) -> None:
        """Remove all states of the trial."""
        for file in self._files():
            file.unlink(missing_ok=True)
