"""Check that every architecture of timm transfers. Writes results/timm_self.csv and results/timm_pairs.csv.

python scripts/check_timm.py self                each architecture to itself: is every tensor from its counterpart?
python scripts/check_timm.py pairs --count 2000  random pairs of different architectures, with weights really written

The first check needs no memory for weights. A plan that copies every tensor from the tensor of the same name leaves the
function as it is; tests run networks of each family to see that this holds.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import timm
import torch
from torch import nn
from tqdm import tqdm

from dpiat import plan, transfer

RESULTS = Path(__file__).parent.parent / "results"


def built(name: str) -> nn.Module:
    """An architecture on the meta device."""
    with torch.device("meta"):
        return timm.create_model(name)


def check_self(name: str) -> dict:
    """Make a row: does a plan for two networks of one architecture give every tensor to its counterpart?"""
    try:
        source, target = built(name), built(name)
    except Exception as error:
        return {"architecture": name, "outcome": "not built", "detail": first_line(error)}
    start = time.perf_counter()
    try:
        entries = plan(source, target).report.entries
    except Exception as error:
        return {"architecture": name, "outcome": "raised", "detail": first_line(error)}
    wrong = [e for e in entries if e.elements and (e.action, e.source) != ("copied", e.target)]
    detail = f"{len(wrong)} tensors, the first {wrong[0].target}: {wrong[0].action} {wrong[0].note}" if wrong else ""
    return {
        "architecture": name,
        "outcome": "differs" if wrong else "identical",
        "tensors": len(entries),
        "parameters": sum(p.numel() for p in target.parameters()),
        "seconds": round(time.perf_counter() - start, 3),
        "detail": detail,
    }


def check_pair(names: tuple[str, str], largest: int) -> dict:
    """Make a row: the transfer of one architecture to another, with memory for the weights of the target alone."""
    row = {"source": names[0], "target": names[1]}
    try:
        source, target = map(built, names)
    except Exception as error:
        return row | {"outcome": "not built", "detail": first_line(error)}
    small = sum(p.numel() for p in target.parameters()) <= largest
    if small:
        for network in (source, target):
            for module in network.modules():
                give_memory(module, network is target)
    start = time.perf_counter()
    try:
        report = transfer(source, target) if small else plan(source, target).report
    except Exception as error:
        return row | {"outcome": "raised", "detail": first_line(error)}
    seconds = round(time.perf_counter() - start, 3)
    return row | {"outcome": "written" if small else "planned", "share": round(report.share, 4), "seconds": seconds}


def give_memory(module: nn.Module, own: bool) -> None:
    """Give a module's tensors on the meta device memory of their own, or one element's memory with own=False."""
    for tensors in (module._parameters, module._buffers):
        for key, tensor in tensors.items():
            if tensor is not None and tensor.is_meta:
                new = torch.empty(tensor.shape, dtype=tensor.dtype) if own else one_element(tensor)
                tensors[key] = nn.Parameter(new, tensor.requires_grad) if tensors is module._parameters else new


def one_element(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape whose elements share the memory of one."""
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def run(check: Callable, items: list, processes: int, file: Path) -> list[dict]:
    """Check the items in several processes, write a row for each into a CSV file, and print a summary."""
    start = time.perf_counter()
    with ProcessPoolExecutor(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        rows = list(tqdm(pool.map(check, items, chunksize=4), total=len(items), disable=None))
    fields = list(dict.fromkeys(key for row in rows for key in row))
    with file.open("w", newline="") as f:
        writer = csv.DictWriter(f, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(summary(file.stem, rows, time.perf_counter() - start))
    return rows


def summary(name: str, rows: Iterable[dict], seconds: float) -> str:
    outcomes = Counter(row["outcome"] for row in rows)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    return f"{name}: {counts}; {seconds / 60:.1f} minutes, timm {timm.__version__}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("check", choices=("self", "pairs"))
    parser.add_argument("--names", default="*", help="timm names, which may hold * and ?")
    parser.add_argument("--count", type=int, default=2000, help="number of pairs")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs")
    parser.add_argument("--largest", type=int, default=100, help="million parameters; of larger targets only a plan")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    arguments = parser.parse_args()
    names = timm.list_models(arguments.names)
    if arguments.check == "self":
        rows = run(check_self, names, arguments.processes, arguments.out / "timm_self.csv")
    else:
        rng = random.Random(arguments.seed)
        pairs = [tuple(rng.sample(names, 2)) for _ in range(arguments.count)]
        check = partial(check_pair, largest=arguments.largest * 10**6)
        rows = run(check, pairs, arguments.processes, arguments.out / "timm_pairs.csv")
    failed = [row for row in rows if row["outcome"] in ("raised", "differs")]
    for row in failed:
        print(*row.values())
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
