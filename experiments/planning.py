"""Settings -> a trial. Every mistake in the settings is named before anything is loaded or trained."""

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
# The paper's learning rates: from random init or sources trained from scratch, and from sources with ImageNet weights.
LR, LR_IMAGENET = 4e-3, 1e-3


@dataclass(frozen=True)
class Trial:
    """All that determines the result of one training. The hash of it is the trial's id."""

    # What is not here does not change a result: the device, the number of threads and processes, folders, the logger. A
    # field's name and value enter the hash, and stand in every record under "trial": see `identity`.
    dataset: str  # as `loading.dataset_id` names it
    stored_size: int | None  # pixels
    train_subset: int | None  # images
    model: str  # the name of the network
    init: str  # a name of INITIALIZATIONS; or "checkpoint" for a source with weights from the user's file
    recipe: Schedule
    mode: str = ""  # the method's mode; "" without a source
    source: Trial | None = None  # a source with 0 epochs is not trained
    checkpoint: str = ""  # the SHA-256 of the user's file: a source's weights, or init.checkpoint
    matching: str = Method.matching  # this field and the next three are the method's
    operator: str = Method.operator
    head: str = Method.head
    version: int = Method.version

    @property
    def method(self) -> Method:
        """How weights are moved from the source."""
        return Method(self.mode, self.matching, self.operator, self.head, self.version)

    @cached_property
    def id(self) -> str:
        """The name of the trial's files: readable words, and a hash of its identity."""
        origin = f"-from-{self.source.model}" if self.source else ""
        name = f"{self.dataset}-{self.model}-{self.init}{origin}-seed{self.recipe.seed}"
        name = re.sub(r"[^\w.-]", "_", name.replace(":", "."))
        return f"{name}-{records.trial_digest(self.identity())}"

    def identity(self) -> dict[str, Any]:
        """Return the fields as plain data, which records hold under "trial"."""
        # Trials that were run must keep their ids when a setting is added. So a field that came later than the first
        # records is left out while it has the value that everything had before: the paper's method, version 1, batch
        # norms over the whole batch.
        fields = asdict(self)
        later = {key: fields.pop(key) for key in ("matching", "operator", "head", "version")}
        fields["source"] = self.source.identity() if self.source else None
        if self.recipe.batchnorm_group is None:
            del fields["recipe"]["batchnorm_group"]
        if ":" in self.model:  # the user's name may stand for another network tomorrow
            later["network"] = models.shapes_digest(self.model) or None
        return fields | {key: value for key, value in later.items() if value != getattr(Method, key, None)}


def target_trial(settings: Settings) -> Trial:
    """Plan the trial of the target, with its source.

    Raises UserError for any mistake that can be found without loading the data.
    """
    loading.check_settings(settings.dataset)
    _check_values(settings)
    _check_batch_divides(settings)
    models.check(settings.target)
    _check_choices(settings)
    init = settings.init.name
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
        target = replace(target, source=_source_trial(settings), **asdict(_method(settings)))
    if check := INITIALIZATIONS[init].check:
        check(start_of(settings, target, classes=10))
    return target


def baseline_trial(settings: Settings, target: Trial) -> Trial:
    """Plan the baseline of a target: random init, trained in the same way at a learning rate of its own."""
    return _trial(settings, settings.target, "random", replace(target.recipe, lr=settings.baseline_lr or LR))


def _method(settings: Settings) -> Method:
    """How the settings move weights. The default mode has today's version unless the settings name an older one."""
    init = settings.init
    version = (init.version or VERSION) if init.mode == "default" else Method.version
    if not 0 < version <= VERSION:
        raise UserError(f"init.version must be from 1 to {VERSION}, got {version}")
    return Method(init.mode, init.matching, init.operator, init.head, version)


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
    """Raise UserError unless the processes get equal shares of a batch, and groups of batch norms divide a share."""
    batch, processes, group = settings.batch_size, parallel.size(), settings.batchnorm_group
    if batch % processes:
        raise UserError(f"batch_size={batch} must be a multiple of the number of processes, {processes}")
    if group is not None and batch // processes % group:
        raise UserError(f"batchnorm_group={group} must divide the {batch // processes} images of a batch on one device")


def _check_choices(settings: Settings) -> None:
    """Raise UserError for a name that is not one of its known names."""
    init, logger = settings.init, settings.logger
    choices: dict[str, tuple[str, Iterable[str]]] = {
        "initialization": (init.name, INITIALIZATIONS),
        "init.mode": (init.mode, MODES),
        "init.matching": (init.matching, MATCHINGS),
        "init.operator": (init.operator, OPERATORS),
        "init.head": (init.head, HEADS),
        "source_weights": (settings.source_weights, WEIGHTS),
        "logger": (logger.name, LOGGERS),
        "logger.mode": (logger.mode, LOGGER_MODES),
    }
    for key, (value, known) in choices.items():
        if value not in known:
            raise UserError(f"unknown {key} {value!r}: known are {', '.join(known)}")


def _source_trial(settings: Settings) -> Trial:
    """The trial of the source: trained from random init or ImageNet weights, or for 0 epochs with weights as given."""
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
    """Return the path that a setting names, with ~ as the user's folder."""
    return Path(name).expanduser()


def _file_digest(key: str, file: Path) -> str:
    """Return the SHA-256 of the file that a setting names. Raises UserError if the file cannot be read."""
    if not file.is_file():
        raise UserError(f"{key} {file} {'is not a file' if file.exists() else 'does not exist'}")
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{key} {file} cannot be read: {error.strerror}") from error


def start_of(settings: Settings, trial: Trial, classes: int) -> Start:
    """Return what the first weights of a trial's network depend on, but for the trained source itself."""
    checkpoint = user_path(settings.init.checkpoint) if INITIALIZATIONS[trial.init].from_file else None
    recipe, source = trial.recipe, trial.source.model if trial.source else ""
    return Start(trial.model, classes, recipe.seed, recipe.image_size, trial.method, source, checkpoint=checkpoint)


def _trial(settings: Settings, model: str, init: str, recipe: Schedule) -> Trial:
    dataset = settings.dataset
    return Trial(loading.dataset_id(dataset), dataset.stored_size, dataset.train_subset, model, init, recipe)


def _schedule(settings: Settings, model: str, lr: float) -> Schedule:
    """How the settings train the network `model` as a target."""
    return Schedule(
        epochs=settings.target_epochs,
        lr=lr,
        schedule_epochs=settings.schedule_epochs,
        batch_size=settings.batch_size,
        image_size=settings.dataset.image_size or models.input_size(model),
        seed=settings.seed,
        batchnorm_group=settings.batchnorm_group,
    )
