"""What shapes alone do not tell of a layer: groups, stacked projections, the classifier, the first layer's inputs."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpiat.architecture import Architecture, Layer
from dpiat.operators import Indices, Weights, centre, shared
from dpiat.standardization import CONVOLUTIONS, COUNTED, DEPTHWISE, LayerWeights, Network, paper_kind

HEADS = ("auto", "copy", "skip")
INPUTS, CLASSES = "input channels", "classes"  # rules that take the operator's place
UNMATCHED = "a classifier, and no classifier matched"
DENSE = frozenset(cls.__name__ for cls in CONVOLUTIONS)  # the kinds of convolutions that see all input channels
PROJECTIONS = ("in_proj_weight", "in_proj_bias", "qkv")  # query, key and value in one, by the ends of their names


def seen(source: LayerWeights, target: LayerWeights, mode: str) -> tuple[Weights, Weights]:
    """A pair of layers as an operator sees it."""
    given = Weights(source.tensors, paper_kind(type(source.module)))
    wanted = Weights(target.tensors, paper_kind(type(target.module)))
    if mode == "paper":
        return given, wanted
    s, t = source.module, target.module
    if isinstance(s, CONVOLUTIONS) and isinstance(t, CONVOLUTIONS) and max(s.groups, t.groups) > 1:
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
    recurrent = layer.tensors.get("weight_hh_l0", layer.tensors.get("weight_hh"))
    if recurrent is not None and recurrent.dim() == 2:  # (gates · hidden, hidden); an LSTM's projection has no gates
        return 1 if "weight_hr_l0" in layer.tensors else len(recurrent) // recurrent.shape[1]
    if not layer.name.endswith(PROJECTIONS):
        return 1
    return 3 if all(tensor.dim() and len(tensor) % 3 == 0 for tensor in layer.tensors.values()) else 1


# --- the classifier ---------------------------------------------------------------------------------------------------


def kept_head(source: Architecture, target: Architecture, partner: Mapping[str, str], head: str) -> dict[str, str]:
    """The classifier of the target, or the several that it has, if they are not to be filled, with the reason."""
    theirs, ours = _classifier(source), _classifier(target)
    if ours is None or head == "copy":
        return {}
    if head == "skip":
        return {ours.name: "the classifier, which head='skip' leaves"}
    if theirs is None or partner.get(ours.name) != theirs.name:
        return {ours.name: UNMATCHED}
    if theirs.shape[0] == ours.shape[0]:
        return {}
    # Others of as many classes are classifiers too: of auxiliary outputs, or of a distillation token.
    outputs = {layer.name: layer.shape[0] for layer in _outputs(source)}
    alike = [layer.name for layer in _outputs(target) if layer.shape[0] == ours.shape[0]]
    kept = [name for name in alike if outputs.get(partner.get(name)) == theirs.shape[0]]
    return dict.fromkeys(kept, f"a classifier of {ours.shape[0]} classes, of {theirs.shape[0]} in the source")


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
    return last if last and _classifies(last) else None


def _outputs(architecture: Architecture) -> list[Layer]:
    """The layers like a classifier of which the next layer does not take what they give."""
    layers = [layer for layer in architecture.layers if layer.shape]
    return [
        layer
        for layer, after in zip(layers, [*layers[1:], None], strict=True)
        if _classifies(layer) and (after is None or layer.shape[0] != _inputs(after))
    ]


def _inputs(layer: Layer) -> int:
    of_each = len(layer.shape) == 1 or layer.kind.startswith(DEPTHWISE)
    return layer.shape[0] if of_each else layer.shape[1]


def _classifies(layer: Layer) -> bool:
    return bool(layer.shape) and layer.kind in COUNTED and set(layer.shape[2:]) <= {1}


@dataclass(frozen=True)
class ChosenClasses:
    """The operator of a classifier: rows by a mapping {target class: source class}, the rest clipped."""

    classes: Mapping[int, int]

    def __call__(self, source: Weights, target: Weights) -> Indices:
        rows = self.classes.keys(), self.classes.values()
        ours, theirs = (torch.tensor(list(chosen), device="cpu", dtype=torch.long) for chosen in rows)
        indices = {}
        for name, s, t in shared(source, target):
            for chosen, tensor in ((ours, t), (theirs, s)):
                if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(tensor):
                    raise ValueError(f"head maps classes that are not among the {len(tensor)} of a classifier's {name}")
            to, by = centre(s.shape, t.shape)
            indices[name] = (ours, *to[1:]), (theirs, *by[1:])
        return indices


# --- the first layer --------------------------------------------------------------------------------------------------


def other_inputs(source: Network, target: Network, partner: Mapping[str, str]) -> list[str]:
    """The target's first convolution, if its partner is the source's and takes another number of input channels."""
    first, ours = (_first_convolution(network.architecture) for network in (source, target))
    if not first or not ours or partner.get(ours.name) != first.name or first.shape[1] == ours.shape[1]:
        return []
    layers = [next(w for w in n.weights if w.name == layer.name) for n, layer in ((source, first), (target, ours))]
    whole = all("weight" in w.tensors and getattr(w.module, "groups", 1) == 1 for w in layers)
    return [ours.name] if whole else []


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
