"""Images per second of training steps: a plain loop, timm's model compiled, and ours, in one run.

    python scripts/bench_training.py --models eff_b0 --sizes 32
    python scripts/bench_training.py --compile          # also torch.compile: minutes for each model

plain     torch.utils.data.DataLoader with torchvision's transforms in a worker process for each core, float32, Adam:
          what one would write without thinking of speed
compiled  timm's network under torch.compile, fed as ours is
ours      experiments.training, with augmentation on the device

The images are noise of the network's input size. Two steps of each go unmeasured.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from experiments import models
from experiments.data import Split, train_batches
from experiments.malloc import keep_large_blocks
from experiments.training import train_epoch

NINE = ("eff_b0", "eff_b1", "eff_b2", "mix_l", "mix_m", "rex", "rex_150", "mnas", "semnas")
CLASSES, IMAGES, WARM_UP = 100, 2048, 2
Batches = Iterator[tuple[Tensor, Tensor]]


class Pictures(Dataset):
    """What a data set of torchvision gives: a picture, transformed, and its class."""

    def __init__(self, size: int):
        noise = np.random.default_rng(0).integers(0, 256, (IMAGES, size, size, 3), dtype=np.uint8)
        self.pictures = [Image.fromarray(picture) for picture in noise]
        scale = (0.5 if size < 100 else 0.1, 1.0)
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pictures[index]), index % CLASSES


def plain(network: nn.Module, size: int, batch: int, device: torch.device, timed: Callable[[Batches], Batches]) -> None:
    network.to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    loader = DataLoader(Pictures(size), batch, shuffle=True, drop_last=True, num_workers=os.cpu_count())
    for inputs, labels in timed(forever(lambda: iter(loader))):
        optimizer.zero_grad()
        loss = cross_entropy(network(inputs.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()


def ours(network: nn.Module, size: int, batch: int, device: torch.device, timed: Callable[[Batches], Batches]) -> None:
    network.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3, fused=True)
    pictures = torch.randint(0, 256, (IMAGES, 3, size, size), dtype=torch.uint8, device=device)
    split, generator = Split(pictures, torch.arange(IMAGES, device=device) % CLASSES), torch.Generator()
    batches = forever(lambda: train_batches(split, batch, size, generator))
    train_epoch(network, optimizer, timed(batches), None, tqdm(disable=True))


def compiled(network: nn.Module, *rest) -> None:
    ours(torch.compile(network), *rest)


def forever(epoch: Callable[[], Batches]) -> Batches:
    while True:
        yield from epoch()


class Clock:
    """Lets batches through until enough seconds have passed after the warm-up, and counts."""

    def __init__(self, seconds: float, device: torch.device):
        self.seconds, self.device = seconds, device

    def __call__(self, batches: Batches) -> Batches:
        for _ in range(WARM_UP):
            yield next(batches)
        self.images, start, cpu = 0, self.now(), time.process_time()
        while self.images == 0 or self.now() - start < self.seconds:
            inputs, labels = next(batches)
            self.images += len(labels)
            yield inputs, labels
        self.rate = self.images / (self.now() - start)
        self.rate_of_cpu = self.images / (time.process_time() - cpu)
        batches.close()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=NINE, help="short names or timm names")
    parser.add_argument("--sizes", nargs="+", type=int, default=(32, 64, 224), help="pixels")
    parser.add_argument("--batch", type=int, default=128, help="images")
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement, after the warm-up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--only", choices=("plain", "compiled", "ours"), nargs="+", help="leave the others out")
    parser.add_argument(
        "--malloc", choices=("default", "keep"), default="keep", help="large freed blocks: glibc's way, or ours"
    )
    words = parser.parse_args()
    if words.malloc == "keep":
        keep_large_blocks()
    loops = {"plain": plain, **({"compiled": compiled} if words.compile else {}), "ours": ours}
    loops = {name: loop for name, loop in loops.items() if not words.only or name in words.only}
    device = torch.device(words.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"images/s (and per second of this process's CPU time), batches of {words.batch}, {where}")
    print(f"{'network':10} {'px':>4}", *(f"{name:>18}" for name in loops), "  ours / plain")
    for name in words.models:
        for size in words.sizes:
            clocks = {}
            for loop in loops:
                clocks[loop] = Clock(words.seconds, device)
                torch.manual_seed(0)
                loops[loop](models.build(name, CLASSES), size, words.batch, device, clocks[loop])
            cells = (f"{clock.rate:>9.0f} ({clock.rate_of_cpu:>6.0f})" for clock in clocks.values())
            both = "ours" in clocks and "plain" in clocks
            ratio = f"{clocks['ours'].rate / clocks['plain'].rate:13.2f}x" if both else ""
            print(f"{name:10} {size:4}", *cells, ratio, flush=True)


if __name__ == "__main__":
    main()
