"""The table of data sets: the names of dataset=NAME, and what is known of each before its files are read."""

from __future__ import annotations

from typing import NamedTuple

IMAGENET_CLASSES = 1_000  # also the number of outputs of every network with ImageNet weights
STREAMED = "-streamed"  # ends the name that a trial gives to a data set that is streamed and need not be


class DataSet(NamedTuple):
    """Facts about a data set. None stands for what only the files can tell."""

    train_images: int | None
    test_images: int | None
    classes: int | None
    provided_by: str  # scikit-learn (comes with it), torchvision (downloads it), or the user (must have it)
    in_memory: bool = False  # True for small images of one size, which are never streamed
    streamed: bool = False  # True for large images of many sizes, which are streamed unless they are stored at one size


DATASETS = {
    "digits": DataSet(1_433, 364, 10, "scikit-learn", in_memory=True),
    "cifar10": DataSet(50_000, 10_000, 10, "torchvision", in_memory=True),
    "cifar100": DataSet(50_000, 10_000, 100, "torchvision", in_memory=True),
    "food101": DataSet(75_750, 25_250, 101, "torchvision", streamed=True),
    "imagenet": DataSet(1_281_167, 50_000, IMAGENET_CLASSES, "the user", streamed=True),
    "imagenette": DataSet(9_469, 3_925, 10, "the user"),
    "folder": DataSet(None, None, None, "the user", streamed=True),
}


def names_with(**facts: object) -> list[str]:
    """Return the names of the data sets with these facts, as in `names_with(provided_by="torchvision")`."""
    return [name for name, known in DATASETS.items() if facts.items() <= known._asdict().items()]
