"""Networks for the tests."""

from copy import deepcopy
from functools import lru_cache

import timm
import torch
from torch import nn

PAPER = {
    "Eff-B0": "tf_efficientnet_b0",
    "Eff-B1": "tf_efficientnet_b1",
    "Eff-B2": "tf_efficientnet_b2",
    "Mix-L": "mixnet_l",
    "Mix-M": "mixnet_m",
    "ReX1.5": "rexnet_150",
    "ReX": "rexnet_100",
    "Mnas": "mnasnet_100",
    "SeMnas": "semnasnet_100",
}


def on_meta(name: str) -> nn.Module:
    """A timm network without memory for its weights."""
    return deepcopy(_on_meta(name))


@lru_cache(maxsize=32)
def _on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


def trained(name: str, seed: int, classes: int = 10) -> nn.Module:
    """A timm network in eval mode with no tensor, batch-norm statistics included, at its initial value."""
    return deepcopy(_trained(name, seed, classes))


@lru_cache(maxsize=16)  # to draw the weights takes longer than to copy them
def _trained(name: str, seed: int, classes: int) -> nn.Module:
    torch.manual_seed(seed)
    network = timm.create_model(name, num_classes=classes).eval()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(0.9).add_(0.02 * torch.rand_like(tensor))
            else:
                tensor.add_(7)
    return network


def small(num_classes: int, width: int = 16) -> nn.Module:
    """Convolutions with batch norms, which train in seconds on a CPU."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 2, 1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, num_classes),
    )


def larger(num_classes: int) -> nn.Module:
    return small(num_classes, 24)


def two_outputs(num_classes: int) -> nn.Module:
    return small(2)


def no_network(num_classes: int) -> str:
    return "a string"


def unlike(num_classes: int) -> nn.Module:
    """A network without a layer of a kind that the other networks have."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.ConvTranspose2d(3, num_classes, 1), nn.Flatten())


def scaled(num_classes: int = 10) -> nn.Module:
    """A network whose constructor reads the value of a tensor, which fails on the meta device."""
    return small(num_classes, int(torch.linspace(8, 16, 3)[-1].item()))


def broken(num_classes: int = 10) -> nn.Module:
    raise RuntimeError("no such width")


def fixed() -> nn.Module:
    return small(10)


def tied() -> nn.Module:
    network = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    network[1].weight = network[0].weight
    return network


def stateful() -> nn.Module:
    """A network whose state dict has more than tensors."""
    network = small(10)
    network[0].__class__ = type("Stateful", (nn.Conv2d,), {"get_extra_state": lambda self: {"steps": 3}})
    return network


class Auxiliary(nn.Sequential):
    """A network with a second output in training mode."""

    def __init__(self, num_classes: int):
        super().__init__(*small(num_classes))

    def forward(self, images):
        return (super().forward(images),) * 2 if self.training else super().forward(images)


class Fours(Auxiliary):
    """A network that needs a multiple of four images in training mode."""

    def forward(self, images):
        assert not self.training or len(images) % 4 == 0, "no fours"
        return nn.Sequential.forward(self, images)


class Operations(nn.Module):
    """Every kind of operation that GHN-2 knows, for 32 px, with widths below and above 64, and an odd width."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.stem = nn.Conv2d(3, 48, 3, 2, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(48)
        self.separable = nn.Conv2d(48, 48, 5, 1, 2, groups=48)
        self.dilated = nn.Conv2d(48, 48, 3, 1, 2, dilation=2, groups=4)
        self.wide = nn.Sequential(nn.Conv2d(48, 9, (1, 7), 1, (0, 3)), nn.ReLU(), nn.Conv2d(9, 48, (7, 1), 1, (3, 0)))
        self.squeeze, self.expand = nn.Linear(96, 16), nn.Linear(16, 96)
        self.project = nn.Conv2d(96, 80, 1)
        self.norm = nn.LayerNorm(80)
        self.classifier = nn.Linear(80, num_classes)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.stem_norm(self.stem(x))), 3, 2, 1)
        x = self.dilated(torch.relu(self.separable(x))) + x
        x = torch.cat([nn.functional.avg_pool2d(x, 3, 1, 1), self.wide(x)], dim=1)
        gate = nn.functional.hardswish(self.expand(torch.relu(self.squeeze(x.mean((2, 3))))))
        x = self.project(x * gate.view(len(x), -1, 1, 1))
        return self.classifier(self.norm(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)))


class Idle(nn.Module):
    """A network with a layer that the output does not depend on."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.used, self.idle = small(num_classes), nn.Linear(3, 3)

    def forward(self, x):
        return self.used(x)
