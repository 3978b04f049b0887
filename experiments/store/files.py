"""Writing files so that they are there whole, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO


class CannotWrite(OSError):
    """A file that could not be written, because the disk is full for example. The file's old content is intact.

    The message is one line that names the file.
    """


def atomic_write(file: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write `file` so that it is never half written, whenever the process dies.

    Args:
        file: The file. Its folder is made if it is not there.
        write: Writes the content into the open file that it is given.

    Raises:
        CannotWrite: The disk or the folder refuses. The old content is intact, and nothing is left behind.
    """
    # Write to a temporary file beside the target, flush it to the disk, rename it, flush the folder. A rename within a
    # folder is atomic, so that a reader sees the old file or the new one. Without the first flush, a power failure
    # could leave the new name on an empty file: file systems may write the renaming before the content. Without the
    # second, the renaming itself may be lost, after the process has told the user that the epoch is kept. The temporary
    # file begins with a dot, and readers look for other names: leftovers of a killed process are ignored, and removed
    # when the trial has ended.
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.parent / f".{file.name}.{secrets.token_hex(6)}"
        try:
            with open(temporary, "xb") as f:  # mkstemp would make it unreadable for colleagues, whatever the umask
                write(f)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _flush_folder(file.parent)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError in the place of the file's OSError
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        hint = "what was there before is intact; make room and run the same command again"
        raise CannotWrite(f"cannot write {file} ({cause.strerror or cause}): {hint}") from error


def write_text(file: Path, text: str) -> None:
    """Write a text as `atomic_write` does, in UTF-8."""
    atomic_write(file, lambda f: f.write(text.encode()))


def holds(file: Path, text: str) -> bool:
    """Whether a file is there and has this text as its content, byte for byte."""
    return file.is_file() and file.read_bytes() == text.encode()


def _flush_folder(folder: Path) -> None:
    """Make a renaming in the folder survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
