"""One trial: (data set, source, target, initialization, seed) -> one record.

Every training is a `Trial`: that of a source, of a random-init baseline, of a target. A trial with a record is never
run again; its identity is everything that determines its result.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dpiat import sources, stored
from experiments import models, planning
from experiments.data import loading
from experiments.initialization import initialize
from experiments.planning import Trial
from experiments.settings import LoggerSettings, Settings, UserError, first_line
from experiments.store import checkpoints, records
from experiments.store.trials import Store, check_same_trial
from experiments.tracking import Plot, tracking
from experiments.train import parallel
from experiments.train.malloc import keep_large_blocks
from experiments.train.training import State, diverged, train


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
    target = planning.target_trial(settings)
    runner = _Runner(settings, plot)
    if target.init == "random":
        return Outcome(runner.record(target), None)
    random = planning.baseline_trial(settings, target)
    try:
        runner.prepare(target)
    except Diverged:
        runner.record(random)  # that other sources are compared with
        raise
    baseline = runner.record(random)
    return Outcome(runner.record(target, baseline), baseline)


class _Runner:
    """Runs trials under one set of settings; loads the data once, and only if something has to be trained."""

    def __init__(self, settings: Settings, plot: Plot | None):
        self.settings = settings
        self.plot = plot
        self.store = Store(planning.user_path(settings.output_dir))
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
        if not parallel.from_first(self.store.record_file(trial).exists):
            self._check(trial)
            self._begin(trial)

    def record(self, trial: Trial, baseline: dict[str, Any] | None = None) -> dict[str, Any]:
        """The record of a trial: the one there is, or a new one. `baseline` is what it is compared with."""
        with self._exclusive(trial):
            found = parallel.from_first(lambda: self.store.record(trial))
            if found is None:
                return self._train(trial, baseline)[0]
            if parallel.rank() == 0:
                self.store.clean_up(trial)
        if parallel.rank() == 0:
            print(f"{trial.id}: {found['status']} before, {self.store.record_file(trial)}", flush=True)
        return found

    def network(self, trial: Trial) -> nn.Module:
        """A trained source, from its checkpoint if there is one. Raises Diverged if its training did."""
        classes = len(self.data.classes)
        torch.manual_seed(trial.recipe.seed)
        if trial.init == "checkpoint":
            network = models.build(trial.model, classes)
            _load_weights(network, _read_users_checkpoint(planning.user_path(self.settings.source_checkpoint), trial))
            return network
        if trial.recipe.epochs == 0:
            return initialize(trial.init, planning.start_of(self.settings, trial, classes))[0]
        with self._exclusive(trial):
            state, record = parallel.from_first(lambda: (self.store.checkpoint(trial), self.store.record(trial)))
            if state is None and (record is None or record["status"] == "finished"):
                record, state = self._train(trial, keep=True)
        if state is None:
            raise Diverged(f"{trial.id}, the source, {records.divergence_text(record)}: no target can start from it")
        network = models.build(trial.model, classes)
        network.load_state_dict(state)
        return network

    def _train(
        self, trial: Trial, baseline: dict[str, Any] | None = None, keep: bool = False
    ) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
        """Train from the last epoch there is; leave a record and, if it is to be kept, a checkpoint.

        Returns the record and the state dict of the best epoch, None if the training diverged.
        """
        recipe, unfinished = trial.recipe, self.store.unfinished(trial)
        self._check(trial)
        state = parallel.from_first(unfinished.read)
        network, record = self._begin(trial) if state is None else self._go_on(trial, state)
        title = f"{trial.model} {trial.init}"
        logger = self.settings.logger if parallel.rank() == 0 else LoggerSettings()
        with tracking(logger, trial.id, record, self.store.folder) as tracker:
            for row in state["rows"] if state else ():
                tracker.epoch(row)

            def on_epoch(row: dict[str, float], reached: State) -> None:
                if parallel.rank() > 0:
                    return
                unfinished.write({**reached, "record": record}, int(row["epoch"]))
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
                records.save(record, self.store.record_file(trial))
            tracker.end(record, baseline, self.plot)
        if record["status"] == "diverged":
            best = None
        elif keep and parallel.rank() == 0:
            self.store.write_checkpoint(trial, best)
        if parallel.rank() == 0:
            self.store.clean_up(trial)
        return record, best

    def _exclusive(self, trial: Trial) -> AbstractContextManager[None]:
        """No other process trains this trial meanwhile, but those of this run, which train it together."""
        return nullcontext() if parallel.rank() else self.store.exclusive(trial)

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
        start = planning.start_of(self.settings, trial, len(self.data.classes))
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
    checkpoint = checkpoints.read_users_file(file)
    if checkpoint is None:
        try:
            return sources.read_state_dict(file)
        except ValueError as error:
            raise UserError(f"source_checkpoint: {error}") from error
    if "trial" not in checkpoint:
        raise UserError(f"source_checkpoint {file} holds no weights of a trained network: name one of checkpoints/")
    check_same_trial(file, checkpoint["trial"], trial.identity(), ["model", "dataset"])
    return checkpoint["state"]


def _load_weights(network: nn.Module, state: dict[str, Tensor]) -> None:
    try:
        network.load_state_dict(stored.of_network(state, network.state_dict(keep_vars=True)))
    except RuntimeError as error:
        cause = " ".join(str(error).split())
        raise UserError(f"source_checkpoint does not fit the source: {cause[:300]}") from error
