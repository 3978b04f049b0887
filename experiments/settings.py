"""Every setting of a trial, with its unit. Hydra checks the configuration against these classes."""

from __future__ import annotations

from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from experiments.datasets import DATASETS, names_with

CONFIGS = Path(__file__).parent.parent / "configs"
FETCHED = names_with(provided_by="torchvision")


class UserError(Exception):
    """A mistake that the user can mend. The message is one line that names the mistake and says what to do."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its class."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _doc(text: str, default: Any) -> Any:
    return field(default=default, metadata={"doc": text})


@dataclass
class DatasetSettings:
    name: str = _doc(f"one of {', '.join(DATASETS)}", MISSING)
    root: str = _doc("folder of the data, in the layout that configs/dataset/<name>.yaml describes", "data")
    download: bool = _doc(f"let torchvision fetch {', '.join(FETCHED)} where it is not under root", True)
    stream: bool = _doc("decode images anew in each epoch, of any size, instead of keeping them in memory", False)
    workers: int | None = _doc("processes that decode streamed images; null: number of CPU cores", None)
    stored_size: int | None = _doc(
        "pixels; side that images are cropped and resized to when decoded; null: as is", None
    )
    image_size: int | None = _doc("pixels; side of a network's input; null: the model's own (224, 240, 260)", None)
    train_subset: int | None = _doc("images; a stratified part of the training set; null: all", None)


@dataclass
class InitSettings:
    name: str = _doc("how the target gets its first weights: random, pretrained, dpiat, net2net, fna or ghn2", MISSING)
    mode: str = _doc("for dpiat: paper (the authors' algorithm) or default (the library's)", "paper")
    version: int | None = _doc(
        "for init.mode=default: the version of its rules, which older records name; null: today's", None
    )
    matching: str = _doc("for dpiat: dp, bipartite, nbipartite or random (Table 12)", "dp")
    operator: str = _doc(
        "for dpiat: clip, centre, leading, clip_normalized, full, magnitude or uniform (Table 12)", "clip"
    )
    head: str = _doc("for dpiat, the classifier: skip, copy, or auto (as init.mode does)", "auto")
    checkpoint: str | None = _doc("for ghn2: file of a trained GHN-2 (ghn2_cifar10.pt, ghn2_imagenet.pt, ...)", None)


@dataclass
class LoggerSettings:
    name: str = _doc("none or wandb", "none")
    project: str = _doc("W&B project", "dpiat")
    entity: str | None = _doc("W&B user or team; null: your default", None)
    mode: str = _doc("W&B mode: offline (sync later with `wandb sync`), online or disabled", "offline")


@dataclass
class Settings:
    dataset: DatasetSettings = field(default_factory=DatasetSettings)
    init: InitSettings = field(default_factory=InitSettings)
    logger: LoggerSettings = field(default_factory=LoggerSettings)
    scale: str = _doc("name of the scale: paper, smoke, ... (configs/scale)", "paper")
    source: str = _doc("network to learn from: a short name, a timm name or package.module:callable", "eff_b2")
    target: str = _doc("network to initialize and train; named like source", "eff_b0")
    source_weights: str = _doc("the source starts from: scratch, imagenet or imagenet_finetuned", "scratch")
    source_checkpoint: str | None = _doc(
        "file with weights of the source; null: train the source or reuse its checkpoint", None
    )
    source_epochs: int = _doc("epochs of source training (not for source_weights=imagenet)", 100)
    target_epochs: int = _doc("epochs of target training", 4)
    schedule_epochs: int = _doc("epochs over which the cosine falls to a tenth of the learning rate", 100)
    source_schedule_epochs: int | None = _doc("the same for the source; null: schedule_epochs", None)
    batch_size: int = _doc("images in a training step", 128)
    lr: float | None = _doc("Adam's learning rate for the target; null: 4e-3, with ImageNet weights 1e-3", None)
    source_lr: float | None = _doc("the same for the source; null as above", None)
    baseline_lr: float | None = _doc("the same for the random-init baseline; null: 4e-3", None)
    seed: int = _doc("seed of the target's initial weights, batches and crops", 0)
    source_seed: int = _doc("the same for the source", 0)
    device: str = _doc("auto (a GPU if there is one), cpu, cuda, cuda:1, ...", "auto")
    cuda_graphs: bool = _doc("on one GPU, replay the steps as CUDA graphs: faster, unless the network forbids it", True)
    threads: int | None = _doc("CPU threads; null: PyTorch's choice", None)
    together: dict[str, Any] = field(
        default_factory=dict,
        metadata={"doc": "what an experiment varies together (configs/experiment/table12.yaml shows how)"},
    )
    output_dir: str = _doc("folder for records, checkpoints and plots", "runs")
    cache_dir: str = _doc("folder for decoded data sets", "~/.cache/dpiat")
    batchnorm_group: int | None = _doc(
        "images that a batch norm normalizes together (the paper's TPU cores: 16); null: the whole batch", None
    )


@cache
def aliases() -> dict[str, dict[str, str]]:
    """Read configs/aliases.yaml: experiments that share the trials of another, by name."""
    return OmegaConf.to_container(OmegaConf.load(CONFIGS / "aliases.yaml"))


def register() -> None:
    """Tell Hydra the settings (as `base`, the first entry of the defaults list), the aliases and the help text."""
    store = ConfigStore.instance()
    store.store(name="base", node=Settings)
    for name, alias in aliases().items():
        store.store(group="experiment", name=name, node={"defaults": [alias["trials_of"]]}, package="_global_")
    store.store(group="hydra/help", name="dpiat", node={"app_name": "dpiat", "header": "", "template": HELP})


def _describe(cls: type = Settings, prefix: str = "") -> str:
    """Return the lines of `run.py --help`, one for each key: its default, and what the key means."""
    lines = []
    hints = get_type_hints(cls)
    for f in fields(cls):
        if is_dataclass(hints[f.name]):
            lines.append(_describe(hints[f.name], f"{prefix}{f.name}."))
        else:
            default = {None: "null", MISSING: "", NO_DEFAULT: "{}"}.get(f.default, f.default)
            lines.append(f"  {f'{prefix}{f.name}={default}':32} {f.metadata['doc']}")
    return "\n".join(lines)


HELP = f"""Run one trial of the DPIAT reproduction: train the source and the random-init baseline unless they are there
already, transfer, train the target, and leave a record of each in output_dir.

  python run.py dataset=cifar100 source=eff_b2 target=eff_b0
  python run.py dataset=digits scale=smoke source=eff_b2 target=eff_b0
  python run.py -m seed=0,1,2 target=eff_b0,mnas

Groups: dataset, init, launch, logger and scale choose a file of configs/<group>; experiment=NAME one of
configs/experiment or configs/aliases.yaml.
Keys, their defaults and units:

{_describe()}
"""
