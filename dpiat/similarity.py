"""How similar two architectures are (section 3.5)."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod, sqrt
from typing import NamedTuple

from torch import nn

from dpiat.architecture import Architecture
from dpiat.index import pretrained, timm_architectures
from dpiat.matching import match_both, match_score, match_scores
from dpiat.sources import Stored
from dpiat.standardization import read, standardize


def similarity(source: nn.Module | Architecture, target: nn.Module | Architecture, mode: str = "default") -> float:
    """Eq. 5: sqrt(f(source, target) · f(target, source)), in [0, 1]; 1 for equal architectures.

    Symmetric, needs no training and no data, and changes neither network. `mode` says how modules are standardized.

        >>> similarity(timm.create_model("tf_efficientnet_b2"), timm.create_model("tf_efficientnet_b0"))
        0.804...

    Raises TypeError if an argument is neither an nn.Module nor an Architecture.
    """
    source, target = as_architectures({"source": source, "target": target}, mode)
    there, back = match_scores(source, target)
    return sqrt(_part(there, target) * _part(back, source))


def coverage(source: nn.Module | Architecture, target: nn.Module | Architecture, mode: str = "default") -> float:
    """Eq. 4: the score of the transfer divided by the target's score with itself, in [0, 1]. Not symmetric.

    0 for a target without any layer that has weights.
    """
    source, target = as_architectures({"source": source, "target": target}, mode)
    return _part(match_score(source, target), target)


class Candidate(NamedTuple):
    """What a source has to offer to a target; the numbers are in [0, 1].

    `filled` counts the weight tensors of all matched layers. `plan(...).report.share` also knows biases, statistics and
    what is done with a classifier (`transfer`'s `head`), which timm's index, without names of layers, cannot tell.
    """

    source: str
    similarity: float  # Eq. 5
    to_target: float  # Eq. 4 of the transfer
    to_source: float  # Eq. 4 of the transfer back
    filled: float  # part of the elements of the target's weight tensors that the source fills
    pretrained: bool | None = None  # whether timm has trained weights of this name; None where nobody has asked it


def rank(
    target: nn.Module | Architecture, sources: Mapping[str, nn.Module | Architecture] | str | None = None
) -> list[Candidate]:
    """The sources, by name, in the order of their similarity to the target: the best first. Changes no network.

    `sources` None or "timm" are all architectures of timm, from an index in the user's cache folder, which is built at
    the first call, in minutes (`dpiat.index`).

    The paper's advice for a choice among trained networks (section 1.2): similarity predicts how much the target gains
    (appendix B.7). Raises TypeError if one is neither an nn.Module nor an Architecture, ModuleNotFoundError if timm is
    needed and missing.

        >>> rank(new_network, {"resnet18": resnet18, "efficientnet_b0": efficientnet_b0})[0].source
        >>> rank(new_network)[:10]
    """
    trained = None
    if sources is None or sources == "timm":
        sources, trained = timm_architectures(), pretrained()
    if not isinstance(sources, Mapping):
        raise TypeError(f'sources must be a mapping from names to networks, "timm" or None, got {sources!r}')
    values: dict[tuple, tuple[float, ...]] = {}
    candidates = []
    if isinstance(target, nn.Module) and not any(isinstance(n, Stored) for n in (target, *sources.values())):
        target = standardize(target)
    for name, network in sources.items():
        source, wanted = as_architectures({name: network, "the target": target})
        key = source.signature, wanted.signature
        if key not in values:
            values[key] = _values(source, wanted)
        known = None if trained is None else name in trained
        candidates.append(Candidate(name, *values[key], known))
    return sorted(candidates, key=lambda candidate: -candidate.similarity)


def _values(source: Architecture, target: Architecture) -> tuple[float, float, float, float]:
    """The similarity, both coverages and the part of the target that is filled."""
    found, back = match_both(source, target)
    there, back = _part(found.score, target), _part(back, source)
    elements = sum(prod(layer.shape) for layer in target.layers if layer.shape)
    filled = sum(prod(map(min, pair.source.shape, pair.target.shape)) for pair in found.layers)
    return sqrt(there * back), there, back, filled / elements if elements else 0.0


def _part(score: float, target: Architecture) -> float:
    return score / target.max_score if target.max_score else 0.0


def as_architectures(networks: Mapping[str, nn.Module | Architecture], mode: str = "default") -> list[Architecture]:
    """Networks as plain data; by their shapes alone if of one there is only a state dict (`dpiat.load`)."""
    stored = next((name for name, network in networks.items() if isinstance(network, Stored)), None)
    for name, network in networks.items():
        if not isinstance(network, (nn.Module, Architecture)):
            raise TypeError(f"{name} must be a torch.nn.Module or an Architecture, got {type(network).__name__}")
        if stored and isinstance(network, Architecture):
            raise TypeError(f"{name} must be a torch.nn.Module, since {stored} is a state dict")
    return [
        network if isinstance(network, Architecture) else read(network, mode, stored is not None).architecture
        for network in networks.values()
    ]
