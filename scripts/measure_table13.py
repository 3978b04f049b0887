"""Measure what the paper's Table 13 claims. Writes results/table13_measured.csv, with a row for each method and pair.

python scripts/measure_table13.py

For each of the 81 pairs of the paper's networks: does a method apply, how many milliseconds of a processor does it
take, which share of the target does it fill, and does the target then compute what the source computes? Nothing is
trained: weights and batch-norm statistics are random, for 10 classes. GHN-2 is not among the methods, as no checkpoint
comes with this repository.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import dpiat
from experiments import models
from experiments.results import paper

OUT = Path(__file__).parent.parent / "results" / "table13_measured.csv"
SAME = 1e-5  # the largest difference of equal functions, as a share of the largest output
METHODS: dict[str, Callable[[nn.Module, nn.Module], dpiat.Report]] = {
    "DPIAT": lambda source, target: dpiat.transfer(source, target, mode="paper"),
    "FNA (remapping)": dpiat.fna,
    "Net2Net": dpiat.net2net,
}
COLUMNS = ("method", "source", "target", "admissible", "milliseconds", "share", "difference", "same function", "reason")


@torch.no_grad()
def network(name: str, seed: int) -> nn.Module:
    """A network in eval mode with no tensor at its initial value, so that each tensor shows in the output."""
    torch.manual_seed(seed)
    built = models.build(name, 10).eval()
    for tensor in built.state_dict().values():
        if tensor.is_floating_point():
            tensor.mul_(0.9).add_(0.02 * torch.rand_like(tensor))
    return built


def measured(method: str, names: tuple[str, str], source: nn.Module, target: nn.Module, images: Tensor) -> dict:
    row = {"method": method, "source": names[0], "target": names[1]}
    start = time.process_time()
    try:
        report = METHODS[method](source, target)
    except ValueError as error:
        return row | {"admissible": False, "reason": error}
    row |= {"admissible": True, "milliseconds": round(1000 * (time.process_time() - start))}
    with torch.no_grad():
        expected = source(images)
        difference = float((expected - target(images)).abs().max() / expected.abs().max())
    return row | {"share": f"{report.share:.4f}", "difference": f"{difference:.1e}", "same function": difference < SAME}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=paper.LABELS.values(), help="names of networks, each to each")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sources, targets = ({name: network(name, seed) for name in arguments.networks} for seed in (0, 1))
    torch.manual_seed(2)
    images = torch.randn(2, 3, 64, 64)
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for names, method in product(product(sources, targets), METHODS):
            target = deepcopy(targets[names[1]])
            writer.writerow(measured(method, names, sources[names[0]], target, images))
            file.flush()


if __name__ == "__main__":
    main()
