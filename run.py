"""One trial: python run.py dataset=cifar100 source=eff_b2 target=eff_b0. See --help for every key."""

import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn

import hydra
from omegaconf import DictConfig, OmegaConf

from experiments.settings import Settings, UserError, register

register()
GOES_ON = "every finished epoch is kept, the same command goes on from there"


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(config: DictConfig) -> None:
    _listen()
    settings: Settings = OmegaConf.to_object(config)
    from experiments import (
        figures,
        parallel,
        report,
        trial,
    )  # after the settings are known to be sound: torch takes seconds
    from experiments.records import CannotWrite

    plots = Path(settings.output_dir).expanduser() / "plots"
    try:
        outcome = trial.run(settings, lambda record, baseline: figures.comparison(record, baseline, plots))
        end = parallel.from_first(lambda: report.report(*outcome, plots))
    except trial.Diverged as error:
        end = error  # and a grid goes on
    except (UserError, CannotWrite) as error:
        sys.exit(f"error: {error}" if parallel.rank() == 0 else 1)
    except KeyboardInterrupt:
        sys.exit(f"interrupted: {GOES_ON}")
    if parallel.rank() == 0:
        print(end)


def _listen() -> None:
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _stop)  # a launcher that has its own way with signals keeps it


def _stop(number: int, frame: object) -> NoReturn:
    """A cluster wants the machine back. The last epoch is on disk; the exit code asks to be started again."""
    print(f"stopped by SIGTERM: {GOES_ON}", file=sys.stderr, flush=True)
    if multiprocessing.parent_process():  # a launcher's worker, which would take an exit for the end of its task
        os._exit(os.EX_TEMPFAIL)
    sys.exit(os.EX_TEMPFAIL)


if __name__ == "__main__":
    _listen()  # before a launcher starts others
    main()
