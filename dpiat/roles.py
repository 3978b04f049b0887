"""What shapes alone do not tell of a layer: groups, stacked projections, the classifier, the first layer's inputs."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from dpiat.architecture import Architecture, Layer
from dpiat.operators import Indices, Weights, centre, shared
from dpiat.standardization import CONVOLUTIONS, COUNTED, DEPTHWISE, LayerWeights, Network, known_kind, paper_kind

HEADS = ("auto", "copy", "skip")
INPUTS, CLASSES = "input channels", "classes"  # rules that take the operator's place
UNMATCHED = "a classifier, and no classifier matched"
SKIPPED = "the classifier, which head='skip' leaves"
DENSE = frozenset(cls.__name__ for cls in CONVOLUTIONS)  # the kinds of convolutions that see all input channels
# How many equal projections are stacked in one layer, by the end of its name: query, key and value, or two of these.
STACKED = {"in_proj_weight": 3, "in_proj_bias": 3, "qkv": 3, "kv": 2, "qk": 2}
BY_SHAPE = ("c_attn", "qkv_proj")  # two or three, as many as there are inputs in outputs
PROJECTIONS = (*STACKED, *BY_SHAPE)
WRAPPED = ("._orig_mod", ".base_layer")  # what torch.compile and PEFT append to the name of a layer
ATTENTION = ("in_proj_weight", "q_proj_weight")  # beside the out_proj of nn.MultiheadAttention, which is linear


def seen(source: LayerWeights, target: LayerWeights, mode: str) -> tuple[Weights, Weights]:
    """A pair of layers as an operator sees it."""
    kind = paper_kind if mode == "paper" else known_kind
    given, wanted = (Weights(layer.tensors, kind(type(layer.module))) for layer in (source, target))
    if mode == "paper":
        return given, wanted
    s, t = source.module, target.module
    if isinstance(s, CONVOLUTIONS) and isinstance(t, CONVOLUTIONS) and max(s.groups, t.groups) > 1:
        if not (_one_by_one(s) and _one_by_one(t)):  # such a pair needs no more than its shapes
            return Weights(*given[:2], s.groups), Weights(*wanted[:2], t.groups)
    elif (stacked := _parts(source))[0] > 1 and stacked == _parts(target):
        return tuple(layer._replace(parts=stacked[0], along=stacked[1]) for layer in (given, wanted))
    return given, wanted


def _one_by_one(module: nn.Module) -> bool:
    """Does every channel have a group and a filter of its own?"""
    return module.groups == module.in_channels == module.out_channels


def _parts(layer: LayerWeights) -> tuple[int, int]:
    """How many equal projections are stacked in each tensor of a layer, and along which dimension.

    3 for query, key and value, the number of gates, or 1; 0 for the first dimension, or 1 for the second.
    """
    recurrent = layer.tensors.get("weight_hh_l0", layer.tensors.get("weight_hh"))
    if recurrent is not None and recurrent.dim() == 2:  # (gates · hidden, hidden), or (gates · hidden, projected)
        return len(recurrent) // layer.tensors.get("weight_hr_l0", recurrent).shape[1], 0
    name = layer.name
    for end in WRAPPED:
        name = name.removesuffix(end)
    weight = layer.tensors.get("weight")
    if name.endswith(BY_SHAPE) and weight is not None and weight.dim() > 1:
        along = int(weight.shape[0] < weight.shape[1])  # GPT-2's Conv1D has its outputs in columns
        parts, rest = divmod(weight.shape[along], weight.shape[1 - along])
        return (parts, along) if not rest and parts in (2, 3) else (1, 0)
    parts = next((parts for end, parts in STACKED.items() if name.endswith(end)), 1)
    rows = {tensor.shape[0] if tensor.dim() else 1 for tensor in layer.tensors.values()}
    return (parts, 0) if len(rows) == 1 and rows.pop() % parts == 0 else (1, 0)


# --- the classifier ---------------------------------------------------------------------------------------------------


def treat_heads(
    source: Architecture,
    target: Architecture,
    partner: MutableMapping[str, str],
    head: str | Mapping[int, int] = "auto",
    mode: str = "default",
) -> tuple[dict[str, str], list[str]]:
    """The target's heads that are not to be filled, with the reason, and those that are filled by a mapping of classes.

    Classifiers that fit become partners. In paper mode there are no other heads. Raises ValueError if classes are
    mapped and a network has no classifier or not the classes that are named.
    """
    if mode == "paper" and head in ("auto", "copy"):
        return {}, []
    theirs, ours = _heads(source), _heads(target)
    mapped = isinstance(head, Mapping)
    if mapped:
        _check_classes(head, source=theirs, target=ours)
    if mode == "paper":
        theirs, ours = theirs[-1:], ours[-1:]
    if theirs and ours and (mapped or (head != "skip" and _alike(theirs[-1], ours[-1]))):
        _pair(theirs, ours[-1], partner)
    if head == "copy":
        return {}, []
    rows = {layer.name: layer.shape[0] for layer in source.layers if layer.shape}
    heads = {layer.name for layer in theirs}
    kept, chosen = {}, []
    for layer in ours:
        given, classes = partner.get(layer.name), layer.shape[0]
        if given not in heads and layer is not ours[-1] and rows.get(given) == classes:
            continue  # both are inner layers, which have as many rows by chance
        if mapped and given in heads and (rows[given], classes) == (theirs[-1].shape[0], ours[-1].shape[0]):
            chosen.append(layer.name)
        elif head == "skip":
            kept[layer.name] = SKIPPED
        elif given not in heads:
            kept[layer.name] = UNMATCHED
        elif rows[given] != classes:
            kept[layer.name] = f"a classifier of {classes} classes, of {rows[given]} in the source"
    return kept, chosen


def _check_classes(classes: Mapping[int, int], **heads: Sequence[Layer]) -> None:
    for role, chosen in (("target", classes.keys()), ("source", classes.values())):
        if not heads[role]:
            raise ValueError(f"head maps classes, and the {role} does not end in a classifier")
        rows = heads[role][-1].shape[0]
        for index in chosen:
            if index not in range(rows):
                raise ValueError(f"head maps class {index!r} of the {role}, whose classifier has {rows}")


def _alike(source: Layer, target: Layer) -> bool:
    """Are two layers of one kind, with as many rows?"""
    return (source.kind, source.shape[0]) == (target.kind, target.shape[0])


def _pair(theirs: Sequence[Layer], ours: Layer, partner: MutableMapping[str, str]) -> None:
    """Give our classifier theirs, unless it has another of their heads that fits to the last input."""
    shape = (theirs[-1].shape[0], *ours.shape[1:])
    if partner.get(ours.name) not in {layer.name for layer in theirs if layer.shape == shape}:
        partner[ours.name] = theirs[-1].name


def _heads(architecture: Architecture) -> list[Layer]:
    """The classifier, at the end, and the others like it that give outputs of the network.

    The classifier is the last layer with weights, if it is linear or a 1 × 1 convolution. A backbone that ends in a
    norm has none. Side by side with it are heads of the same inputs, such as that of a distillation token or the boxes
    of a detector; others elsewhere have as many rows as one of these, such as auxiliary classifiers and what is beside
    those. No later layer takes what a head gives. An attention's last projection is none.
    """
    layers = [layer for layer in architecture.layers if layer.shape and not _of_loss(layer)]
    inner = {
        layer.name.removesuffix(own) + "out_proj" for layer in layers for own in ATTENTION if layer.name.endswith(own)
    }
    outputs, taken = set(), set()
    for place, layer in reversed(list(enumerate(layers))):
        if _classifies(layer) and layer.name not in inner and layer.shape[0] not in taken:
            outputs.add(place)
        taken.add(_inputs(layer))
    if len(layers) - 1 not in outputs:
        return []
    runs = groupby(range(len(layers)), lambda place: place in outputs and _inputs(layers[place]))
    beside = [[layers[place] for place in run] for inputs, run in runs if inputs]
    rows = {layer.shape[0] for layer in beside[-1]}
    return [layer for run in beside if not rows.isdisjoint(each.shape[0] for each in run) for layer in run]


def _of_loss(layer: Layer) -> bool:
    """Is it a vector of a loss's, such as the weights of classes, beside the network?"""
    return len(layer.shape) == 1 and any(word in f"{layer.name} {layer.kind}".lower() for word in ("loss", "criteri"))


def _inputs(layer: Layer) -> int:
    of_each = len(layer.shape) == 1 or layer.kind.startswith(DEPTHWISE)
    return layer.shape[0] if of_each else layer.shape[1]


def _classifies(layer: Layer) -> bool:
    return layer.kind in COUNTED and set(layer.shape[2:]) <= {1} and not layer.name.endswith(PROJECTIONS)


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
