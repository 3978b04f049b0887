"""Which trials an experiment consists of: its file in configs/experiment, swept as `run.py -m` sweeps it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from experiments.settings import Settings, register

if TYPE_CHECKING:
    from experiments.planning import Trial

CONFIGS = Path(__file__).parent.parent / "configs"


class Planned(NamedTuple):
    """A cell's target and what it is compared with: random init and the target's own ImageNet weights, same seed."""

    settings: Settings
    trial: Trial
    random: Trial
    pretrained: Trial


def names(group: str = "experiment") -> list[str]:
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def own() -> list[str]:
    """Experiments that are no table or figure of the paper, and whose results count."""
    return [name for name in names() if not name.startswith(("table", "figure", "demo", "smoke"))]


def title(experiment: str) -> str:
    """What the paper shows: the first paragraph of the experiment's file."""
    lines = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text().splitlines()[1:]
    return " ".join(line.removeprefix("# ") for line in lines[: lines.index("#")])


@cache
def grid(experiment: str, *words: str) -> list[Planned]:
    """The targets that `run.py -m experiment=NAME WORDS` trains, each once, in its order. Nothing is loaded or run."""
    from experiments import planning  # imports torch

    planned = {}
    for settings in sweep(experiment, *words):
        target = planning.plan(settings)
        if target.id not in planned:
            random = replace(settings, init=replace(settings.init, name="random"), lr=settings.baseline_lr)
            pretrained = replace(settings, init=replace(settings.init, name="pretrained"))
            planned[target.id] = Planned(
                settings,
                target,
                target if target.init == "random" else planning.plan(random),  # as it is run
                planning.plan(pretrained),
            )
    return list(planned.values())


def sweep(experiment: str, *words: str) -> Iterator[Settings]:
    """The settings of each run of the multirun."""
    register()
    parse = OverridesParser.create()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        fixed = [o.input_line for o in parse.parse_overrides(list(words)) if not o.is_sweep_override()]
        hydra = compose("config", [f"experiment={experiment}", *fixed], return_hydra_config=True).hydra
        params = {key: f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()}
        choices = {}
        for override in parse.parse_overrides([*params.values(), *words]):  # the words replace what the file sweeps
            key = override.get_key_element()
            swept = override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_string()]
            choices[key] = [f"{key}={value}" for value in swept]
        for chosen in product(*choices.values()):
            groups = tuple(word for word in chosen if (CONFIGS / word.partition("=")[0]).is_dir())
            config = _composed(experiment, groups).copy()
            for override in parse.parse_overrides([word for word in chosen if word not in groups]):
                OmegaConf.update(config, override.get_key_element(), override.value(), merge=True)
            yield OmegaConf.to_object(config)


@cache
def _composed(experiment: str, groups: tuple[str, ...]) -> DictConfig:
    """Composing takes a sixth of a second, so that it is done once for each choice of files."""
    return compose("config", [f"experiment={experiment}", *groups])
