"""What the paper prints (results/paper), with this repository's names of networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from experiments.datasets import IMAGENET_CLASSES

if TYPE_CHECKING:
    from dpiat import Architecture
    from dpiat.reading import Mode

RESULTS = Path(__file__).parents[2] / "results"
RANDOM_LR = 4e-3  # the paper's learning rate for random init

# What the paper calls its networks.
LABELS = {
    "Eff-B0": "eff_b0",
    "Eff-B1": "eff_b1",
    "Eff-B2": "eff_b2",
    "Mix-L": "mix_l",
    "Mix-M": "mix_m",
    "ReX1.5": "rex_150",
    "ReX": "rex",
    "Mnas": "mnas",
    "SeMnas": "semnas",
}
LITES = {f"Eff-Lite{number}": f"eff_lite{number}" for number in range(3)}  # our own sources
# The labels of all these networks, with the EfficientNets and their Lite versions together.
FAMILIES = {name: label for label, name in [*LABELS.items(), *LITES.items()]}
FAMILIES = dict(sorted(FAMILIES.items(), key=lambda item: not item[1].startswith("Eff")))
# The tables with one value for each target and source: the file, and what the accuracy within 4 epochs is divided by.
MATRICES = {
    "table01": ("table01_cifar100_effectiveness", "random"),
    "table06": ("table06_cifar10_effectiveness", "random"),
    "table07": ("table07_food101_effectiveness", "random"),
    "table08": ("table08_cifar10_vs_imagenet_pretrained", "pretrained"),
    "table09": ("table09_cifar100_vs_imagenet_pretrained", "pretrained"),
    "table10": ("table10_food101_vs_imagenet_pretrained", "pretrained"),
}
# The correlations in Table 11, by the table that each is computed from: the data set and the source's weights.
TABLE_11 = {
    "table06": ("CIFAR10", "random"),
    "table01": ("CIFAR100", "random"),
    "table07": ("FOOD101", "random"),
    "table08": ("CIFAR10", "ImageNet"),
    "table09": ("CIFAR100", "ImageNet"),
    "table10": ("FOOD101", "ImageNet"),
}
STARTS = {"random": "random init", "ImageNet": "ImageNet weights"}  # what the training of a source starts from
# The data set of each of the paper's experiments that has trials of its own.
DATASETS = {
    **dict.fromkeys(("table01", "table02", "table03", "table09", "table12", "figure15"), "cifar100"),
    **dict.fromkeys(("table06", "table08"), "cifar10"),
    **dict.fromkeys(("table07", "table10"), "food101"),
    "figure06": "imagenet",
}


def label(network: str) -> str:
    """Return what the paper calls a network in its figures. Other networks keep their names."""
    return FAMILIES.get(network, network)


def in_order(networks: Iterable[str]) -> list[str]:
    """Sort networks by families. Networks that the paper does not have come last, in their order."""
    order = list(FAMILIES)
    return sorted(dict.fromkeys(networks), key=lambda name: order.index(name) if name in order else len(order))


def printed(file: str) -> pd.DataFrame:
    """Read a file of results/paper, with this repository's names of networks."""
    table = pd.read_csv(RESULTS / "paper" / f"{file}.csv")
    return table.replace({column: LABELS for column in ("target", "source") if column in table})


def matrix(table: str) -> pd.DataFrame:
    """Read a table with one value for each target and source: columns target, source, value."""
    return printed(MATRICES[table][0])


def methods() -> pd.DataFrame:
    """Read Table 12: columns operator, matching, paper (mean effectiveness over pairs), paper's ± (standard error)."""
    from dpiat.transfer import PAPER_NAMES

    table = printed("table12_ablation_cifar100")
    table.columns = ["operator", "matching", "paper", "paper's ±"]
    return table.replace(dict.fromkeys(("operator", "matching"), PAPER_NAMES))


def architectures(names: Iterable[str] = tuple(LABELS.values()), mode: Mode = "paper") -> dict[str, Architecture]:
    """Standardize networks by name, in the paper's mode unless another is named. Needs no memory for weights."""
    return {name: _architecture(name, mode) for name in names}


@cache
def _architecture(name: str, mode: Mode) -> Architecture:
    import torch

    from dpiat import standardize
    from experiments import models

    with torch.device("meta"):
        return standardize(models.build(name, IMAGENET_CLASSES), mode)


def similarities(networks: Mapping[str, Architecture]) -> pd.DataFrame:
    """Compute Eq. 5 for every pair (Figure 5): columns source, target, similarity."""
    from dpiat import similarity

    rows = [(s, t, similarity(networks[s], networks[t])) for s, t in product(networks, repeat=2)]
    return pd.DataFrame(rows, columns=["source", "target", "similarity"]).round({"similarity": 6})


@cache
def similarity() -> pd.DataFrame:
    """Compute Eq. 5 for every pair of the paper's nine networks."""
    return similarities(architectures())
