"""One process at a time: who needs what another is making waits for it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.settings import UserError, first_line


@contextmanager
def exclusive(file: Path, what: str) -> Iterator[None]:
    """Hold the lock of `file`. While another process has it, wait, after a line that says for whom and for `what`.

    The lock is the operating system's (flock), not the file, which stays and says who had it last: it ends with its
    holder, however that ends. Between machines it holds on NFS (4, or 3 with lockd; after a crash of the holder's
    machine, once the server's lease of about a minute and a half is over) and on Lustre mounted with `flock`.
    Raises UserError where the file system has no locks.
    """
    us = f"process {os.getpid()} on {socket.gethostname()}"

    def sign(handle: int) -> None:
        os.ftruncate(handle, 0)
        os.pwrite(handle, us.encode(), 0)

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, on_acquired=sign)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(f"waiting for {file.read_text() or 'another process'}: {what}", flush=True)
            lock.acquire(poll_interval=0.5)
    except (OSError, NotImplementedError) as error:  # the latter is filelock's for a file system without flock
        hint = "choose an output_dir and a cache_dir that you may write to, with room, on a file system with locks"
        raise UserError(f"cannot lock {file} ({first_line(error)}): {hint}") from error
    try:
        yield
    finally:
        lock.release()
