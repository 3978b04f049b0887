"""Train a small GHN-2 on small random networks, and write a checkpoint in the published format.

    python scripts/train_ghn2.py --root FOLDER                  # CIFAR-100 at 32 px, 10,000 steps: 4 hours of a core
    python scripts/train_ghn2.py --dataset digits --size 16 --steps 100 --out digits.pt

In each step GHN-2 predicts the parameters of a few networks, which classify one batch, and follows the gradient of
their mean loss. As in the paper (2110.13100): Adam, gradients clipped to a norm of 5, a learning rate that falls to a
tenth after two thirds of the steps and again after five sixths. Unlike the paper: four networks in a step for eight,
and random networks for DeepNets-1M. Ours are plain, residual, or inverted bottlenecks with or without squeeze-excite,
and a few blocks deep, so that the networks of the reproduction are larger than any network of the training. The largest
predicted tensor is 32 × 32 × 11 × 11, which keeps the checkpoint below 4 MB. The published checkpoints predict twice
the channels.

A training that was stopped goes on from its last state. At the end, the script prints how accurate networks are that no
step has drawn.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parent.parent))
from experiments import ghn2, ghn2_graph
from experiments.data import loading
from experiments.data.loading import Data, Split
from experiments.settings import DatasetSettings, UserError
from experiments.store import checkpoints
from experiments.store.files import atomic_write

STYLES = ("plain", "residual", "mbconv", "mbconv", "mbconv with squeeze-excite", "mbconv with squeeze-excite")
KERNELS = (3, 3, 3, 5, 5, 7, 9, 11)
LARGEST = (32, 32, 11, 11)  # (out, in, height, width)
Batch = tuple[Tensor, Tensor]


# --- networks to predict ----------------------------------------------------------------------------------------------


class Residual(nn.Sequential):
    """Adds its input where the shapes agree."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return x + y if x.shape == y.shape else y


class SqueezeExcite(nn.Module):
    """Multiplies each channel by a gate that is computed from all channels."""

    def __init__(self, width: int, squeezed: int):
        super().__init__()
        self.squeeze, self.expand = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution with a batch norm. The norm always normalizes by its batch, as GHN-2 predicts no statistics."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(outputs, track_running_stats=False)]


def block(draw: random.Random, style: str, inputs: int, outputs: int, stride: int, act: type) -> nn.Module:
    if style == "plain":
        return nn.Sequential(*convolution(inputs, outputs, 3, stride), act())
    if style == "residual":
        first, second = convolution(inputs, outputs, 3, stride), convolution(outputs, outputs, 3)
        return nn.Sequential(Residual(*first, act(), *second), act())
    wide = inputs * draw.choice((1, 3, 4, 6))
    layers = [*convolution(inputs, wide, 1), act()] if wide > inputs else []
    layers += [*convolution(wide, wide, draw.choice(KERNELS), stride, groups=wide), act()]
    if "squeeze" in style:
        layers.append(SqueezeExcite(wide, max(inputs // draw.choice((2, 4)), 4)))
    return Residual(*layers, *convolution(wide, outputs, 1))


def network(draw: random.Random, classes: int, size: int) -> nn.Module:
    """Draw a network on the meta device, which has shapes and no values."""
    style, act = draw.choice(STYLES), draw.choice((nn.ReLU, nn.SiLU))
    width, side = draw.choice((16, 24, 32)), size
    with torch.device("meta"):
        layers = [*convolution(3, width, 3, 2), act()]
        side //= 2
        for _ in range(draw.randint(2, 4)):
            outputs = min(int(width * draw.choice((1, 1.5, 2))) // 8 * 8, 128)
            stride = draw.choice((1, 2, 2)) if side >= 8 else 1  # a batch norm needs more than one pixel
            for number in range(draw.randint(1, 3)):
                layers.append(block(draw, style, width, outputs, 1 if number else stride, act))
                width = outputs
            side //= stride
        if draw.random() < 0.5:
            layers += [*convolution(width, 4 * width, 1), act()]
            width *= 4
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def outputs_of(ghn: ghn2.GHN2, wanted: nn.Module, images: Tensor, size: int) -> Tensor:
    return functional_call(wanted, ghn(ghn2_graph.trace(wanted, size)), images)


# --- training ---------------------------------------------------------------------------------------------------------


def batches(split: Split, arguments: argparse.Namespace, first: int) -> Any:
    """Yield batches without end, from the batch of step `first` on."""
    epoch, skipped = divmod(first, len(split.labels) // arguments.batch)
    while True:
        generator = torch.Generator().manual_seed(arguments.seed * 2**20 + epoch)
        for draw in islice(split.train_draws(arguments.batch, arguments.size, generator), skipped, None):
            yield split.train_batch(arguments.size, *draw)
        epoch, skipped = epoch + 1, 0


def step(ghn: ghn2.GHN2, optimizer: torch.optim.Adam, batch: Batch, drawn: list[nn.Module], size: int) -> Batch:
    """Take a step. Returns the mean loss and accuracy. A gradient that is not finite changes nothing."""
    images, labels = batch
    images = images.contiguous(memory_format=torch.channels_last)  # a step takes five sixths of the time on a CPU
    optimizer.zero_grad()
    losses, hits = [], []
    for each in drawn:
        output = outputs_of(ghn, each, images, size)
        loss = cross_entropy(output, labels)
        (loss / len(drawn)).backward()
        losses.append(loss.detach())
        hits.append((output.argmax(1) == labels).float().mean())
    if nn.utils.clip_grad_norm_(ghn.parameters(), 5).isfinite():
        optimizer.step()
    return torch.stack(losses).mean(), torch.stack(hits).mean()


def learning_rate(arguments: argparse.Namespace, number: int) -> float:
    falls = (number >= arguments.steps * 2 / 3) + (number >= arguments.steps * 5 / 6)
    return arguments.lr * 0.1**falls


def train(arguments: argparse.Namespace, found: Data) -> ghn2.GHN2:
    """Train from the last state, if there is one. Raises UserError if that state is of other settings."""
    classes, state_file = len(found.classes), arguments.out.with_suffix(".state")
    torch.manual_seed(arguments.seed)
    ghn = ghn2.GHN2(classes, LARGEST, arguments.hidden)
    optimizer = torch.optim.Adam(ghn.parameters(), arguments.lr, weight_decay=1e-5)
    done, settings = 0, {key: getattr(arguments, key) for key in IDENTITY}
    if state := checkpoints.read(state_file):
        if state["settings"] != settings:
            raise UserError(f"{state_file} is of other settings, {state['settings']}: name another --out, or remove it")
        ghn.load_state_dict(state["ghn"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["done"]
        print(f"going on after step {done}", flush=True)
    rows, start = [], time.perf_counter()
    for number, batch in zip(range(done, arguments.steps), batches(found.train, arguments, done), strict=False):
        draw = random.Random(f"{arguments.seed} {number}")
        drawn = [network(draw, classes, arguments.size) for _ in range(arguments.networks)]
        optimizer.param_groups[0]["lr"] = learning_rate(arguments, number)
        rows.append(step(ghn, optimizer, batch, drawn, arguments.size))
        if (number + 1) % arguments.every == 0 or number + 1 == arguments.steps:
            loss, accuracy = (float(torch.stack(values).mean()) for values in zip(*rows, strict=True))
            seconds = (time.perf_counter() - start) / len(rows)
            said = f"loss {loss:.3f}, accuracy {accuracy:.3f}, {seconds:.2f} s a step"
            print(f"step {number + 1}/{arguments.steps}: {said}", flush=True)
            state = {"settings": settings, "ghn": ghn.state_dict(), "optimizer": optimizer.state_dict()}
            checkpoints.write({**state, "done": number + 1}, state_file)
            save(ghn, arguments, number + 1)
            rows, start = [], time.perf_counter()
    return ghn


def save(ghn: ghn2.GHN2, arguments: argparse.Namespace, steps: int) -> None:
    learned = f"{arguments.dataset} at {arguments.size} px, {steps:,} steps"
    atomic_write(arguments.out, lambda f: torch.save(ghn2.to_checkpoint(ghn, learned), f))


@torch.no_grad()
def unseen(ghn: ghn2.GHN2, found: Data, arguments: argparse.Namespace, networks: int = 20) -> Tensor:
    """Return the test accuracies of networks that no step has drawn, on 1,024 images in batches of 64."""
    order = torch.randperm(len(found.test.labels), generator=torch.Generator().manual_seed(0))[:1024]
    some, draw = found.test.subset(order), random.Random(f"{arguments.seed} unseen")
    accuracies = []
    for _ in range(networks):
        each = network(draw, len(found.classes), arguments.size)
        predicted = ghn(ghn2_graph.trace(each, arguments.size))
        hits = [
            functional_call(each, predicted, x).argmax(1) == labels
            for x, labels in loading.test_batches(some, 64, arguments.size)
        ]
        accuracies.append(torch.cat(hits).float().mean())
    return torch.stack(accuracies)


IDENTITY = ("dataset", "size", "steps", "batch", "networks", "hidden", "lr", "seed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cifar100", help="as in configs/dataset (%(default)s)")
    parser.add_argument("--root", default="data", help="its folder (%(default)s)")
    parser.add_argument("--size", type=int, default=32, help="pixels (%(default)s)")
    parser.add_argument("--steps", type=int, default=10_000, help="%(default)s")
    parser.add_argument("--batch", type=int, default=64, help="images in a step (%(default)s)")
    parser.add_argument("--networks", type=int, default=4, help="networks in a step (%(default)s)")
    parser.add_argument("--hidden", type=int, default=32, help="size of a node's state (%(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="%(default)s")
    parser.add_argument("--every", type=int, default=200, help="steps between two states (%(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads; PyTorch's choice unless given")
    parser.add_argument("--out", type=Path, default=Path("ghn2_cifar100.pt"), help="the checkpoint (%(default)s)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        found = loading.load(DatasetSettings(name=arguments.dataset, root=arguments.root), "~/.cache/dpiat")
        ghn = train(arguments, found)
    except UserError as error:
        sys.exit(f"error: {error}")
    accuracies = unseen(ghn.eval(), found, arguments)
    error = accuracies.std() / math.sqrt(len(accuracies))
    size = arguments.out.stat().st_size / 1e6
    print(
        f"{arguments.out}, {size:.1f} MB: test accuracy of {len(accuracies)} networks that it has not seen "
        f"{accuracies.mean():.3f} ± {error:.3f}, at best {accuracies.max():.3f}"
    )


if __name__ == "__main__":
    main()
