"""Net2Net keeps the function; FNA agrees with a literal transcription of its rules."""

from copy import deepcopy

import pytest
import timm
import torch
from functions import randomized
from torch import nn

from dpiat import fna, net2net
from dpiat.report import LEFT, ZERO


def convolution(given, width, side=3, stride=1, groups=1, act=nn.ReLU):
    return nn.Sequential(
        nn.Conv2d(given, width, side, stride, side // 2, groups=groups, bias=False), nn.BatchNorm2d(width), act()
    )


class Inverted(nn.Module):
    """An inverted residual block with squeeze-excite, as in EfficientNet."""

    def __init__(self, given, width, side=3, stride=1, hidden=0):
        super().__init__()
        hidden = hidden or 2 * given
        self.expand = convolution(given, hidden, 1)
        self.depthwise = convolution(hidden, hidden, side, stride, groups=hidden)
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, given // 2, 1), nn.ReLU(), nn.Conv2d(given // 2, hidden, 1)
        )
        self.project = nn.Conv2d(hidden, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.adds = stride == 1 and given == width

    def forward(self, x):
        y = self.depthwise(self.expand(x))
        y = self.norm(self.project(y * self.se(y).sigmoid()))
        return x + y if self.adds else y


class Small(nn.Module):
    def __init__(self, widths=(8, 12), depths=(2, 2), side=3, classes=5, stem=8, act=nn.ReLU):
        super().__init__()
        self.stem, given, stages = convolution(3, stem, 3, 2, act=act), stem, []
        for width, depth in zip(widths, depths, strict=True):
            stages.append(
                nn.Sequential(*(Inverted(width if n else given, width, side, 1 if n else 2) for n in range(depth)))
            )
            given = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(given * 4, classes)

    def forward(self, x):
        return self.head(nn.functional.adaptive_avg_pool2d(self.stages(self.stem(x)), 2).flatten(1))


def plain(widths, classes=5):
    """Convolutions with nothing beside them, and a norm for each."""
    given, layers = 3, []
    for width in widths:
        layers += [nn.Conv2d(given, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        given = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(given, classes))


@torch.no_grad()
def distance(one, other, side=64):
    """The largest difference of the outputs, over the largest output."""
    torch.manual_seed(5)
    images = torch.randn(2, 3, side, side)
    expected = one.eval()(images)
    return float((expected - other.eval()(images)).abs().max() / expected.abs().max())


GROWN = {
    "itself": lambda: (Small(), Small()),
    "wider": lambda: (Small(), Small((10, 21), stem=9)),
    "deeper": lambda: (Small(), Small(depths=(3, 5))),
    "wider and deeper": lambda: (Small(), Small((13, 30), (4, 3), stem=15)),
    "plain": lambda: (plain((4, 6, 8)), plain((9, 6, 20))),
}


@pytest.mark.parametrize("name", GROWN)
def test_the_grown_network_computes_the_same(name):
    source, target = (randomized(network, seed) for seed, network in enumerate(GROWN[name]()))
    before = deepcopy(source.state_dict())
    report = net2net(source, target, seed=3)
    assert distance(source, target) < 1e-5
    assert [entry.target for entry in report.entries] == list(target.state_dict())
    assert all(torch.equal(tensor, before[key]) for key, tensor in source.state_dict().items())


PAIRS = [
    ("resnet18", {}, "resnet34", {}),
    ("resnet18", {}, "resnet18", {"channels": (64, 130, 256, 600)}),
    ("tf_efficientnet_lite0", {}, "tf_efficientnet_lite1", {}),
    ("tf_efficientnet_lite1", {}, "tf_efficientnet_lite2", {}),
    ("tf_efficientnet_b0", {}, "tf_efficientnet_b1", {}),
    ("tf_efficientnet_b1", {}, "tf_efficientnet_b2", {}),
    ("rexnet_100", {}, "rexnet_150", {}),
    ("mixnet_m", {}, "mixnet_l", {}),  # convolutions side by side, which default mode merges
    ("mobilenetv2_100", {}, "mobilenetv2_140", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("source", "a", "target", "b"), PAIRS)
def test_networks_of_timm_grow(source, a, target, b):
    source = randomized(timm.create_model(source, num_classes=10, **a))
    target = randomized(timm.create_model(target, num_classes=10, **b), 1)
    net2net(source, target)
    assert distance(source, target) < 1e-5


def test_noise_breaks_ties():
    source, target = randomized(plain((4, 6))), randomized(plain((4, 12)))
    net2net(source, target)
    filters = target[3].weight.flatten(1)
    assert len(filters.unique(dim=0)) == 6
    net2net(source, target, noise=0.01)
    assert len(target[3].weight.flatten(1).unique(dim=0)) == 12
    assert 1e-5 < distance(source, target) < 0.1


def test_what_is_new_is_said():
    report = net2net(randomized(Small()), Small(depths=(3, 2)))
    new = [entry for entry in report.entries if entry.target.startswith("stages.0.2.")]
    silent = ["stages.0.2.norm.weight", "stages.0.2.norm.bias"]
    assert [entry.target for entry in new if "zero" in entry.note] == silent
    assert all(entry.action == (ZERO if entry.target in silent else LEFT) for entry in new)
    assert report.elements[ZERO] == sum(entry.elements for entry in new if entry.target in silent)


REFUSED = {
    "narrower": (Small, lambda: Small((8, 10)), "stages.1.0.project has 10 outputs, fewer than the 12"),
    "shallower": (
        lambda: Small(depths=(2, 3)),
        lambda: Small(depths=(2, 2)),
        "stages.1 has 2 blocks, fewer than the 3",
    ),
    "another kernel": (Small, lambda: Small(side=5), "stages.0.0.depthwise.0 has a kernel of 5 × 5"),
    "another activation": (Small, lambda: Small(act=nn.SiLU), "stem.1 has silu behind it"),
    "other classes": (Small, lambda: Small(classes=6), "the outputs differ"),
    "other stages": (Small, lambda: Small((8, 12, 12), (2, 2, 2)), "they must be the same stages"),
    "another shortcut": (
        lambda: timm.create_model("resnet18", num_classes=5),
        lambda: timm.create_model("resnet18", num_classes=5, channels=(72, 128, 256, 512)),
        "layer1.0.downsample",
    ),
    "no module": (Small, dict, "target must be a torch.nn.Module, got dict"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_admissible_is_one_line_and_changes_nothing(name):
    source, target, message = REFUSED[name]
    source, target = source(), target()
    before = deepcopy(target.state_dict()) if isinstance(target, nn.Module) else {}
    with pytest.raises((ValueError, TypeError)) as error:
        net2net(source, target)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not before or all(torch.equal(tensor, before[key]) for key, tensor in target.state_dict().items())


def transcribed(source, target):
    """FNA as its paper has it, key by key, for networks whose blocks are stages.<stage>.<block>.

    Mapping of depth, then of width, then of kernels.
    """
    old, new = source.state_dict(), {key: tensor.clone() for key, tensor in target.state_dict().items()}
    depth = [len(stage) for stage in source.stages]
    for key, tensor in new.items():
        theirs = key
        if key.startswith("stages."):
            _, stage, block, rest = key.split(".", 3)
            theirs = f"stages.{stage}.{min(int(block), depth[int(stage)] - 1)}.{rest}"
        if key.startswith("head."):
            continue
        given = old[theirs]
        if tensor.dim() == 4:
            mine, other = tensor.shape[-1], given.shape[-1]
            out, into = min(len(tensor), len(given)), min(tensor.shape[1], given.shape[1])
            if mine > other:
                tensor.zero_()
                edge = (mine - other) // 2
                tensor[:out, :into, edge : edge + other, edge : edge + other] = given[:out, :into]
            else:
                edge = (other - mine) // 2
                tensor[:out, :into] = given[:out, :into, edge : edge + mine, edge : edge + mine]
        elif tensor.dim() == 1:
            size = min(len(tensor), len(given))
            tensor[:size] = given[:size]
        else:
            tensor.copy_(given)
    return new


@pytest.mark.parametrize(
    "arguments",
    [
        {"widths": (10, 21), "stem": 9},
        {"widths": (6, 8), "depths": (1, 1)},
        {"depths": (4, 3), "side": 5},
        {"widths": (13, 8), "depths": (3, 1), "side": 1, "classes": 7},
    ],
)
def test_fna_is_its_transcription(arguments):
    source, target = randomized(Small()), randomized(Small(**arguments), 1)
    expected = transcribed(source, target)
    report = fna(source, target)
    assert [entry.target for entry in report.entries] == list(expected)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in target.state_dict().items())
    target.load_state_dict({key: torch.full_like(tensor, 7) for key, tensor in target.state_dict().items()})
    zeros = {entry.target: entry.zeros for entry in fna(source, target).entries if len(entry.shape) == 4}
    state = target.state_dict()
    assert zeros == {name: int((state[name] == 0).sum()) for name in zeros}


def test_fna_takes_convolutions_side_by_side_one_by_one():
    source, target = randomized(timm.create_model("mixnet_m")), randomized(timm.create_model("mixnet_l"), 1)
    kept = {entry.target for entry in fna(source, target).entries if entry.note}
    assert kept == {"classifier.weight", "classifier.bias"}
    given, filled = source.state_dict(), target.state_dict()
    for branch in range(4):
        name = f"blocks.3.1.conv_dw.{branch}.weight"
        side = 3 + 2 * branch
        assert given[name].shape == (120, 1, side, side) and torch.equal(filled[name][:120], given[name])


def test_fna_needs_the_same_layout():
    with pytest.raises(ValueError, match="they must be the same stages"):
        fna(Small(), Small((8, 12, 12), (2, 2, 2)))
