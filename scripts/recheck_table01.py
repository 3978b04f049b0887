"""Recompute the verdicts on Table 1 at scale=cpu from the records, without any code of this repository.

python scripts/recheck_table01.py           prints the verdicts; fails if results/tables/verdicts.csv differs
python scripts/recheck_table01.py --results FOLDER

Reads trials/*/records.jsonl, paper/table01_cifar100_effectiveness.csv and tables/similarity.csv. Imports NumPy alone,
so that a fault of the code that makes the tables shows here. So this file repeats names and rules on purpose.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from pathlib import Path

import numpy as np

LABELS = dict(
    zip(
        ["Eff-B0", "Eff-B1", "Eff-B2", "Mix-L", "Mix-M", "ReX1.5", "ReX", "Mnas", "SeMnas"],
        ["eff_b0", "eff_b1", "eff_b2", "mix_l", "mix_m", "rex_150", "rex", "mnas", "semnas"],
        strict=True,
    )
)
NAMES = list(LABELS.values())
# How trials of Table 1 are trained at scale=cpu: targets for the first 4 epochs of a schedule of 100, sources for 30.
TARGET = {"epochs": 4, "lr": 4e-3, "schedule_epochs": 100, "batch_size": 128, "image_size": 32}
SOURCE = TARGET | {"epochs": 30, "schedule_epochs": 30}
SEEDS = (0,)  # the seeds of targets
DRAWS = 2000
CLOSE = 1e-5  # the tolerance of numbers
LEVELS = 0.025, 0.975  # of the two ends of an interval
NOTHING = (math.nan,) * 3

Cells = dict[tuple[str, str], float]  # (target, source): value


def is_plain(trial: dict, recipe: dict) -> bool:
    """Whether a trial is on all of CIFAR-100 with this recipe, and has no setting that the paper does not have."""
    said = {key: value for key, value in trial["recipe"].items() if key != "seed"}
    whole = trial["dataset"] == "cifar100" and trial["train_subset"] is None and trial["stored_size"] is None
    return whole and said == recipe and not trial["checkpoint"]


def best(record: dict) -> float:
    """The highest test accuracy within 4 epochs."""
    return max(row["test_accuracy"] for row in record["epochs"][:4])


def read(results: Path) -> tuple[Cells, dict[str, list[float]]]:
    """Read the cells, and the accuracies of each target from random init."""
    transfers: dict[tuple[str, str], list[float]] = {}
    random: dict[str, list[float]] = {}
    for file in sorted(results.glob("trials/*/records.jsonl")):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            trial = record["trial"]
            if not is_plain(trial, TARGET) or trial["model"] not in NAMES:
                continue
            if trial["init"] == "random":
                random.setdefault(trial["model"], []).append(best(record))
            source = trial["source"]
            if trial["init"] != "dpiat" or trial["recipe"]["seed"] not in SEEDS or trial["mode"] != "paper":
                continue
            if {"matching", "operator", "head"} & trial.keys() or source["model"] not in NAMES:
                continue
            if source["init"] == "random" and is_plain(source, SOURCE) and source["recipe"]["seed"] == 0:
                transfers.setdefault((trial["model"], source["model"]), []).append(best(record))
    cells = {
        (target, source): sum(found) / len(found) / (sum(random[target]) / len(random[target]))
        for (target, source), found in transfers.items()
        if target in random
    }
    return cells, random


def column(file: Path, value: str, names: dict[str, str]) -> Cells:
    with file.open(newline="") as f:
        return {(names[row["target"]], names[row["source"]]): float(row[value]) for row in csv.DictReader(f)}


def pearson(pairs: list[tuple[float, float]]) -> float:
    if len(pairs) < 3:
        return math.nan
    x, y = (np.array(values) - np.mean(values) for values in zip(*pairs, strict=True))
    length = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / length if length > 1e-12 else math.nan


def ranked(values: list[float]) -> list[float]:
    """The ranks of values. Equal values share the mean of their ranks."""
    below = [sum(other < value for other in values) for value in values]
    equal = [sum(other == value for other in values) for value in values]
    return [b + (e + 1) / 2 for b, e in zip(below, equal, strict=True)]


def spearman(pairs: list[tuple[float, float]]) -> float:
    if not pairs:
        return math.nan
    x, y = (ranked(list(values)) for values in zip(*pairs, strict=True))
    return pearson(list(zip(x, y, strict=True)))


def within_rows(rows: list[list[tuple[float, float]]]) -> float:
    """The correlation over all rows of pairs, after the means of its row are taken off each pair."""
    left = []
    for row in rows:
        if len(row) > 1:
            means = [sum(values) / len(row) for values in zip(*row, strict=True)]
            left += [(x - means[0], y - means[1]) for x, y in row]
    return pearson(left)


def row_means(rows: list[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    return [tuple(sum(values) / len(row) for values in zip(*row, strict=True)) for row in rows if row]


def statistics(
    targets: list[str], sources: list[str], ours: Cells, paper: Cells, similarity: Cells
) -> dict[str, float]:
    """The numbers of all verdicts over these targets and sources, which may be named more than once."""
    with_paper = [
        [(math.log(ours[t, s]), math.log(paper[t, s])) for s in sources if s != t and (t, s) in ours] for t in targets
    ]
    with_similarity = [
        [(math.log(ours[t, s]), similarity[t, s]) for s in sources if s != t and (t, s) in ours] for t in targets
    ]
    every = [(t, s) for t in targets for s in sources if (t, s) in ours]
    logs = [x for row in with_paper for x, _ in row]
    return {
        "direction: share above 1": sum(x > 0 for x in logs) / len(logs) if logs else math.nan,
        "direction: mean log": sum(logs) / len(logs) if logs else math.nan,
        "similarity: within rows": within_rows(with_similarity),
        "similarity: all cells": pearson([(ours[at], similarity[at]) for at in every]),
        "agreement: within rows": within_rows(with_paper),
        "agreement: rank of row means": spearman(row_means(with_paper)),
        "agreement: rank of all cells": spearman([(ours[at], paper[at]) for at in every]),
    }


def intervals(ours: Cells, paper: Cells, similarity: Cells) -> dict[str, list[tuple[float, ...]]]:
    """The bootstrap's intervals of all verdicts: the ends of each, as `end` gives them."""
    # Targets and sources without a cell are not drawn. A verdict that leaves the diagonal out has fewer of them.
    found = {}
    for with_diagonal in (False, True):
        run = [(t, s) for t, s in ours if with_diagonal or s != t]
        draws = drawn(sorted({t for t, _ in run}), sorted({s for _, s in run}), ours, paper, similarity)
        for name in statistics([], [], ours, paper, similarity):
            if name.endswith("all cells") == with_diagonal:
                told = [draw[name] for draw in draws if math.isfinite(draw[name])]
                enough = len({s for _, s in run}) >= 5 or not name.endswith("within rows")
                enough = enough and draws and len(told) >= 0.75 * len(draws)
                found[name] = [end(told, level) if enough else NOTHING for level in LEVELS]
    return found


def end(told: list[float], level: float) -> tuple[float, ...]:
    """An end of an interval, after the least and before the most that it may be with other random numbers."""
    # The page draws other numbers. How far its end is from this one depends on how thinly the values are strewn there,
    # so that no tolerance fits all: the quantiles of three standard deviations of a difference of two shares do.
    chance = 3 * math.sqrt(2 * level * (1 - level) / len(told))
    return tuple(np.quantile(told, (max(level - chance, 0), level, min(level + chance, 1))))


def drawn(targets: list[str], sources: list[str], *cells: Cells) -> list[dict[str, float]]:
    """The verdicts of many draws, each of as many targets and sources, with replacement."""
    rng, found = np.random.default_rng(2023), []
    for _ in range(DRAWS if targets else 0):
        some_targets = [targets[k] for k in rng.integers(len(targets), size=len(targets))]
        some_sources = [sources[k] for k in rng.integers(len(sources), size=len(sources))]
        found.append(statistics(some_targets, some_sources, *cells))
    return found


def p_of_similarity(ours: Cells, similarity: Cells) -> float:
    """The share of permutations of the networks whose similarities correlate as much within rows."""
    rng = np.random.default_rng(2024)

    def correlation(name: dict[str, str]) -> float:
        rows = [
            [(math.log(ours[t, s]), similarity[name[t], name[s]]) for s in NAMES if s != t and (t, s) in ours]
            for t in NAMES
        ]
        return within_rows(rows)

    value = correlation({name: name for name in NAMES})
    permuted = (dict(zip(NAMES, rng.permutation(NAMES), strict=True)) for _ in range(DRAWS))
    reached = sum(correlation(name) >= value - 1e-12 for name in permuted)
    return (1 + reached) / (1 + DRAWS) if math.isfinite(value) else math.nan


def differs(said: str, found: float, tolerance: float) -> bool:
    """Whether a cell of the CSV file, which is empty where nothing can be told, differs from what was found here."""
    if said == "" or math.isnan(found):
        return said != "" or math.isfinite(found)
    return abs(float(said) - found) > tolerance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parent.parent / "results"
    parser.add_argument("--results", type=Path, default=default, help="the folder of results (results)")
    results = parser.parse_args().results
    ours, random = read(results)
    paper = column(results / "paper" / "table01_cifar100_effectiveness.csv", "value", LABELS)
    similarity = column(results / "tables" / "similarity.csv", "similarity", {name: name for name in NAMES})
    with (results / "tables" / "verdicts.csv").open(newline="") as f:
        said = [row for row in csv.DictReader(f) if (row["table"], row["scale"]) == ("table01", "cpu")]
    seeds = sorted({len(found) for found in random.values()})
    print(f"{len(ours)} of 81 cells; seeds of random init: {', '.join(map(str, seeds)) or 'none'}")
    if not ours:
        sys.exit("error: verdicts.csv has rows of scale cpu, and there is no record of them" if said else 0)
    values, bounds = statistics(NAMES, NAMES, ours, paper, similarity), intervals(ours, paper, similarity)
    p = p_of_similarity(ours, similarity)
    faults = [] if {row["verdict"] for row in said} == set(values) else ["other verdicts are there"]
    for row in said:
        name = row["verdict"]
        shown = row["low"] or not name.endswith(("above 1", "similarity: all cells"))
        low, high = bounds[name] if shown else (NOTHING, NOTHING)
        print(f"{name:30} {values[name]:7.3f}  {low[1]:6.2f} to {high[1]:6.2f}")
        faults += [f"{name}: {row['value']}"] if differs(row["value"], values[name], CLOSE) else []
        for key, (least, found, most) in (("low", low), ("high", high)):
            nearest = found if row[key] == "" else min(max(float(row[key]), least), most)
            faults += [f"{name}, {key}: {row[key]}"] if differs(row[key], nearest, CLOSE) else []
        if row["p"]:
            print(f"{'p':30} {p:7.4f}")
            faults += [f"{name}, p: {row['p']}"] if differs(row["p"], p, 0.01 + 3 * math.sqrt(p / DRAWS)) else []
    if faults:
        sys.exit(f"error: results/tables/verdicts.csv says otherwise: {'; '.join(faults)}")


if __name__ == "__main__":
    main()
