"""Claims of the paper that can be checked without training: results/tables/claims.md."""

from __future__ import annotations

from functools import cache
from typing import Any

import pandas as pd

from experiments.datasets import IMAGENET_CLASSES
from experiments.results import paper
from experiments.results.cells import Table, markdown

TIMES = "pair_times.csv"  # a file of results/, which scripts/time_pairs.py writes
LAYERS = "layers "  # how the paper's numbers of layers begin in text_figures.csv


def table() -> Table:
    """Build the table of claims: what the paper says, where it says so, and what we find."""
    data = pd.DataFrame([*_layers(), *_seconds(), *_means()])
    text = (
        "Claims of the paper that can be checked without training. Layers are counted in timm's networks with "
        f"{IMAGENET_CLASSES} classes, in the paper's mode: the layers that Algorithm 1 puts into blocks, and those "
        "that it leaves alone. "
        "Seconds are CPU time of one thread for a pair of Table 1: standardization, matching and transfer ([pair by "
        f"pair](../{TIMES})). The other rows compare the paper with itself."
    )
    return Table(data, f"{text}\n\n{markdown(data)}")


def seconds_line() -> str:
    """Return the sentences on time of results/README.md."""
    times = pair_seconds()
    said = {name: float(value) for name, (value, _) in _said().items() if "seconds per pair" in name}
    return (
        f"A transfer between two of the paper's nine networks takes {times['seconds'].mean():.3f} s on average and "
        f"{times['seconds'].max():.3f} s at most, over the {len(times)} pairs of Table 1, on one core ({_cpu(times)}). "
        f"The paper says {said['mean DPIAT seconds per pair']:g} s and {said['max DPIAT seconds per pair']:g} s. "
        "[More claims that can be checked without training](tables/claims.md).\n"
    )


def pair_seconds() -> pd.DataFrame:
    """Read what scripts/time_pairs.py measured: columns source, target, seconds, cpu, torch."""
    return pd.read_csv(paper.RESULTS / TIMES)


def _cpu(times: pd.DataFrame) -> str:
    return ", ".join(times["cpu"].unique())


@cache
def _said() -> dict[str, tuple[float, str]]:
    """The numbers in the paper's text, by name: the value, and where it stands."""
    text = pd.read_csv(paper.RESULTS / "paper" / "text_figures.csv")
    return {row.quantity: (row.value, row.where) for row in text.itertuples()}


def _row(claim: str, said: str, where: str, found: str, note: str = "") -> dict[str, Any]:
    return {"claim": claim, "paper": said, "where": where, "found": found, "note": note}


def _layers() -> list[dict[str, Any]]:
    claims = {name.removeprefix(LAYERS): value for name, value in _said().items() if name.startswith(LAYERS)}
    names = {label: paper.LABELS.get(label, "tf_efficientnet_b8") for label in claims}
    networks = paper.architectures(names.values())
    rows = []
    for label, (value, where) in claims.items():
        count = len(networks[names[label]].layers)
        rows.append(_row(f"layers of {label}", f"{value:g}", where, str(count), f"{count - value:+g}"))
    return rows


def _seconds() -> list[dict[str, Any]]:
    times = pair_seconds()
    rows = []
    for name, found in (("mean", times["seconds"].mean()), ("max", times["seconds"].max())):
        value, where = _said()[f"{name} DPIAT seconds per pair"]
        rows.append(_row(f"{name} seconds of a pair", f"{value:g}", where, f"{found:.3f}", _cpu(times)))
    return rows


def _means() -> list[dict[str, Any]]:
    pairs = paper.printed("ablation_pairs").merge(paper.matrix("table01"), on=["target", "source"])
    methods = paper.methods().set_index(["operator", "matching"])["paper"]
    mean = _row(
        f"mean effectiveness of Table 12's {len(pairs)} pairs, clip and dp",
        f"{methods['clip', 'dp']:.2f}",
        "Table 12",
        f"{pairs['value'].mean():.3f}",
        "the mean of the same pairs' cells in its Table 1",
    )
    said = _said()
    ratio, where = said["mean accuracy ratio on ImageNet after 50 epochs"]
    ours, beneath = (said[f"ImageNet accuracy Eff-B0 {start}, 50 epochs"] for start in ("from Eff-B2", "random"))
    imagenet = _row(
        "accuracy on ImageNet after 50 epochs, over random init's",
        f"{ratio:g}",
        where,
        f"{ours[0] / beneath[0]:.2f}",
        f"{ours[0]:g} / {beneath[0]:g}, which {ours[1]} reports",
    )
    return [mean, imagenet]
