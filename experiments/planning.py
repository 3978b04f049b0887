"""Settings -> a trial: all that determines the result of one training, checked before anything is loaded or trained."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dpiat.assignment import MATCHINGS
from dpiat.heads import HEADS
from dpiat.operators import OPERATORS
from dpiat.reading import MODES, VERSION
from experiments import models
from experiments.data import loading
from experiments.initialization import INITIALIZATIONS, Method, Start
from experiments.settings import Settings, UserError
from experiments.store import records
from experiments.tracking import LOGGERS
from experiments.tracking import MODES as LOGGER_MODES
from experiments.train import parallel
from experiments.train.training import Schedule

WEIGHTS = ("scratch", "imagenet", "imagenet_finetuned")
# The paper's learning rates: from random init or from sources trained from scratch, and where ImageNet weights come in.
LR, LR_IMAGENET = 4e-3, 1e-3


@dataclass(frozen=True)
class Trial:
    """All that determines the result of one training; its hash is the trial's id."""

    dataset: str
    stored_size: int | None
    train_subset: int | None
    model: str
    init: str  # a name of INITIALIZATIONS, or checkpoint (of a source: weights from the user's file)
    recipe: Schedule
    mode: str = ""  # of the method, where there is a source
    source: Trial | None = None  # one of 0 epochs is not trained
    checkpoint: str = ""  # SHA-256 of the user's file: of a source's weights, or init.checkpoint
    matching: str = Method.matching  # of the method, like the next two
    operator: str = Method.operator
    head: str = Method.head
    version: int = Method.version

    @property
    def method(self) -> Method:
        return Method(self.mode, self.matching, self.operator, self.head, self.version)

    @cached_property
    def id(self) -> str:
        origin = f"-from-{self.source.model}" if self.source else ""
        name = f"{self.dataset}-{self.model}-{self.init}{origin}-seed{self.recipe.seed}"
        name = re.sub(r"[^\w.-]", "_", name.replace(":", "."))
        return f"{name}-{records.trial_digest(self.identity())}"

    def identity(self) -> dict[str, Any]:
        """The fields as plain data; those that came later only where they have another value than before."""
        fields = asdict(self)
        later = {key: fields.pop(key) for key in ("matching", "operator", "head", "version")}
        fields["source"] = self.source.identity() if self.source else None
        if self.recipe.batchnorm_group is None:
            del fields["recipe"]["batchnorm_group"]
        if ":" in self.model:  # a name that can stand for another network tomorrow
            later["network"] = models.shapes_digest(self.model) or None
        return fields | {key: value for key, value in later.items() if value != getattr(Method, key, None)}


def target_trial(settings: Settings) -> Trial:
    """The target's trial. Checks every name, so that a mistake shows before anything is loaded or trained."""
    loading.check_settings(settings.dataset)
    _check_values(settings)
    _check_batch_divides(settings)
    models.check(settings.target)
    init = settings.init.name
    _check_choice("initialization", init, INITIALIZATIONS)
    _check_choice("init.mode", settings.init.mode, MODES)
    _check_choice("init.matching", settings.init.matching, MATCHINGS)
    _check_choice("init.operator", settings.init.operator, OPERATORS)
    _check_choice("init.head", settings.init.head, HEADS)
    _check_choice("source_weights", settings.source_weights, WEIGHTS)
    _check_choice("logger", settings.logger.name, LOGGERS)
    _check_choice("logger.mode", settings.logger.mode, LOGGER_MODES)
    from_source = INITIALIZATIONS[init].from_source
    imagenet = init == "pretrained" or (from_source and settings.source_weights != "scratch")
    recipe = _schedule(settings, settings.target, settings.lr or (LR_IMAGENET if imagenet else LR))
    target = _trial(settings, settings.target, init, recipe)
    if INITIALIZATIONS[init].from_file:
        if not settings.init.checkpoint:
            raise UserError(f"init={init} needs a trained checkpoint: init.checkpoint=FILE")
        target = replace(target, checkpoint=_file_digest("init.checkpoint", user_path(settings.init.checkpoint)))
    if from_source:
        models.check(settings.source)
        method = settings.init
        version = (method.version or VERSION) if method.mode == "default" else Method.version
        if not 0 < version <= VERSION:
            raise UserError(f"init.version must be from 1 to {VERSION}, got {version}")
        target = replace(target, matching=method.matching, operator=method.operator, head=method.head)
        target = replace(target, mode=method.mode, version=version, source=_source_trial(settings))
    if check := INITIALIZATIONS[init].check:
        check(start_of(settings, target, classes=10))
    return target


def baseline_trial(settings: Settings, target: Trial) -> Trial:
    """The trial of random init that a target's is compared with: the same training, at its own learning rate."""
    return _trial(settings, settings.target, "random", replace(target.recipe, lr=settings.baseline_lr or LR))


def _check_values(settings: Settings) -> None:
    epochs = ("source_epochs", "target_epochs", "schedule_epochs", "source_schedule_epochs")
    others = ("batch_size", "batchnorm_group", "threads", "lr", "source_lr", "baseline_lr")
    values = {key: getattr(settings, key) for key in (*epochs, *others)}
    values |= {f"dataset.{key}": getattr(settings.dataset, key) for key in ("image_size", "stored_size")}
    for key, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{key} must be positive, got {value}")
    for key in ("output_dir", "cache_dir"):
        if not getattr(settings, key).strip():
            raise UserError(f"{key} must name a folder, got nothing")
    for key in ("seed", "source_seed"):
        if not 0 <= getattr(settings, key) < 2**63:
            raise UserError(f"{key} must be from 0 to 2^63 - 1, got {getattr(settings, key)}")


def _check_batch_divides(settings: Settings) -> None:
    """A batch is made of equal parts, one for each process, and each of those of equal groups."""
    batch, processes, group = settings.batch_size, parallel.size(), settings.batchnorm_group
    if batch % processes:
        raise UserError(f"batch_size={batch} must be a multiple of the number of processes, {processes}")
    if group is not None and batch // processes % group:
        raise UserError(f"batchnorm_group={group} must divide the {batch // processes} images of a batch on one device")


def _check_choice(key: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise UserError(f"unknown {key} {value!r}: known are {', '.join(known)}")


def _source_trial(settings: Settings) -> Trial:
    init = "random" if settings.source_weights == "scratch" else "pretrained"
    epochs = 0 if settings.source_weights == "imagenet" or settings.source_checkpoint else settings.source_epochs
    lr = settings.source_lr or (LR if init == "random" else LR_IMAGENET)
    schedule = settings.source_schedule_epochs or settings.schedule_epochs
    recipe = _schedule(settings, settings.source, lr)
    recipe = replace(recipe, epochs=epochs, schedule_epochs=schedule, seed=settings.source_seed)
    source = _trial(settings, settings.source, init, recipe)
    if settings.source_checkpoint is None:
        return source
    checkpoint = _file_digest("source_checkpoint", user_path(settings.source_checkpoint))
    return replace(source, init="checkpoint", checkpoint=checkpoint)


def user_path(name: str) -> Path:
    """What a setting names, with ~ as the user's folder."""
    return Path(name).expanduser()


def _file_digest(key: str, file: Path) -> str:
    """The SHA-256 of the file that a key names."""
    if not file.is_file():
        raise UserError(f"{key} {file} {'is not a file' if file.exists() else 'does not exist'}")
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{key} {file} cannot be read: {error.strerror}") from error


def start_of(settings: Settings, trial: Trial, classes: int) -> Start:
    """What the first weights of a trial's network depend on, but for a trained source."""
    checkpoint = user_path(settings.init.checkpoint) if INITIALIZATIONS[trial.init].from_file else None
    recipe, source = trial.recipe, trial.source.model if trial.source else ""
    return Start(trial.model, classes, recipe.seed, recipe.image_size, trial.method, source, checkpoint=checkpoint)


def _trial(settings: Settings, model: str, init: str, recipe: Schedule) -> Trial:
    dataset = settings.dataset
    return Trial(loading.dataset_id(dataset), dataset.stored_size, dataset.train_subset, model, init, recipe)


def _schedule(settings: Settings, model: str, lr: float) -> Schedule:
    """How `model` is trained when it is the target."""
    return Schedule(
        epochs=settings.target_epochs,
        lr=lr,
        schedule_epochs=settings.schedule_epochs,
        batch_size=settings.batch_size,
        image_size=settings.dataset.image_size or models.input_size(model),
        seed=settings.seed,
        batchnorm_group=settings.batchnorm_group,
    )
