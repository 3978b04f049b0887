"""How similar two architectures are (section 3.5)."""

from __future__ import annotations

from math import sqrt

from torch import nn

from dpiat.architecture import Architecture
from dpiat.matching import match_score
from dpiat.standardization import standardize


def similarity(source: nn.Module | Architecture, target: nn.Module | Architecture) -> float:
    """Eq. 5: sqrt(f(source, target) · f(target, source)), in [0, 1]; 1 for equal architectures.

    Symmetric, needs no training and no data, and changes neither network.

        >>> similarity(timm.create_model("tf_efficientnet_b2"), timm.create_model("tf_efficientnet_b0"))
        0.804...

    Raises TypeError if an argument is neither an nn.Module nor an Architecture.
    """
    source, target = as_architecture(source, "source"), as_architecture(target, "target")
    return sqrt(coverage(source, target) * coverage(target, source))


def coverage(source: nn.Module | Architecture, target: nn.Module | Architecture) -> float:
    """Eq. 4: the score of the transfer divided by the target's score with itself, in [0, 1]. Not symmetric.

    0 for a target without any layer that has weights.
    """
    source, target = as_architecture(source, "source"), as_architecture(target, "target")
    return match_score(source, target) / target.max_score if target.max_score else 0.0


def as_architecture(network: nn.Module | Architecture, role: str) -> Architecture:
    if isinstance(network, Architecture):
        return network
    if isinstance(network, nn.Module):
        return standardize(network)
    raise TypeError(f"{role} must be a torch.nn.Module or an Architecture, got {type(network).__name__}")
