"""The one training loop. It does not know how a network was initialized, or which table the training is for."""

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

# The gradients of these activations need the input. In place, they would overwrite the input, so that autograd copies
# the input first: these activations are slower in place than out of place.
NEEDS_INPUT = (nn.SiLU, nn.Hardswish, nn.Mish)
State = dict[str, Any]  # the state of a training between two epochs: plain values and tensors


@dataclass(frozen=True)
class Schedule:
    """How a network is trained: Adam without weight decay, a cosine of the learning rate by epochs (section 4)."""

    # The names of these fields are keys of every record, and enter the hash that is a trial's id. A new name here would
    # separate every committed record from its trial.
    epochs: int
    lr: float  # the learning rate of the first epoch
    schedule_epochs: int  # the length of the cosine, in epochs
    batch_size: int  # images
    image_size: int  # pixels
    seed: int
    batchnorm_group: int | None = None  # images that a batch norm normalizes together; None: the whole batch

    def learning_rate(self, epoch: int) -> float:
        """Return lr · (0.1 + 0.9 · (1 + cos(π e / E)) / 2) for epoch e from 0; after E epochs the rate stays."""
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

    The training ends early after an epoch with a loss that is not finite (`diverged`). Several processes share each
    batch and the test images, and all return the same but for the seconds.

    Args:
        network: A network with one output for each class.
        data: The training and test images.
        schedule: The epochs, learning rates, batches and the seed.
        device: Where the network is trained.
        title: What the progress bar calls the training.
        on_epoch: Called after each epoch with the epoch's row and the state of the training.
        state: What `on_epoch` was given after an earlier epoch. With a network built alike, the training goes on from
            there and ends as if it had not been stopped.
        graphs: Whether steps are replayed as CUDA graphs, where there is a single GPU. The values are the same, up to
            rounding.

    Returns:
        One row for each epoch (learning rate, losses, accuracies in [0, 1], seconds), and the state dict of the epoch
        with the lowest test loss, on the CPU.
    """
    # Two generators. `order` decides what the network sees: it is on the CPU, so every device and every process draws
    # the same images and crops. The global generator is for dropout, which each process draws for its own images.
    order = torch.Generator().manual_seed(schedule.seed)
    torch.manual_seed(schedule.seed + parallel.rank())
    with own_stream(device), _bar(data, schedule, state) as bar:
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


def _bar(data: Data, schedule: Schedule, state: State | None) -> tqdm:
    """The progress bar of a training, in images. Without a terminal, and in all processes but one, it is quiet."""
    images = len(data.train.labels) // schedule.batch_size * schedule.batch_size  # images of an epoch
    return tqdm(
        total=schedule.epochs * images,
        initial=len(state["rows"]) * images if state else 0,
        unit=" images",
        unit_scale=True,
        leave=False,
        disable=None if parallel.rank() == 0 else True,
    )


def prepare(network: nn.Module, device: torch.device) -> None:
    """Move `network` to `device` and make it fast to train there, in place. It computes the same, up to rounding."""
    network.to(device, memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, NEEDS_INPUT):
            module.inplace = False


def adam(network: nn.Module, lr: float, device: torch.device) -> torch.optim.Adam:
    """Return Adam for a network. On a GPU the learning rate is a tensor: a graph would keep a number for good."""
    on_gpu = device.type == "cuda"
    rate = torch.tensor(lr, device=device) if on_gpu else lr
    return torch.optim.Adam(network.parameters(), lr=rate, fused=True, capturable=on_gpu)


def diverged(rows: list[dict[str, float]]) -> bool:
    """Whether the last row has a loss that is infinite or not a number, after which nothing can be learned."""
    return bool(rows) and not all(math.isfinite(rows[-1][key]) for key in ("train_loss", "test_loss"))


def _state(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    order: torch.Generator,
    device: torch.device,
    rows: list[dict[str, float]],
    best: dict[str, Tensor],
) -> State:
    """Collect all that a training needs to go on bit for bit."""
    # The state is complete between two epochs and only there: a loader in the middle of an epoch has state of its own.
    # The learning rate is not kept, as it follows from the number of rows. The random states of every process are kept,
    # since each draws dropout for itself.
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
    """Put everything in `state` back in its place. Returns the rows and the best weights."""
    network.load_state_dict(state["network"])
    # The state may come from another device: there `lr` may be a number and here a tensor that a graph reads.
    own = {key: optimizer.param_groups[0][key] for key in ("lr", "capturable")}
    optimizer.load_state_dict(state["optimizer"])
    optimizer.param_groups[0].update(own)
    order.set_state(state["order"])
    if parallel.rank() < len(state["random"]):  # a process that was not there before begins anew
        cpu, *cuda = state["random"][parallel.rank()]
        torch.set_rng_state(cpu)
        if cuda and device.type == "cuda":
            torch.cuda.set_rng_state(cuda[0], device)
    return list(state["rows"]), state["best"]


def _random_states(device: torch.device) -> list[Tensor]:
    """The states of the CPU's generator and, on a GPU, of the GPU's."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _own_images(split: AnySplit) -> AnySplit:
    """This process's share of the test images: every k-th of k processes, so that all images are tested once."""
    if parallel.size() == 1:
        return split
    return split.subset(torch.arange(len(split.labels))[parallel.rank() :: parallel.size()])


def _epoch(steps: Steps, order: torch.Generator, epoch: int, bar: tqdm) -> dict[str, float]:
    """Train and test once. `epoch` counts from 0; in the row that is returned, epochs count from 1."""
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
    """Trains and tests a network on a device, batch by batch.

    Losses and hits are summed on the device and read once an epoch: to read them in each step would make the CPU wait
    for the GPU in each step.
    """

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
        self.loss = torch.zeros((), device=device)  # the sum over images of this epoch
        self.correct = torch.zeros((), dtype=torch.int64, device=device)  # images
        captured = graphs and device.type == "cuda" and parallel.size() == 1
        self.training, self.testing = ReplayedStep("training", captured), ReplayedStep("testing", captured)

    def train(self, lr: float, order: torch.Generator, bar: tqdm) -> tuple[float, float]:
        """Train for one epoch. Returns the mean loss and the accuracy over the augmented images."""
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
        """Return the mean loss and the accuracy over every test image. Leaves the network in eval mode."""
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
    """bfloat16 on a GPU, and float32 on a CPU, where bfloat16 is slower."""
    # No cache of cast weights: a captured step would put tensors of the graph's memory into the cache, and a step
    # outside of the graph would read them.
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False)
