"""What happens when a cluster wants its machine back."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from typing import NoReturn

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
