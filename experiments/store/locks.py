"""Locks: of several processes that need the same result, one makes the result and the others wait."""

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
    """Hold the lock of `file` for the time of a `with` block.

    Args:
        file: The lock's file, which stays on disk and says which process had the lock last.
        what: What the holder does, for the line that a waiting process prints.

    Raises:
        UserError: The file cannot be written, or the file system has no locks.
    """
    # The lock is the operating system's (flock), and not the existence of a file. A lock file of our own would outlive
    # a process that is killed, and every job of a cluster that is killed would leave a trial that nobody may train
    # until a person removes the file. flock ends with its holder, however the holder ends. Between machines, flock
    # works on NFS 4, on NFS 3 with lockd, and on Lustre mounted with `flock`. If the holder's machine crashes, NFS
    # frees the lock when the server's lease is over, after about a minute and a half. The file must not be removed when
    # the lock is free: a process may have opened it and be about to lock it, and a third process would then lock a new
    # file of the same name.
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
