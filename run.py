"""Run one trial: python run.py dataset=cifar100 source=eff_b2 target=eff_b0. `--help` explains every key."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.settings import Settings, UserError, first_line, register
from experiments.train.stopping import GOES_ON, exit_if_failed, exit_on_sigterm, fail

register()


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(config: DictConfig) -> None:
    exit_on_sigterm()
    try:
        settings: Settings = OmegaConf.to_object(config)  # before torch is loaded, which takes seconds
    except OmegaConfBaseException as error:  # "${together.pair.source}" where together.pair is no mapping
        return fail(UserError(first_line(error)))
    from experiments import report, trial
    from experiments.results import drawing
    from experiments.store.files import CannotWrite
    from experiments.train import parallel

    plots = Path(settings.output_dir).expanduser() / "plots"
    try:
        outcome = trial.run(settings, lambda record, baseline: drawing.comparison(record, baseline, plots))
        end = parallel.from_first(lambda: report.report(*outcome, plots))
    except trial.Diverged as error:
        end = str(error)  # a result like another: a grid goes on
    except (UserError, CannotWrite) as error:
        return fail(error)
    except KeyboardInterrupt:
        sys.exit(f"interrupted: {GOES_ON}")
    if parallel.rank() == 0:
        print(end)


if __name__ == "__main__":
    exit_on_sigterm()  # here too: under a launcher, only its workers call the function main
    main()
    exit_if_failed()
