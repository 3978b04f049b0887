"""Which trials an experiment consists of: its file in configs/experiment, swept as `run.py -m` sweeps it.

The comment at the top of the file, or an entry of configs/aliases.yaml, says what the experiment is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from experiments.settings import CONFIGS, Settings, aliases, register

if TYPE_CHECKING:
    from experiments.planning import Trial


class PlannedCell(NamedTuple):
    """A target of an experiment, and the trials that it is compared with."""

    settings: Settings
    trial: Trial  # the target's
    random: Trial  # the same target from random init, with the same seed
    pretrained: Trial  # the same target from its own ImageNet weights, with the same seed


def names(group: str = "experiment") -> list[str]:
    """Return what a group of configs/ offers: the names of its files, and the aliases of experiments."""
    files = {file.stem for file in (CONFIGS / group).glob("*.yaml")}
    return sorted(files | aliases().keys() if group == "experiment" else files)


def kind(experiment: str) -> str:
    """Return what an experiment is: "table of the paper", "figure of the paper", "ours" or "demonstration"."""
    if alias := aliases().get(experiment):
        return alias["kind"]
    return re.search(r"^# kind +(.+)$", _text(experiment), flags=re.MULTILINE)[1]


def is_of_paper(experiment: str) -> bool:
    """Whether an experiment is a table or a figure of the paper."""
    return kind(experiment).endswith(" of the paper")


def our_experiments() -> list[str]:
    """Return the experiments of our own whose results count, which demonstrations' do not."""
    return [name for name in names() if kind(name) == "ours"]


def title(experiment: str) -> str:
    """Return what an experiment shows: the first paragraph of its file, or the title of its alias."""
    if alias := aliases().get(experiment):
        return alias["title"]
    lines = _text(experiment).splitlines()[1:]
    return " ".join(line.removeprefix("# ") for line in lines[: lines.index("#")])


def _text(experiment: str) -> str:
    return (CONFIGS / "experiment" / f"{experiment}.yaml").read_text()


@cache
def grid(experiment: str, *words: str) -> list[PlannedCell]:
    """Plan the targets that `run.py -m experiment=NAME WORDS` trains, each once, in order. Nothing is loaded or run.

    Raises UserError for settings that cannot be run.
    """
    from experiments import planning  # imports torch

    planned = {}
    for settings in sweep(experiment, *words):
        target = planning.target_trial(settings)
        if target.id not in planned:
            random = replace(settings, init=replace(settings.init, name="random"), lr=settings.baseline_lr)
            pretrained = replace(settings, init=replace(settings.init, name="pretrained"))
            planned[target.id] = PlannedCell(
                settings,
                target,
                target if target.init == "random" else planning.target_trial(random),
                planning.target_trial(pretrained),
            )
    return list(planned.values())


def sweep(experiment: str, *words: str) -> Iterator[Settings]:
    """Yield the settings of each run of the multirun `run.py -m experiment=NAME WORDS`."""
    # Hydra's own sweeper composes all files anew for each run, a sixth of a second each; an experiment has hundreds of
    # runs, and every table plans several experiments. So the sweep is done here, and files are composed once for each
    # choice of files.
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        fixed = tuple(word for word in words if _is_group(word) and not _parsed(word).is_sweep_override())
        params = _composed(experiment, fixed).hydra.sweeper.params or {}
        choices = {}
        for override in map(_parsed, [*(f"{key}={value}" for key, value in params.items()), *words]):
            key = override.get_key_element()  # a word replaces what the file sweeps
            swept = override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_string()]
            choices[key] = [f"{key}={value}" for value in swept]
        for chosen in product(*choices.values()):
            groups = tuple(filter(_is_group, chosen))
            yield _settings(experiment, groups, [word for word in chosen if word not in groups])


def _is_group(word: str) -> bool:
    """Whether a word chooses a file, and does not set a key."""
    return (CONFIGS / word.partition("=")[0]).is_dir()


def _settings(experiment: str, groups: tuple[str, ...], words: list[str]) -> Settings:
    """The settings of an experiment with other choices of files and other values of keys."""
    # OmegaConf takes a hundredth of a second to merge a word, to resolve and to check the types, and the words of a
    # grid are few, however many runs they combine to. So only words that other settings refer to ("${together.pair}")
    # are resolved in each combination. The value of any other word is taken from the settings with this word alone.
    found = _references(experiment, groups)
    referred = [word for word in words if _key(word).partition(".")[0] in found]
    settings = _resolved(experiment, groups, tuple(referred))
    for word in words:
        if word not in referred:
            settings = _with_value(settings, _resolved(experiment, groups, (word,)), _key(word).split("."))
    return settings


@cache
def _references(experiment: str, groups: tuple[str, ...]) -> set[str]:
    """The first names of the keys that settings refer to: "together" of "${together.pair.source}"."""
    return set(re.findall(r"\$\{(\w+)", OmegaConf.to_yaml(_composed(experiment, groups), resolve=False)))


def _key(word: str) -> str:
    return _parsed(word).get_key_element()


def _with_value(settings: Any, others: Any, path: list[str]) -> Any:
    """Settings with the value that other settings have under a key."""
    name, *rest = path
    value = getattr(others, name)
    return replace(settings, **{name: _with_value(getattr(settings, name), value, rest) if rest else value})


@cache
def _resolved(experiment: str, groups: tuple[str, ...], words: tuple[str, ...]) -> Settings:
    config = _composed(experiment, groups).copy()
    with open_dict(config):
        del config["hydra"]
    for word in words:
        OmegaConf.update(config, _key(word), _parsed(word).value(), merge=True)
    return OmegaConf.to_object(config)


@cache
def _parsed(word: str) -> Override:
    """Parse a word. Cached, as a grid repeats few words in many runs."""
    return OverridesParser.create().parse_overrides([word])[0]


@cache
def _composed(experiment: str, groups: tuple[str, ...]) -> DictConfig:
    """Compose the settings of an experiment with other choices of files, and Hydra's own settings."""
    return compose("config", [f"experiment={experiment}", *groups], return_hydra_config=True)
