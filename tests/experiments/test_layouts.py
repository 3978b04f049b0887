"""Food-101 and ImageNet are read as torchvision and the archives lay them out, zips too. Errors name what lacks."""

import hashlib
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import images
import numpy as np
import pytest
import torch
from scipy.io import savemat
from torchvision import datasets
from torchvision.datasets import imagenet as torchvision_imagenet

from experiments.data import layouts, loading
from experiments.settings import DatasetSettings, UserError

WNIDS = ("n01440764", "n02102040", "n02979186")  # tench, English springer, cassette player
TRAIN, VAL = 4, 6  # images of a class, images
TRUTH = (2, 3, 1, 1, 2, 3)  # ILSVRC2012_IDs, which do not follow the wnids
IDS = {2: "n01440764", 3: "n02102040", 1: "n02979186"}


def load(root: Path, name: str, **changes) -> loading.Data:
    changes = {"stream": True, "workers": 0, "download": False} | changes
    return loading.load(DatasetSettings(name=name, root=str(root), **changes), str(root.parent / "cache"))


def listed(split) -> list[tuple[bytes, int]]:
    """The content of each image and its class, whatever the container."""
    return [(split.files.read(i), int(label)) for i, label in enumerate(split.labels)]


def of_torchvision(samples) -> list[tuple[bytes, int]]:
    return [(Path(file).read_bytes(), label) for file, label in samples]


# --- Food-101 -------------------------------------------------------------------------------------------------------


@pytest.fixture
def food(tmp_path):
    root, lists = tmp_path / "food", {"train": {}, "test": {}}
    for k, label in enumerate(("waffles", "apple_pie")):
        names = [f"{1000 + 37 * i * (k + 1)}" for i in range(5)]
        images.write(root / "food-101" / "images" / label, [f"{name}.jpg" for name in names], 10 * k)
        lists["train"][label] = [f"{label}/{name}" for name in names[1:4]]
        lists["test"][label] = [f"{label}/{name}" for name in (names[0], names[4])]
    (root / "food-101" / "meta").mkdir()
    for split, of in lists.items():
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(of))
        (root / "food-101" / "meta" / f"{split}.txt").write_text(
            "".join(f"{name}\n" for names in of.values() for name in names)
        )
    return root


def test_food101_is_read_as_torchvision_reads_it(food):
    ours = load(food, "food101")
    for split, name in ((ours.train, "train"), (ours.test, "test")):
        theirs = datasets.Food101(food, name)
        assert listed(split) == of_torchvision(zip(theirs._image_files, theirs._labels, strict=True))
    assert ours.classes == theirs.classes == ["apple_pie", "waffles"]
    assert listed(load(food / "food-101", "food101").train) == listed(ours.train)


def test_food101_fits_into_memory_at_one_size(food):
    stored = load(food, "food101", stream=False, stored_size=24)
    assert stored.train.images.shape == (6, 3, 24, 24) and stored.train.labels.tolist() == [1, 1, 1, 0, 0, 0]


def test_missing_food_is_named(food, tmp_path):
    with pytest.raises(
        UserError, match=r"no food101 under .*/empty \(.*\): set dataset\.root to the folder that holds"
    ):
        load(tmp_path / "empty", "food101")
    (food / "food-101" / "images" / "waffles" / "1037.jpg").unlink()
    with pytest.raises(UserError, match=r"not complete: 1 images are missing, the first is images/waffles/1037\.jpg"):
        load(food, "food101")


def test_food101_is_downloaded_by_torchvision(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(datasets.Food101, "_download", lambda self: asked.append(self.root))
    with pytest.raises(UserError, match=r"no food101 under .* \(Dataset not found.*\): set dataset\.root"):
        load(tmp_path, "food101", download=True)
    assert asked == [tmp_path]


# --- ImageNet -------------------------------------------------------------------------------------------------------


def packed(archive: Path, files: list[Path]) -> Path:
    with tarfile.open(archive, "w") as tar:
        for file in files:
            tar.add(file, file.name)
    return archive


def digest(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """ImageNet's three archives with three classes. The expected numbers of images are changed to fit."""
    monkeypatch.setattr(layouts, "IMAGENET_CLASSES", 3)
    monkeypatch.setattr(layouts, "IMAGENET", {"train": 3 * TRAIN, "val": VAL})
    root, raw = tmp_path / "imagenet", tmp_path / "raw"
    root.mkdir()
    for k, wnid in enumerate(reversed(WNIDS)):
        images.write(raw / wnid, [f"{wnid}_{i}.JPEG" for i in range(TRAIN)], 10 * k)
        packed(raw / f"{wnid}.tar", sorted((raw / wnid).iterdir()))
    images.write(raw / "val", [f"ILSVRC2012_val_{i + 1:08}.JPEG" for i in range(VAL)], 40)
    packed(root / "ILSVRC2012_img_train.tar", [raw / f"{wnid}.tar" for wnid in reversed(WNIDS)])
    packed(root / "ILSVRC2012_img_val.tar", sorted((raw / "val").iterdir(), reverse=True))
    kit = raw / layouts.DEVKIT / "data"
    kit.mkdir(parents=True)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in TRUTH))
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(number, wnid, f"word {wnid}, other", "a thing", 0) for number, wnid in IDS.items()]
    synsets = np.array([*rows, (4, "n00001740", "entity", "all", 3)], dtype=fields)
    savemat(kit / "meta.mat", {"synsets": synsets.reshape(-1, 1)})
    with tarfile.open(root / f"{layouts.DEVKIT}.tar.gz", "w:gz") as tar:
        tar.add(raw / layouts.DEVKIT, layouts.DEVKIT)
    return root


@pytest.fixture
def unpacked(archives, tmp_path, monkeypatch):
    """The same images, unpacked by torchvision."""
    root = tmp_path / "unpacked"
    root.mkdir()
    for archive in archives.iterdir():
        (root / archive.name).symlink_to(archive)
    meta = {kind: (name, digest(root / name)) for kind, (name, _) in torchvision_imagenet.ARCHIVE_META.items()}
    monkeypatch.setattr(torchvision_imagenet, "ARCHIVE_META", meta)
    theirs = {split: datasets.ImageNet(root, split) for split in ("train", "val")}
    for archive in root.glob("*.tar*"):
        archive.unlink()
    return root, theirs


def test_imagenet_is_read_as_torchvision_reads_it(archives, unpacked):
    root, theirs = unpacked
    folders, packed = load(root, "imagenet"), load(archives, "imagenet")
    assert folders.classes == packed.classes == theirs["train"].wnids == list(WNIDS)
    for ours in (folders, packed):
        assert listed(ours.train) == of_torchvision(theirs["train"].samples)
        assert sorted(listed(ours.test)) == sorted(of_torchvision(theirs["val"].samples))
    assert packed.test.labels.tolist() == [WNIDS.index(IDS[number]) for number in TRUTH]


def test_validation_images_may_lie_side_by_side(archives, unpacked, tmp_path):
    root, _ = unpacked
    for file in (root / "val").glob("*/*"):
        file.rename(root / "val" / file.name)
    for folder in (root / "val").glob("n*"):
        folder.rmdir()
    with pytest.raises(UserError, match=r"no ground truth .*: put ILSVRC2012_devkit_t12\.tar\.gz into .*/unpacked"):
        load(root, "imagenet")
    expected = listed(load(archives, "imagenet").test)
    (root / layouts.DEVKIT).symlink_to(tmp_path / "raw" / layouts.DEVKIT)
    assert listed(load(root, "imagenet").test) == expected
    (root / layouts.DEVKIT).unlink()
    (root / f"{layouts.DEVKIT}.tar.gz").symlink_to(archives / f"{layouts.DEVKIT}.tar.gz")
    assert listed(load(root, "imagenet").test) == expected
    next((root / "val").iterdir()).unlink()
    with pytest.raises(UserError, match=r"/val has 5 validation images, the ground truth .* is of 6: get it again"):
        load(root, "imagenet")


def test_an_archives_index_is_made_once_and_again_if_damaged(archives, monkeypatch):
    first = listed(load(archives, "imagenet").train)
    (index,) = (archives.parent / "cache").glob("ILSVRC2012_img_train-*.json")
    with monkeypatch.context() as patch:
        patch.setattr(layouts, "_tar_images", None)  # indexing again would fail
        assert listed(load(archives, "imagenet").train) == first
    index.write_bytes(index.read_bytes()[:100])
    assert listed(load(archives, "imagenet").train) == first


def test_images_from_an_archive_are_streamed(archives):
    ours = load(archives, "imagenet", workers=2)
    ((batch, labels),) = loading.train_batches(ours.train, 12, 32, torch.Generator().manual_seed(0))
    ((alone, _),) = loading.train_batches(load(archives, "imagenet").train, 12, 32, torch.Generator().manual_seed(0))
    assert torch.equal(batch, alone) and labels.bincount().tolist() == [TRAIN] * 3


def test_incomplete_imagenets_are_named(archives, unpacked, tmp_path):
    with pytest.raises(UserError, match=r"no imagenet under .*/empty: set dataset\.root to a folder with train/ and"):
        load(tmp_path / "empty", "imagenet")
    archive = archives / "ILSVRC2012_img_train.tar"
    archive.write_bytes(archive.read_bytes()[:-15_000])
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train\.tar is not a complete tar file \(.*\): get it again"):
        load(archives, "imagenet")
    root, _ = unpacked
    next((root / "train" / WNIDS[0]).iterdir()).unlink()
    with pytest.raises(UserError, match=r"not complete: 3 classes for 3, images {'train': 11, 'val': 6} for"):
        load(root, "imagenet")


# --- zips and folders -----------------------------------------------------------------------------------------------


def test_zips_are_streamed_like_the_folders_in_them(tmp_path):
    tree, zips = images.tree(tmp_path / "tree"), tmp_path / "zips"
    zips.mkdir()
    for split, how in (("train", zipfile.ZIP_STORED), ("test", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(zips / f"{split}.zip", "w", how) as archive:
            for file in sorted((tree / split).rglob("*.jpg")):
                archive.write(file, file.relative_to(tree))
    plain, packed = load(tree, "folder"), load(zips, "folder", workers=2)
    assert listed(plain.train) == listed(packed.train) and listed(plain.test) == listed(packed.test)
    ours, theirs = (loading.train_batches(d.train, 4, 32, torch.Generator().manual_seed(0)) for d in (plain, packed))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(ours, theirs, strict=True))


def test_a_split_without_images_is_named(tmp_path):
    tree = images.tree(tmp_path / "tree", test=0)
    for folder in (tree / "test").iterdir():
        folder.rmdir()
    with pytest.raises(UserError, match=r"folder under .*/tree has no images for testing"):
        load(tree, "folder")
    with pytest.raises(UserError, match=r"no folder under .*/empty: set dataset\.root to a folder with train/"):
        load(tmp_path / "empty", "folder")


@pytest.mark.parametrize("name", ["folder", "imagenette"])
def test_a_link_that_leads_nowhere_is_named(name, tmp_path):
    tree = images.tree(tmp_path / "tree", train=2, test=1)
    (tree / "train" / "ash" / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    settings = DatasetSettings(name=name, root=str(tree), stored_size=8)
    with pytest.raises(UserError, match=r"train/ash/lost\.jpg cannot be read \(No such file or directory\): get it"):
        loading.dataset_id(settings) if name == "folder" else loading.load(settings, str(tmp_path / "cache"))


# --- folders ----------------------------------------------------------------------------------------------------------


def test_classes_may_be_links_and_what_is_no_image_does_not_count(tmp_path):
    for place in ("a", "b"):
        real = images.tree(tmp_path / place / "real", train=2, test=1)
        for split in ("train", "test"):
            (tmp_path / place / "set" / split).mkdir(parents=True)
            for label in (real / split).iterdir():
                (tmp_path / place / "set" / split / label.name).symlink_to(label)
    images.write(tmp_path / "b" / "real" / "train" / "ash", ["001.jpg"], 5)  # the same names

    def identity(place: str) -> str:
        return loading.dataset_id(DatasetSettings(name="folder", stream=True, root=str(tmp_path / place / "set")))

    first = identity("a")
    assert first != identity("b")
    (tmp_path / "a" / "set" / "train" / ".DS_Store").touch()
    images.write(tmp_path / "a" / "set" / "train" / ".thumbnails", ["1.jpg"], 0)
    assert identity("a") == first
    assert load(tmp_path / "a" / "set", "folder").classes == ["ash", "birch"]


def test_folders_below_a_class_belong_to_it(tmp_path):
    root = images.tree(tmp_path / "tree", train=2, test=1)
    images.write(root / "train" / "ash" / "young" / "bark", ["001.jpg", "002.jpg"], 5)
    found, theirs = load(root, "folder"), datasets.ImageFolder(root / "train")
    assert found.classes == theirs.classes == ["ash", "birch"]
    assert found.train.labels.tolist() == theirs.targets
    (tmp_path / "zips").mkdir()
    for split in ("train", "test"):
        for name, base in (("zips", root), ("bare", root / split)):
            (tmp_path / name).mkdir(exist_ok=True)
            shutil.make_archive(str(tmp_path / name / split), "zip", base, split if base == root else ".")
    for name in ("zips", "bare"):
        zipped = load(tmp_path / name, "folder")
        assert zipped.classes == found.classes and zipped.train.labels.tolist() == theirs.targets


def test_images_of_no_class_and_classes_of_no_image_are_named(tmp_path):
    root = images.tree(tmp_path / "tree", train=2, test=1)
    (root / "train" / "cedar").mkdir()
    with pytest.raises(UserError, match="cedar has no images, and folders are classes here: fill or remove it"):
        load(root, "folder")
    (tmp_path / "zips").mkdir()
    for split in ("train", "test"):
        shutil.make_archive(str(tmp_path / "zips" / split), "zip", root / split / "ash", ".")
    with pytest.raises(UserError, match=r"train\.zip has images that are in no folder, and folders are classes"):
        load(tmp_path / "zips", "folder")


def test_a_class_without_training_images_is_named(tmp_path):
    root = images.tree(tmp_path / "tree", train=2, test=1)
    images.write(root / "train" / "cedar", ["1.tif"], 0)
    assert load(root, "folder").classes == ["ash", "birch", "cedar"]
    images.write(root / "test" / "oak", ["1.jpg"], 0)
    with pytest.raises(UserError, match="has no training images of the class 'oak'"):
        load(root, "folder")


def test_a_damaged_zip_is_named(tmp_path):
    root = images.tree(tmp_path / "tree", train=2, test=1)
    for split in ("train", "test"):
        with zipfile.ZipFile(tmp_path / f"{split}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted((root / split).rglob("*.jpg")):
                archive.write(file, file.relative_to(root / split))
    content = bytearray((tmp_path / "train.zip").read_bytes())
    content[150:400] = bytes(250)
    (tmp_path / "train.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.zip/ash/\d+\.jpg is not an image that can be read"):
        load(tmp_path, "folder", stream=False, stored_size=32)
