"""How a run ends early: a cluster wants its machine back, or a trial cannot be run."""

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

# A cluster sends SIGTERM some seconds before SIGKILL. There is nothing to save in these seconds: after each epoch the
# state of the training is on disk already, and a kill without warning must be safe too. What SIGTERM adds is the exit
# code. A script must tell "start me again" from "this trial is wrong", so SIGTERM exits with 75 (EX_TEMPFAIL of
# sysexits.h) and a mistake of the user with 1.
#
# A grid without a launcher runs its trials in this process. One trial that cannot be run must not cost the others
# behind it in the grid, so `fail` notes the error, and `exit_if_failed` ends the grid with an error. There are two
# exceptions. Under torchrun the error may be of one process alone, which the others would wait for. And where a file
# cannot be written, the next trial could not be written either, after hours of training.


def exit_on_sigterm() -> None:
    """Exit on SIGTERM with the code 75, which asks for another start.

    Changes nothing where a launcher has a handler of its own, or outside of the main thread.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit)


def _exit(number: int, frame: object) -> NoReturn:
    print(f"stopped by SIGTERM: {GOES_ON}", file=sys.stderr, flush=True)
    if multiprocessing.parent_process():  # a launcher's worker would report sys.exit as the end of its task
        os._exit(os.EX_TEMPFAIL)
    sys.exit(os.EX_TEMPFAIL)


_failed: list[str] = []  # the errors of the grid that this process runs


def fail(error: UserError | CannotWrite) -> None:
    """Exit with a message, or note the error where this process has further trials of a grid to run."""
    from experiments.train import parallel  # imports torch

    hydra = HydraConfig.get()
    message = f"error: {error}" if parallel.rank() == 0 else 1
    in_grid = hydra.mode is RunMode.MULTIRUN and hydra.runtime.choices["hydra/launcher"] == "basic"
    if not in_grid or parallel.size() > 1 or isinstance(error, CannotWrite):
        sys.exit(message)
    _failed.append(str(message))
    print(message, file=sys.stderr, flush=True)


def exit_if_failed() -> None:
    """End a grid with an error if `fail` has noted one."""
    if _failed:
        sys.exit(f"error: {len(_failed)} of the grid's trials could not be run, as said above")
