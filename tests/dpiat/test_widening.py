"""A wider network with zeros elsewhere computes what the source computes, with operators that copy a channel once."""

import pytest
import timm
import torch
from functions import differ, randomized, zeroed
from timm.layers import GluMlp, SqueezeExcite
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from transformers.models.phi3.configuration_phi3 import Phi3Config
from transformers.models.phi3.modeling_phi3 import Phi3MLP

from dpiat import transfer

# "full" repeats channels, and "clip_normalized" scales them: they promise nothing of the kind.
operators = pytest.mark.parametrize("operator", ["clip", "magnitude", "uniform"])
as_given = pytest.mark.parametrize("stored", [False, True], ids=["module", "state dict"])
TOKENS = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0))  # (batch, tokens, channels)
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def between(width: int, *layers: nn.Module) -> nn.Sequential:
    """Layers of a width of their own, in a network of fixed inputs and outputs."""
    return nn.Sequential(nn.Linear(6, width), *layers, nn.Linear(width, 5))


class Last(nn.Module):
    """The output of a recurrent layer without its state."""

    def __init__(self, layer: nn.Module, width: int):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


class SelfAttention(nn.Module):
    """Query, key and value in one tensor (`in_proj_weight`)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


class GroupedQueries(nn.Module):
    """Several query heads share a key and a value, as in Llama."""

    def __init__(self, heads: int, groups: int, size: int = 4):
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.head_dim = heads, groups, size
        self.q_proj, self.o_proj = nn.Linear(6, heads * size), nn.Linear(heads * size, 5)
        self.k_proj, self.v_proj = nn.Linear(6, groups * size), nn.Linear(6, groups * size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = (t.repeat_interleave(self.num_heads // self.num_key_value_heads, 1) for t in (k, v))
        return self.o_proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Interleaved(nn.Module):
    """Query, key and value stand head by head in one tensor, as in BLOOM, GPT-NeoX and Falcon."""

    def __init__(self, heads: int, size: int = 4):
        super().__init__()
        self.num_heads, self.head_dim = heads, size
        self.query_key_value, self.dense = nn.Linear(6, 3 * heads * size), nn.Linear(heads * size, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query_key_value(x).unflatten(-1, (self.num_heads, 3, self.head_dim)).movedim(1, 3).unbind(2)
        return self.dense(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class PackedMlp(nn.Module):
    """Gate and value in one tensor, as in Phi-3."""

    def __init__(self, hidden: int):
        super().__init__()
        self.mlp = Phi3MLP(Phi3Config(hidden_size=6, intermediate_size=hidden, hidden_act="silu", pad_token_id=0))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mlp(x))


# A network of tokens, as small as it is and wider.
ON_TOKENS = {
    "a perceptron": [lambda w=w: between(w, nn.ReLU(), nn.Linear(w, w), nn.ReLU()) for w in (8, 13)],
    "more heads, qkv": [lambda h=h: between(8 * h, Attention(8 * h, h, qkv_bias=True)) for h in (3, 6)],
    "more heads by an odd number, qkv": [
        lambda h=h: between(8 * h, Attention(8 * h, h, qkv_bias=True)) for h in (2, 5)
    ],
    "more heads, in_proj_weight": [lambda h=h: between(8 * h, SelfAttention(8 * h, h)) for h in (3, 6)],
    "more heads, fewer keys": [lambda h=h: GroupedQueries(2 * h, h) for h in (2, 4)],
    "more heads, head by head": [lambda h=h: Interleaved(h) for h in (3, 6)],
    "a GLU, fc1": [lambda w=w: nn.Sequential(GluMlp(6, 2 * w, 6), nn.Linear(6, 5)) for w in (8, 14)],
    "a GLU, gate_up_proj": [lambda w=w: PackedMlp(w) for w in (8, 14)],
    "LSTM": [lambda w=w: Last(nn.LSTM(6, w, 2, batch_first=True), w) for w in (8, 12)],
    "LSTM of two directions": [
        lambda w=w: Last(nn.LSTM(6, w, 3, bidirectional=True, batch_first=True), 2 * w) for w in (8, 12)
    ],
    "GRU of two directions": [
        lambda w=w: Last(nn.GRU(6, w, 2, bidirectional=True, batch_first=True), 2 * w) for w in (7, 12)
    ],
    "RNN": [lambda w=w: Last(nn.RNN(6, w, 2, batch_first=True), w) for w in (8, 12)],
}


@pytest.mark.parametrize("pair", ON_TOKENS.values(), ids=ON_TOKENS.keys())
@operators
@as_given
def test_wider_with_zeros_is_the_same_function_of_tokens(pair, operator, stored):
    source, target = randomized(pair[0]()), zeroed(pair[1]())
    transfer(source.state_dict() if stored else source, target, head="copy", operator=operator)
    assert differ(source, target, TOKENS) < 1e-5


def convolutional(width: int, *groups: int) -> nn.Module:
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    for count in groups:
        layers += [nn.Conv2d(width, width, 3, padding=1, groups=count), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


def squeezed(width: int) -> nn.Module:
    layers = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), SqueezeExcite(width, rd_channels=width // 2)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


def decoder(width: int) -> nn.Module:
    """A transposed convolution, whose inputs come first."""
    layers = nn.Conv2d(3, width, 3), nn.ReLU(), nn.ConvTranspose2d(width, 2 * width, 2, 2), nn.BatchNorm2d(2 * width)
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(2 * width, 5, 1))


# A network of images, as small as it is and wider.
ON_IMAGES = {
    "dense convolutions": [lambda w=w: convolutional(w, 1, 1) for w in (8, 13)],
    "wider groups": [lambda w=w: convolutional(w, 2, 1) for w in (8, 16)],
    "more groups": [lambda g=g: convolutional(4 * g, g, 1) for g in (2, 4)],
    "depthwise convolutions": [lambda w=w: convolutional(w, w, 1, w) for w in (8, 12)],
    "transposed convolutions": [lambda w=w: decoder(w) for w in (8, 12)],
    "squeeze and excite": [lambda w=w: squeezed(w) for w in (8, 12)],
    "semnasnet": [lambda w=w: timm.create_model(f"semnasnet_{w}", num_classes=5) for w in ("050", "075")],
    "mobilenetv3": [lambda w=w: timm.create_model(f"mobilenetv3_small_{w}", num_classes=5) for w in ("075", "100")],
    "mobilenetv2": [lambda w=w: timm.create_model(f"mobilenetv2_{w}", num_classes=5) for w in ("035", "050")],
    "resnet": [
        lambda w=w: timm.create_model(
            "resnet18",
            layers=(1, 1, 1, 1),
            channels=tuple(w * c for c in (8, 16, 24, 32)),
            stem_width=8 * w,
            num_classes=5,
        )
        for w in (1, 2)
    ],
}


@pytest.mark.parametrize("pair", ON_IMAGES.values(), ids=ON_IMAGES.keys())
@operators
def test_wider_with_zeros_is_the_same_function_of_images(pair, operator):
    source, target = randomized(pair[0]()), zeroed(pair[1]())
    transfer(source, target, head="copy", operator=operator)
    assert differ(source, target, IMAGES) < 1e-5


@operators
@pytest.mark.parametrize(("given", "wanted"), [(12, 3), (12, 4), (6, 4)])
def test_heads_go_whole(operator, given, wanted):
    """Of fewer heads, each is one of the source's, with its query, key and value in their places."""
    source, target = (between(4 * heads, Attention(4 * heads, heads)) for heads in (given, wanted))
    with torch.no_grad():
        rows = torch.arange(3 * given * 4.0)  # the number of each row, and of each column of `proj`
        source[1].qkv.weight.copy_(rows[:, None].expand(-1, 4 * given))
        source[1].proj.weight.copy_(torch.arange(4.0 * given).expand(4 * given, -1))
    transfer(source, target, head="copy", operator=operator)
    rows = target[1].qkv.weight[:, 0].view(3, wanted, 4)  # (part, head, channel)
    columns = target[1].proj.weight[0].view(wanted, 4)
    chosen = (rows[0, :, 0] / 4).tolist()
    assert chosen == sorted({int(head) for head in chosen})
    for part in range(3):
        expected = [[part * 4 * given + 4 * head + i for i in range(4)] for head in chosen]
        assert rows[part].tolist() == expected
    assert (columns // 4 == columns[:, :1] // 4).all() and (columns % 4 == torch.arange(4)).all()


@operators
@pytest.mark.parametrize("name", ["gate_up_proj", "fc1", "Wi", "w12"])
def test_a_gate_stays_with_its_value(operator, name):
    """Of fewer units too; by its shape, which is twice what the next layer takes, whatever it is called."""

    def gated(hidden: int) -> nn.Module:
        parts = {name: nn.Linear(8, 2 * hidden), "act": nn.SiLU(), "down_proj": nn.Linear(hidden, 8)}
        return nn.Sequential(nn.ModuleDict(parts), nn.Linear(8, 2))

    source, target = gated(24), gated(16)
    with torch.no_grad():
        source[0][name].weight.copy_(torch.arange(48.0)[:, None].expand(-1, 8))
    transfer(source, target, head="copy", operator=operator)
    gate, value = target[0][name].weight[:, 0].view(2, 16)
    assert (gate < 24).all() and torch.equal(value, gate + 24)


@operators
@pytest.mark.parametrize("name", ["qkv", "to_qkv", "qkv_proj", "Wqkv", "c_attn"])
def test_query_rows_are_filled_from_query_rows(operator, name):
    def attention(width: int) -> nn.Module:
        parts = {name: nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
        return nn.Sequential(nn.Linear(5, width), nn.ModuleDict(parts), nn.Linear(width, 2))

    source, target = attention(12), attention(8)
    with torch.no_grad():
        source[1][name].weight.copy_(torch.arange(3.0).repeat_interleave(12)[:, None].expand(-1, 12))
    transfer(source, target, head="copy", operator=operator)
    assert target[1][name].weight[:, 0].view(3, 8).tolist() == [[part] * 8 for part in range(3)]
