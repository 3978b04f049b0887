"""Files that are there whole, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO


class CannotWrite(OSError):
    """A file that could not be written, a full disk for one: one line that names it. What it held before is intact."""


def atomic_write(file: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write `file` so that it is there whole, with what it held before, or not at all, whenever the process dies.

    Raises CannotWrite, and leaves nothing behind, if the disk or the folder does not take it.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.parent / f".{file.name}.{secrets.token_hex(6)}"
        try:
            with open(temporary, "xb") as f:  # unlike mkstemp's, readable by those whom the umask allows it
                write(f)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _flush_folder(file.parent)
    except (OSError, RuntimeError) as error:  # torch.save wraps what the file said
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        hint = "what was there before is intact; make room and run the same command again"
        raise CannotWrite(f"cannot write {file} ({cause.strerror or cause}): {hint}") from error


def write_text(file: Path, text: str) -> None:
    """`atomic_write` of a text."""
    atomic_write(file, lambda f: f.write(text.encode()))


def holds(file: Path, text: str) -> bool:
    """Whether a file is there and holds this text, byte for byte."""
    return file.is_file() and file.read_bytes() == text.encode()


def _flush_folder(folder: Path) -> None:
    """Make a renaming last through a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
