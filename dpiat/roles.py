"""What shapes alone do not tell of a layer: groups, stacked projections, the classifier, the first layer's inputs."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpiat.architecture import Architecture, Layer
from dpiat.operators import Indices, Weights, centre, shared
from dpiat.standardization import CONVOLUTIONS, COUNTED, LayerWeights, paper_kind

HEADS = ("auto", "copy", "skip")
INPUTS, CLASSES = "input channels", "classes"  # rules that take the operator's place
DENSE = frozenset(cls.__name__ for cls in CONVOLUTIONS)  # the kinds of convolutions that see all input channels
GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}
PROJECTIONS = ("in_proj_weight", "in_proj_bias", "qkv")  # query, key and value in one, by the ends of their names


def seen(source: LayerWeights, target: LayerWeights, mode: str) -> tuple[Weights, Weights]:
    """A pair of layers as an operator sees it."""
    given = Weights(source.tensors, paper_kind(type(source.module)))
    wanted = Weights(target.tensors, paper_kind(type(target.module)))
    if mode == "paper":
        return given, wanted
    if isinstance(source.module, CONVOLUTIONS) and isinstance(target.module, CONVOLUTIONS):
        s, t = source.module, target.module
        if not (_one_by_one(s) and _one_by_one(t)):  # such a pair needs no more than its shapes
            return Weights(*given[:2], s.groups), Weights(*wanted[:2], t.groups)
    elif (parts := _parts(source)) == _parts(target) > 1:
        return given._replace(parts=parts), wanted._replace(parts=parts)
    return given, wanted


def _one_by_one(module: nn.Module) -> bool:
    """Does every channel have a group and a filter of its own?"""
    return module.groups == module.in_channels == module.out_channels


def _parts(layer: LayerWeights) -> int:
    """How many equal projections are stacked in each tensor of a layer: 3 for query, key and value, gates, or 1."""
    if isinstance(layer.module, (nn.RNNBase, nn.RNNCellBase)):
        gates = next((count for cls, count in GATES.items() if isinstance(layer.module, cls)), 1)
        return 1 if getattr(layer.module, "proj_size", 0) else gates  # the projection of an LSTM's output has no gates
    if not layer.name.endswith(PROJECTIONS):
        return 1
    return 3 if all(tensor.dim() and len(tensor) % 3 == 0 for tensor in layer.tensors.values()) else 1


# --- the classifier ---------------------------------------------------------------------------------------------------


def kept_head(source: Architecture, target: Architecture, partner: Mapping[str, str], head: str) -> dict[str, str]:
    """The classifier of the target, if it is not to be filled, with the reason."""
    theirs, ours = _classifier(source), _classifier(target)
    if ours is None or head == "copy":
        return {}
    if head == "skip":
        return {ours.name: "the classifier, which head='skip' leaves"}
    if theirs is None or partner.get(ours.name) != theirs.name:
        return {ours.name: "a classifier, and no classifier matched"}
    if theirs.shape[0] != ours.shape[0]:
        return {ours.name: f"a classifier of {ours.shape[0]} classes, of {theirs.shape[0]} in the source"}
    return {}


def map_head(
    source: Architecture, target: Architecture, partner: MutableMapping[str, str], classes: Mapping[int, int]
) -> str:
    """Make the classifiers partners, and return the name of the target's.

    Raises ValueError if a network has no classifier or not the classes that are named.
    """
    names = []
    for role, network, chosen in (("target", target, classes.keys()), ("source", source, classes.values())):
        layer = _classifier(network)
        if layer is None:
            raise ValueError(f"head maps classes, and the {role} does not end in a classifier")
        for index in chosen:
            if index not in range(layer.shape[0]):
                raise ValueError(f"head maps class {index!r} of the {role}, whose classifier has {layer.shape[0]}")
        names.append(layer.name)
    ours, partner[names[0]] = names
    return ours


def _classifier(architecture: Architecture) -> Layer | None:
    """The last layer with weights, if it is linear or a 1 × 1 convolution. A backbone that ends in a norm has none."""
    last = next((layer for layer in reversed(architecture.layers) if layer.shape), None)
    return last if last and last.kind in COUNTED and set(last.shape[2:]) <= {1} else None


@dataclass(frozen=True)
class ChosenClasses:
    """The operator of a classifier: rows by a mapping {target class: source class}, the rest clipped."""

    classes: Mapping[int, int]

    def __call__(self, source: Weights, target: Weights) -> Indices:
        ours, theirs = (torch.tensor(list(rows), device="cpu") for rows in (self.classes.keys(), self.classes.values()))
        indices = {}
        for name, s, t in shared(source, target):
            to, by = centre(s.shape, t.shape)
            indices[name] = (ours, *to[1:]), (theirs, *by[1:])
        return indices


# --- the first layer --------------------------------------------------------------------------------------------------


def other_inputs(source: Architecture, target: Architecture, partner: Mapping[str, str]) -> list[str]:
    """The target's first convolution, if its partner is the source's and takes another number of input channels."""
    first, ours = _first_convolution(source), _first_convolution(target)
    if not first or not ours or partner.get(ours.name) != first.name or first.shape[1] == ours.shape[1]:
        return []
    return [ours.name]


def _first_convolution(architecture: Architecture) -> Layer | None:
    first = next((layer for layer in architecture.layers if layer.shape and layer.kind in DENSE), None)
    return None if first is None or "Transpose" in first.kind else first


def adapt_inputs(weight: Tensor, channels: int) -> Tensor:
    """A convolution's weight (out, in, ...) for another number of input channels: (out, channels, ...).

    Channels repeat in turn, and share what they stand for; or fold onto one another, and add up. Either way an image
    that is the same in all channels gives the response that it gave.
    """
    count = weight.shape[1]
    turn = torch.arange(max(channels, count), device="cpu") % min(channels, count)
    to = turn.to(weight.device)
    if channels < count:
        return weight.new_zeros(weight.shape[0], channels, *weight.shape[2:]).index_add_(1, to, weight)
    shares = turn.bincount()[turn].view(-1, *[1] * (weight.dim() - 2))
    return weight.index_select(1, to) / shares.to(weight.device)
