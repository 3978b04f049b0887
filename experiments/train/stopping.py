"""How a run ends before it is done: a cluster wants its machine back, or a trial cannot be run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from typing import NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from experiments.settings import UserError
from experiments.store.files import CannotWrite

GOES_ON = "every finished epoch is kept, the same command goes on from there"


def exit_on_sigterm() -> None:
    """Exit on SIGTERM with the code that asks to be started again; a launcher with its own way with signals keeps it.

    The last epoch is on disk.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit)


def _exit(number: int, frame: object) -> NoReturn:
    print(f"stopped by SIGTERM: {GOES_ON}", file=sys.stderr, flush=True)
    if multiprocessing.parent_process():  # a launcher's worker, which would take an exit for the end of its task
        os._exit(os.EX_TEMPFAIL)
    sys.exit(os.EX_TEMPFAIL)


_failed: list[str] = []  # of the grid that this process runs


def fail(error: UserError | CannotWrite) -> None:
    """Exit with a message; of a grid whose trials run in this process, one after the other, run the next one first."""
    from experiments.train import parallel  # imports torch

    hydra = HydraConfig.get()
    message = f"error: {error}" if parallel.rank() == 0 else 1
    in_grid = hydra.mode is RunMode.MULTIRUN and hydra.runtime.choices["hydra/launcher"] == "basic"
    if not in_grid or parallel.size() > 1 or isinstance(error, CannotWrite):  # nor could the next one be written
        sys.exit(message)
    _failed.append(str(message))
    print(message, file=sys.stderr, flush=True)


def exit_if_failed() -> None:
    """At the end of a grid: exit with an error if one of its trials did."""
    if _failed:
        sys.exit(f"error: {len(_failed)} of the grid's trials could not be run, as said above")
