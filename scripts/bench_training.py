"""Measure images per second of training steps: a plain loop, timm's network eager and compiled, and ours.

    python scripts/bench_training.py --models eff_b0 --sizes 32
    python scripts/bench_training.py --compile          # also torch.compile: minutes for each model
    python scripts/bench_training.py --together 2       # also two trainings of ours at once

plain     torch.utils.data.DataLoader with torchvision's transforms in a worker process for each core, float32, Adam:
          what one would write without thinking of speed
eager     timm's network in channels_last with a fused Adam, and our batches
compiled  the same under torch.compile
ours      experiments.train.training: augmentation on the device too, and on a GPU all of it in a CUDA graph
together  several processes of ours side by side on the device, as `launch=joblib` runs the trials of a grid: the images
          per second of all of them. On a CPU they share the threads

The images are noise of the network's input size. The first steps are not measured. "of matrix products" compares ours
with the device's matrix throughput, measured at the start: the operations of the network's layers in a second of
training, without batch norms, activations and augmentation, over the operations of matrix products in a second.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parent.parent))
from experiments import models
from experiments.data.augmentation import MEAN, STD, crop_area
from experiments.data.loading import Data, Split, train_batches
from experiments.results import paper
from experiments.train import graphs
from experiments.train.malloc import keep_large_blocks
from experiments.train.training import Schedule, Steps, adam, prepare

NINE = tuple(paper.LABELS.values())
CLASSES, IMAGES, LR = 100, 2048, 4e-3
WARM_UP = {"cpu": 2, "cuda": graphs.WARM_UP + 2}  # steps
Batches = Iterator[tuple[Tensor, ...]]


class Pictures(Dataset):
    """A data set as torchvision has it: a picture, transformed, and its class."""

    def __init__(self, size: int):
        noise = np.random.default_rng(0).integers(0, 256, (IMAGES, size, size, 3), dtype=np.uint8)
        self.pictures = [Image.fromarray(picture) for picture in noise]
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(size, crop_area(size)),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pictures[index]), index % CLASSES


def plain(network: nn.Module, size: int, batch: int, device: torch.device, timed: Callable[[Batches], Batches]) -> None:
    network.to(device).train()
    loader = DataLoader(Pictures(size), batch, shuffle=True, drop_last=True, num_workers=os.cpu_count())
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    steps(network, optimizer, timed(forever(lambda: iter(loader))), device)


def eager(network: nn.Module, size: int, batch: int, device: torch.device, timed: Callable[[Batches], Batches]) -> None:
    network.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=LR, fused=True)
    images, generator = noise(size, device), torch.Generator()
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False):
        steps(network, optimizer, timed(forever(lambda: train_batches(images, batch, size, generator))), device)


def compiled(network: nn.Module, *rest) -> None:
    torch.compiler.reset()
    eager(torch.compile(network, dynamic=False), *rest)


def ours(network: nn.Module, size: int, batch: int, device: torch.device, timed: Callable[[Batches], Batches]) -> None:
    prepare(network, device)
    schedule = Schedule(epochs=1, lr=LR, schedule_epochs=1, batch_size=batch, image_size=size, seed=0)
    images, generator = noise(size, device), torch.Generator()
    with graphs.own_stream(device):
        ours = Steps(network.train(), adam(network, LR, device), Data(images, images, []), schedule, device)
        for draw in timed(forever(lambda: images.train_draws(batch, size, generator))):
            ours.train_step(*draw)


def steps(network: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches, device: torch.device) -> None:
    for inputs, labels in batches:
        optimizer.zero_grad()
        loss = cross_entropy(network(inputs.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()


def noise(size: int, device: torch.device) -> Split:
    pixels = torch.randint(0, 256, (IMAGES, 3, size, size), dtype=torch.uint8, device=device)
    return Split(pixels, torch.arange(IMAGES, device=device) % CLASSES)


def forever(epoch: Callable[[], Batches]) -> Batches:
    while True:
        yield from epoch()


class Clock:
    """Lets batches through, and counts images from the end of the warm-up until enough seconds have passed."""

    def __init__(self, seconds: float, device: torch.device, ready: Callable[[], object] = lambda: None):
        self.seconds, self.device, self.ready = seconds, device, ready

    def __call__(self, batches: Batches) -> Batches:
        for _ in range(WARM_UP[self.device.type]):
            yield next(batches)
        self.ready()
        self.images, start, cpu = 0, self.now(), time.process_time()
        while self.images == 0 or time.perf_counter() - start < self.seconds:  # does not wait for the device
            batch = next(batches)
            self.images += len(batch[0])
            yield batch
        self.rate = self.images / (self.now() - start)
        self.rate_of_cpu = self.images / (time.process_time() - cpu)
        batches.close()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def measured(
    loop: Callable, name: str, size: int, words: argparse.Namespace, ready: Callable[[], object] = lambda: None
) -> Clock:
    device = torch.device(words.device)
    clock = Clock(words.seconds, device, ready)
    torch.manual_seed(0)
    loop(models.build(name, CLASSES), size, words.batch, device, clock)
    return clock


def together(name: str, size: int, words: argparse.Namespace) -> float:
    """The images per second of several processes that train at the same time."""
    context, count = get_context("spawn"), words.together
    threads = max(1, torch.get_num_threads() // count)
    with ProcessPoolExecutor(count, context, begin, (context.Barrier(count), threads, words.malloc)) as processes:
        return sum(processes.map(one_of_several, *zip(*[(name, size, words)] * count, strict=True)))


def begin(barrier: Barrier, threads: int, malloc: str) -> None:
    """Prepare one of several processes: it gets the barrier at which they wait until all are warm."""
    global all_warm
    all_warm = barrier
    torch.set_num_threads(threads)
    if malloc == "keep":
        keep_large_blocks()


def one_of_several(name: str, size: int, words: argparse.Namespace) -> float:
    try:
        return measured(ours, name, size, words, all_warm.wait).rate
    except Exception:
        all_warm.abort()  # or the other processes would wait for ever
        raise


def operations(network: nn.Module, size: int) -> float:
    """The floating-point operations of a training step for each image: three times those of a forward pass."""
    # Counted in the forward pass alone: the counter takes the weight gradient of a depthwise convolution for the
    # gradient of a dense one.
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, size, size))
    return 3 * counter.get_total_flops()


def matrix_throughput(device: torch.device) -> float:
    """The floating-point operations per second of square matrix products, in the type that trainings use."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (2048, torch.float32)
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    timer = Timer("a @ b", globals={"a": a, "b": b}, num_threads=torch.get_num_threads())
    return 2 * size**3 / timer.blocked_autorange(min_run_time=1).median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=NINE, help="short names or timm names")
    parser.add_argument("--sizes", nargs="+", type=int, default=(32, 64, 224), help="pixels")
    parser.add_argument("--batch", type=int, default=128, help="images")
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement, after the warm-up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--together", type=int, metavar="PROCESSES", help="measure so many of ours at once too")
    parser.add_argument(
        "--only", choices=("plain", "eager", "compiled", "ours"), nargs="+", help="leave the others out"
    )
    parser.add_argument(
        "--malloc", choices=("default", "keep"), default="keep", help="large freed blocks: glibc's way, or ours"
    )
    words = parser.parse_args()
    if words.malloc == "keep":
        keep_large_blocks()
    loops = {"plain": plain, "eager": eager, **({"compiled": compiled} if words.compile else {}), "ours": ours}
    loops = {name: loop for name, loop in loops.items() if not words.only or name in words.only}
    device = torch.device(words.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    throughput = matrix_throughput(device)
    print(f"images/s (and per second of this process's CPU time), batches of {words.batch}, {where}")
    print(f"matrix products: {throughput / 1e9:,.0f} GFLOP/s")
    others = [name for name in loops if name != "ours"] if "ours" in loops else []
    titles = [f"{name:>18}" for name in loops] + [f"{f'ours / {name}':>16}" for name in others]
    titles += ["  of matrix products"] if "ours" in loops else []
    titles += [f"{f'{words.together} together':>12}"] if words.together else []
    print(f"{'network':10} {'px':>4}", *titles)
    for name in words.models:
        for size in words.sizes:
            clocks = {each: measured(loop, name, size, words) for each, loop in loops.items()}
            cells = [f"{clock.rate:>9.0f} ({clock.rate_of_cpu:>6.0f})" for clock in clocks.values()]
            if "ours" in loops:
                rate = clocks["ours"].rate
                cells += [f"{rate / clocks[other].rate:15.2f}x" for other in others]
                cells += [f"{rate * operations(models.build(name, CLASSES), size) / throughput:20.1%}"]
            if words.together:
                cells += [f"{together(name, size, words):12.0f}"]
            print(f"{name:10} {size:4}", *cells, flush=True)


if __name__ == "__main__":
    main()
