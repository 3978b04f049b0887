"""Time DPIAT between the pairs of the paper's Table 1, as the paper's appendix A.3 does. Writes results/pair_times.csv.

python scripts/time_pairs.py

A pair takes the standardization of both networks, the matching, and the transfer of weights, in the paper's mode.
Seconds are CPU time of one thread, the least of a few repeats, so that a busy machine does not count.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from dpiat import transfer  # noqa: E402
from experiments import models  # noqa: E402
from experiments.results import paper  # noqa: E402
from experiments.store.records import provenance  # noqa: E402


def seconds(source: torch.nn.Module, target: torch.nn.Module, repeats: int) -> float:
    """The CPU seconds of one transfer, the least of some repeats."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        transfer(source, target, mode="paper")
        found.append(time.process_time() - start)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "pair_times.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    networks = {name: models.build(name, 100) for name in paper.LABELS.values()}
    made = provenance()
    transfer(*list(networks.values())[:2], mode="paper")  # loads and caches what later transfers find
    rows = [
        {
            "source": source,
            "target": target,
            "seconds": f"{seconds(networks[source], networks[target], arguments.repeats):.4f}",
            "cpu": made["cpu"],
            "torch": made["versions"]["torch"],
        }
        for source, target in tqdm(list(product(networks, repeat=2)), disable=None)
    ]
    with arguments.out.open("w", newline="") as f:
        writer = csv.DictWriter(f, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(arguments.out)


if __name__ == "__main__":
    main()
