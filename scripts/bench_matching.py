"""Measure the speed of the library against a literal transcription of Eq. 2 and 3, and against a plain memory copy.

    python scripts/bench_matching.py

Prints medians, with quartiles that show the noise of the machine. The transcription is the oracle of the tests.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from subprocess import check_output
from tempfile import TemporaryDirectory

import numpy as np
import timm
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "helpers"))
import oracle
from networks import PAPER, on_meta

from dpiat import plan, rank, similarity, standardize, timm_index, transfer
from dpiat.architecture import Architecture, Block, Layer
from dpiat.matching import match_score
from dpiat.operators import centre
from dpiat.reading import read
from dpiat.writing import Write


def quartiles(function: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """The seconds of a call: lower quartile, median, upper quartile."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return quartiles_of(times)


def quartiles_of(times: list[float]) -> tuple[float, float, float]:
    return tuple(statistics.quantiles(times, n=4)) if len(times) > 1 else (times[0],) * 3


def show(what: str, times: tuple[float, float, float], baseline: float | None = None) -> float:
    low, median, high = (1e3 * t for t in times)
    ratio = f"  {baseline / times[1]:8.1f}x" if baseline else ""
    print(f"{what:56} {median:9.3f} ms  ({low:.3f} to {high:.3f}){ratio}", flush=True)
    return times[1]


def pairs() -> None:
    architectures = [standardize(on_meta(name), "paper") for name in PAPER.values()]
    both = list(product(architectures, repeat=2))

    def literal() -> None:
        for source, target in both[::9]:
            oracle.match(source, target)
            oracle.match(target, source)

    def ours() -> None:
        for source, target in both:
            similarity(source, target)

    baseline = [t / len(both[::9]) for t in quartiles(literal, 1)]
    show("similarity, literal transcription, mean of 9 pairs", baseline)
    show("similarity, mean of the 81 pairs", [t / len(both) for t in quartiles(ours, 7)], baseline[1])


def whole_transfer() -> None:
    source, target = timm.create_model("tf_efficientnet_b2"), timm.create_model("tf_efficientnet_b0")

    def literal() -> None:
        a, b = standardize(source), standardize(target)
        oracle.match(a, b)
        transfer(source, target)

    baseline = show("transfer Eff-B2 -> Eff-B0, literal matching", quartiles(literal, 3))
    show("transfer Eff-B2 -> Eff-B0", quartiles(lambda: transfer(source, target), 31), baseline)
    show("  standardize both", quartiles(lambda: (standardize(source), standardize(target)), 31))
    show("  plan", quartiles(lambda: plan(source, target), 31))
    planned = plan(source, target)
    show("  apply, which reads both again", quartiles(planned.apply, 31))
    views = [chosen(write) for write in planned.writes(read(source), read(target))]
    copies = show("  the copies alone", quartiles(lambda: write_all(views), 31))
    tensors = target.state_dict()
    size = sum(tensors[e.target].element_size() * e.filled for e in planned.report.entries)
    a, b = torch.zeros(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    copy = show("  plain copy of the same bytes", quartiles(lambda: a.copy_(b), 31))
    print(f"  the copies / a plain copy: {copies / copy:.2f}")


@torch.no_grad()
def chosen(write: Write) -> tuple[torch.Tensor, torch.Tensor]:
    """The elements of the target that are written, and the elements of the source that are read."""
    to, by = write.places or centre(write.source.shape, write.target.shape)
    return write.target[to], write.source[by]


@torch.no_grad()
def write_all(views: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for to, by in views:
        to.copy_(by)


def large_and_long() -> None:
    with torch.device("meta"):
        b8, b7 = (timm.create_model(f"tf_efficientnet_b{i}") for i in (8, 7))
    show("plan Eff-B8 -> Eff-B7", quartiles(lambda: plan(b8, b7), 7))
    seconds = {}
    for count in (100, 300, 1000, 3000):
        shapes = [("Conv2d", (64 + i % 7, 32 + i % 5, 3, 3)) for i in range(count)]
        blocks = [Block(str(i), (Layer(str(i), *shape),)) for i, shape in enumerate(shapes)]
        flat = Architecture("flat", tuple(blocks))
        times = quartiles(lambda flat=flat: match_score(flat, flat), 3)
        seconds[count] = show(f"one direction, {count:,} layers one by one", times)
    exponent = np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0]
    print(f"  time grows with the number of layers to the power of {exponent:.2f}")


def whole_rank() -> None:
    """Rank all of timm. The index of timm comes from the user's cache, or is built first, which takes minutes."""
    timm_index.timm_architectures()
    show("read the index of timm", quartiles(timm_index.timm_architectures, 3))
    target = standardize(on_meta("mnasnet_100"))
    show(f"rank all {len(timm_index.timm_architectures()):,} architectures of timm", quartiles(lambda: rank(target), 3))


def start() -> None:
    """Import the library with compiled bytecode, as an installer leaves it, even where Python may write none."""
    code = "import time, torch; t = time.perf_counter(); import dpiat; print(time.perf_counter() - t)"
    with TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": folder}
        seconds = [float(check_output([sys.executable, "-c", code], env=environment)) for _ in range(6)]
    show("import dpiat after torch", quartiles_of(seconds[1:]))


if __name__ == "__main__":
    pairs()
    whole_transfer()
    large_and_long()
    whole_rank()
    start()
