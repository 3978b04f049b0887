"""Equivalent forms of a layer: what one library writes as a convolution, another writes as a linear layer."""

import copy

import pytest
import timm
import torch
import transformers as hf
from functions import differ, distance, on_meta, output, randomized, zeroed
from timm.layers import SEModule
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.video import resnet as video
from transformers.pytorch_utils import Conv1D

from dpiat import Plan, plan, similarity, transfer

as_given = pytest.mark.parametrize("stored", [False, True], ids=["module", "state dict"])
directions = pytest.mark.parametrize("there", [True, False], ids=["there", "back"])
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def given(network: nn.Module, stored: bool) -> nn.Module | dict[str, Tensor]:
    return network.state_dict() if stored else network


# --- linear layers and convolutions -----------------------------------------------------------------------------------


class Squeeze(nn.Module):
    """SENet's own squeeze and excite, of linear layers."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width // 2), nn.Linear(width // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3))).relu()).sigmoid()[..., None, None]


class Pooled(nn.Module):
    """A classifier as a linear layer, or as the 1 × 1 convolution of a fully convolutional network."""

    def __init__(self, body: nn.Module, width: int, convolutional: bool = False):
        super().__init__()
        self.body, self.fc = body, nn.Conv2d(width, 5, 1) if convolutional else nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).mean((2, 3), keepdim=True)
        return self.fc(x).flatten(1) if isinstance(self.fc, nn.Conv2d) else self.fc(x.flatten(1))


def features() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU())


CONVNEXT = {"depths": (1, 2, 1, 1), "dims": (8, 12, 16, 24), "num_classes": 5}

# One function in two forms.
FORMS = {
    "perceptrons of convnext": [
        lambda c=c: timm.create_model("convnext_atto", conv_mlp=c, **CONVNEXT) for c in (False, True)
    ],
    "perceptrons of convnext v2": [
        lambda c=c: timm.create_model("convnextv2_atto", conv_mlp=c, **CONVNEXT) for c in (False, True)
    ],
    "squeeze and excite": [
        lambda s=s: Pooled(nn.Sequential(nn.Conv2d(3, 8, 3), s(8), nn.Conv2d(8, 12, 3)), 12)
        for s in (Squeeze, lambda width: SEModule(width, rd_channels=width // 2))
    ],
    "a classifier": [lambda c=c: Pooled(features(), 12, c) for c in (False, True)],
}
forms = pytest.mark.parametrize("pair", FORMS.values(), ids=FORMS.keys())


@forms
@directions
@as_given
def test_linear_layers_are_1_x_1_convolutions(pair, there, stored):
    source, target = (randomized(make(), seed) for seed, make in enumerate(pair if there else pair[::-1]))
    transfer(given(source, stored), target)
    assert differ(source, target, IMAGES) < 1e-5


@forms
def test_two_forms_of_a_network_are_similar_to_1(pair):
    assert similarity(*map(on_meta, pair)) == pytest.approx(1)


class Scaled(nn.Module):
    def __init__(self, *shape: int):
        super().__init__()
        self.conv, self.gamma = nn.Conv2d(3, shape[0], 3), nn.Parameter(torch.ones(*shape))
        self.head = nn.Conv2d(shape[0], 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x) * self.gamma.view(-1, 1, 1))


@pytest.mark.parametrize(("source", "target"), [((8,), (8, 1, 1)), ((8, 1, 1), (8,)), ((8, 1, 1), (12,))], ids=str)
@as_given
def test_a_layer_scale_may_have_dimensions_of_size_1(source, target, stored):
    source, target = randomized(Scaled(*source)), zeroed(Scaled(*target))
    transfer(given(source, stored), target)
    assert differ(source, target, IMAGES) < 1e-5


# --- depthwise convolutions and those with groups ---------------------------------------------------------------------


class Bottleneck(nn.Module):
    """A block of MobileNet's kind with a depthwise convolution, of ResNeXt's with groups of several channels."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, groups=groups, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 8, 1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return x + self.bn3(self.conv3(y))


def bottlenecks(width: int, groups: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(*[Bottleneck(width, groups) for _ in range(2)]))


@as_given
@pytest.mark.parametrize("groups", [12, 8, 4])
def test_a_depthwise_convolution_has_groups_whose_filters_see_their_own_channel(groups, stored):
    source, target = randomized(bottlenecks(24, 24)), randomized(bottlenecks(24, groups), 1)
    transfer(given(source, stored), target)
    assert differ(source, target, IMAGES) < 1e-5


@as_given
def test_groups_give_a_depthwise_convolution_what_a_channel_does_to_itself(stored):
    source, target = randomized(bottlenecks(24, 8)), randomized(bottlenecks(24, 24), 1)
    transfer(given(source, stored), target)
    for ours, theirs in zip(target[1], source[1], strict=True):
        channels = torch.arange(24)
        assert torch.equal(ours.conv2.weight[:, 0], theirs.conv2.weight[channels, channels % 3])


@as_given
def test_groups_match_dense_convolutions_where_the_other_network_has_these(stored):
    source, target = bottlenecks(24, 1), bottlenecks(24, 8)
    found = plan(given(source, stored), target).report
    partner = {entry.target: entry.source for entry in found.entries}
    assert all(partner[name] == name for name in target.state_dict())


# --- GPT-2's transposed linear layers ---------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.c_attn, self.c_proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.c_attn(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(x.transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(nn.functional.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), Attention(width, heads)
        self.ln_2, self.mlp = nn.LayerNorm(width), Perceptron(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """GPT-2 as nanoGPT has it: of linear layers, with the head tied to the embedding."""

    def __init__(self, depth: int = 2, width: int = 16, heads: int = 2, tokens: int = 32, length: int = 12):
        super().__init__()
        parts = {"wte": nn.Embedding(tokens, width), "wpe": nn.Embedding(length, width)}
        parts |= {"h": nn.ModuleList(Block(width, heads) for _ in range(depth)), "ln_f": nn.LayerNorm(width)}
        self.transformer, self.lm_head = nn.ModuleDict(parts), nn.Linear(width, tokens, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, x: Tensor) -> Tensor:
        net = self.transformer
        x = net.wte(x) + net.wpe.weight[: x.shape[1]]
        for block in net.h:
            x = block(x)
        return self.lm_head(net.ln_f(x))


def gpt2() -> nn.Module:
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    config = hf.GPT2Config(vocab_size=32, n_positions=12, n_embd=16, n_layer=2, n_head=2, **tokens)
    return hf.GPT2LMHeadModel(config)


@directions
@as_given
def test_gpt2_of_transposed_layers_is_gpt2_of_linear_layers(there, stored):
    makers = (gpt2, NanoGPT) if there else (NanoGPT, gpt2)
    source, target = (randomized(make(), seed) for seed, make in enumerate(makers))
    transfer(given(source, stored), target)
    assert differ(source, target, torch.arange(20).view(2, 10)) < 1e-5


@directions
def test_a_square_transposed_layer_is_turned(there):
    makers = (Conv1D(8, 8), nn.Linear(8, 8)) if there else (nn.Linear(8, 8), Conv1D(8, 8))
    source, target = (nn.Sequential(layer, nn.Linear(8, 2)) for layer in makers)
    transfer(source, target, head="copy")
    assert differ(source, target, torch.eye(8)) < 1e-5


def test_a_transposed_layer_of_another_width_is_cropped_along_its_outputs():
    source, target = (
        nn.Sequential(nn.Embedding(9, width), Conv1D(3 * width, width), nn.Linear(3 * width, 2)) for width in (8, 6)
    )
    transfer(source, target, head="copy")
    assert torch.equal(target[1].weight, source[1].weight[:6, :18])


# --- norms in convolutions --------------------------------------------------------------------------------------------


def normed(bias: bool = False) -> nn.Module:
    layers = nn.Conv2d(3, 8, 3, bias=bias), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2, bias=bias)
    return nn.Sequential(*layers, nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 5, 1))


def folded() -> nn.Module:
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.ReLU()
    return nn.Sequential(*layers, nn.Conv2d(12, 5, 1))


@pytest.mark.parametrize("bias", [False, True])
@as_given
def test_a_norm_is_folded_into_the_convolution_of_a_network_without_norms(bias, stored):
    source, target = randomized(normed(bias)), folded().eval()
    transfer(given(source, stored), target)
    assert differ(source, target, IMAGES) < 1e-4


def test_a_norm_is_folded_into_a_projection_of_an_attention():
    """A convolution of one place is as large as the projection but for its rank: nothing is split into heads."""
    source = randomized(nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))).eval()
    target = nn.ModuleDict({"attn": Attention(8, heads=2)})
    plan(source, target).pair("0", "attn.c_attn[query]").apply()
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(target["attn"].c_attn(x)[:, :8], source(x[..., None, None]).flatten(1), atol=1e-4)


# --- images and videos ------------------------------------------------------------------------------------------------


def network(convolution, norm, padding=1) -> nn.Module:
    layers = convolution(3, 8, 3, padding=padding), norm(8), nn.ReLU(), convolution(8, 8, 3, padding=padding, groups=2)
    return nn.Sequential(*layers, norm(8), nn.ReLU(), convolution(8, 5, 1))


@as_given
def test_a_video_of_one_repeated_picture_gives_the_response_to_the_picture(stored):
    source = randomized(network(nn.Conv2d, nn.BatchNorm2d))
    target = randomized(network(nn.Conv3d, nn.BatchNorm3d, (0, 1, 1)), 1)
    transfer(given(source, stored), target)
    response = output(target, IMAGES[:, :, None].expand(-1, -1, 7, -1, -1))  # (batch, classes, 3, height, width)
    assert response.shape[2] == 3
    for moment in response.unbind(2):
        assert distance(moment, output(source, IMAGES)) < 1e-5


@as_given
def test_a_resnet_is_inflated(stored):
    source = randomized(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5))
    blocks, layers = [video.Conv3DSimple] * 4, [1, 1, 1, 1]
    target = video.VideoResNet(video.BasicBlock, blocks, layers, video.BasicStem, num_classes=5)
    report = transfer(given(source, stored), target)
    assert [entry.target for entry in report.entries if entry.filled < entry.elements] == []
    images = {name: tensor for name, tensor in source.state_dict().items() if "num_batches" not in name}
    videos = [tensor for name, tensor in target.state_dict().items() if "num_batches" not in name]
    for (name, theirs), ours in zip(images.items(), videos, strict=True):  # both networks register in one order
        torch.testing.assert_close(ours.sum(2) if ours.dim() == 5 else ours, theirs, msg=name)


def test_inflation_meets_other_widths():
    source, target = (nn.Sequential(c(3, w, 3), nn.ReLU(), c(w, 5, 1)) for c, w in ((nn.Conv2d, 8), (nn.Conv3d, 12)))
    zeroed(target)
    transfer(source, target, head="copy")
    torch.testing.assert_close(target[0].weight.sum(2)[:8], source[0].weight)


@pytest.mark.parametrize(("wanted", "kind"), [(1, "conv"), (4, "conv"), (6, "patches")])
@as_given
def test_new_input_channels_keep_the_response_to_what_is_the_same_in_all(wanted, kind, stored):
    def make(channels: int) -> nn.Module:
        if kind == "conv":
            return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1))
        return timm.models.VisionTransformer(32, 8, channels, 5, embed_dim=16, depth=1, num_heads=2)

    source, target = randomized(make(3)), randomized(make(wanted), 1)
    transfer(given(source, stored), target)
    grey = IMAGES[:, :1]
    found, expected = (output(net, grey.expand(-1, n, -1, -1)) for net, n in ((target, wanted), (source, 3)))
    assert distance(found, expected) < 1e-5


def test_gates_of_another_number_are_not_filled():
    for stored in (False, True):
        source, target = nn.Sequential(nn.LSTM(6, 8)), nn.Sequential(nn.GRU(6, 8))
        report = plan(given(source, stored), target).report
        assert report.share == 0 and "Recurrent3" in report.entries[0].note


def test_new_input_channels_may_begin_with_zeros():
    source, target = (nn.Sequential(nn.Conv2d(n, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1)) for n in (3, 5))
    planned = plan(source, target, inputs="zero")
    assert [entry.rule for entry in planned.report.entries] == ["zero input channels", "", "", ""]
    Plan.from_json(planned.to_json(), source, target).apply()
    more = torch.cat([IMAGES, torch.randn(len(IMAGES), 2, *IMAGES.shape[2:])], 1)
    assert distance(output(target, more), output(source, IMAGES)) < 1e-5
    with pytest.raises(ValueError, match="inputs must be one of repeat, zero, got 'nothing'"):
        plan(source, target, inputs="nothing")


@as_given
@directions
def test_a_tensor_goes_through_several_rules_in_a_plan_too(there, stored):
    """Patches of another size and other input channels at once; pictures of other channels than a video's."""
    pairs = [
        [nn.Sequential(nn.Conv2d(c, 8, size, size), nn.Linear(8, 5)) for c, size in ((3, 8), (1, 4))],
        [nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 5)), nn.Sequential(nn.Conv3d(1, 8, 3), nn.Linear(8, 5))],
    ]
    for pair in pairs:
        source, target = pair if there else pair[::-1]
        copies = [copy.deepcopy(target) for _ in range(2)]
        report = transfer(given(source, stored), target)
        planned = plan(given(source, stored), copies[0])
        assert planned.report == report and report.entries[0].rule.count(",") == 1 and report.share == 1
        assert planned.apply() == report
        assert Plan.from_json(planned.to_json(), given(source, stored), copies[1]).apply() == report
        for other in copies:
            assert torch.equal(other[0].weight, target[0].weight)


# --- concatenations ---------------------------------------------------------------------------------------------------


class UNet(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.inc, self.down = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.conv, self.outc = nn.Conv2d(2 * width, width, 3, padding=1), nn.Conv2d(width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inc(x).relu()
        return self.outc(self.conv(torch.cat([x, self.up(self.down(x).relu())], 1)).relu())


class Dense(nn.Module):
    """Each layer sees all before it."""

    def __init__(self, growth: int):
        super().__init__()
        self.stem = nn.Conv2d(3, 2 * growth, 3, padding=1)
        widths = (2 * growth, 3 * growth, 4 * growth)
        self.layers = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1) for width in widths)
        self.head = nn.Conv2d(5 * growth, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x.relu())], 1)
        return self.head(x)


class SideBySide(nn.Module):
    """Two layers with the same inputs, and one that takes what both give."""

    def __init__(self, width: int):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.cv1, self.cv2 = nn.Conv2d(width, width // 2, 1), nn.Conv2d(width, width // 2, 1)
        self.cv3, self.head = nn.Conv2d(width, width, 1), nn.Conv2d(width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(self.cv3(torch.cat([self.cv1(x), self.cv2(x)], 1)).relu())


class Variational(nn.Module):
    """Two layers of half as many outputs with the same inputs, one after the other."""

    def __init__(self, width: int):
        super().__init__()
        self.into = nn.Conv2d(3, width, 1)
        self.mean, self.variance = nn.Conv2d(width, width // 2, 1), nn.Conv2d(width, width // 2, 1)
        self.decode = nn.Conv2d(width // 2, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x).relu()
        return self.decode(self.mean(x) + self.variance(x).sigmoid() - 0.5)


# Wider networks, and the layers in them that take what is concatenated.
CONCATENATED = {
    "u-net": (UNet, 8, 12, ["conv"]),
    "densenet": (Dense, 4, 6, ["layers.1", "layers.2", "head"]),
    "side by side": (SideBySide, 8, 12, [""]),
    "variational": (Variational, 8, 12, [""]),
}


@pytest.mark.parametrize(("make", "small", "wide", "layers"), CONCATENATED.values(), ids=CONCATENATED.keys())
@pytest.mark.parametrize("operator", ["clip", "magnitude", "uniform"])
def test_concatenated_inputs_are_treated_or_noted(make, small, wide, layers, operator):
    source, target = randomized(make(small)), zeroed(make(wide))
    report = transfer(source, target, head="copy", operator=operator)
    noted = {entry.target for entry in report.entries if entry.note}
    assert differ(source, target, IMAGES) < 1e-5 or noted >= {f"{name}.weight" for name in layers}


@pytest.mark.parametrize("make", [UNet, Dense])
@as_given
def test_concatenated_inputs_of_equal_widths_are_the_same_function(make, stored):
    source, target = randomized(make(4)), randomized(make(4), 1)
    report = transfer(given(source, stored), target)
    assert differ(source, target, IMAGES) == 0 and not any(entry.note for entry in report.entries)


# --- another order ----------------------------------------------------------------------------------------------------


class Shortcut(nn.Module):
    def __init__(self, width: int, first: bool):
        super().__init__()
        if first:
            self.shortcut = nn.Conv2d(width, 2 * width, 1)
        self.conv1, self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1), nn.Conv2d(2 * width, 2 * width, 1)
        if not first:
            self.shortcut = nn.Conv2d(width, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv2(self.conv1(x).relu())


@directions
@as_given
def test_layers_may_be_registered_in_another_order(there, stored):
    nets = (
        nn.Sequential(nn.Conv2d(3, 8, 3), Shortcut(8, first), Shortcut(16, first), nn.Conv2d(32, 5, 1))
        for first in (there, not there)
    )
    source, target = (randomized(net, seed) for seed, net in enumerate(nets))
    transfer(given(source, stored), target)
    assert differ(source, target, IMAGES) < 1e-5


def test_a_plan_says_of_each_form_where_it_comes_from():
    source, target = (on_meta(make) for make in FORMS["perceptrons of convnext"])
    found = {entry.target: entry.source for entry in plan(source, target).report.entries}
    assert found == {name: name for name in target.state_dict()}
