"""Tables and figures of a multirun, written beside its records when the multirun ends."""

from __future__ import annotations

from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class TablesAndFigures(Callback):
    """A callback of Hydra that an experiment's file names. Hydra calls it when all trials have ended."""

    def on_multirun_end(self, config: DictConfig, **_: object) -> None:
        from experiments import figures, tables
        from experiments.results import ours
        from experiments.store import records

        GlobalHydra.instance().clear()  # or Hydra refuses to compose the experiment again, which the grid needs
        folder = Path(config.output_dir).expanduser()
        name = config.hydra.runtime.choices.experiment
        found = records.read_ended(folder / "records")
        tables.write(tables.all_tables(found, [name]), folder / "tables")
        figures.write(figures.all_figures(found, [name]), folder / "figures")
        print(ours.table(name, found).page)
        said = config.hydra.overrides.task
        words = [word for word in said if not word.startswith(("experiment=", "output_dir="))]
        if words:
            print(f"(of the trials that {name}.yaml plans; others, with {' '.join(words)}, have records alone)")
        print("all of them:", folder / "tables", folder / "figures")
