"""What is known of each data set before it is read: the names of dataset=NAME, and what holds of each."""

from __future__ import annotations

from typing import NamedTuple


class DataSet(NamedTuple):
    """`None` stands for what only the files can tell."""

    train_images: int | None
    test_images: int | None
    classes: int | None
    had_from: str  # scikit-learn (installed with it), torchvision (downloads it), or the user (who must have it)
    in_memory: bool = False  # small images of one size: never streamed
    streamed: bool = False  # large images of many sizes: streamed, unless they are stored at one size


DATASETS = {
    "digits": DataSet(1_433, 364, 10, "scikit-learn", in_memory=True),
    "cifar10": DataSet(50_000, 10_000, 10, "torchvision", in_memory=True),
    "cifar100": DataSet(50_000, 10_000, 100, "torchvision", in_memory=True),
    "food101": DataSet(75_750, 25_250, 101, "torchvision", streamed=True),
    "imagenet": DataSet(1_281_167, 50_000, 1_000, "the user", streamed=True),
    "imagenette": DataSet(9_469, 3_925, 10, "the user"),
    "folder": DataSet(None, None, None, "the user", streamed=True),
}


def names_with(**facts: object) -> list[str]:
    """The data sets of which these facts hold: `names(had_from="torchvision")`."""
    return [name for name, known in DATASETS.items() if facts.items() <= known._asdict().items()]
