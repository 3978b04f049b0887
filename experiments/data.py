"""Data sets as uint8 tensors, decoded once and cached, and the augmentation that runs on them in batches."""

from __future__ import annotations

import difflib
import hashlib
import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.records import atomic_write
from experiments.settings import DatasetSettings, UserError, first_line

# The normalisation that the ImageNet weights of timm expect; the paper uses it for every data set.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm"}


@dataclass
class Split:
    images: Tensor  # (n, 3, h, w) uint8
    labels: Tensor  # (n,) int64


@dataclass
class Data:
    train: Split
    test: Split
    classes: list[str]

    def to(self, device: torch.device) -> Data:
        train, test = (Split(s.images.to(device), s.labels.to(device)) for s in (self.train, self.test))
        return Data(train, test, self.classes)


def load(settings: DatasetSettings, cache_dir: str) -> Data:
    """The data set of `settings`, from the cache if its files have not changed since.

    Raises UserError if the name is unknown or the data cannot be had.
    """
    check(settings.name)
    data = READERS[settings.name](settings, Path(cache_dir).expanduser())
    if settings.train_subset is not None:
        data.train = stratified(data.train, settings.train_subset)
    return data


def check(name: str) -> None:
    """Raise UserError if there is no data set of this name."""
    if name not in READERS:
        near = difflib.get_close_matches(name, READERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(READERS)}"
        raise UserError(f"unknown data set {name!r}: {hint}")


def stratified(split: Split, count: int, seed: int = 0) -> Split:
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
    return Split(split.images[keep], split.labels[keep])


# --- reading --------------------------------------------------------------------------------------------------------


def _digits(settings: DatasetSettings, cache: Path) -> Data:
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


def _cifar(settings: DatasetSettings, cache: Path) -> Data:
    """CIFAR-10 or CIFAR-100: torchvision's layout, an ImageFolder tree or zips of one, or a download by torchvision."""
    root = Path(settings.root).expanduser()
    if _splits(root):
        return _folder(settings, cache)
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset = CIFAR10 if settings.name == "cifar10" else CIFAR100
    try:
        train, test = (dataset(root, train=train, download=settings.download) for train in (True, False))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"no {settings.name} under {root.absolute()} and none could be downloaded ({first_line(error)}): set "
            "dataset.root to a folder with torchvision's files, with train/ and test/, or with train*.zip and test.zip"
        ) from error
    return Data(*(_from_arrays(split.data, split.targets) for split in (train, test)), train.classes)


def _folder(settings: DatasetSettings, cache: Path) -> Data:
    """An ImageFolder tree, `<split>/<class>/<file>`, unpacked or in zips named after their split."""
    root = Path(settings.root).expanduser()
    parts = _splits(root)
    if not parts:
        raise UserError(
            f"no {settings.name} under {root.absolute()}: set dataset.root to a folder with train/ and test/ (or "
            "val/), or with train*.zip and test.zip (or val.zip)"
        )
    files = sorted(f for part in parts for f in (part.rglob("*") if part.is_dir() else [part]) if f.is_file())
    key = [(str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    digest = hashlib.sha256(repr((key, settings.stored_size)).encode()).hexdigest()[:16]
    return _cached(cache / f"{settings.name}-{digest}.pt", lambda: _decode(parts, settings))


READERS: dict[str, Callable[[DatasetSettings, Path], Data]] = {
    "digits": _digits,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "imagenette": _folder,
}


def _splits(root: Path) -> list[Path]:
    """The folders or zips that hold a training and a test split under root; [] unless there are both."""
    for test in ("test", "val"):
        if (root / "train").is_dir() and (root / test).is_dir():
            return [root / "train", root / test]
        zips = sorted(root.glob("train*.zip"))
        if zips and (root / f"{test}.zip").is_file():
            return [*zips, root / f"{test}.zip"]
    return []


class _ImageFile(NamedTuple):
    label: str
    name: str
    read: Callable[[], bytes]


def _decode(parts: list[Path], settings: DatasetSettings) -> Data:
    files: dict[str, list[_ImageFile]] = {"train": [], "test": []}
    for part in parts:
        files["train" if part.name.startswith("train") else "test"] += _image_files(part)
    classes = sorted({file.label for split in files.values() for file in split})
    splits = []
    for split in files.values():
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            images = list(pool.map(lambda file: _pixels(file, settings.stored_size), split))
        sizes = len({image.shape for image in images})
        if sizes != 1:
            raise UserError(
                f"{settings.name} under {settings.root} has images of {sizes} sizes: set dataset.stored_size to crop "
                "and resize them to one side, for example dataset.stored_size=128"
            )
        splits.append(_from_arrays(np.stack(images), [classes.index(file.label) for file in split]))
    return Data(*splits, classes)


def _image_files(part: Path) -> Iterator[_ImageFile]:
    """The images in a split's folder or zip, in the order of their names; the class is the folder they are in."""
    if part.is_dir():
        for file in sorted(part.glob("*/*")):
            if file.suffix.lower() in IMAGE_SUFFIXES:
                yield _ImageFile(file.parent.name, str(file), file.read_bytes)
        return
    try:
        archive = zipfile.ZipFile(part)
    except zipfile.BadZipFile as error:
        raise UserError(f"{part} is not a complete zip file: get it again") from error
    for name in sorted(archive.namelist()):
        if Path(name).suffix.lower() in IMAGE_SUFFIXES:
            yield _ImageFile(Path(name).parent.name, f"{part}/{name}", partial(archive.read, name))


def _pixels(file: _ImageFile, side: int | None) -> np.ndarray:
    """The pixels of an image, (h, w, 3); cropped at the centre to a square and resized if a side is given."""
    try:
        image = Image.open(io.BytesIO(file.read())).convert("RGB")
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{file.name} is not an image that can be read: get it again or remove it") from error
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
    """The data in `file`, or made and written there; a file that cannot be read is made again."""
    if file.is_file():
        try:
            stored = torch.load(file, weights_only=True, mmap=True)
            return Data(Split(*stored["train"]), Split(*stored["test"]), stored["classes"])
        except Exception as error:
            print(f"{file} cannot be read ({first_line(error)}): decoding the images again")
    data = make()
    train, test = ((split.images, split.labels) for split in (data.train, data.test))
    atomic_write(file, lambda f: torch.save({"train": train, "test": test, "classes": data.classes}, f))
    return data


# --- batches --------------------------------------------------------------------------------------------------------


def train_batches(split: Split, batch: int, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order, augmented: (batch, 3, size, size) float32, normalized, and (batch,) labels.

    RandomResizedCrop and a horizontal flip, drawn anew for every image; an incomplete last batch is dropped.
    `generator` is on the CPU, so that every device sees the same crops.
    """
    n, device = len(split.labels), split.labels.device
    order = torch.randperm(n, generator=generator)
    low = 0.5 if size < 100 else 0.1  # the smallest part of the area that a crop may have (recipe)
    for start in range(0, n - batch + 1, batch):
        index = order[start : start + batch].to(device)
        boxes = random_boxes(batch, *split.images.shape[-2:], (low, 1.0), generator).to(device)
        flip = (torch.rand(batch, generator=generator) < 0.5).to(device)
        yield resized_crops(split.images[index], boxes, size, flip), split.labels[index]


def test_batches(split: Split, batch: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All images in order: the square at the centre, resized to `size`, normalized."""
    height, width = split.images.shape[-2:]
    short = min(height, width)
    box = torch.tensor([[(height - short) // 2, (width - short) // 2, short, short]], device=split.labels.device)
    for images, labels in zip(split.images.split(batch), split.labels.split(batch), strict=True):
        yield resized_crops(images, box.expand(len(labels), 4), size), labels


def random_boxes(count: int, height: int, width: int, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Boxes (count, 4) of top, left, height, width, distributed as in torchvision's RandomResizedCrop.

    A box has a part of the area in `scale` and an aspect ratio between 3/4 and 4/3; the first of ten tries that fits
    counts, else the largest centred box of an allowed ratio.
    """
    low, high = scale
    area = height * width * (low + (high - low) * torch.rand(count, 10, generator=generator))
    ratio = torch.exp(math.log(3 / 4) + 2 * math.log(4 / 3) * torch.rand(count, 10, generator=generator))
    w, h = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    w, h = w.gather(1, first).squeeze(1), h.gather(1, first).squeeze(1)
    none = ~fits.any(dim=1)
    w[none] = min(width, round(height * 4 / 3))
    h[none] = min(height, round(width * 4 / 3))
    top = (torch.rand(count, generator=generator) * (height - h + 1)).long()
    left = (torch.rand(count, generator=generator) * (width - w + 1)).long()
    top[none], left[none] = (height - h[none]) // 2, (width - w[none]) // 2
    return torch.stack([top, left, h, w], dim=1)


def resized_crops(images: Tensor, boxes: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """Each image cropped to its box, resized to size × size with antialiasing, flipped where asked, normalized.

    Takes (b, 3, h, w) uint8 and returns (b, 3, size, size) float32 in channels_last. The resize is two matrix products
    with the triangle filters of PIL and torchvision.
    """
    height, width = images.shape[-2:]
    rows = _triangle_filters(boxes[:, 0], boxes[:, 2], height, size)  # (b, size, h)
    columns = _triangle_filters(boxes[:, 1], boxes[:, 3], width, size)  # (b, size, w)
    if flip is not None:
        columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, STD))
    out = rows[:, None] @ (images.float() @ columns[:, None].transpose(2, 3))  # (b, 3, size, size)
    return ((out / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def _triangle_filters(start: Tensor, length: Tensor, pixels: int, size: int) -> Tensor:
    """The weights (b, size, pixels) that resize `length` pixels from `start` on to `size` of them."""
    scale = (length / size)[:, None, None]  # input pixels per output pixel
    centre = (torch.arange(size, device=start.device) + 0.5)[:, None] * scale  # (b, size, 1)
    place = torch.arange(pixels, device=start.device) - start[:, None, None]  # (b, 1, pixels), from the box's edge
    weight = (1 - (place + 0.5 - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    weight = weight * ((place >= 0) & (place < length[:, None, None]))
    return weight / weight.sum(dim=2, keepdim=True)
