"""One trial: (data set, source, target, initialization, seed) -> one record.

Every training is a `Trial`: that of a source, of a random-init baseline, of a target. A trial with a record is never
run again; its identity is everything that determines its result.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dpiat import sources, stored
from dpiat.assignment import MATCHINGS
from dpiat.heads import HEADS
from dpiat.operators import OPERATORS
from dpiat.reading import MODES, VERSION
from experiments import models
from experiments.data import loading
from experiments.initialization import INITIALIZATIONS, Method, Start, initialize
from experiments.settings import LoggerSettings, Settings, UserError, first_line
from experiments.store import checkpoints, records
from experiments.store.locks import alone
from experiments.tracking import LOGGERS, Plot, tracking
from experiments.tracking import MODES as LOGGER_MODES
from experiments.train import parallel
from experiments.train.malloc import keep_large_blocks
from experiments.train.training import Recipe, State, diverged, train

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
    recipe: Recipe
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

    @property
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
            later["network"] = models.shapes(self.model) or None
        return fields | {key: value for key, value in later.items() if value != getattr(Method, key, None)}


class Diverged(Exception):
    """A source whose training diverged: no mistake of the user's, and no reason for a grid to end."""


class Outcome(NamedTuple):
    """The record of the target's training and that of its random-init baseline (None if it is one itself)."""

    record: dict[str, Any]
    baseline: dict[str, Any] | None


def run(settings: Settings, plot: Plot | None = None) -> Outcome:
    """Make sure of the trained source and of the baseline, train the target, and leave a record of each.

    `plot` draws the records of the target and of the baseline, where the trial is tracked.
    A trial that was stopped goes on from its last epoch; one that has ended is not run again. Raises UserError for
    settings that cannot be run, Diverged if there is no source to start from, CannotWrite if the disk is full.
    """
    parallel.start()
    target = plan(settings)
    runner = _Runner(settings, plot)
    if target.init == "random":
        return Outcome(runner.record(target), None)
    random = _trial(settings, settings.target, "random", replace(target.recipe, lr=settings.baseline_lr or LR))
    try:
        runner.prepare(target)
    except Diverged:
        runner.record(random)  # that other sources are compared with
        raise
    baseline = runner.record(random)
    return Outcome(runner.record(target, baseline), baseline)


def plan(settings: Settings) -> Trial:
    """The target's trial. Checks every name, so that a mistake shows before anything is loaded or trained."""
    loading.check(settings.dataset)
    _check_values(settings)
    _check_parts(settings)
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
    recipe = _recipe(settings, settings.target, settings.lr or (LR_IMAGENET if imagenet else LR))
    target = _trial(settings, settings.target, init, recipe)
    if INITIALIZATIONS[init].from_file:
        if not settings.init.checkpoint:
            raise UserError(f"init={init} needs a trained checkpoint: init.checkpoint=FILE")
        target = replace(target, checkpoint=_digest("init.checkpoint", _path(settings.init.checkpoint)))
    if from_source:
        models.check(settings.source)
        method = settings.init
        version = (method.version or VERSION) if method.mode == "default" else Method.version
        if not 0 < version <= VERSION:
            raise UserError(f"init.version must be from 1 to {VERSION}, got {version}")
        target = replace(target, matching=method.matching, operator=method.operator, head=method.head)
        target = replace(target, mode=method.mode, version=version, source=_source(settings))
    if check := INITIALIZATIONS[init].check:
        check(_start(settings, target, classes=10))
    return target


def _check_values(settings: Settings) -> None:
    counts = ("source_epochs", "target_epochs", "schedule_epochs", "source_schedule_epochs")
    counts += ("batch_size", "batchnorm_group", "threads")
    values = {key: getattr(settings, key) for key in (*counts, "lr", "source_lr", "baseline_lr")}
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


def _check_parts(settings: Settings) -> None:
    """A batch is made of equal parts, one for each process, and each of those of equal groups."""
    batch, processes, group = settings.batch_size, parallel.size(), settings.batchnorm_group
    if batch % processes:
        raise UserError(f"batch_size={batch} must be a multiple of the number of processes, {processes}")
    if group is not None and batch // processes % group:
        raise UserError(f"batchnorm_group={group} must divide the {batch // processes} images of a batch on one device")


def _check_choice(key: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise UserError(f"unknown {key} {value!r}: known are {', '.join(known)}")


def _source(settings: Settings) -> Trial:
    init = "random" if settings.source_weights == "scratch" else "pretrained"
    epochs = 0 if settings.source_weights == "imagenet" or settings.source_checkpoint else settings.source_epochs
    lr = settings.source_lr or (LR if init == "random" else LR_IMAGENET)
    schedule = settings.source_schedule_epochs or settings.schedule_epochs
    recipe = _recipe(settings, settings.source, lr)
    recipe = replace(recipe, epochs=epochs, schedule_epochs=schedule, seed=settings.source_seed)
    source = _trial(settings, settings.source, init, recipe)
    if settings.source_checkpoint is None:
        return source
    checkpoint = _digest("source_checkpoint", _path(settings.source_checkpoint))
    return replace(source, init="checkpoint", checkpoint=checkpoint)


def _path(name: str) -> Path:
    return Path(name).expanduser()


def _digest(key: str, file: Path) -> str:
    """The SHA-256 of the file that a key names."""
    if not file.is_file():
        raise UserError(f"{key} {file} {'is not a file' if file.exists() else 'does not exist'}")
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{key} {file} cannot be read: {error.strerror}") from error


def _start(settings: Settings, trial: Trial, classes: int) -> Start:
    """What the first weights of a trial's network depend on, but for a trained source."""
    checkpoint = _path(settings.init.checkpoint) if INITIALIZATIONS[trial.init].from_file else None
    recipe, source = trial.recipe, trial.source.model if trial.source else ""
    return Start(trial.model, classes, recipe.seed, recipe.image_size, trial.method, source, checkpoint=checkpoint)


def _trial(settings: Settings, model: str, init: str, recipe: Recipe) -> Trial:
    dataset = settings.dataset
    return Trial(loading.identity(dataset), dataset.stored_size, dataset.train_subset, model, init, recipe)


def _recipe(settings: Settings, model: str, lr: float) -> Recipe:
    """How `model` is trained when it is the target."""
    return Recipe(
        epochs=settings.target_epochs,
        lr=lr,
        schedule_epochs=settings.schedule_epochs,
        batch_size=settings.batch_size,
        image_size=settings.dataset.image_size or models.input_size(model),
        seed=settings.seed,
        batchnorm_group=settings.batchnorm_group,
    )


class _Runner:
    """Runs trials under one set of settings; loads the data once, and only if something has to be trained."""

    def __init__(self, settings: Settings, plot: Plot | None):
        self.settings = settings
        self.plot = plot
        self.folder = Path(settings.output_dir).expanduser()
        self.device = parallel.own_device(_device(settings.device))
        if self.device.type == "cpu":
            keep_large_blocks()
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self._data: loading.Data | None = None

    @property
    def data(self) -> loading.Data:
        if self._data is None:
            load = partial(loading.load, self.settings.dataset, self.settings.cache_dir)
            self._data = parallel.first_then_others(load)
        return self._data

    def prepare(self, trial: Trial) -> None:
        """Make sure of what a trial without a record starts from, or raise what stands in its way."""
        if not parallel.from_first(self._record_file(trial).exists):
            self._check(trial)
            self._begin(trial)

    def record(self, trial: Trial, baseline: dict[str, Any] | None = None) -> dict[str, Any]:
        """The record of a trial: the one there is, or a new one. `baseline` is what it is compared with."""
        with self._alone(trial):
            found = parallel.from_first(lambda: self._ended(trial))
            if found is None:
                return self._train(trial, baseline)[0]
            self._tidy(trial)
        if parallel.rank() == 0:
            print(f"{trial.id}: {found['status']} before, {self._record_file(trial)}", flush=True)
        return found

    def network(self, trial: Trial) -> nn.Module:
        """A trained source, from its checkpoint if there is one. Raises Diverged if its training did."""
        classes = len(self.data.classes)
        torch.manual_seed(trial.recipe.seed)
        if trial.init == "checkpoint":
            network = models.build(trial.model, classes)
            _load_weights(network, _read_users_checkpoint(_path(self.settings.source_checkpoint), trial))
            return network
        if trial.recipe.epochs == 0:
            return initialize(trial.init, _start(self.settings, trial, classes))[0]
        with self._alone(trial):
            state, record = parallel.from_first(lambda: (self._checkpoint(trial), self._ended(trial)))
            if state is None and (record is None or record["status"] == "finished"):
                record, state = self._train(trial, keep=True)
        if state is None:
            raise Diverged(f"{trial.id}, the source, {records.divergence(record)}: no target can start from it")
        network = models.build(trial.model, classes)
        network.load_state_dict(state)
        return network

    def _alone(self, trial: Trial) -> AbstractContextManager[None]:
        """No other process trains this trial meanwhile."""
        return (
            nullcontext()
            if parallel.rank()
            else alone(self.folder / "locks" / f"{trial.id}.lock", f"it trains {trial.id}")
        )

    def _record_file(self, trial: Trial) -> Path:
        return self.folder / "records" / f"{trial.id}.json"

    def _ended(self, trial: Trial) -> dict[str, Any] | None:
        """The record of a trial that is not to be run again."""
        return records.read(self._record_file(trial))

    def _checkpoint_file(self, trial: Trial) -> Path:
        return self.folder / "checkpoints" / f"{trial.id}.pt"

    def _checkpoint(self, trial: Trial) -> dict[str, Tensor] | None:
        """The weights in the checkpoint of exactly this trial; None if there is no readable one."""
        file = self._checkpoint_file(trial)
        checkpoint = checkpoints.read(file)
        if checkpoint is None:
            return None
        _check_same_trial(file, checkpoint["trial"], trial.identity(), list(trial.identity()))
        return checkpoint["state"]

    def _unfinished(self, trial: Trial) -> checkpoints.Unfinished:
        return checkpoints.Unfinished(self.folder / "unfinished", trial.id)

    def _train(
        self, trial: Trial, baseline: dict[str, Any] | None = None, keep: bool = False
    ) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
        """Train from the last epoch there is; leave a record and, if it is to be kept, a checkpoint.

        Returns the record and the state dict of the best epoch, None if the training diverged.
        """
        recipe, unfinished = trial.recipe, self._unfinished(trial)
        self._check(trial)
        state = parallel.from_first(unfinished.read)
        network, record = self._begin(trial) if state is None else self._go_on(trial, state)
        title = f"{trial.model} {trial.init}"
        logger = self.settings.logger if parallel.rank() == 0 else LoggerSettings()
        with tracking(logger, trial.id, record, self.folder) as tracker:
            for row in state["rows"] if state else ():
                tracker.epoch(row)

            def on_epoch(row: dict[str, float], reached: State) -> None:
                if parallel.rank() > 0:
                    return
                unfinished.write({**reached, "record": record}, row["epoch"])
                tqdm.write(f"{title} {_epoch_line(row, recipe.epochs)}")
                sys.stdout.flush()
                tracker.epoch(row)

            graphs = self.settings.cuda_graphs
            rows, best = train(network, self.data, recipe, self.device, title, on_epoch, state, graphs)
            record |= {
                "status": "diverged" if diverged(rows) else "finished",
                "seconds": round(sum(row["seconds"] for row in rows), 3),
                "epochs": rows,
            }
            if parallel.rank() == 0:
                records.save(record, self._record_file(trial))
            tracker.end(record, baseline, self.plot)
        if record["status"] == "diverged":
            best = None
        elif keep and parallel.rank() == 0:
            checkpoints.write({"trial": trial.identity(), "state": best}, self._checkpoint_file(trial))
        self._tidy(trial)
        return record, best

    def _tidy(self, trial: Trial) -> None:
        """Remove what is of no use when a trial has ended, files that a killed process was writing among it."""
        if parallel.rank() > 0:
            return
        self._unfinished(trial).remove()
        for file in self.folder.glob(f"*/.{trial.id}.*"):
            file.unlink(missing_ok=True)

    def _check(self, trial: Trial) -> None:
        """Raise UserError, before a source is trained for nothing, if the data do not suit the trial."""
        images, batch = len(self.data.train.labels), trial.recipe.batch_size
        if images < batch:
            hint = "lower batch_size" + (" or raise dataset.train_subset" if trial.train_subset else "")
            raise UserError(f"{images} training images do not fill one batch of {batch}: {hint}")
        for each in filter(None, (trial, trial.source)):
            share = batch // parallel.size()
            _check_output(each, len(self.data.classes), dict.fromkeys((min(share, 2), share)), self.device)

    def _begin(self, trial: Trial) -> tuple[nn.Module, dict[str, Any]]:
        """The network as its training begins, and what the record says by then."""
        record = {
            "id": trial.id,
            "status": "unfinished",
            "scale": self.settings.scale,
            "trial": trial.identity(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            **records.provenance(),
            **self._machine(),
            "train_images": len(self.data.train.labels),
            "test_images": len(self.data.test.labels),
            "classes": len(self.data.classes),
        }
        source = partial(self.network, trial.source) if trial.source else None
        start = _start(self.settings, trial, len(self.data.classes))
        network, facts = initialize(trial.init, replace(start, source=source))
        return network, record | {"initialization": facts}

    def _machine(self) -> dict[str, Any]:
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return {"device": device, "threads": torch.get_num_threads()}

    def _go_on(self, trial: Trial, state: State) -> tuple[nn.Module, dict[str, Any]]:
        """A network for the weights of `state`, and the record so far.

        That is not of one clean commit if another has been checked out since, and another machine is added to it.
        """
        if parallel.rank() == 0:
            print(f"{trial.id}: going on after epoch {len(state['rows'])}/{trial.recipe.epochs}", flush=True)
        record, now = state["record"], records.provenance()
        dirty = record["dirty"] or now["dirty"] or record["commit"] != now["commit"]
        machine = {**{key: now[key] for key in ("versions", "cpu", "cores")}, **self._machine()}
        before = (record.get("continued") or [record])[-1]
        if any(before.get(key) != value for key, value in machine.items()):
            record["continued"] = [*record.get("continued", ()), {"epoch": len(state["rows"]) + 1, **machine}]
        record |= {"commit": now["commit"], "dirty": dirty}
        return models.build(trial.model, len(self.data.classes)), record


def _check_output(trial: Trial, classes: int, counts: Iterable[int], device: torch.device) -> None:
    """Raise UserError if the trial's network does not turn images, so many of them, into one number for each class.

    Looks at it as it will be used: in training, unless it is a source that is trained already. The first of `counts`
    that it takes will do.
    """
    size = trial.recipe.image_size
    network = models.build(trial.model, classes).to(device).train(trial.recipe.epochs > 0)
    failure = None
    for images in counts:
        try:
            with torch.no_grad():
                output = network(torch.zeros(images, 3, size, size, device=device))
            break
        except Exception as error:  # whatever a user's network raises
            failure = failure or f"{trial.model} cannot take {images} images of {size} px: {first_line(error)}"
    else:
        raise UserError(failure)
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if found != (images, classes):
        wanted = (images, classes)
        raise UserError(f"{trial.model} turns {images} images into {found}, not {wanted}: one number for each class")


def _epoch_line(row: dict[str, float], epochs: int) -> str:
    return (
        f"epoch {row['epoch']}/{epochs}: train loss {row['train_loss']:.3f}, test loss {row['test_loss']:.3f}, "
        f"test accuracy {row['test_accuracy']:.3f}, {row['seconds']:.0f} s"
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it has no values")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} cannot be used ({first_line(error)}): try device=auto") from error
    return device


def _read_users_checkpoint(file: Path, trial: Trial) -> dict[str, Tensor]:
    """A state dict that the user names: in a checkpoint of ours, or in any file that `dpiat.load` takes."""
    checkpoint = checkpoints.read_users(file)
    if checkpoint is None:
        try:
            return sources.read_state_dict(file)
        except ValueError as error:
            raise UserError(f"source_checkpoint: {error}") from error
    if "trial" not in checkpoint:
        raise UserError(f"source_checkpoint {file} holds no weights of a trained network: name one of checkpoints/")
    _check_same_trial(file, checkpoint["trial"], trial.identity(), ["model", "dataset"])
    return checkpoint["state"]


def _check_same_trial(file: Path, found: dict[str, Any], wanted: dict[str, Any], keys: list[str]) -> None:
    for key in keys:
        if found.get(key) != wanted[key]:
            raise UserError(f"{file} is of other settings: {key} is {found.get(key)!r} there, not {wanted[key]!r}")


def _load_weights(network: nn.Module, state: dict[str, Tensor]) -> None:
    try:
        network.load_state_dict(stored.of_network(state, network.state_dict(keep_vars=True)))
    except RuntimeError as error:
        cause = " ".join(str(error).split())
        raise UserError(f"source_checkpoint does not fit the source: {cause[:300]}") from error
