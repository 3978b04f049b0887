"""One trial: (data set, source, target, initialization, seed) -> one record.

The trainings of a source, of a random-init baseline and of a target are trials alike. A trial with a record is never
run again, and everything that determines its result is part of its id.
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
    """A source whose training diverged. The user made no mistake, and a grid goes on."""


class Outcome(NamedTuple):
    """The records of the target and of its random-init baseline (None if the target has random init itself)."""

    record: dict[str, Any]
    baseline: dict[str, Any] | None


def run(settings: Settings, plot: Plot | None = None) -> Outcome:
    """Train the source and the baseline unless they are there, then the target, and leave a record of each.

    A trial that was stopped goes on from its last epoch. A trial that has ended is not run again.

    Args:
        settings: The settings of the trial.
        plot: Draws the records of the target and of the baseline, where the trial is tracked.

    Returns:
        The records of the target and of its baseline.

    Raises:
        UserError: The settings cannot be run.
        Diverged: The training of the source diverged, so that the target has nothing to start from.
        CannotWrite: A file cannot be written, because the disk is full for example.
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
        runner.record(random)  # the targets of other sources are compared with it
        raise
    baseline = runner.record(random)
    return Outcome(runner.record(target, baseline), baseline)


class _Runner:
    """Runs trials under one set of settings.

    The data are loaded once, and only if something has to be trained.
    """

    # The order of looking and locking matters where several processes run the same grid. A process takes the lock of a
    # trial, looks for its record, and trains only if there is none: with the look before the lock, two processes could
    # find no record and train one after the other. The lock is held until the record is on disk, so whoever waited for
    # it finds the record. Under torchrun only rank 0 locks, looks and writes. What it found is sent to the others
    # (`parallel.from_first`), since all of them have to take the same branch.

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
        """The data set."""
        if self._data is None:
            load = partial(loading.load, self.settings.dataset, self.settings.cache_dir)
            self._data = parallel.first_then_others(load)
        return self._data

    def prepare(self, trial: Trial) -> None:
        """Train the source of a trial that has no record, or raise what stands in the trial's way.

        Called before the baseline is trained, so that a source that diverges or a method that does not apply shows
        first.
        """
        if not parallel.from_first(self.store.record_file(trial).exists):
            self._check(trial)
            self._begin(trial)

    def record(self, trial: Trial, baseline: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the record of a trial, and run the trial if there is none. `baseline` is shown beside it."""
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
        """Return the network of a source with its weights, and train it if there is no checkpoint.

        Raises Diverged if its training diverged, now or before.
        """
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
            elif parallel.rank() == 0:
                self.store.clean_up(trial)  # a process may have been killed right before
        if state is None:
            raise Diverged(f"{trial.id}, the source, {records.divergence_text(record)}: no target can start from it")
        network = models.build(trial.model, classes)
        network.load_state_dict(state)
        return network

    def _train(
        self, trial: Trial, baseline: dict[str, Any] | None = None, keep: bool = False
    ) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
        """Train from the last epoch that is on disk. Leave a record and, if `keep`, a checkpoint.

        Returns the record, and the state dict of the best epoch, or None if the training diverged.
        """
        # Stopping is safe at any moment because of the order of writing: the state after each epoch, then at the end
        # the record, then the checkpoint, and only then are the states removed. A kill between two of these leaves more
        # than is needed and never less. A source with a record and without a checkpoint is trained again from its last
        # state.
        schedule, unfinished = trial.recipe, self.store.unfinished(trial)
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
                tqdm.write(f"{title} {_epoch_line(row, schedule.epochs)}")
                sys.stdout.flush()
                tracker.epoch(row)

            graphs = self.settings.cuda_graphs
            rows, best = train(network, self.data, schedule, self.device, title, on_epoch, state, graphs)
            record |= {
                "status": "diverged" if diverged(rows) else "finished",
                "seconds": round(sum(row["seconds"] for row in rows), 3),
                "epochs": rows,
            }
            if parallel.rank() == 0:
                records.save(record, self.store.record_file(trial))
            tracker.end(record, baseline, self.plot)
        finished = record["status"] == "finished"
        if parallel.rank() == 0:
            if finished and keep:
                self.store.write_checkpoint(trial, best)
            self.store.clean_up(trial)
        return record, best if finished else None

    def _exclusive(self, trial: Trial) -> AbstractContextManager[None]:
        """Keep other runs from training this trial. Processes of this run train the trial together."""
        return nullcontext() if parallel.rank() else self.store.exclusive(trial)

    def _check(self, trial: Trial) -> None:
        """Raise UserError if the data do not suit the trial, before a source is trained for nothing."""
        images, batch = len(self.data.train.labels), trial.recipe.batch_size
        if images < batch:
            hint = "lower batch_size" + (" or raise dataset.train_subset" if trial.train_subset else "")
            raise UserError(f"{images} training images do not fill one batch of {batch}: {hint}")
        for each in filter(None, (trial, trial.source)):
            share = batch // parallel.size()
            _check_output(each, len(self.data.classes), dict.fromkeys((min(share, 2), share)), self.device)

    def _begin(self, trial: Trial) -> tuple[nn.Module, dict[str, Any]]:
        """Return the network as its training begins, and the record as far as it is known then."""
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
        """Return a network for the weights of `state`, and the record so far.

        A record that goes on from another commit counts as dirty. Another machine is added under "continued".
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
    """Raise UserError unless the trial's network turns images into one number for each class.

    Args:
        trial: A target or a source. The network is tried in training mode, unless it is trained already.
        classes: The number of classes.
        counts: Numbers of images. The first number that the network takes will do: some networks need an even number,
            and two images are cheaper than a whole batch.
        device: Where the network is tried.
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
    """Read the weights in a file that the user names: a checkpoint of ours, or any file that `dpiat.load` takes."""
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
