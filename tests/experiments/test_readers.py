"""Data sets are read from folders, zips and torchvision's files, and cached."""

import hashlib
import multiprocessing
import pickle
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR100

from experiments.data import loading
from experiments.settings import DatasetSettings, UserError


@pytest.fixture
def tree(tmp_path):
    """Real digits as an ImageFolder tree of 32 × 32 PNGs: 30 for training, 20 for testing, two classes."""
    digits = loading.load(DatasetSettings(name="digits"), "unused")
    for split, folder, count in ((digits.train, "train", 15), (digits.test, "test", 10)):
        for label, name in ((0, "zero"), (1, "one")):
            (tmp_path / "tree" / folder / name).mkdir(parents=True)
            for i, image in enumerate(split.images[split.labels == label][:count]):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "tree" / folder / name / f"{i:03}.png")
    return tmp_path / "tree"


def zipped(tree: Path, to: Path, parts: dict[str, list[str]]) -> Path:
    to.mkdir()
    for name, folders in parts.items():
        with zipfile.ZipFile(to / name, "w") as archive:
            for file in (f for folder in folders for f in sorted((tree / folder).rglob("*.png"))):
                archive.write(file, file.relative_to(tree))
    return to


def load(root: Path, name: str = "cifar100", **changes) -> loading.Data:
    return loading.load(
        DatasetSettings(name=name, root=str(root), download=False, **changes), str(root.parent / "cache")
    )


def same(a: loading.Data, b: loading.Data) -> bool:
    pairs = ((a.train, b.train), (a.test, b.test))
    return a.classes == b.classes and all(
        torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) for x, y in pairs
    )


def test_a_folder_tree_and_its_zips_are_the_same_data(tree, tmp_path):
    plain = load(tree)
    assert plain.classes == ["one", "zero"] and plain.train.labels.bincount().tolist() == [15, 15]
    pixels = np.asarray(Image.open(tree / "test" / "zero" / "003.png"))
    assert np.array_equal(plain.test.images[plain.test.labels == 1][3].permute(1, 2, 0).numpy(), pixels)
    whole = zipped(tree, tmp_path / "whole", {"train.zip": ["train"], "test.zip": ["test"]})
    parts = {"train-1-of-2.zip": ["train/one"], "train-2-of-2.zip": ["train/zero"], "test.zip": ["test"]}
    assert same(plain, load(whole)) and same(plain, load(zipped(tree, tmp_path / "parts", parts)))


def test_images_are_decoded_once_until_they_change(tree, tmp_path, monkeypatch):
    first = load(tree)
    (cached,) = (tmp_path / "cache").glob("*.pt")
    monkeypatch.setattr(loading, "_pixels", None)  # decoding again would fail
    assert same(first, load(tree))
    monkeypatch.undo()
    (tree / "train" / "one" / "000.png").unlink()
    assert len(load(tree).train.labels) == 29
    assert cached.is_file()


def test_a_damaged_cache_is_made_again(tree, tmp_path, capsys):
    first = load(tree)
    (cached,) = (tmp_path / "cache").glob("*.pt")
    whole = cached.read_bytes()
    half = len(whole) // 2
    flipped = whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :]  # a pixel of another colour
    for damaged in (whole[:2000], flipped, b""):
        cached.write_bytes(damaged)
        assert same(first, load(tree)) and f"{cached} is damaged" in capsys.readouterr().out
        assert cached.read_bytes() == whole
        assert same(first, load(tree)) and not capsys.readouterr().out


@pytest.mark.slow
def test_images_are_decoded_by_one_process_while_others_wait(tree, tmp_path):
    asked = DatasetSettings(name="cifar100", root=str(tree), download=False), str(tmp_path / "cache")
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        found = pool.starmap(said, [asked] * 4, chunksize=1)
    assert sum(decoded for decoded, _ in found) == 1 and len({digest for _, digest in found}) == 1


def said(settings: DatasetSettings, cache: str) -> tuple[bool, str]:
    """Whether this process has decoded the images, and a digest of them."""
    calls, decode = [], loading._decode
    loading._decode = lambda *words: calls.append(1) or time.sleep(0.3) or decode(*words)
    images = loading.load(settings, cache).train.images
    return bool(calls), hashlib.sha256(images.numpy().tobytes()).hexdigest()


def test_what_a_killed_process_left_in_the_cache_goes(tree, tmp_path):
    (cached,) = (load(tree), *(tmp_path / "cache").glob("*.pt"))[1:]
    cached.unlink()
    (cached.parent / f".{cached.name}.0123").write_bytes(b"half of it")
    load(tree)
    assert not list(cached.parent.glob(".*"))


def test_images_of_several_sizes_need_a_stored_size(tree):
    Image.new("RGB", (60, 40)).save(tree / "train" / "one" / "000.png")
    with pytest.raises(UserError, match=r"imagenette under .* has images of 2 sizes: set dataset\.stored_size"):
        load(tree, "imagenette")
    stored = load(tree, "imagenette", stored_size=24)
    assert stored.train.images.shape == (30, 3, 24, 24)


def test_torchvisions_layout_is_read(tree, tmp_path, monkeypatch):
    plain, root = load(tree), tmp_path / "torchvision"
    (root / "cifar-100-python").mkdir(parents=True)
    for name, split in (("train", plain.train), ("test", plain.test)):
        content = {"data": split.images.flatten(1).numpy(), "fine_labels": split.labels.tolist()}
        (root / "cifar-100-python" / name).write_bytes(pickle.dumps(content))
    (root / "cifar-100-python" / "meta").write_bytes(pickle.dumps({"fine_label_names": plain.classes}))
    monkeypatch.setattr(CIFAR100, "_check_integrity", lambda self: True)  # the real files have known digests
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *arguments: True)
    assert same(plain, load(root))


def test_missing_and_broken_data_are_named(tree, tmp_path):
    with pytest.raises(
        UserError, match=r"no cifar100 under .*/empty and none could be downloaded .*: set dataset\.root"
    ):
        load(tmp_path / "empty")
    with pytest.raises(UserError, match=r"no imagenette under .*/empty: set dataset\.root to a folder with train/"):
        load(tmp_path / "empty", "imagenette")
    broken = zipped(tree, tmp_path / "broken", {"train.zip": ["train"], "test.zip": ["test"]})
    (broken / "train.zip").write_bytes((broken / "train.zip").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"train\.zip is not a complete zip file"):
        load(broken)
    (tree / "train" / "one" / "000.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"train/one/000\.png is not an image that can be read"):
        load(tree)
