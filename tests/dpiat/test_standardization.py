"""Algorithm 1 on the paper's examples and on small networks of each topology."""

import copy

import pytest
import torch
from networks import PAPER, on_meta
from timm import layers
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dpiat import Layer, load, similarity, standardize, transfer
from dpiat.scoring import score


def blocks(network: nn.Module, mode: str = "default") -> list[list[str]]:
    return [[layer.kind for layer in block.layers] for block in standardize(network, mode).blocks]


def conv_bn(channels: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, channels, 3), nn.BatchNorm2d(channels), nn.ReLU()]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*conv_bn(8), *conv_bn(8))
        self.scale = nn.Parameter(torch.ones(8, 1, 1))


def test_an_inverted_residual_is_one_block_with_its_squeeze_and_excitation():
    """Figure 7."""
    architecture = standardize(on_meta("tf_efficientnet_b0"))
    (block,) = [block for block in architecture.blocks if block.name == "blocks.1.1"]
    weighted = [layer.name.removeprefix("blocks.1.1.") for layer in block.layers if layer.shape]
    assert weighted == ["conv_pw", "bn1", "conv_dw", "bn2", "se.conv_reduce", "se.conv_expand", "conv_pwl", "bn3"]
    assert block.layers[0].kind == "Conv2d" and block.layers[0].shape == (144, 24, 1, 1)


class Wrapped(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.inner = nn.Sequential(network)
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(3))


@pytest.mark.parametrize("wrap", [AveragedModel, Wrapped, nn.Sequential])
@pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnet_lite0"])
def test_a_wrapped_network_has_the_same_blocks(wrap, name):
    network = on_meta(name)
    assert set(contents(network)) <= set(contents(wrap(network)))
    assert similarity(wrap(network), network) == pytest.approx(1, abs=0.02)


def contents(network: nn.Module) -> list[tuple]:
    found = ([(layer.kind, layer.shape) for layer in block.layers] for block in standardize(network).blocks)
    return [tuple(block) for block in found]


def test_an_efficientnet_is_stem_blocks_and_head():
    """Figure 8: single layers before and after, 16 blocks between."""
    for mode, before, after in (("default", 1, 1), ("paper", 2, 5)):
        blocks = standardize(on_meta("tf_efficientnet_b0"), mode).blocks
        sizes = [len(block.layers) > 3 for block in blocks]
        assert sum(sizes) == 16 and sizes == [False] * before + [True] * 16 + [False] * after
        assert [block.run for block in blocks] == [mode == "default" and not size for size in sizes]


def test_layer_counts_are_near_those_of_the_paper():
    """Appendix A.3: 199, 281, 291, 183; pooling and dropout are nested a little differently in today's timm."""
    for name, count in {"Eff-B0": 199, "Eff-B2": 281, "Mix-L": 291, "ReX": 183}.items():
        assert abs(len(standardize(on_meta(PAPER[name]), "paper").layers) - count) <= 2


def test_plain_layers_stay_single():
    assert blocks(nn.Sequential(*conv_bn(4)), "paper") == [["Conv2d"], ["BatchNorm2d"], ["ReLU"]]
    assert blocks(nn.Sequential(*conv_bn(4))) == [["Conv2d"], ["BatchNorm2d"]]


def test_groups_of_blocks_are_unpacked_one_level():
    stage = nn.Sequential(nn.Sequential(*conv_bn(4), *conv_bn(4)), nn.Sequential(*conv_bn(4), *conv_bn(4)))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), stage, nn.Linear(4, 2))
    assert [len(block) for block in blocks(network, "paper")] == [1, 6, 6, 1]
    assert [len(block) for block in blocks(network)] == [1, 4, 4, 1]  # activations have no weights


class Macaron(nn.Module):
    """A layer of two alike parts, as a Conformer's: the numbers in their names make no list of them."""

    def __init__(self):
        super().__init__()
        self.ffn1 = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8))
        self.conv = nn.Conv1d(8, 8, 3)
        self.ffn2 = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8))


@pytest.mark.parametrize("stored", [False, True])
def test_numbered_parts_of_an_element_are_in_its_block(stored):
    network = nn.Sequential(nn.Linear(4, 8), nn.ModuleList([Macaron(), Macaron()]), nn.Linear(8, 2))
    found = standardize(load(network.state_dict()) if stored else network)
    elements = [block for block in found.blocks if not block.run]
    assert [block.name for block in elements] == ["1.0", "1.1"]
    assert [len(block.layers) for block in elements] == [7, 7]


def test_a_child_with_one_convolution_joins_its_parent():
    network = nn.Sequential(nn.Sequential(nn.Sequential(*conv_bn(4)), nn.Sequential(*conv_bn(4))), nn.Linear(4, 2))
    assert blocks(network, "paper") == [["Conv2d", "BatchNorm2d", "ReLU"] * 2, ["Linear"]]
    assert blocks(network) == [["Conv2d", "BatchNorm2d"] * 2, ["Linear"]]


def test_a_subclass_with_children_is_one_layer_of_its_kind():
    class NormAct(nn.BatchNorm2d):
        def __init__(self, channels: int):
            super().__init__(channels)
            self.act = nn.ReLU()

    (block,) = standardize(NormAct(4)).blocks
    assert [(layer.kind, layer.shape) for layer in block.layers] == [("BatchNorm2d", (4,))]


def test_bare_parameters_are_layers_but_not_in_paper_mode():
    network = nn.Sequential(Residual(), nn.Linear(8, 2))
    assert [layer.name for layer in standardize(network).layers if layer.kind == "Parameter"] == ["0.scale"]
    assert all(layer.kind != "Parameter" for layer in standardize(network, "paper").layers)


def test_paper_mode_gives_other_kinds_no_shape():
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.BatchNorm1d(4, affine=False))
    assert [layer.shape for layer in standardize(network, "paper").layers] == [(4, 4), (), ()]
    assert [layer.shape for layer in standardize(network).layers] == [(4, 4), (4,), (4,)]


def test_printing_shows_every_layer():
    text = str(standardize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "paper"))
    assert "2 blocks, 2 layers, 1 with weights" in text and "0: Conv2d[4, 3, 3, 3]" in text and "1: ReLU" in text


def test_what_is_not_a_network_is_refused():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got dict"):
        standardize({})
    with pytest.raises(ValueError, match="mode must be one of default, paper, got 'fast'"):
        standardize(nn.ReLU(), "fast")
    with pytest.raises(ValueError, match="layer '1' has lazy parameters without a shape: run one forward pass first"):
        standardize(nn.Sequential(nn.ReLU(), nn.LazyLinear(3)))
    with pytest.raises(ValueError, match=r"^the network has lazy parameters"):
        standardize(nn.LazyLinear(3))


def test_packed_weights_are_refused_by_name():
    quantized = nn.Sequential(nn.Conv2d(3, 8, 3), torch.ao.nn.quantized.dynamic.Linear(8, 4))
    with pytest.raises(ValueError, match=r"1\._packed_params has packed weights, as quantized layers do"):
        standardize(quantized)


def test_integers_whose_scale_is_saved_apart_are_packed_weights():
    class Scaled(nn.Linear):
        scale = None

        def _save_to_state_dict(self, destination, prefix, keep_vars):
            super()._save_to_state_dict(destination, prefix, keep_vars)
            if self.scale is not None:
                destination[prefix + "scale"] = self.scale

    network = nn.Sequential(nn.Linear(4, 4), Scaled(4, 3))
    assert standardize(network).max_score == 2
    network[1].scale = torch.ones(3)
    assert standardize(network).max_score == 2
    network[1].weight = nn.Parameter(network[1].weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="1 has packed weights, as quantized layers do"):
        standardize(network)


def test_equal_modules_are_not_one():
    class Part(nn.Linear):
        def __eq__(self, other):
            return isinstance(other, Part)

        def __hash__(self):
            return 0

    assert standardize(nn.Sequential(Part(4, 4), Part(4, 3))).max_score == 2


@pytest.mark.parametrize("mode", ["default", "paper"])
def test_the_shape_of_a_layer_is_that_of_its_weight_whatever_else_it_keeps(mode):
    layer = nn.Conv2d(3, 8, 3)
    layer.observer = nn.Module()
    layer.observer.register_buffer("histogram", torch.zeros(2048))
    assert standardize(nn.Sequential(layer, nn.Flatten()), mode).layers[0].shape == (8, 3, 3, 3)


def test_roles_that_shapes_alone_miss():
    layers = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2), nn.ConvTranspose1d(4, 8, 3, groups=4)
    kinds = ["DepthwiseConv2d", "GroupedConv2d", "DepthwiseConvTranspose1d"]
    network = nn.Sequential(*layers)
    assert [layer.kind for layer in standardize(network).layers] == kinds
    assert [layer.kind for layer in standardize(network, "paper").layers] == ["Conv2d", "Conv2d", "ConvTranspose1d"]
    dense, depthwise = (Layer("", kind, (8, 1, 3, 3)) for kind in ("Conv2d", "DepthwiseConv2d"))
    assert score(dense, depthwise) == 0


def test_subclasses_and_other_names_of_a_norm_are_one_kind():
    ours = [nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4)]
    theirs = [
        *(layers.LayerNormAct2d(4), layers.GroupNormAct(4, 2), layers.RmsNormAct2d(4)),
        *(layers.FrozenBatchNormAct2d(4), nn.SyncBatchNorm(4)),
    ]
    for a, b in zip(ours, theirs, strict=True):
        assert standardize(a).layers[0].signature == standardize(b).layers[0].signature, b
    assert standardize(layers.LayerNormAct2d(4), "paper").layers[0].kind != "LayerNorm"


def test_a_parameter_of_a_single_number_is_a_layer():
    network = nn.Sequential(nn.Linear(2, 2))
    network.gain = nn.Parameter(torch.tensor(3.0))
    assert standardize(network).layers[0] == Layer("gain", "Parameter", (1,))
    other = copy.deepcopy(network)
    other.gain.data.fill_(1)
    assert transfer(network, other).share == 1 and other.gain == 3


@pytest.mark.parametrize("name", ["resnet26t", "senet154", "resnet18", "vit_tiny_patch16_224"])
def test_what_a_network_begins_with_is_a_run(name):
    """The deep stems of ResNet-D are a module with a number, "conv1", as blocks are."""
    network = on_meta(name)
    first, second = standardize(network).blocks[:2]
    assert first.run and not second.run and second.name in ("layer1.0", "blocks.0")
    assert standardize(load(network.state_dict())).blocks[0].layers[0].name == first.layers[0].name
