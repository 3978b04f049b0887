"""The check of ImageNet weights counts right, also on real images where DPIAT_IMAGENETTE names their folder."""

import os
from pathlib import Path

import images
import pytest
import torch
from torch import nn

from experiments import check_weights, models
from experiments.data import layouts
from experiments.results import paper
from experiments.settings import DatasetSettings, UserError

SPRINGER, CHURCH = 217, 497  # ImageNet's indices of n02102040 and n03028079


class Constant(nn.Module):
    """A network that always has the same two best outputs, in this order."""

    pretrained_cfg = {"input_size": (3, 16, 16)}  # noqa: RUF012

    def __init__(self, first: int, second: int):
        super().__init__()
        self.outputs = torch.zeros(1000)
        self.outputs[first], self.outputs[second] = 2, 1

    def forward(self, images):
        assert images.shape[1:] == (3, 16, 16)
        return self.outputs.expand(len(images), -1)


@pytest.fixture
def listing(tmp_path) -> layouts.Listing:
    root = images.tree(tmp_path / "tree", train=1, test=3, classes=("n03028079", "n02102040"))
    (root / "test" / "n03028079" / "002.jpg").unlink()
    return layouts.find_images(DatasetSettings(name="imagenette", root=str(root)), tmp_path)


def test_both_accuracies_are_counted(listing, monkeypatch):
    monkeypatch.setattr(models, "build", lambda name, classes, imagenet: Constant(3, SPRINGER))
    monkeypatch.setattr(check_weights, "BATCH", 2)
    assert check_weights.check("any", listing) == (0, 3 / 5, 16)  # among all 1000, no image shows class 3
    monkeypatch.setattr(models, "build", lambda name, classes, imagenet: Constant(CHURCH, SPRINGER))
    assert check_weights.check("any", listing) == (2 / 5, 2 / 5, 16)


def test_classes_find_their_outputs(listing):
    assert check_weights.imagenet_indices(listing.classes) == [SPRINGER, CHURCH]
    with pytest.raises(UserError, match="tench is not a class of ImageNet: the folders must have the names of wnids"):
        check_weights.imagenet_indices(["tench"])


def test_the_command_prints_a_row_for_each_network(tmp_path, listing, monkeypatch, capsys):
    monkeypatch.setattr(models, "build", lambda name, classes, imagenet: Constant(CHURCH, SPRINGER))
    check_weights.main(["--root", str(tmp_path / "tree"), "--images", "4", "one", "two"])
    printed = capsys.readouterr().out
    assert "4 test images of 2 classes" in printed and "| one | 16 | 0.250 | 0.250 |\n| two |" in printed
    with pytest.raises(SystemExit, match=r"error: no imagenette under .*/nowhere"):
        check_weights.main(["--root", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit):
        check_weights.main(["--root", str(tmp_path / "tree"), "--images", "0"])
    assert "--images must be 1 or more, got 0" in capsys.readouterr().err


@pytest.mark.skipif("DPIAT_IMAGENETTE" not in os.environ, reason="DPIAT_IMAGENETTE names no folder of Imagenette")
def test_real_weights_know_real_images(tmp_path):
    """EfficientNet-Lite0 is right on three of four images of ImageNet, and far more often among ten classes."""
    root = Path(os.environ["DPIAT_IMAGENETTE"])
    listing = layouts.find_images(DatasetSettings(name="imagenette", root=str(root)), tmp_path)
    found = check_weights.check("eff_lite0", check_weights._evenly(listing, 60))
    assert found.among_all > 0.45 and found.among_these > 0.85 and found.size == 224


def test_the_weights_of_the_papers_networks_are_of_imagenet_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(models.timm, "create_model", lambda name, **arguments: asked.append((name, arguments)))
    for name in paper.LABELS.values():
        models.build(name, 10, imagenet=True)
    assert all(arguments == {"num_classes": 10, "pretrained": True} for _, arguments in asked)
    tags = [models.timm.get_pretrained_cfg(name).tag for name, _ in asked]
    assert len(tags) == 9 and all(tag.endswith("in1k") and "jft" not in tag for tag in tags)
