"""How similar two architectures are (section 3.5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod, sqrt
from os import PathLike
from typing import NamedTuple

from torch import nn

from dpiat.alignment import align_both, align_score, align_scores
from dpiat.architecture import Architecture
from dpiat.matching import match_both, match_score, match_scores
from dpiat.reading import Mode, read, standardize
from dpiat.sources import Source, is_timm_name, load_without_weights, networks_of
from dpiat.stored import Stored
from dpiat.timm_index import pretrained, timm_architectures


def similarity(source: Source | Architecture, target: Source | Architecture, mode: Mode = "default") -> float:
    """Compute how similar two architectures are (Eq. 5): sqrt(f(source, target) · f(target, source)), in [0, 1].

    Similarity is symmetric, needs no training and no data, and changes neither network.

    Args:
        source: A network, its architecture, or what `dpiat.load` takes. A name loads no weights.
        target: Likewise.
        mode: How modules are standardized and matched. "paper" gives the paper's number.

    Returns:
        1 for equal architectures, 0 if one has no layer with weights.

    Raises:
        TypeError: If an argument is none of these.
        ValueError: For a file or a name that gives no network.

    Examples:
        >>> similarity(timm.create_model("tf_efficientnet_b2"), timm.create_model("tf_efficientnet_b0"))
        0.800...
    """
    source, target = as_architectures({"source": source, "target": target}, mode)
    there, back = _scores(source, target)
    return sqrt(_part(there, target) * _part(back, source))


def coverage(source: Source | Architecture, target: Source | Architecture, mode: Mode = "default") -> float:
    """Compute how much of the target a source can fill (Eq. 4): f(source, target), in [0, 1]. Not symmetric.

    Args:
        source: A network, its architecture, or what `dpiat.load` takes.
        target: Likewise.
        mode: "default" or "paper".

    Returns:
        The score of the transfer, divided by the target's score with itself. For a target without weights, 0.

    Raises:
        TypeError: If an argument is none of these.
        ValueError: For a file or a name that gives no network.

    Examples:
        >>> coverage("resnet34", "resnet18")
    """
    source, target = as_architectures({"source": source, "target": target}, mode)
    return _part((align_score if source.structured and target.structured else match_score)(source, target), target)


class Candidate(NamedTuple):
    """What a source has to offer to a target; the numbers are in [0, 1].

    Attributes:
        source: The name of the source.
        similarity: How alike both architectures are (Eq. 5). Choose by this number.
        to_target: How well the source fits the target (Eq. 4): the score of the transfer, over the target's score with
            itself.
        to_source: How well the target fits the source: Eq. 4 of the transfer back.
        filled: The share of the elements of the target's weights that the source fills, in all matched layers.
            `plan(...).report.share` also counts biases and statistics, and knows what happens to a classifier
            (`head`). timm's index has no names of layers, and cannot tell this.
        pretrained: Whether timm has trained weights of this name. None where timm was not asked.
    """

    source: str
    similarity: float
    to_target: float
    to_source: float
    filled: float
    pretrained: bool | None = None


def rank(
    target: Source | Architecture,
    sources: Mapping[str, Source | Architecture] | Sequence[str | PathLike] | str | PathLike | None = None,
    architecture: str | None = None,
) -> list[Candidate]:
    """Order sources for a target by their similarity to it, as the paper advises (section 1.2). Changes no network.

    Args:
        target: A network, its architecture, or what `dpiat.load` takes. A name loads no weights.
        sources: Networks by name; or a list of names, files, folders of files, and patterns of timm's names (* and ?);
            or a single one of these. A folder that `save_pretrained` wrote is one source. None or "timm" stands for all
            architectures of timm, from an index in the user's cache folder. The first call builds the index, in
            minutes.
        architecture: The name of the network of state dicts and files, as in `dpiat.load`.

    Returns:
        A candidate for each source, the most similar first.

    Raises:
        TypeError: If an argument is none of these.
        ValueError: For a file or a name that gives no network.
        ModuleNotFoundError: If timm is needed and missing.

    Examples:
        >>> rank(new_network, {"resnet18": resnet18, "efficientnet_b0": efficientnet_b0})[0].source
        >>> rank(new_network, ["resnet18", "efficientnet_*", "checkpoints"])[0].source
        >>> rank(new_network)[:10]
    """
    target = _network("the target", target, architecture)
    plain = target if isinstance(target, (Architecture, Stored)) else standardize(target)
    values: dict[tuple, tuple[float, ...]] = {}
    candidates = []
    for name, network in _named(sources, target, architecture):
        beside = target if isinstance(network, Stored) else plain
        source, wanted = as_architectures({name: network, "the target": beside})
        key = source.signature, wanted.signature
        if key not in values:
            values[key] = _values(source, wanted)
        by_name = not isinstance(sources, Mapping) and is_timm_name(name)
        trained = name.partition(".")[0] in pretrained() if by_name else None
        candidates.append(Candidate(name, *values[key], trained))
    return sorted(candidates, key=lambda candidate: -candidate.similarity)


def _named(sources, target: nn.Module | Architecture, architecture: str | None) -> Iterable[tuple]:
    """The sources of `rank` with their names, one by one."""
    if sources is None or sources == "timm":
        if isinstance(target, Stored):
            raise ValueError("the target is a state dict: name its architecture, or name the sources")
        return timm_architectures().items()
    like = target if isinstance(target, nn.Module) else None
    if isinstance(sources, Mapping):
        return ((name, _network(name, source, architecture, like)) for name, source in sources.items())
    names = [sources] if isinstance(sources, (str, PathLike)) else sources
    if not isinstance(names, Sequence) or not all(isinstance(name, (str, PathLike)) for name in names):
        raise TypeError(
            'sources must be a mapping from names to networks, a list of names, files and folders, "timm" or None, '
            f"got {sources!r}"
        )
    return networks_of(names, architecture, like)


def _network(
    name: str, source: Source | Architecture, architecture: str | None = None, like: nn.Module | None = None
) -> nn.Module | Architecture:
    if isinstance(source, Architecture):
        return source
    if not isinstance(source, (nn.Module, Mapping, str, PathLike)):
        raise TypeError(
            f"{name} must be a name, a path, a state dict, a torch.nn.Module or an Architecture, "
            f"got {type(source).__name__}"
        )
    return load_without_weights(source, architecture, like)


def _scores(source: Architecture, target: Architecture) -> tuple[float, float]:
    """The scores of the transfer and of the transfer back."""
    if source.structured and target.structured:
        return align_scores(source, target)
    return match_scores(source, target)


def _values(source: Architecture, target: Architecture) -> tuple[float, float, float, float]:
    """The similarity, both coverages and the part of the target that is filled."""
    both = align_both if source.structured and target.structured else match_both
    found, back = both(source, target)
    there, back = _part(found.score, target), _part(back, source)
    elements = sum(prod(layer.shape) for layer in target.layers if layer.shape)
    filled = sum(prod(map(min, pair.source.shape, pair.target.shape)) for pair in found.layers)
    return sqrt(there * back), there, back, filled / elements if elements else 0.0


def _part(score: float, target: Architecture) -> float:
    return score / target.max_score if target.max_score else 0.0


def as_architectures(networks: Mapping[str, Source | Architecture], mode: Mode = "default") -> list[Architecture]:
    """Networks as plain data. If one of them is a state dict, all are read by their shapes alone."""
    like = next((network for network in networks.values() if isinstance(network, nn.Module)), None)
    found = {name: _network(name, network, like=like) for name, network in networks.items()}
    stored = next((name for name, network in found.items() if isinstance(network, Stored)), None)
    for name, network in found.items():
        if stored and isinstance(network, Architecture):
            raise TypeError(f"{name} must be a torch.nn.Module, since {stored} is a state dict")
    return [
        network if isinstance(network, Architecture) else read(network, mode, stored is not None).architecture
        for network in found.values()
    ]
