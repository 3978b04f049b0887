"""Which layers are classifiers, and which convolution sees the image: facts that only a whole network tells.

A network has no mark on its classifiers. Names tell most of them ("class_embed", "cls_score"). Where no name does, the
last layer is a classifier, and so are the layers beside it that read the same inputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping, Sequence
from fnmatch import fnmatch
from itertools import groupby
from operator import index
from typing import Any, Literal, get_args

from dpiat import roles
from dpiat.architecture import Architecture, Layer
from dpiat.standardization import CONVOLUTIONS, COUNTED, DEPTHWISE, Network

Classes = Mapping[int, int]  # target class -> source class
HeadName = Literal["auto", "copy", "skip"]
Head = HeadName | Classes | Mapping[str, Classes]

HEADS = get_args(HeadName)
INNER = "an inner layer, and a classifier matched"
UNMATCHED = "a classifier, and no classifier matched"
OTHER = "a classifier of "  # so many classes, of others in the source
SKIPPED = "the classifier, which head='skip' leaves"
DENSE = frozenset(cls.__name__ for cls in CONVOLUTIONS)  # the kinds of convolutions that see all input channels
# Parts of names that libraries give to what tells classes, wherever it stands in the network.
CLASS_WORDS = re.compile(
    r"class_embed|cls_score|\w*class\w*_classifier|\w*classifier\w*|cls_logits|\w*_cls|cls_(head|pred|preds|layer|conv)|"
    r"class(ification)?_head\w*|score|class_(predictor|layer|pred)|mask_fcn_logits|classify"
)


def treat_heads(
    source: Architecture,
    target: Architecture,
    partner: MutableMapping[str, str],
    head: Head = "auto",
    mode: str = "default",
) -> tuple[dict[str, str], dict[str, Classes]]:
    """Decide for each classifier of the target whether it is filled, and by which classes.

    Gives two mappings by the names of the target's layers: why a layer keeps its values, and the classes of each layer
    that `head` names. Also writes into `partner`: a classifier's partner becomes the source's classifier of as many
    classes. In paper mode only "skip" and mappings change anything.

    Raises ValueError if `head` maps classes and a network has no classifier, or not the classes that are named.
    """
    if mode == "paper" and head in ("auto", "copy"):
        return {}, {}
    chosen, head = _asked(source, target, partner, head)
    theirs, ours = heads_of(source), heads_of(target)
    if isinstance(head, Mapping):
        _check_classes(head, source=theirs[-1:], target=ours[-1:])
    if mode == "paper":
        theirs, ours = theirs[-1:], ours[-1:]
    if head != "skip":
        _pair_all(theirs, ours, partner, any_classes=isinstance(head, Mapping))
    if head == "copy":
        return {}, chosen
    rows = {layer.name: layer.shape[0] for layer in source.layers if layer.shape}
    heads = {layer.name: layer.shape[0] for layer in theirs}
    kept = _inside(target, theirs, {layer.name for layer in ours}, partner) if target.structured else {}
    for layer in ours:
        given, classes = partner.get(layer.name, ""), layer.shape[0]
        inner = given not in heads and rows.get(given) == classes and layer is not ours[-1] and not _says_so(layer)
        if layer.name in chosen or inner:
            continue  # an inner layer has as many rows as its partner by chance
        alike = given in heads and (heads[given], classes) == (theirs[-1].shape[0], ours[-1].shape[0])
        if isinstance(head, Mapping) and alike:
            chosen[layer.name] = head
        elif why := _why_kept(classes, heads.get(given), head):
            kept[layer.name] = why
    if target.structured:
        kept |= _beside(source, target, partner, kept)
    if head == "auto":
        kept = {name: why for name, why in _other_outputs(source, target, partner).items() if name not in chosen} | kept
    return kept, chosen


def _asked(
    source: Architecture, target: Architecture, partner: MutableMapping[str, str], head: Head
) -> tuple[dict[str, Classes], HeadName | Classes]:
    """The classes of the layers that `head` names, and what `head` says of all other classifiers."""
    if not isinstance(head, Mapping):
        return {}, head
    named = {key: _numbers(classes) for key, classes in head.items() if isinstance(classes, Mapping)}
    return (_named(source, target, partner, named), "auto") if named else ({}, _numbers(head))


def _pair_all(
    theirs: Sequence[Layer], ours: Sequence[Layer], partner: MutableMapping[str, str], any_classes: bool
) -> None:
    """Make a classifier of the source the partner of each of the target's, where one is of as many classes."""
    for layer in ours:
        others = [each for each in theirs if any_classes or _alike(each, layer)]
        if _says_so(layer) and (len(theirs) > 1 or len(ours) > 1):
            others = [each for each in others if _last(each) == _last(layer)]
        if others and (layer is ours[-1] or _says_so(layer)):
            _pair(others, layer, partner)


def _why_kept(classes: int, given: int | None, head: HeadName | Classes) -> str:
    """Why a classifier keeps its values whose partner is a classifier of `given` classes, or is not one; "" if not."""
    if head == "skip":
        return SKIPPED
    if given is None:
        return UNMATCHED
    return "" if given == classes else f"{OTHER}{classes} classes, of {given} in the source"


def new_heads(kept: Mapping[str, str]) -> dict[str, str]:
    """The classifiers that keep their values because the source has other classes, each with the reason."""
    return {name: why for name, why in kept.items() if why == UNMATCHED or why.startswith(OTHER)}


def _inside(
    target: Architecture, theirs: Sequence[Layer], ours: set[str], partner: MutableMapping[str, str]
) -> dict[str, str]:
    """The target's inner layers whose partner is a classifier of another shape, with the reason to leave them.

    A classifier of equal shape may fill an inner layer: a network with one more layer at its end is matched so.
    """
    shapes = {layer.name: layer.shape for layer in theirs}
    return {
        layer.name: INNER
        for layer in target.layers
        if layer.name not in ours and shapes.get(partner.get(layer.name), layer.shape) != layer.shape
    }


def _other_outputs(source: Architecture, target: Architecture, partner: Mapping[str, str]) -> dict[str, str]:
    """The target's outputs beside the classifier, such as boxes and keypoints, if their partner gives another number.

    A layer is an output if no layer takes as many inputs as it gives.
    """
    if not target.structured:
        return {}
    theirs = {layer.name: layer for layer in source.layers if layer.shape}
    taken = [{_inputs(layer) for layer in network.layers if layer.shape} for network in (source, target)]
    found = {}
    first = next((layer for layer in target.layers if len(layer.shape) > 1), None)  # which may look up tokens
    for block in target.blocks:
        for layer in block.layers if block.run else ():
            if layer is first:
                continue
            by = theirs.get(partner.get(layer.name, ""))
            if by is None or not layer.shape or not _classifies(layer) or by.shape[0] == layer.shape[0]:
                continue
            if by.shape[1:] == layer.shape[1:] and by.shape[0] not in taken[0] and layer.shape[0] not in taken[1]:
                found[layer.name] = f"gives {layer.shape[0]} outputs of the network, of {by.shape[0]} in the source"
    return found


def _numbers(classes: Mapping[Any, Any]) -> dict[int, int]:
    found = {}
    for pair in classes.items():
        numbers = []
        for number in pair:
            try:
                numbers.append(index(number))
            except TypeError as error:
                raise TypeError(f"head maps classes by their numbers, got {number!r}") from error
        found[numbers[0]] = numbers[1]
    return found


def _named(
    source: Architecture, target: Architecture, partner: MutableMapping[str, str], named: Mapping[str, Classes]
) -> dict[str, Classes]:
    """The target's layers that the patterns of `head` name, each with its classes.

    Also writes into `partner`: the k-th layer that a pattern finds in the target gets the k-th that it finds in the
    source.
    """
    chosen = {}
    for pattern, classes in named.items():
        ours, theirs = (_called(network, pattern) for network in (target, source))
        if not ours:
            raise ValueError(f"head names {pattern!r}, and the target has no such layer with outputs for classes")
        for place, layer in enumerate(ours):
            if theirs:
                partner[layer.name] = theirs[min(place, len(theirs) - 1)].name
            given = next((each for each in source.layers if each.name == partner.get(layer.name)), None)
            if given is None:
                raise ValueError(f"head names {pattern!r}, and the source has no layer for {layer.name}")
            _check_classes(classes, source=[given], target=[layer])
            chosen[layer.name] = classes
    return chosen


def _called(network: Architecture, pattern: str) -> list[Layer]:
    """The layers whose dotted name, or the end of it, fits a pattern (* and ?)."""
    found = [layer for layer in network.layers if layer.shape and _classifies(layer)]
    exact = [layer for layer in found if layer.name == pattern or layer.name.endswith(f".{pattern}")]
    return exact or [layer for layer in found if fnmatch(layer.name, pattern) or fnmatch(layer.name, f"*.{pattern}")]


def _check_classes(classes: Classes, **heads: Sequence[Layer]) -> None:
    for role, chosen in (("target", classes.keys()), ("source", classes.values())):
        if not heads[role]:
            raise ValueError(f"head maps classes, and the {role} does not end in a classifier")
        rows = heads[role][-1].shape[0]
        for number in chosen:
            if number not in range(rows):
                raise ValueError(f"head maps class {number!r} of the {role}, whose classifier has {rows}")


def _alike(source: Layer, target: Layer) -> bool:
    """Are two layers of one kind, with as many rows?"""
    linear = all(set(layer.shape[2:]) <= {1} for layer in (source, target))
    return (source.kind == target.kind or linear) and source.shape[0] == target.shape[0]


def _pair(theirs: Sequence[Layer], ours: Layer, partner: MutableMapping[str, str]) -> None:
    """Make a classifier of the source the partner, unless the partner is a classifier of the right shape already."""
    best = next((layer for layer in reversed(theirs) if _last(layer) == _last(ours)), theirs[-1])
    shape = (best.shape[0], *ours.shape[1:])
    if partner.get(ours.name) not in {layer.name for layer in theirs if layer.shape == shape}:
        partner[ours.name] = best.name


def _last(layer: Layer) -> str:
    """The word of a layer's name that tells heads apart: the last one that is not a number."""
    words = [word for word in layer.name.split(".") if not word.isdigit()]
    return words[-1] if words else ""


def heads_of(architecture: Architecture) -> list[Layer]:
    """The classifiers, by their names. Without such a name: the last layer, and others like it that give outputs."""
    return _by_words(architecture) or _at_the_end(architecture)


def _class_word(layer: Layer) -> str:
    """The name of the module that is called a classifier in a layer's name, in lower case; "" if none is."""
    words = layer.name.lower().split(".")
    place = next((i for i, word in enumerate(words) if CLASS_WORDS.fullmatch(word)), None)
    return "" if place is None else ".".join(words[: place + 1])


def _says_so(layer: Layer) -> bool:
    return bool(_class_word(layer))


def _by_words(architecture: Architecture) -> list[Layer]:
    """The layers whose names say that they classify.

    If a name belongs to a module of several layers, the last one classifies, unless the module is a list of heads of
    equal sizes.
    """
    if not architecture.structured:
        return []
    found: dict[str, list[Layer]] = {}
    for block in architecture.blocks:
        for layer in block.layers if block.run or len(block.layers) == 1 else ():
            if (word := _class_word(layer)) and layer.shape and _classifies(layer, any_kernel=True):
                found.setdefault(word, []).append(layer)
    heads = []
    for word, layers in found.items():
        listed = all(re.fullmatch(rf"{re.escape(word)}\.\d+", layer.name.lower()) for layer in layers)
        alike = len({layer.shape[0] for layer in layers}) == 1
        heads += layers if listed and alike else layers[-1:]
    return heads


def _beside(
    source: Architecture, target: Architecture, partner: Mapping[str, str], kept: Mapping[str, str]
) -> dict[str, str]:
    """The layers beside a kept classifier that give several outputs for each of its classes: a detector's boxes."""
    # Boxes of class 3 mean nothing for another class 3: they are kept with the classifier.
    rows = {layer.name: layer.shape[0] for layer in source.layers if layer.shape}
    ours = {layer.name: layer for layer in target.layers if layer.shape}
    found = {}
    for name, reason in kept.items():
        head, parent = ours[name], name.rpartition(".")[0]
        for layer in ours.values() if _says_so(head) else ():
            theirs = rows.get(partner.get(layer.name, ""))
            if layer.name in kept or layer.name.rpartition(".")[0] != parent or theirs is None:
                continue
            if len(layer.shape) < 2 or _inputs(layer) != _inputs(head):
                continue
            of_each, rest = divmod(layer.shape[0], head.shape[0])
            if _classifies(layer) and not rest and of_each > 1 and (reason == SKIPPED or theirs != layer.shape[0]):
                found[layer.name] = reason
    return found


def _at_the_end(architecture: Architecture) -> list[Layer]:
    """The classifier, at the end, and the others like it that give outputs of the network.

    The classifier is the last layer with weights, if that is linear or a 1 × 1 convolution. A backbone that ends in a
    norm does not have one. Beside the classifier stand heads that read the same inputs, such as the head of a
    distillation token or the boxes of a detector. Auxiliary classifiers stand elsewhere: they have as many rows as one
    of these, and no later layer takes what they give. The last projection of an attention is not a classifier.
    """
    # From the end to the beginning: `taken` are the numbers of inputs of all later layers, so that a layer whose number
    # of outputs is not among them gives an output of the network.
    layers = [layer for layer in architecture.layers if layer.shape and not _of_loss(layer)]
    outputs, taken = set(), set()
    for place, layer in reversed(list(enumerate(layers))):
        if _classifies(layer) and layer.shape[0] not in taken:
            outputs.add(place)
        taken.add(_inputs(layer))
    if len(layers) - 1 not in outputs:
        return []
    runs = groupby(range(len(layers)), lambda place: place in outputs and _inputs(layers[place]))
    beside = [[layers[place] for place in run] for inputs, run in runs if inputs]
    rows = {layer.shape[0] for layer in beside[-1]}
    return [layer for run in beside if not rows.isdisjoint(each.shape[0] for each in run) for layer in run]


def _of_loss(layer: Layer) -> bool:
    """Is a vector the weights of a loss that is a part of the network?"""
    return len(layer.shape) == 1 and any(word in f"{layer.name} {layer.kind}".lower() for word in ("loss", "criteri"))


def _inputs(layer: Layer) -> int:
    of_each = len(layer.shape) == 1 or layer.kind.startswith(DEPTHWISE)
    return layer.shape[0] if of_each else layer.shape[1]


def _classifies(layer: Layer, any_kernel: bool = False) -> bool:
    """Can a layer tell classes? It is linear or a convolution of one place, and not the inside of an attention."""
    if layer.kind not in COUNTED or not (any_kernel or set(layer.shape[2:]) <= {1}):
        return False
    inside = (layer.role or roles.role(layer.name)).endswith(roles.PROJECTIONS)
    return not inside and not roles.fused(layer.name.rpartition(".")[2].lower())


# --- the first layer --------------------------------------------------------------------------------------------------


def other_inputs(source: Network, target: Network, partner: Mapping[str, str]) -> list[str]:
    """The name of the target's first convolution, in a list, if its partner is the source's first with other inputs.

    The list is empty if both take as many input channels, or if one of the two has groups or a computed weight.
    """
    first, ours = (_first_convolution(network.architecture) for network in (source, target))
    if not first or not ours or partner.get(ours.name) != first.name or first.shape[1] == ours.shape[1]:
        return []
    layers = [next(w for w in n.layers if w.name == layer.name) for n, layer in ((source, first), (target, ours))]
    whole = all("weight" in w.tensors and getattr(w.module, "groups", 1) == 1 for w in layers)
    return [ours.name] if whole else []


def _first_convolution(architecture: Architecture) -> Layer | None:
    first = next((layer for layer in architecture.layers if layer.shape and layer.kind in DENSE), None)
    return None if first is None or "Transpose" in first.kind else first
