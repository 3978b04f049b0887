"""The one training loop. It knows neither how a network was initialized nor which table it is for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from experiments import parallel
from experiments.batchnorm import normalizing
from experiments.convolution import convolving
from experiments.data import AnySplit, Data, test_batches, train_batches

# Activations whose gradient needs their input: if they write over it, autograd makes a copy of it first.
NEEDS_INPUT = (nn.SiLU, nn.Hardswish, nn.Mish)
State = dict[str, Any]  # of a training between two epochs: plain values and tensors


@dataclass(frozen=True)
class Recipe:
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
    recipe: Recipe,
    device: torch.device,
    title: str = "",
    on_epoch: Callable[[dict[str, float], State], None] = lambda row, state: None,
    state: State | None = None,
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Train `network` in place.

    Returns one row for each epoch (learning rate, losses, accuracies in [0, 1], seconds) and the state dict, on the
    CPU, of the epoch with the lowest test loss. After each epoch `on_epoch` is called with its row and with the state
    of the training; given back as `state`, with a network built alike, the training goes on from there as if it had
    not stopped. It ends after an epoch with a loss that is not finite: see `diverged`. Several processes share each
    batch and the test images; all return the same, but for the seconds.
    """
    order = torch.Generator().manual_seed(recipe.seed)  # of the images, and their crops
    torch.manual_seed(recipe.seed + parallel.rank())  # dropout and stochastic depth
    prepare(network, device)
    data = Data(data.train, _own_images(data.test), data.classes).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.lr, fused=True)
    rows, best = _restore(state, network, optimizer, order, device) if state else ([], {})
    replica = parallel.replicated(network, device)
    images = len(data.train.labels) // recipe.batch_size * recipe.batch_size  # of an epoch
    with tqdm(
        total=recipe.epochs * images,
        initial=len(rows) * images,
        unit=" images",
        unit_scale=True,
        leave=False,
        disable=None if parallel.rank() == 0 else True,  # quiet where there is no terminal
    ) as bar:
        while len(rows) < recipe.epochs and not diverged(rows):
            bar.set_description(f"{title} epoch {len(rows) + 1}/{recipe.epochs}")
            row = _epoch(replica, optimizer, data, recipe, order, len(rows), bar)
            if all(row["test_loss"] < earlier["test_loss"] for earlier in rows):
                best = {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}
            rows.append(row)
            on_epoch(row, _state(network, optimizer, order, device, rows, best))
    return rows, best


def prepare(network: nn.Module, device: torch.device) -> None:
    """Make `network` fast to train on `device`, in place; it computes the same."""
    network.to(device, memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, NEEDS_INPUT):
            module.inplace = False


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
    optimizer.load_state_dict(state["optimizer"])
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


def _epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Data,
    recipe: Recipe,
    order: torch.Generator,
    epoch: int,
    bar: tqdm,
) -> dict[str, float]:
    """Train and test once; `epoch` counts from 0, the row that is returned from 1."""
    start = time.perf_counter()
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate(epoch)
    own = parallel.part(recipe.batch_size)
    batches = train_batches(data.train, recipe.batch_size, recipe.image_size, order, own)
    loss, accuracy = train_epoch(network, optimizer, batches, recipe.batchnorm_group, bar)
    parallel.average_buffers(network)
    test_loss, test_accuracy = evaluate(network, data.test, recipe.batch_size, recipe.image_size)
    return {
        "epoch": epoch + 1,
        "lr": recipe.learning_rate(epoch),
        "train_loss": loss,
        "train_accuracy": accuracy,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "seconds": round(time.perf_counter() - start, 3),
    }


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    batchnorm_group: int | None,
    bar: tqdm,
) -> tuple[float, float]:
    """Mean loss and accuracy over the augmented training images."""
    network.train()
    total_loss, correct, images = 0.0, 0, 0
    for inputs, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        with _autocast(inputs.device), convolving(inputs.device), normalizing(batchnorm_group):
            outputs = network(inputs)
            loss = cross_entropy(outputs, labels)
        loss.backward()
        optimizer.step()
        total_loss += loss.detach() * len(labels)
        correct += (outputs.detach().argmax(1) == labels).sum()
        images += len(labels)
        bar.update(len(labels) * parallel.size())
    total_loss, correct, images = parallel.totals(float(total_loss), int(correct), images)
    return total_loss / images, correct / images


@torch.no_grad()
def evaluate(network: nn.Module, split: AnySplit, batch: int, size: int) -> tuple[float, float]:
    """Mean loss and accuracy over every image of a split, or of the processes' splits. Leaves eval mode on."""
    network.eval()
    total_loss, correct = 0.0, 0
    for inputs, labels in test_batches(split, batch, size):
        with _autocast(inputs.device), convolving(inputs.device):
            outputs = network(inputs)
        total_loss += cross_entropy(outputs.float(), labels, reduction="sum")
        correct += (outputs.argmax(1) == labels).sum()
    total_loss, correct, images = parallel.totals(float(total_loss), int(correct), len(split.labels))
    return total_loss / images, correct / images


def _autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU; on a CPU it is slower than float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
