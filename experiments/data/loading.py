"""Data sets, in memory as uint8 tensors or streamed from image files, and the augmented batches of both.

A batch is made in two steps. A draw comes from the CPU and is the same for every device: the indices, boxes and flips
of images in memory, or the cropped images of a streamed split. The batch is then made from the draw on the device,
which can be part of a CUDA graph.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.data import layouts
from experiments.data.augmentation import centre_boxes, crop_area, random_boxes, resized_crops
from experiments.data.layouts import ImageFiles, Listing
from experiments.data.streaming import WHOLE, Draws, StreamedSplit, sent
from experiments.datasets import DATASETS, STREAMED
from experiments.settings import DatasetSettings, UserError, first_line
from experiments.store import checkpoints
from experiments.store.locks import exclusive


@dataclass
class Split:
    """A split in memory, on a device. It has the methods of StreamedSplit."""

    images: Tensor  # (n, 3, h, w) uint8
    labels: Tensor  # (n,) int64

    def to(self, device: torch.device) -> Split:
        """Return the split on a device."""
        return Split(self.images.to(device), self.labels.to(device))

    def subset(self, keep: Tensor) -> Split:
        """Return the images with these indices, (k,) int64."""
        return Split(self.images[keep], self.labels[keep])

    def train_draws(self, batch: int, size: int, generator: torch.Generator, own: slice = WHOLE) -> Draws:
        """Draw an epoch: the index, the box and the flip of each image, (b, 6) int64. See `train_batches`."""
        n, device, (height, width) = len(self.labels), self.labels.device, self.images.shape[-2:]
        order = torch.randperm(n, generator=generator)
        for start in range(0, n - batch + 1, batch):
            boxes = random_boxes(batch, height, width, crop_area(size), generator)
            flips = torch.rand(batch, generator=generator) < 0.5
            drawn = torch.cat([order[start : start + batch, None], boxes, flips[:, None]], dim=1)
            yield (sent(drawn[own], device),)

    def train_batch(self, size: int, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Make a batch from a draw: (b, 3, size, size) float32, normalized, and labels, (b,)."""
        index, boxes, flips = drawn[:, 0], drawn[:, 1:5], drawn[:, 5].bool()
        return resized_crops(self.images[index], boxes, size, flips), self.labels[index]

    def test_draws(self, batch: int, size: int) -> Draws:
        """All images in order, (b, 3, h, w) uint8, and their labels, (b,)."""
        return zip(self.images.split(batch), self.labels.split(batch), strict=True)

    def test_batch(self, size: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Make a batch of the images' centres: (b, 3, size, size) float32, normalized, and labels, (b,)."""
        height, width = images.shape[-2:]
        boxes = centre_boxes(len(images), height, width, images.device)
        return resized_crops(images, boxes, size), labels


AnySplit = Split | StreamedSplit
Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass
class Data:
    """A data set: both splits, and the names of its classes."""

    train: AnySplit
    test: AnySplit
    classes: list[str]

    def to(self, device: torch.device) -> Data:
        """Return the data on a device. Streamed images are sent there batch by batch."""
        return Data(self.train.to(device), self.test.to(device), self.classes)


def load(settings: DatasetSettings, cache_dir: str) -> Data:
    """Load a data set. Decoded images come from the cache as long as the files have not changed.

    Args:
        settings: The settings of the data set.
        cache_dir: A folder for decoded images and indices of archives.

    Raises:
        UserError: The settings contradict one another, or the data cannot be found or downloaded.
    """
    check_settings(settings)
    cache, root = Path(cache_dir).expanduser(), Path(settings.root).expanduser()
    if settings.name == "digits":
        data = _digits()
    elif settings.name in ("cifar10", "cifar100") and not layouts.split_places(root):
        data = _cifar(settings, root)
    else:
        listing = layouts.find_images(settings, cache)
        data = _streamed(listing, settings) if settings.stream else _in_memory(listing, settings, cache)
    if settings.train_subset is not None:
        data.train = stratified(data.train, settings.train_subset)
    return data


def check_settings(settings: DatasetSettings) -> None:
    """Raise UserError for an unknown name, or settings that contradict one another."""
    if settings.name not in DATASETS:
        near = difflib.get_close_matches(settings.name, DATASETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(DATASETS)}"
        raise UserError(f"unknown data set {settings.name!r}: {hint}")
    if settings.workers is not None and settings.workers < 0:
        raise UserError(f"dataset.workers must be 0 or more, got {settings.workers}")
    known = DATASETS[settings.name]
    if settings.stream and known.in_memory:
        raise UserError(f"{settings.name} is small and kept in memory: set dataset.stream=false")
    if settings.stream and settings.stored_size is not None:
        raise UserError("streamed images are not stored: set dataset.stored_size=null, or dataset.stream=false")
    if not settings.stream and settings.stored_size is None and known.streamed:
        raise UserError(f"to keep {settings.name} in memory, set dataset.stored_size, for example to 128")


def dataset_id(settings: DatasetSettings) -> str:
    """Return the name of the data set in a trial. A folder's name has a digest of the files in it."""
    # The name enters the trial's id. So it has to change with whatever changes the pixels that a network sees: streamed
    # images have other crops than stored ones. And it must not change with what does not matter, such as the place of
    # the folder on this machine.
    if settings.name == "folder":
        root = Path(settings.root).expanduser().absolute()
        listing = layouts.find_images(settings, root)
        files = [(str(file.relative_to(root)), layouts.file_stat(file).st_size) for file in listing.sources()]
        return f"folder-{root.name}-{hashlib.sha256(repr(files).encode()).hexdigest()[:8]}"
    by_choice = settings.stream and not DATASETS[settings.name].streamed
    return settings.name + (STREAMED if by_choice else "")


def stratified(split: AnySplit, count: int, seed: int = 0) -> AnySplit:
    """Return `count` images of a split, drawn by `seed`, with the classes in the proportions of the split.

    Raises UserError if the split has fewer images.
    """
    if not 0 < count <= len(split.labels):
        raise UserError(f"dataset.train_subset must be from 1 to {len(split.labels)} images, got {count}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(split.labels), generator=generator)
    labels = split.labels[order]
    # The k-th image of a class of c images has the place (k + 1/2) / c. So any interval of places has the same share of
    # every class, and so has the interval of the `count` lowest places.
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    keep = order[place.argsort(stable=True)[:count]].sort().values
    return split.subset(keep)


# --- reading --------------------------------------------------------------------------------------------------------


def _digits() -> Data:
    """scikit-learn's handwritten digits, enlarged from 8 × 8 to 32 × 32. Every fifth of a class is for testing."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = (digits.images * (255 / 16)).round().astype(np.uint8)  # (1797, 8, 8)
    large = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in grey]
    images = torch.from_numpy(np.stack(large))[:, None].expand(-1, 3, -1, -1).contiguous()  # (1797, 3, 32, 32)
    labels = torch.from_numpy(digits.target).long()
    test = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        test[(labels == label).nonzero().squeeze(1)[::5]] = True
    classes = [str(name) for name in digits.target_names]
    return Data(Split(images[~test], labels[~test]), Split(images[test], labels[test]), classes)


def _cifar(settings: DatasetSettings, root: Path) -> Data:
    """CIFAR-10 or CIFAR-100, read or downloaded by torchvision."""
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset = CIFAR10 if settings.name == "cifar10" else CIFAR100
    try:
        train, test = (dataset(root, train=train, download=settings.download) for train in (True, False))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"no {settings.name} under {root.absolute()} and none could be downloaded ({first_line(error)}): set "
            "dataset.root to a folder with torchvision's files, with train/ and test/, or with train*.zip and test.zip"
        ) from error
    splits = [_from_arrays(split.data, split.targets) for split in (train, test)]
    return Data(splits[0], splits[1], train.classes)


def _streamed(listing: Listing, settings: DatasetSettings) -> Data:
    workers = settings.workers
    if workers is None:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # that torchrun started on this machine
        workers = max(1, len(os.sched_getaffinity(0)) // processes)
    train = StreamedSplit(listing.train, torch.from_numpy(listing.train_labels), workers)
    test = StreamedSplit(listing.test, torch.from_numpy(listing.test_labels), workers)
    return Data(train, test, listing.classes)


def _in_memory(listing: Listing, settings: DatasetSettings, cache: Path) -> Data:
    found = [(file, layouts.file_stat(file)) for file in listing.sources()]
    key = [(str(file.absolute()), stat.st_size, stat.st_mtime_ns) for file, stat in found]
    digest = hashlib.sha256(repr((key, settings.stored_size)).encode()).hexdigest()[:16]
    return _cached(cache / f"{settings.name}-{digest}.pt", lambda: _decode(listing, settings))


def _decode(listing: Listing, settings: DatasetSettings) -> Data:
    train = _decode_split(listing.train, listing.train_labels, settings)
    return Data(train, _decode_split(listing.test, listing.test_labels, settings), listing.classes)


def _decode_split(files: ImageFiles, labels: np.ndarray, settings: DatasetSettings) -> Split:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = list(pool.map(lambda i: _pixels(files.image(i), settings.stored_size), range(len(files))))
    sizes = len({image.shape for image in images})
    if sizes != 1:
        raise UserError(
            f"{settings.name} under {settings.root} has images of {sizes} sizes: set dataset.stored_size to crop "
            "and resize them to one side, for example dataset.stored_size=128, or dataset.stream=true"
        )
    return _from_arrays(np.stack(images), labels)


def _pixels(image: Image.Image, side: int | None) -> np.ndarray:
    """Return the pixels of an image, (h, w, 3). With a side, the square at the centre is resized to this side."""
    if side is not None and image.size != (side, side):
        short = min(image.size)
        left, top = (image.width - short) // 2, (image.height - short) // 2
        box = (left, top, left + short, top + short)
        image = image.resize((side, side), Image.Resampling.BILINEAR, box=box, reducing_gap=3)
    return np.asarray(image)


def _from_arrays(images: np.ndarray, labels: Iterable[int]) -> Split:
    """Make a split of images, (n, h, w, 3) uint8, and labels."""
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels, dtype=torch.long))


def _cached(file: Path, make: Callable[[], Data]) -> Data:
    """Return the data in `file`. One process at a time makes and writes the data if they are missing or damaged."""
    if file.exists() and not os.access(file.parent, os.W_OK) and (data := _stored(file)):
        return data  # a cache that belongs to somebody else, where no lock can be written
    with exclusive(file.with_suffix(".lock"), f"it decodes or checks the images of {file.name}"):
        if data := _stored(file):
            return data
        for leftover in file.parent.glob(f".{file.name}.*"):  # a process was killed while it wrote
            leftover.unlink()
        data = make()
        splits = cast(tuple[Split, Split], (data.train, data.test))
        train, test = ((split.images, split.labels) for split in splits)
        checkpoints.write({"train": train, "test": test, "classes": data.classes}, file)
        return data


def _stored(file: Path) -> Data | None:
    stored = checkpoints.read(file, mmap=True)
    return Data(Split(*stored["train"]), Split(*stored["test"]), stored["classes"]) if stored else None


# --- batches --------------------------------------------------------------------------------------------------------


def train_batches(split: AnySplit, batch: int, size: int, generator: torch.Generator, own: slice = WHOLE) -> Batches:
    """Yield one epoch in random order, with a random resized crop and a random flip of each image.

    Args:
        split: The images.
        batch: Images in a batch. An incomplete last batch is dropped.
        size: The side of a crop, in pixels.
        generator: A generator on the CPU, so that every device sees the same crops.
        own: Which images of every batch are made. Processes with equal generators that take slice(rank, None,
            processes) see together what one process would see.

    Yields:
        Images (b, 3, size, size) float32, normalized, and labels (b,) int64, on the split's device.
    """
    for draw in split.train_draws(batch, size, generator, own):
        yield split.train_batch(size, *draw)


def test_batches(split: AnySplit, batch: int, size: int) -> Batches:
    """Yield all images in order, and their labels: the square at the centre, resized to `size` pixels, normalized."""
    for draw in split.test_draws(batch, size):
        yield split.test_batch(size, *draw)
