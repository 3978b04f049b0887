"""The pictures are written, show what was matched, are the same every time, and cost nothing until they are drawn."""

import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from networks import larger, on_meta, small
from torch import nn

from dpiat import Architecture, Block, Layer, similarity, standardize
from dpiat.assignment import best
from dpiat.plotting import plot_matching, plot_similarity

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def networks():
    return {name: standardize(on_meta(name)) for name in ("resnet18", "resnet34", "tf_efficientnet_b0")}


def texts(axes):
    return [text.get_text() for text in axes.texts]


def bands(axes):
    return [patch.get_gid() for patch in axes.patches if (patch.get_gid() or "").startswith("match-")]


def draw(picture, networks, file):
    if picture == "matching":
        return plot_matching(networks["resnet18"], networks["resnet34"], file)
    return plot_similarity(networks, file)


@pytest.mark.slow
@pytest.mark.parametrize("picture", ["matching", "similarity"])
def test_files_are_pictures(picture, networks, tmp_path):
    for suffix, start in ((".png", b"\x89PNG\r\n\x1a\n"), (".svg", b"<?xml"), (".PDF", b"%PDF")):
        file = tmp_path / f"picture{suffix}"
        draw(picture, networks, file)
        assert file.read_bytes().startswith(start) and file.stat().st_size > 5000
    image = matplotlib.image.imread(tmp_path / "picture.png")
    assert min(image.shape[:2]) > 300 and np.unique(image[:, :, 0]).size > 20
    svg = (tmp_path / "picture.svg").read_text()
    assert "</svg>" in svg and "<dc:date>" not in svg
    assert b"/CreationDate" not in (tmp_path / "picture.PDF").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("picture", ["matching", "similarity"])
@pytest.mark.parametrize("suffix", [".svg", ".pdf", ".png"])
def test_equal_pictures_are_equal_files(picture, suffix, networks, tmp_path):
    files = [tmp_path / f"{name}{suffix}" for name in ("first", "second")]
    for file in files:
        draw(picture, networks, file)
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(("source", "target"), [("resnet18", "resnet34"), ("tf_efficientnet_b0", "resnet18")])
def test_one_band_for_each_pair_of_blocks(source, target, networks, tmp_path):
    source, target = networks[source], networks[target]
    axes = plot_matching(source, target, tmp_path / "matching.svg")
    matching = best(source, target)
    expected = [f"match-{source.blocks.index(s)}-{target.blocks.index(t)}" for s, t in matching.blocks]
    assert bands(axes) == expected
    (lines,) = [c for c in axes.collections if c.get_gid() == "layers"]
    assert len(lines.get_paths()) == len(matching.layers)
    svg = (tmp_path / "matching.svg").read_text()
    assert all(f'id="{gid}"' in svg for gid in expected)


def test_a_better_match_is_darker():
    def network(width: int) -> nn.Module:
        return nn.Sequential(*(nn.Sequential(nn.Conv2d(w, w, 3), nn.Conv2d(w, w, 3)) for w in (width, 8)))

    axes = plot_matching(network(4), network(32))
    worse, better = (patch.get_alpha() for patch in axes.patches if patch.get_gid())
    assert 0 < worse < better < 1


def test_blocks_networks_and_kinds_are_named(networks):
    source, target = networks["resnet18"], networks["tf_efficientnet_b0"]
    axes = plot_matching(source, target, names=("old", r"new $\none$"))
    named = {block.name for block in (*source.blocks, *target.blocks) if not block.run}
    assert named | {"old", r"new $\none$"} <= set(texts(axes))
    assert f"{similarity(source, target):.2f}" in axes.get_title() and "old → new" in axes.get_title()
    kinds = {text.get_text() for text in axes.get_legend().get_texts()}
    assert {"convolution", "batch norm", "linear"} <= kinds and "other with weights" not in kinds


def test_labels_do_not_overlap(networks):
    for source, target in (("tf_efficientnet_b0", "resnet34"), ("resnet18", "tf_efficientnet_b0")):
        axes = plot_matching(networks[source], networks[target])
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert all(axes.figure.bbox.x0 <= box.x0 and box.x1 <= axes.figure.bbox.x1 for box in boxes)


def test_long_names_are_cut_and_many_labels_thinned():
    module = nn.Sequential()
    for i in range(200):
        module.add_module(f"layer_with_a_name_of_more_than_thirty_letters_{i}", nn.Linear(4, 4))
    shown = texts(plot_matching(module, nn.Linear(4, 4), axes=Figure((8, 6)).add_subplot()))
    assert 20 < len(shown) < 120 and all(len(text) <= 28 for text in shown)


@pytest.mark.parametrize("other", [nn.ReLU(), Architecture("nothing", ())])
def test_networks_without_weights_have_no_bands(other):
    assert bands(plot_matching(nn.Linear(2, 2), other)) == bands(plot_matching(other, other)) == []


def test_similarities_are_written_in_the_cells(networks):
    axes = plot_similarity(networks)
    values = [f"{similarity(a, b):.2f}" for a in networks.values() for b in networks.values()]
    assert texts(axes) == values
    assert [label.get_text() for label in axes.get_xticklabels()] == list(networks)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(networks)


def test_labels_may_be_numbers():
    for axes in (plot_similarity(np.eye(2), labels=[18, 34]), plot_similarity({18: nn.Linear(2, 2), 34: nn.ReLU()})):
        assert [label.get_text() for label in axes.get_xticklabels()] == ["18", "34"]


def test_a_ready_array_with_labels():
    axes = plot_similarity(np.array([[1.0, np.nan], [0.3, 1.0]]), labels=["a", "b"])
    assert texts(axes) == ["1.00", "0.30", "1.00"]
    assert [text.get_color() for text in axes.texts] == ["black", "white", "black"]


def test_given_axes_are_used(networks, tmp_path):
    figure = Figure(figsize=(12, 5))
    left, right = figure.subplots(1, 2)
    assert plot_matching(networks["resnet18"], networks["resnet34"], axes=left) is left
    assert plot_similarity(networks, tmp_path / "both.png", axes=right) is right
    assert (tmp_path / "both.png").stat().st_size > 5000


@pytest.mark.parametrize("name", ["picture.jpg", "picture", "picture.png.txt"])
def test_other_suffixes_are_refused(name, networks, tmp_path):
    for picture in ("matching", "similarity"):
        with pytest.raises(ValueError, match=r"^[^\n]*use \.png, \.svg, \.pdf$"):
            draw(picture, networks, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="target must be"):
        plot_matching(nn.Linear(2, 2), 3)
    with pytest.raises(TypeError, match="first must be"):
        plot_similarity({"first": 3})
    with pytest.raises(ValueError, match="as many labels, got 1"):
        plot_similarity(np.eye(2), labels=["one"])
    for empty in ({}, np.zeros((2, 3)), np.zeros(4)):
        with pytest.raises(ValueError, match="square array"):
            plot_similarity(empty)


def test_drawing_changes_no_tensor(tmp_path):
    pair = small(10), larger(4)
    before = [{key: tensor.clone() for key, tensor in network.state_dict().items()} for network in pair]
    plot_matching(*pair, tmp_path / "matching.png")
    plot_similarity(dict(zip("ab", pair, strict=True)))
    for network, state in zip(pair, before, strict=True):
        assert network.training and network.state_dict().keys() == state.keys()
        assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())


@pytest.mark.slow
def test_matplotlib_is_needed_only_to_draw_and_pyplot_never():
    code = """
import sys, torch
from dpiat.plotting import plot_matching
assert "matplotlib" not in sys.modules
layer = torch.nn.Linear(2, 2)
plot_matching(layer, layer)
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
sys.modules["matplotlib"] = None  # as if it were not installed
plot_matching(layer, layer)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.stderr.endswith("ModuleNotFoundError: plots need matplotlib: pip install matplotlib\n")


def test_equal_blocks_of_one_object_are_told_apart():
    block = Block("b", (Layer("c", "Conv2d", (8, 8, 3, 3)), Layer("d", "Conv2d", (8, 8, 1, 1))))
    network = Architecture("four", (block,) * 4)
    axes = plot_matching(network, network)
    bands = {patch.get_gid() for patch in axes.patches if (patch.get_gid() or "").startswith("match-")}
    assert bands == {f"match-{i}-{i}" for i in range(4)}
