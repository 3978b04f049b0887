"""Photographs in folders, as data sets have them."""

from functools import cache
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images


@cache
def _photographs() -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in load_sample_images().images]


def photo(i: int) -> Image.Image:
    """The i-th of many overlapping cuts, of several sizes, from the two photographs of scikit-learn."""
    whole = _photographs()[i % 2]
    left, top, width, height = 17 * i % 300, 11 * i % 150, 90 + 7 * i % 60, 80 + 5 * i % 90
    return whole.crop((left, top, left + width, top + height))


def write(folder: Path, names: list[str], start: int = 0) -> None:
    """Write different photographs as JPEGs of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        photo(start + i).save(folder / name, quality=90)


def tree(root: Path, train: int = 6, test: int = 3, classes: tuple[str, ...] = ("birch", "ash")) -> Path:
    """Write an ImageFolder tree of JPEGs of several sizes."""
    for k, label in enumerate(classes):
        write(root / "train" / label, [f"{i:03}.jpg" for i in range(train)], 20 * k)
        write(root / "test" / label, [f"{i:03}.jpg" for i in range(test)], 20 * k + 10)
    return root
