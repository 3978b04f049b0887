"""Data sets, in memory as uint8 tensors or streamed from image files, and the augmented batches of both."""

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
from experiments.datasets import DATASETS
from experiments.settings import DatasetSettings, UserError, first_line
from experiments.store import checkpoints
from experiments.store.locks import exclusive


@dataclass
class Split:
    """A split in memory, on a device. Its batches are made from draws, on the device, as those of StreamedSplit are."""

    images: Tensor  # (n, 3, h, w) uint8
    labels: Tensor  # (n,) int64

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device))

    def subset(self, keep: Tensor) -> Split:
        return Split(self.images[keep], self.labels[keep])

    def train_draws(self, batch: int, size: int, generator: torch.Generator, part: slice = WHOLE) -> Draws:
        """The place, the box and the flip of each image, (b, 6) int64."""
        n, device, (height, width) = len(self.labels), self.labels.device, self.images.shape[-2:]
        order = torch.randperm(n, generator=generator)
        for start in range(0, n - batch + 1, batch):
            boxes = random_boxes(batch, height, width, crop_area(size), generator)
            flips = torch.rand(batch, generator=generator) < 0.5
            drawn = torch.cat([order[start : start + batch, None], boxes, flips[:, None]], dim=1)
            yield (sent(drawn[part], device),)

    def train_batch(self, size: int, drawn: Tensor) -> tuple[Tensor, Tensor]:
        index, boxes, flips = drawn[:, 0], drawn[:, 1:5], drawn[:, 5].bool()
        return resized_crops(self.images[index], boxes, size, flips), self.labels[index]

    def test_draws(self, batch: int, size: int) -> Draws:
        return zip(self.images.split(batch), self.labels.split(batch), strict=True)

    def test_batch(self, size: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        height, width = images.shape[-2:]
        boxes = centre_boxes(len(images), height, width, images.device)
        return resized_crops(images, boxes, size), labels


AnySplit = Split | StreamedSplit
Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass
class Data:
    train: AnySplit
    test: AnySplit
    classes: list[str]

    def to(self, device: torch.device) -> Data:
        return Data(self.train.to(device), self.test.to(device), self.classes)


def load(settings: DatasetSettings, cache_dir: str) -> Data:
    """The data set of `settings`; in memory, it comes from the cache if its files have not changed since.

    Raises UserError if the settings make no sense or the data cannot be had.
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
    """Raise UserError for settings that no data set can have."""
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
    """What a trial calls its data set: its name; of a folder also what is in it, wherever it lies."""
    if settings.name == "folder":
        root = Path(settings.root).expanduser().absolute()
        listing = layouts.find_images(settings, root)
        files = [(str(file.relative_to(root)), layouts.file_stat(file).st_size) for file in listing.sources()]
        return f"folder-{root.name}-{hashlib.sha256(repr(files).encode()).hexdigest()[:8]}"
    by_choice = settings.stream and not DATASETS[settings.name].streamed
    return f"{settings.name}-streamed" if by_choice else settings.name


def stratified(split: AnySplit, count: int, seed: int = 0) -> AnySplit:
    """`count` images of a split, drawn by `seed`, with the classes in the split's own proportions."""
    if not 0 < count <= len(split.labels):
        raise UserError(f"dataset.train_subset must be from 1 to {len(split.labels)} images, got {count}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(split.labels), generator=generator)
    labels = split.labels[order]
    # The k-th image of a class of size c stands at (k + 1/2) / c: the first `count` places hold equal parts of each.
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    keep = order[place.argsort(stable=True)[:count]].sort().values
    return split.subset(keep)


# --- reading --------------------------------------------------------------------------------------------------------


def _digits() -> Data:
    """scikit-learn's handwritten digits, 8 × 8 grey, enlarged to 32 × 32; every fifth of a class is for testing."""
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
    """CIFAR-10 or CIFAR-100 in torchvision's layout, or downloaded by torchvision."""
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
    trials = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes that torchrun started on this machine
    workers = max(1, len(os.sched_getaffinity(0)) // trials) if settings.workers is None else settings.workers
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
    """The pixels of an image, (h, w, 3); cropped at the centre to a square and resized if a side is given."""
    if side is not None and image.size != (side, side):
        short = min(image.size)
        left, top = (image.width - short) // 2, (image.height - short) // 2
        box = (left, top, left + short, top + short)
        image = image.resize((side, side), Image.Resampling.BILINEAR, box=box, reducing_gap=3)
    return np.asarray(image)


def _from_arrays(images: np.ndarray, labels: Iterable[int]) -> Split:
    """Images (n, h, w, 3) and labels as a split."""
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels, dtype=torch.long))


def _cached(file: Path, make: Callable[[], Data]) -> Data:
    """The data in `file`, or made and written there, by one process at a time; a damaged file is made again."""
    if file.exists() and not os.access(file.parent, os.W_OK) and (data := _stored(file)):
        return data  # of a cache that somebody else keeps
    with exclusive(file.with_suffix(".lock"), f"it decodes or checks the images of {file.name}"):
        if data := _stored(file):
            return data
        for rest in file.parent.glob(f".{file.name}.*"):  # of a process that was killed while it wrote
            rest.unlink()
        data = make()
        splits = cast(tuple[Split, Split], (data.train, data.test))
        train, test = ((split.images, split.labels) for split in splits)
        checkpoints.write({"train": train, "test": test, "classes": data.classes}, file)
        return data


def _stored(file: Path) -> Data | None:
    stored = checkpoints.read(file, mmap=True)
    return Data(Split(*stored["train"]), Split(*stored["test"]), stored["classes"]) if stored else None


# --- batches --------------------------------------------------------------------------------------------------------


def train_batches(split: AnySplit, batch: int, size: int, generator: torch.Generator, part: slice = WHOLE) -> Batches:
    """One epoch in random order, augmented: (batch, 3, size, size) float32, normalized, and (batch,) labels.

    RandomResizedCrop and a horizontal flip, drawn anew for every image; an incomplete last batch is dropped.
    `generator` is on the CPU, so that every device sees the same crops. Of several processes with equal generators,
    each can take its `part` of every batch, slice(rank, None, processes): together they see what one would see.
    """
    for draw in split.train_draws(batch, size, generator, part):
        yield split.train_batch(size, *draw)


def test_batches(split: AnySplit, batch: int, size: int) -> Batches:
    """All images in order: the square at the centre, resized to `size`, normalized."""
    for draw in split.test_draws(batch, size):
        yield split.test_batch(size, *draw)
