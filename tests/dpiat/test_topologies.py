"""One tiny network for each topology: the pairs of layers between a narrow and a wide one, by hand."""

import pytest
import torch
from torch import nn

from dpiat import standardize, transfer
from dpiat.alignment import align


def plain(w: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, w, 3), nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, 2 * w, 3), nn.Flatten(), nn.Linear(2 * w, 4)
    )


class Residual(nn.Module):
    def __init__(self, w: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(w, w, 3), nn.BatchNorm2d(w)
        self.act = nn.ReLU()
        self.conv2, self.norm2 = nn.Conv2d(w, w, 3), nn.BatchNorm2d(w)


def residual(w: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, w, 3), Residual(w), Residual(w), nn.Linear(w, 4))


class Dense(nn.Module):
    def __init__(self, w: int, growth: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(w + i * growth, growth, 3) for i in range(3))
        self.transition = nn.Conv2d(w + 3 * growth, w, 1)


class Depthwise(nn.Module):
    def __init__(self, w: int):
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(w, 4 * w, 1), nn.BatchNorm2d(4 * w)
        self.depthwise, self.norm2 = nn.Conv2d(4 * w, 4 * w, 3, groups=4 * w), nn.BatchNorm2d(4 * w)
        self.project, self.norm3 = nn.Conv2d(4 * w, w, 1), nn.BatchNorm2d(w)


class Mixed(nn.Module):
    def __init__(self, w: int, kernels: tuple[int, ...]):
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(w, w, kernel, groups=w) for kernel in kernels)
        self.project = nn.Conv2d(len(kernels) * w, w, 1)


class SqueezeExcite(nn.Module):
    def __init__(self, w: int):
        super().__init__()
        self.conv = nn.Conv2d(w, w, 3)
        self.reduce, self.expand = nn.Conv2d(w, w // 4, 1), nn.Conv2d(w // 4, w, 1)
        self.project = nn.Conv2d(w, 2 * w, 1)


class Shared(nn.Module):
    def __init__(self, w: int):
        super().__init__()
        self.conv = nn.Conv2d(w, w, 3)
        self.again = self.conv
        self.head = nn.Linear(w, 4)


class Tied(nn.Module):
    def __init__(self, w: int):
        super().__init__()
        self.embed, self.mix = nn.Embedding(11, w), nn.Linear(w, w)
        self.out = nn.Linear(w, 11, bias=False)
        self.out.weight = self.embed.weight


class Transformer(nn.Module):
    def __init__(self, w: int):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, w))
        self.norm1, self.attention = nn.LayerNorm(w), nn.MultiheadAttention(w, 2)
        self.norm2, self.grow, self.act, self.shrink = (
            nn.LayerNorm(w),
            nn.Linear(w, 4 * w),
            nn.GELU(),
            nn.Linear(4 * w, w),
        )


def same(*names: str) -> list[tuple[str, str]]:
    return [(name, name) for name in names]


CASES = {
    "plain": (plain(4), plain(6), same("0", "1", "3", "5")),
    "residual": (
        residual(4),
        residual(6),
        same("0", *(f"{b}.{layer}" for b in (1, 2) for layer in ("conv1", "norm1", "conv2", "norm2")), "3"),
    ),
    "a residual block more in the target": (
        nn.Sequential(Residual(4), nn.Linear(4, 2)),
        nn.Sequential(Residual(4), Residual(4), nn.Linear(4, 2)),
        # one source block fills both: 2 · 4 / sqrt(2) is more than 4
        [(f"0.{x}", f"{b}.{x}") for b in (0, 1) for x in ("conv1", "norm1", "conv2", "norm2")] + [("1", "2")],
    ),
    "concatenation": (Dense(8, 4), Dense(8, 6), same("layers.0", "layers.1", "layers.2", "transition")),
    "depthwise": (
        Depthwise(4),
        Depthwise(6),
        same("expand", "norm1", "depthwise", "norm2", "project", "norm3"),
    ),
    "mixed kernels": (
        Mixed(4, (3, 5)),
        Mixed(4, (3, 5, 7)),
        [*same("branches.0", "branches.1"), ("branches.1", "branches.2"), *same("project")],
    ),
    "squeeze and excitation": (SqueezeExcite(8), SqueezeExcite(12), same("conv", "reduce", "expand", "project")),
    "a shared module": (Shared(4), Shared(6), same("conv", "head")),
    "tied weights": (Tied(4), Tied(6), same("embed", "mix", "out")),
    "transformer": (
        Transformer(8),
        Transformer(12),
        same(
            *("token", "norm1", *(f"attention.in_proj[{part}]" for part in ("query", "key", "value"))),
            *("attention.out_proj", "norm2", "grow", "shrink"),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_pairs(name):
    source, target, expected = CASES[name]
    found = align(standardize(source), standardize(target)).layers
    assert [(pair.source.name, pair.target.name) for pair in found] == expected


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_every_pair_is_written_and_nothing_twice(name):
    source, target, expected = CASES[name]
    report = transfer(source, target, head="copy")
    partner = {wanted: given for given, wanted in expected}
    states = source.state_dict(), target.state_dict()
    for entry in report.entries:
        layer = entry.target if entry.target in partner else entry.target.rpartition(".")[0]
        if entry.shape == (0,):
            assert entry.shared
        elif layer in partner:
            assert entry.action != "left", entry
        if entry.action == "copied":
            assert torch.equal(states[1][entry.target], states[0][entry.source])
    unique = {id(t): t.numel() for t in target.state_dict(keep_vars=True).values()}
    assert sum(report.elements.values()) == sum(unique.values())
