"""Data in memory: the augmentation agrees with torchvision's transforms, and seeds mean what they always did."""

import hashlib

import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from experiments import grids
from experiments.data import augmentation, loading
from experiments.datasets import DATASETS
from experiments.settings import DatasetSettings


@pytest.fixture
def photos():
    from sklearn.datasets import load_sample_images

    photos = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]
    return torch.stack([photo[:, 50:250, 100:340] for photo in photos])  # (2, 3, 200, 240) uint8


@pytest.mark.parametrize("size", [64, 160, 300])
def test_crops_equal_torchvision(photos, size):
    boxes = torch.tensor([[13, 7, 120, 151], [0, 40, 200, 200]])
    flip = torch.tensor([False, True])
    ours = augmentation.resized_crops(photos, boxes, size, flip)
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        theirs = F.resized_crop(photos[i].float() / 255, top, left, height, width, [size, size], antialias=True)
        theirs = F.normalize(F.horizontal_flip(theirs) if flip[i] else theirs, augmentation.MEAN, augmentation.STD)
        torch.testing.assert_close(ours[i], theirs, atol=1e-4, rtol=0)


def test_boxes_are_distributed_as_in_torchvision():
    image, n = torch.empty(3, 60, 90), 4000
    ours = augmentation.random_boxes(n, 60, 90, (0.1, 1.0), torch.Generator().manual_seed(0)).double()
    torch.manual_seed(0)
    theirs = [RandomResizedCrop.get_params(image, scale=(0.1, 1.0), ratio=(3 / 4, 4 / 3)) for _ in range(n)]
    theirs = torch.tensor(theirs, dtype=torch.float64)
    quantiles = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    torch.testing.assert_close(ours.quantile(quantiles, 0), theirs.quantile(quantiles, 0), atol=2.5, rtol=0.03)
    assert (ours[:, 0] + ours[:, 2]).max() <= 60 and (ours[:, 1] + ours[:, 3]).max() <= 90 and ours[:, 2:].min() > 0


def test_boxes_fall_back_to_the_centre_when_nothing_fits():
    boxes = augmentation.random_boxes(5, 10, 200, (1.0, 1.0), torch.Generator().manual_seed(0))
    assert boxes.tolist() == [[0, 93, 10, 13]] * 5  # the largest box of ratio 4/3


def test_test_images_equal_torchvision(photos):
    split = loading.Split(photos, torch.zeros(2, dtype=torch.long))  # 200 × 240
    ((images, _),) = loading.test_batches(split, 128, 96)
    theirs = F.resize(F.center_crop(photos.float() / 255, 200), 96, antialias=True)
    torch.testing.assert_close(images, F.normalize(theirs, augmentation.MEAN, augmentation.STD), atol=1e-4, rtol=0)


def test_an_epoch_sees_every_image_once_and_drops_the_rest():
    split = loading.Split(torch.zeros(10, 3, 8, 8, dtype=torch.uint8), torch.arange(10))
    batches = [labels for _, labels in loading.train_batches(split, 4, 8, torch.Generator().manual_seed(1))]
    assert [len(labels) for labels in batches] == [4, 4]
    assert len(torch.cat(batches).unique()) == 8


def test_digits_are_the_real_ones():
    digits = loading.load(DatasetSettings(name="digits"), "unused")
    assert len(digits.train.labels) + len(digits.test.labels) == len(load_digits().target)
    assert digits.train.images.shape[1:] == (3, 32, 32) and digits.train.images.dtype == torch.uint8
    assert digits.train.labels.bincount().min() > 130 and digits.test.labels.bincount().min() > 30


def test_subsets_are_stratified_and_seeded():
    digits = loading.load(DatasetSettings(name="digits"), "unused")
    subset, again = loading.stratified(digits.train, 200), loading.stratified(digits.train, 200)
    other = loading.stratified(digits.train, 200, seed=1)
    assert torch.equal(subset.images, again.images) and not torch.equal(subset.images, other.images)
    expected = digits.train.labels.bincount() * 200 / len(digits.train.labels)
    assert (subset.labels.bincount() - expected).abs().max() <= 1


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16]


def test_seeds_give_the_batches_that_the_records_were_made_with():
    """Order, crops and generator states are as in the first records, so that trials can be added to the records."""
    digits = loading.load(DatasetSettings(name="digits"), "unused")
    generator = torch.Generator().manual_seed(5)
    epochs = [list(loading.train_batches(digits.train, 128, 16, generator)) for _ in range(2)]
    assert digest(digits.train.images) == "8606bb829a9cdba3"
    assert digest(torch.cat([labels for epoch in epochs for _, labels in epoch])) == "a71fbdf289cfcb02"
    assert digest(generator.get_state()) == "fef67cc38343a291"
    means = [images.mean().item() for images, _ in epochs[0][:3]]
    assert means == pytest.approx([-0.3631, -0.3645, -0.3726], abs=1e-4)
    boxes = augmentation.random_boxes(3, 60, 90, (0.1, 1.0), torch.Generator().manual_seed(5))
    assert boxes.tolist() == [[5, 19, 36, 32], [0, 4, 58, 60], [2, 19, 55, 69]]


def test_each_data_set_has_a_file_that_says_the_same():
    assert sorted(DATASETS) == grids.names("dataset")
    for name, known in DATASETS.items():
        text = (grids.CONFIGS / "dataset" / f"{name}.yaml").read_text()
        assert f"\nname: {name}\n" in text and ("\nstream: true" in text) == known.streamed
        if name not in ("digits", "folder"):
            assert f"{known.train_images:,} training and {known.test_images:,} " in text
            assert f" {known.classes:,} classes" in text.replace("ten", "10")


def test_digits_are_as_many_as_is_said():
    digits, known = loading.load(DatasetSettings(name="digits"), "unused"), DATASETS["digits"]
    found = len(digits.train.labels), len(digits.test.labels), len(digits.classes)
    assert found == (known.train_images, known.test_images, known.classes)
