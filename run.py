"""One trial: python run.py dataset=cifar100 source=eff_b2 target=eff_b0. See --help for every key."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from experiments.settings import Settings, UserError, register

register()


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(config: DictConfig) -> None:
    settings: Settings = OmegaConf.to_object(config)
    from experiments import figures, tables, trial  # after the settings are known to be sound: torch takes seconds

    try:
        record, baseline = trial.run(settings)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: trials that were finished are kept, the same command goes on from there")
    if baseline is not None:
        print(tables.side_by_side(record, baseline))
        print("plot:", figures.comparison(record, baseline, Path(settings.output_dir).expanduser() / "plots"))


if __name__ == "__main__":
    main()
