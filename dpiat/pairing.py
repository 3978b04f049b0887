"""What follows from a matching in default mode: the partners of norms and constants, and why a layer has no partner."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping

from torch.nn.modules.loss import _Loss

from dpiat.alignment import GATES, family
from dpiat.architecture import Layer
from dpiat.context import norms_behind
from dpiat.layers import CONSTANT
from dpiat.matching import Matching
from dpiat.standardization import LayerTensors, Network

# "mlp.experts.3.up_proj", or a part of a tensor that stacks all experts: "mlp.experts.down_proj[3, out of the ...]".
EXPERT = re.compile(r"(?P<before>.*\bexperts\.(?:\w+\[)?)\d+(?P<part>.*)")


def complete(source: Network, target: Network, matched: Matching, partner: MutableMapping[str, str]) -> None:
    """Add partners for constants, which are computed and not learned: the constant of the same name and shapes.

    Where there is none, the target's own constant stays: it is right for the target's size.
    """
    given = {layer.name: layer for layer in source.layers}
    blocks = {pair.target.name: pair.source.name for pair in matched.blocks if not pair.target.run}
    for layer in target.layers:
        if layer.plain.kind != CONSTANT or isinstance(layer.module, _Loss):  # a loss has weights of its own classes
            continue
        inside = (ours for ours in blocks if layer.name.startswith(f"{ours}."))
        ours = next(inside, "")
        name = blocks[ours] + layer.name[len(ours) :] if ours else layer.name
        if name in given and _shapes(given[name]) == _shapes(layer):
            partner[layer.name] = name


def share_among_experts(target: Network, partner: MutableMapping[str, str]) -> None:
    """Let every expert of a mixture take what one takes, where the source has fewer experts, or none.

    All experts then start as the network that the source has in their place ("sparse upcycling", arXiv 2212.05055), and
    the router, which keeps its own values, tells them apart with time.
    """
    experts: dict[tuple[str, ...], list[str]] = {}  # the layers of all experts that are one part of an expert each
    for layer in target.layers:
        if "experts." in layer.name and (found := EXPERT.fullmatch(layer.name)):
            experts.setdefault((found["before"], found["part"]), []).append(layer.name)
    for names in experts.values():
        given = [partner[name] for name in names if name in partner]
        if given:  # by the place of an expert, so that all of its parts come from one
            partner.update({name: given[place % len(given)] for place, name in enumerate(names)})


def _shapes(layer: LayerTensors) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in layer.tensors.values()]


def keep_norms(source: Network, target: Network, partner: MutableMapping[str, str], gates: bool = False) -> None:
    """Let the batch norm right behind a convolution come from behind the convolution's own partner.

    The statistics of a norm are those of its convolution's outputs: another norm's would be wrong, however alike. With
    `gates`, a norm in a squeeze and excitation without a partner has no partner either.
    """
    behind = {layer.name: norm for layer, norm in _normed(source)}
    for layer, norm in _normed(target):
        theirs = behind.get(partner.get(layer.name, ""))
        if theirs is not None:
            partner[norm.name] = theirs.name
        elif gates and layer.role in GATES:
            partner.pop(norm.name, None)


def _normed(network: Network) -> list[tuple[Layer, Layer]]:
    """The convolutions and linear layers that a batch norm of their outputs follows, each with the norm."""
    layers = [layer for layer in network.architecture.layers if layer.shape]
    pairs = ((layers[place], layers[norm]) for place, norm in norms_behind(layers).items())
    return [(layer, norm) for layer, norm in pairs if norm.kind.startswith("BatchNorm")]


def reasons(source: Network, target: Network, partner: Mapping[str, str]) -> dict[str, str]:
    """Why layers of the target have no partner, where one fact is reason enough."""
    theirs = [layer for layer in source.architecture.layers if layer.shape]
    families, known = {family(layer) for layer in theirs}, {layer.role for layer in theirs}
    found = {}
    for layer in target.layers:
        plain = layer.plain
        if layer.name in partner:
            continue
        if plain.kind == CONSTANT:
            found[layer.name] = "computed from the architecture, and not learned"
        elif plain.shape and family(plain) not in families:
            found[layer.name] = f"the source has no layer of its kind ({plain.kind})"
        elif plain.shape and (other := _of_another_kind(plain, theirs)):
            found[layer.name] = f"the source's {other.name} is a {other.kind}, not a {plain.kind}"
        elif plain.role and plain.role not in known and "" not in known:
            found[layer.name] = f"the source has no layer for this ({plain.role})"
    return found


def _of_another_kind(layer: Layer, layers: list[Layer]) -> Layer | None:
    """The layer of the same name, if its kind never matches."""
    found = next((each for each in layers if each.name == layer.name), None)
    return found if found is not None and family(found) != family(layer) else None
