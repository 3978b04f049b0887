"""Are ImageNet weights in the right places? Prints their accuracy on images of ImageNet's classes.

python -m experiments.check_weights --root FOLDER [network ...]
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from experiments import models
from experiments.data import layouts
from experiments.data.layouts import ImageFiles, Listing
from experiments.datasets import IMAGENET_CLASSES
from experiments.settings import DatasetSettings, UserError

LITES = ("eff_lite0", "eff_lite1", "eff_lite2")
BATCH = 50  # images


class Accuracy(NamedTuple):
    """The accuracy of a network on the test images, in [0, 1]."""

    among_all: float  # how often the highest of all of ImageNet's outputs is right
    among_these: float  # how often the highest among the outputs of the data set's classes is right
    size: int  # pixels; the side of the network's own input


def check(name: str, listing: Listing) -> Accuracy:
    """Measure a network with ImageNet weights, at its own input size, crop and normalization.

    Args:
        name: A short name or a timm name.
        listing: The images. Those for testing are used.

    Raises:
        UserError: There are no such weights, or a class is not one of ImageNet's.
    """
    network = models.build(name, IMAGENET_CLASSES, imagenet=True).eval()
    config = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**config, is_training=False)
    classes = torch.tensor(imagenet_indices(listing.classes))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device, memory_format=torch.channels_last)
    truth, all_right, right = torch.from_numpy(listing.test_labels), 0, 0
    bar = tqdm(_batches(listing.test, transform), name, math.ceil(len(truth) / BATCH), leave=False, disable=None)
    for images, labels in zip(bar, truth.split(BATCH), strict=True):
        outputs = _outputs(network, images.to(device)).cpu()  # (b, classes of ImageNet)
        all_right += int((outputs.argmax(1) == classes[labels]).sum())
        right += int((outputs[:, classes].argmax(1) == labels).sum())
    return Accuracy(all_right / len(truth), right / len(truth), config["input_size"][-1])


def imagenet_indices(wnids: list[str]) -> list[int]:
    """Return the outputs of ImageNet's networks for these classes. Raises UserError for another class."""
    known = {wnid: i for i, wnid in enumerate(timm.data.ImageNetInfo("imagenet-1k").label_names())}
    for wnid in wnids:
        if wnid not in known:
            raise UserError(
                f"{wnid} is not a class of ImageNet: the folders must have the names of wnids, as n01440764"
            )
    return [known[wnid] for wnid in wnids]


@torch.inference_mode()
def _outputs(network: nn.Module, images: Tensor) -> Tensor:
    return network(images.contiguous(memory_format=torch.channels_last))


def _batches(files: ImageFiles, transform: Callable[[Image.Image], Tensor]) -> Iterator[Tensor]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), BATCH):
            index = range(start, min(start + BATCH, len(files)))
            yield torch.stack(list(pool.map(lambda i: transform(files.image(i)), index)))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.check_weights", description=__doc__.partition("\n")[0])
    parser.add_argument("--root", required=True, help="Imagenette, or other classes of ImageNet in folders or zips")
    parser.add_argument("--images", type=int, help="so many test images, evenly spaced; all if not given")
    parser.add_argument("networks", nargs="*", default=LITES, help=f"short or timm names; {' '.join(LITES)} if none")
    options = parser.parse_args(arguments)
    if options.images is not None and options.images < 1:
        parser.error(f"--images must be 1 or more, got {options.images}")
    try:
        listing = layouts.find_images(DatasetSettings(name="imagenette", root=options.root), Path())
        listing = _evenly(listing, min(options.images or len(listing.test), len(listing.test)))
        print(f"{len(listing.test):,} test images of {len(listing.classes)} classes\n")
        right = f"right of {IMAGENET_CLASSES:,} classes | right of {len(listing.classes)}"
        print(f"| network | px | {right} |\n|{' --- |' * 4}")
        for name in options.networks:
            found = check(name, listing)
            print(f"| {name} | {found.size} | {found.among_all:.3f} | {found.among_these:.3f} |", flush=True)
    except UserError as error:
        sys.exit(f"error: {error}")


def _evenly(listing: Listing, count: int) -> Listing:
    """Keep so many test images, evenly spaced, so that every class is among them."""
    keep = np.arange(count) * len(listing.test) // count
    return listing._replace(test=listing.test.subset(keep), test_labels=listing.test_labels[keep])


if __name__ == "__main__":
    main()
