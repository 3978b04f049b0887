"""The one training loop. It knows neither how a network was initialized nor which table it is for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from experiments.data.loading import AnySplit, Data, Draws
from experiments.train import parallel
from experiments.train.batchnorm import normalizing
from experiments.train.convolution import convolving
from experiments.train.graphs import Pace, ReplayedStep, own_stream

# Activations whose gradient needs their input: if they write over it, autograd makes a copy of it first.
NEEDS_INPUT = (nn.SiLU, nn.Hardswish, nn.Mish)
State = dict[str, Any]  # of a training between two epochs: plain values and tensors


@dataclass(frozen=True)
class Schedule:
    """How a network is trained (section 4 and recipe): Adam, cosine per epoch, no weight decay."""

    epochs: int
    lr: float  # at the first epoch
    schedule_epochs: int  # the cosine's length, in epochs
    batch_size: int  # images
    image_size: int  # pixels
    seed: int
    batchnorm_group: int | None = None  # images that a batch norm normalizes together; None: the batch

    def learning_rate(self, epoch: int) -> float:
        """lr · (0.1 + 0.9 · (1 + cos(π e / E)) / 2), held at its end value after E epochs."""
        done = min(epoch / self.schedule_epochs, 1.0)
        return self.lr * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)


def train(
    network: nn.Module,
    data: Data,
    schedule: Schedule,
    device: torch.device,
    title: str = "",
    on_epoch: Callable[[dict[str, float], State], None] = lambda row, state: None,
    state: State | None = None,
    graphs: bool = True,
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Train `network` in place.

    Returns one row for each epoch (learning rate, losses, accuracies in [0, 1], seconds) and the state dict, on the
    CPU, of the epoch with the lowest test loss. After each epoch `on_epoch` is called with its row and with the state
    of the training; given back as `state`, with a network built alike, the training goes on from there as if it had
    not stopped. It ends after an epoch with a loss that is not finite: see `diverged`. Several processes share each
    batch and the test images; all return the same, but for the seconds. On a single GPU the steps are replayed as CUDA
    graphs, unless `graphs` is False: the same values, but for rounding.
    """
    order = torch.Generator().manual_seed(schedule.seed)  # of the images, and their crops
    torch.manual_seed(schedule.seed + parallel.rank())  # dropout and stochastic depth
    images = len(data.train.labels) // schedule.batch_size * schedule.batch_size  # of an epoch
    bar = tqdm(
        total=schedule.epochs * images,
        initial=len(state["rows"]) * images if state else 0,
        unit=" images",
        unit_scale=True,
        leave=False,
        disable=None if parallel.rank() == 0 else True,  # quiet where there is no terminal
    )
    with own_stream(device), bar:
        prepare(network, device)
        data = Data(data.train, _own_images(data.test), data.classes).to(device)
        optimizer = adam(network, schedule.lr, device)
        rows, best = _restore(state, network, optimizer, order, device) if state else ([], {})
        replica = parallel.replicated(network, device)
        steps = Steps(replica, optimizer, data, schedule, device, graphs)
        while len(rows) < schedule.epochs and not diverged(rows):
            bar.set_description(f"{title} epoch {len(rows) + 1}/{schedule.epochs}")
            row = _epoch(steps, order, len(rows), bar)
            if all(row["test_loss"] < earlier["test_loss"] for earlier in rows):
                best = {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}
            rows.append(row)
            on_epoch(row, _state(network, optimizer, order, device, rows, best))
    return rows, best


def prepare(network: nn.Module, device: torch.device) -> None:
    """Make `network` fast to train on `device`, in place; it computes the same, but for rounding."""
    network.to(device, memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, NEEDS_INPUT):
            module.inplace = False


def adam(network: nn.Module, lr: float, device: torch.device) -> torch.optim.Adam:
    """Adam, on a GPU in the form that a graph can hold: its learning rate is a tensor there."""
    on_gpu = device.type == "cuda"
    rate = torch.tensor(lr, device=device) if on_gpu else lr
    return torch.optim.Adam(network.parameters(), lr=rate, fused=True, capturable=on_gpu)


def diverged(rows: list[dict[str, float]]) -> bool:
    """Whether the last epoch left a loss that is infinite or not a number: nothing is to be learned after it."""
    return bool(rows) and not all(math.isfinite(rows[-1][key]) for key in ("train_loss", "test_loss"))


def _state(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    order: torch.Generator,
    device: torch.device,
    rows: list[dict[str, float]],
    best: dict[str, Tensor],
) -> State:
    """All that a training needs to go on. The schedule needs the number of epochs alone, which is that of the rows."""
    return {
        "rows": rows,
        "best": best,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "order": order.get_state(),
        "random": parallel.gathered(_random_states(device)),
    }


def _restore(
    state: State, network: nn.Module, optimizer: torch.optim.Optimizer, order: torch.Generator, device: torch.device
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Put all in `state` back to its place; returns its rows and its best weights."""
    network.load_state_dict(state["network"])
    own = {key: optimizer.param_groups[0][key] for key in ("lr", "capturable")}  # of this device
    optimizer.load_state_dict(state["optimizer"])
    optimizer.param_groups[0].update(own)
    order.set_state(state["order"])
    if parallel.rank() < len(state["random"]):  # not if there are more processes now: theirs begin anew
        cpu, *cuda = state["random"][parallel.rank()]
        torch.set_rng_state(cpu)
        if cuda and device.type == "cuda":
            torch.cuda.set_rng_state(cuda[0], device)
    return list(state["rows"]), state["best"]


def _random_states(device: torch.device) -> list[Tensor]:
    """Those of the CPU and of the GPU in use, if one is."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _own_images(split: AnySplit) -> AnySplit:
    """Of images to be looked at once, those that are this process's."""
    if parallel.size() == 1:
        return split
    return split.subset(torch.arange(len(split.labels))[parallel.rank() :: parallel.size()])


def _epoch(steps: Steps, order: torch.Generator, epoch: int, bar: tqdm) -> dict[str, float]:
    """Train and test once; `epoch` counts from 0, the row that is returned from 1."""
    start = time.perf_counter()
    lr = steps.schedule.learning_rate(epoch)
    loss, accuracy = steps.train(lr, order, bar)
    parallel.average_buffers(steps.network)
    test_loss, test_accuracy = steps.test()
    return {
        "epoch": epoch + 1,
        "lr": lr,
        "train_loss": loss,
        "train_accuracy": accuracy,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "seconds": round(time.perf_counter() - start, 3),
    }


class Steps:
    """A network's training and testing on a device, a batch at a time; what the steps find is read once an epoch."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: Data,
        schedule: Schedule,
        device: torch.device,
        graphs: bool = True,
    ):
        self.network, self.optimizer, self.data, self.schedule, self.device = network, optimizer, data, schedule, device
        self.loss = torch.zeros((), device=device)  # summed over images
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        captured = graphs and device.type == "cuda" and parallel.size() == 1
        self.training, self.testing = ReplayedStep("training", captured), ReplayedStep("testing", captured)

    def train(self, lr: float, order: torch.Generator, bar: tqdm) -> tuple[float, float]:
        """Mean loss and accuracy over the augmented images of an epoch."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        schedule, own = self.schedule, parallel.own_share(self.schedule.batch_size)
        self.network.train()
        draws = self.data.train.train_draws(schedule.batch_size, schedule.image_size, order, own)
        return self._means(self.train_step, draws, bar)

    def test(self) -> tuple[float, float]:
        """Mean loss and accuracy over every test image. Leaves eval mode on."""
        self.network.eval()
        draws = self.data.test.test_draws(self.schedule.batch_size, self.schedule.image_size)
        return self._means(self.test_step, draws, tqdm(disable=True))

    def _means(self, step: Callable[..., None], draws: Draws, bar: tqdm) -> tuple[float, float]:
        self.loss.zero_()
        self.correct.zero_()
        images, pace = 0, Pace(self.device)
        for draw in draws:
            step(*draw)
            pace()
            images += len(draw[0])
            bar.update(len(draw[0]) * parallel.size())
        loss, correct, count = parallel.totals(float(self.loss), int(self.correct), images)
        return loss / count, correct / count

    def train_step(self, *draw: Tensor) -> None:
        self.training(self._train_step, *draw)

    def test_step(self, *draw: Tensor) -> None:
        self.testing(self._test_step, *draw)

    def _train_step(self, *draw: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        inputs, labels = self.data.train.train_batch(self.schedule.image_size, *draw)
        with _autocast(self.device), convolving(self.device), normalizing(self.schedule.batchnorm_group):
            outputs = self.network(inputs)
            loss = cross_entropy(outputs, labels)
        loss.backward()
        self.optimizer.step()
        self.loss += loss.detach() * len(labels)
        self.correct += (outputs.detach().argmax(1) == labels).sum()

    @torch.no_grad()
    def _test_step(self, *draw: Tensor) -> None:
        inputs, labels = self.data.test.test_batch(self.schedule.image_size, *draw)
        with _autocast(self.device), convolving(self.device):
            outputs = self.network(inputs)
        self.loss += cross_entropy(outputs.float(), labels, reduction="sum")
        self.correct += (outputs.argmax(1) == labels).sum()


def _autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU; on a CPU it is slower than float32. A graph holds the casts, and nothing to keep from them."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False)
