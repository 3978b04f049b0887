"""Finding the image files of a data set in the layouts that people have: folders, zips, Food-101's, ImageNet's."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from experiments.datasets import DATASETS, IMAGENET_CLASSES
from experiments.settings import DatasetSettings, UserError, first_line
from experiments.store.files import atomic_write

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"}  # torchvision's
ARCHIVE, DEVKIT = "ILSVRC2012_img", "ILSVRC2012_devkit_t12"  # the names of ImageNet's archives
IMAGENET = {"train": DATASETS["imagenet"].train_images, "val": DATASETS["imagenet"].test_images}

# What Pillow's decoders and zipfile raise. NotImplementedError is zipfile's for a compression that it does not know.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, Image.DecompressionBombError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
)


class ImageFile(NamedTuple):
    """One image file while a data set is listed."""

    label: str  # the name of its class
    container: str  # the folder, zip or tar that the file is in
    name: str  # its name in the container
    offset: int = 0  # bytes from the start of a tar
    length: int = 0  # bytes in a tar


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """The image files of a split."""

    # Arrays and not a list of `ImageFile`: worker processes are forked and share the memory of arrays. Python writes a
    # reference count into each object that it touches, so that a list of a million objects would be copied page by page
    # into every worker.
    containers: list[str]
    container: np.ndarray  # (n,) int64, index into containers
    names: np.ndarray  # (n,) bytes
    spans: np.ndarray  # (n, 2) int64, offset and length in a tar

    @classmethod
    def of(cls, entries: list[ImageFile]) -> ImageFiles:
        """Pack a list of files, in its order."""
        containers = sorted({entry.container for entry in entries})
        index = {container: i for i, container in enumerate(containers)}
        return cls(
            containers,
            np.array([index[entry.container] for entry in entries], dtype=np.int64),
            np.array([os.fsencode(entry.name) for entry in entries], dtype=bytes),
            np.array([entry[3:] for entry in entries], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, keep: np.ndarray) -> ImageFiles:
        """Return the files with these indices, (k,) int64."""
        return ImageFiles(self.containers, self.container[keep], self.names[keep], self.spans[keep])

    def path(self, i: int) -> str:
        """Return the path of the i-th file, for messages."""
        return os.path.join(self.containers[self.container[i]], os.fsdecode(self.names[i]))

    def on_disk(self) -> Iterator[str]:
        """Yield for each image the file on disk that holds it: the image's own, or an archive."""
        folders = [os.path.isdir(container) for container in self.containers]
        for i, container in enumerate(self.container):
            yield self.path(i) if folders[container] else self.containers[container]

    def read(self, i: int) -> bytes:
        """Read the content of the i-th file."""
        container = self.containers[self.container[i]]
        if container.endswith(".zip"):
            return _open_zip(container, os.getpid()).read(os.fsdecode(self.names[i]))
        if container.endswith(".tar"):
            offset, length = self.spans[i].tolist()
            with open(container, "rb") as f:
                f.seek(offset)
                return f.read(length)
        return Path(self.path(i)).read_bytes()

    def image(self, i: int) -> Image.Image:
        """Decode the i-th image, in RGB. Raises UserError if the file cannot be read."""
        try:
            return Image.open(io.BytesIO(self.read(i))).convert("RGB")
        except UNREADABLE as error:
            raise UserError(f"{self.path(i)} is not an image that can be read: get it again or remove it") from error


class Listing(NamedTuple):
    """The image files of a data set with their labels, and the names of the classes."""

    train: ImageFiles
    train_labels: np.ndarray  # (n,) int64, index into classes
    test: ImageFiles
    test_labels: np.ndarray  # (n,) int64
    classes: list[str]

    def sources(self) -> list[Path]:
        """Return every file on disk that holds images, once, sorted."""
        return sorted({Path(file) for files in (self.train, self.test) for file in files.on_disk()})


def find_images(settings: DatasetSettings, cache: Path) -> Listing:
    """Find the image files under dataset.root.

    Args:
        settings: The settings of the data set.
        cache: A folder for the index of an archive.

    Raises:
        UserError: Files are missing or incomplete, or a class has test images and no training images.
    """
    root = Path(settings.root).expanduser()
    train, test = LAYOUTS[settings.name](settings, root, cache)
    if not train or not test:
        raise UserError(
            f"{settings.name} under {root.absolute()} has no images for {'testing' if train else 'training'}"
        )
    classes = sorted({entry.label for entry in train})
    if unknown := sorted({entry.label for entry in test} - {*classes}):
        raise UserError(f"{settings.name} under {root.absolute()} has no training images of the class {unknown[0]!r}")
    index = {label: i for i, label in enumerate(classes)}
    labels = [np.array([index[entry.label] for entry in split], dtype=np.int64) for split in (train, test)]
    return Listing(ImageFiles.of(train), labels[0], ImageFiles.of(test), labels[1], classes)


def file_stat(file: Path) -> os.stat_result:
    """Return the size and the time of a file. Raises UserError if there is no file, as behind a broken link."""
    try:
        return file.stat()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): get it again or remove it") from error


def split_places(root: Path) -> list[Path]:
    """Return the folders or zips under root: those for training, then the one for testing. [] unless both are there."""
    for test in ("test", "val"):
        if (root / "train").is_dir() and (root / test).is_dir():
            return [root / "train", root / test]
        zips = sorted(root.glob("train*.zip"))
        if zips and (root / f"{test}.zip").is_file():
            return [*zips, root / f"{test}.zip"]
    return []


# --- one function for each layout -----------------------------------------------------------------------------------

SplitFiles = tuple[list[ImageFile], list[ImageFile]]  # for training, for testing


def _folder(settings: DatasetSettings, root: Path, cache: Path) -> SplitFiles:
    """An ImageFolder tree, `<split>/<class>/<file>`, unpacked or in zips named after their split."""
    places = split_places(root)
    if not places:
        raise UserError(
            f"no {settings.name} under {root.absolute()}: set dataset.root to a folder with train/ and test/ (or "
            "val/), or with train*.zip and test.zip (or val.zip)"
        )
    *train, test = ([*_images(place)] for place in places)
    return [file for files in train for file in files], test


def _food101(settings: DatasetSettings, root: Path, cache: Path) -> SplitFiles:
    """The layout of the archive and of torchvision: images/<class>/<number>.jpg, and a list for each split."""
    base = root if (root / "meta").is_dir() else root / "food-101"
    try:
        if settings.download and not base.is_dir():
            from torchvision.datasets import Food101

            Food101(root, download=True)
        train, test = ((base / "meta" / f"{split}.txt").read_text().split() for split in ("train", "test"))
        there = {entry.name for entry in _images(base / "images")}
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(
            f"no food101 under {root.absolute()} ({first_line(error)}): set dataset.root to the folder that holds "
            "food-101/ with images/ and meta/, as in food-101.tar.gz"
        ) from error
    missing = [name for name in (*train, *test) if f"{name}.jpg" not in there]
    if missing:
        raise UserError(
            f"food101 under {root.absolute()} is not complete: {len(missing)} images are missing, the first is "
            f"images/{missing[0]}.jpg: unpack food-101.tar.gz again"
        )
    folder = str(base / "images")

    def listed(names: list[str]) -> list[ImageFile]:
        return [ImageFile(name.partition("/")[0], folder, f"{name}.jpg") for name in names]

    return listed(train), listed(test)


def _imagenet(settings: DatasetSettings, root: Path, cache: Path) -> SplitFiles:
    """ILSVRC2012: a folder for each wnid, or the archives as they come, which are read in place."""
    train, val = (root / split if (root / split).is_dir() else root / f"{ARCHIVE}_{split}.tar" for split in IMAGENET)
    if not train.exists() or not val.exists():
        raise UserError(
            f"no imagenet under {root.absolute()}: set dataset.root to a folder with train/ and val/ (in them a folder "
            f"for each wnid), or with {ARCHIVE}_train.tar, {ARCHIVE}_val.tar and {DEVKIT}.tar.gz"
        )
    entries = (
        [*_images(train)] if train.is_dir() else _indexed(train, cache),
        ([*_images(val)] or _flat(val)) if val.is_dir() else _indexed(val, cache),
    )
    if entries[1] and not entries[1][0].label:  # validation images that lie side by side say nothing of their class
        entries = entries[0], _labelled(entries[1], _ground_truth(root))
    classes = {entry.label for split in entries for entry in split}
    found = dict(zip(IMAGENET, map(len, entries), strict=True))
    if len(classes) != IMAGENET_CLASSES or found != IMAGENET:
        raise UserError(
            f"imagenet under {root.absolute()} is not complete: {len(classes)} classes for {IMAGENET_CLASSES}, images "
            f"{found} for {IMAGENET}: copy it again, or use a part of it with dataset=folder"
        )
    return entries


LAYOUTS: dict[str, Callable[[DatasetSettings, Path, Path], SplitFiles]] = {
    "cifar10": _folder,
    "cifar100": _folder,
    "imagenette": _folder,
    "folder": _folder,
    "food101": _food101,
    "imagenet": _imagenet,
}


# --- folders, zips and tars -----------------------------------------------------------------------------------------


def _images(place: Path) -> Iterator[ImageFile]:
    """Yield the images in a folder or zip, class by class.

    As in torchvision's ImageFolder, folders below a class belong to the class. Names that begin with a dot do not
    count.
    """
    if not place.is_dir():
        yield from _zipped(place)
        return
    for label in sorted(os.listdir(place)):
        if (place / label).is_dir() and not label.startswith("."):
            names = [f"{folder}/{name}" for folder, found in _walk(place / label, label) for name in found]
            if not names:
                raise UserError(f"{place / label} has no images, and folders are classes here: fill or remove it")
            yield from (ImageFile(label, str(place), name) for name in names)


def _flat(folder: Path) -> list[ImageFile]:
    """The images of a folder without folders of classes."""
    _, names = next(_walk(folder, ""))
    return [ImageFile("", str(folder), name) for name in names]


def _walk(folder: Path, name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder under this name, and the folders below it, each with the names of its images."""

    def unreadable(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error

    for path, below, files in os.walk(folder, onerror=unreadable, followlinks=True):
        below[:] = sorted(each for each in below if not each.startswith("."))
        yield name + path.removeprefix(str(folder)), sorted(filter(_is_image, files))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def _zipped(file: Path) -> Iterator[ImageFile]:
    """Yield the images in a zip, class by class."""
    # A zip may have been made of the folder of a split, of the folder above it, or of its content. So the folders that
    # all images share say nothing, and the next level names the classes. If an image lies in the last shared folder
    # itself, there is no next level for this image, and that folder is the class.
    names = sorted(name for name in _open_zip(str(file), os.getpid()).namelist() if _is_image(os.path.basename(name)))
    paths = {name: Path(name) for name in names}
    paths = {name: path for name, path in paths.items() if not any(each.startswith(".") for each in path.parts)}
    if not paths:
        return
    shared = Path(os.path.commonpath([path.parent for path in paths.values()]))
    level = len(shared.parts) - any(path.parent == shared for path in paths.values())
    if level < 0:
        raise UserError(f"{file} has images that are in no folder, and folders are classes here: put them into some")
    yield from (ImageFile(path.parts[level], str(file), name) for name, path in paths.items())


@lru_cache
def _open_zip(file: str, process: int) -> zipfile.ZipFile:
    """Return an open zip, one for each process."""
    # `process` is part of the cache's key: a forked process inherits the open file, and shares its position with the
    # process it was forked from. Two that read at the same time would read each other's bytes.
    try:
        return zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise UserError(f"{file} is not a complete zip file: get it again") from error


def _indexed(file: Path, cache: Path) -> list[ImageFile]:
    """Return the images in a tar, or in the tars in it, which are classes. The index is kept: it takes minutes."""
    stat = file.stat()
    kept = cache / f"{file.stem}-{stat.st_size}-{stat.st_mtime_ns}.json"
    try:
        rows = json.loads(kept.read_text())
    except (OSError, ValueError):
        try:
            rows = sorted(_tar_images(file))
        except tarfile.ReadError as error:
            raise UserError(f"{file} is not a complete tar file ({first_line(error)}): get it again") from error
        atomic_write(kept, lambda f: f.write(json.dumps(rows).encode()))
    return [ImageFile(label, str(file), *rest) for label, *rest in rows]


def _tar_images(file: Path) -> Iterator[tuple[str, str, int, int]]:
    """Yield the class, name, offset and length of each image in a tar and in the tars in it."""
    with tarfile.open(file, "r:") as outer:
        for member in outer:
            if not member.name.endswith(".tar"):
                yield "", member.name, member.offset_data, member.size
                continue
            with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                for image in inner:
                    start = member.offset_data + image.offset_data
                    yield Path(member.name).stem, f"{member.name}/{image.name}", start, image.size


def _labelled(entries: list[ImageFile], wnids: list[str]) -> list[ImageFile]:
    """Give each file its class, in the order of both lists."""
    if len(entries) != len(wnids):
        raise UserError(
            f"{entries[0].container} has {len(entries)} validation images, the ground truth in {DEVKIT} is of "
            f"{len(wnids)}: get it again"
        )
    return [entry._replace(label=wnid) for entry, wnid in zip(entries, wnids, strict=True)]


def _ground_truth(root: Path) -> list[str]:
    """Read the wnid of each validation image from the development kit, in the order of the images' names."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(io.BytesIO(_from_devkit(root, "meta.mat")), squeeze_me=True)["synsets"]
        truth = _from_devkit(root, "ILSVRC2012_validation_ground_truth.txt").split()
    except (OSError, KeyError, EOFError, tarfile.ReadError) as error:
        raise UserError(
            f"no ground truth of imagenet's validation images ({first_line(error)}): put {DEVKIT}.tar.gz into "
            f"{root.absolute()}"
        ) from error
    wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    return [wnids[int(number)] for number in truth]


def _from_devkit(root: Path, name: str) -> bytes:
    if (root / DEVKIT).is_dir():
        return (root / DEVKIT / "data" / name).read_bytes()
    with tarfile.open(root / f"{DEVKIT}.tar.gz") as archive:
        return archive.extractfile(f"{DEVKIT}/data/{name}").read()
