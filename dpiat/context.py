"""What only the layers around a layer tell: its positions or patches, what its inputs are, its stack, its norm."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import Any

from torch import nn

from dpiat import roles
from dpiat.architecture import Layer
from dpiat.layers import LayerTensors
from dpiat.standardization import DEPTHWISE, GROUPED, is_matrix

TEXT = re.compile(r"(^|[._])(text|token|tok|word)")
POWERS = frozenset(2**n for n in range(4, 20))
Facts = Iterator[tuple[int, dict[str, Any]]]  # the place of a layer, and fields of `LayerTensors`


def in_context(layers: list[LayerTensors], shapes_alone: bool) -> list[LayerTensors]:
    """The layers of a network, in order, with what their neighbours tell."""
    told = list(layers)
    for facts in (_positions(layers), _inputs(layers, shapes_alone), _stacks(layers)):
        for place, fields in facts:
            told[place] = told[place]._replace(**fields)
    for place, norm in norms_behind([layer.plain for layer in layers]).items():
        told[place] = LayerTensors(*told[place][:-1], layers[norm])  # `_replace` takes twice as long; norms are many
    return told


# --- positions --------------------------------------------------------------------------------------------------------


def _positions(layers: list[LayerTensors]) -> Facts:
    """Find for tables of positions the rows of tokens before the positions, the first position's row, and the grid."""
    places = [place for place, layer in enumerate(layers) if layer.plain.role == roles.POSITION]
    if not places:
        return
    images = any(layer.plain.kind.startswith("Conv2d") for layer in layers)
    prefix = sum(prod(layer.plain.shape[:-1]) for layer in layers if layer.plain.role.endswith(roles.TOKENS))
    for place in places:
        layer = layers[place]
        of_image = images and not TEXT.search(layer.name)
        yield place, {"prefix": prefix if of_image else None, "offset": _offset(layer), "grid": _grid(layer.module)}


def _grid(module: nn.Module) -> tuple[int, int] | None:
    """The grid of patches that positions are for, if a module beside the positions says so."""
    for child in (module, *module._modules.values()):
        found = None if child is None else child.__dict__.get("grid_size")
        if isinstance(found, (tuple, list)) and len(found) == 2:
            return tuple(found)
    return None


def _offset(layer: LayerTensors) -> int:
    """The row of the first position: libraries keep rows before it for padding."""
    # BART's table has `offset` = 2 rows more than positions, RoBERTa's `padding_idx` + 1. A state dict keeps neither
    # number: there, two rows more than a power of two tell.
    module = layer.module
    weight = layer.tensors.get("weight")
    rows = weight.shape[-2] if weight is not None and weight.dim() > 1 else 0
    if isinstance(module, nn.Embedding) and isinstance(offset := module.__dict__.get("offset"), int):
        return offset
    if (isinstance(padding := module.__dict__.get("padding_idx"), int) and padding < 0) or rows - 2 in POWERS:
        return 2 if rows - 2 in POWERS else 0
    return padding + 1 if isinstance(padding, int) else 0


# --- inputs and outputs -----------------------------------------------------------------------------------------------


PICTURES = range(2, 5)  # channels: a tower of its own may begin with a picture


def _inputs(layers: list[LayerTensors], shapes_alone: bool) -> Facts:
    """Find out what the inputs of matrices and convolutions are, from the numbers of outputs of the layers before."""
    # A module does not say what its inputs are. Numbers of channels do, for a layer without a role:
    #   twice what the layer before gives: two tensors side by side, as the skip connections of a U-Net (`halves`);
    #   a multiple of what the convolution before gives, in a linear layer: a flattened picture (`flat`);
    #   a number that no layer before gives: a concatenation of several (`joined`).
    # A crop treats the three differently: halves and pictures are cropped inside, and a concatenation gets a note.
    # Layers side by side see the same input: a second layer of the same inputs must not be taken for the next one.
    given, outs, first, flattened = 0, set(), True, False
    before, after_two = Layer("", ""), False  # the matrix before a layer: does that see what the one before it sees?
    for place, layer in enumerate(layers):
        plain, module = layer.plain, layer.module
        if not is_matrix(plain) or layer.split or "weight" not in layer.tensors:
            given = layer.gives // 2 or given
            continue
        out, into, *kernel = plain.shape
        depthwise = plain.kind.startswith(DEPTHWISE)
        if first and depthwise and into == 1 == module.__dict__.get("groups", 1):  # of grey images, and dense
            plain = plain._replace(kind=plain.kind.removeprefix(DEPTHWISE))
            yield place, {"plain": plain}
        elif shapes_alone and plain.kind.startswith("Conv") and _has_groups(plain, before):
            plain = plain._replace(kind=GROUPED + plain.kind)
            yield place, {"plain": plain}
        if "Transpose" in plain.kind:
            out, into = into, out
        parallel = plain.kind == before.kind and plain.shape[1:] == before.shape[1:]
        if len(kernel) == 2 and (first or into in PICTURES):
            side = tuple(kernel)
            step = getattr(module, "stride", side if shapes_alone and side[0] > 3 else None)
            yield place, {"patches": step == side and side[0] > 1}
        elif plain.role == "" and given and not depthwise:
            if into == 2 * given and (not parallel or (after_two and plain.shape != before.shape)):
                yield place, {"halves": True}
            elif plain.kind == "Linear" and into > given and not into % given and flattened:
                yield place, {"flat": given}
            elif into not in outs and not plain.kind.startswith(GROUPED):
                yield place, {"joined": True}
        first, given, flattened = False, out, bool(kernel)
        before, after_two = plain, parallel
        outs.add(out)


def _has_groups(layer: Layer, before: Layer) -> bool:
    """Does a convolution take a part of the channels that it is given, and give as many as there are in all?

    If the layer before takes as many channels, both read the same ones: one of them is in a shortcut.
    """
    out, into, *kernel = layer.shape
    given, taken = (*before.shape, 0, 0)[:2]
    return prod(kernel) > 1 < into < out == given and not out % into and into != taken


def _stacks(layers: list[LayerTensors]) -> Facts:
    """Find linear layers with 2, 3 or 4 times as many outputs as the next layer takes: their outputs are stacked."""
    taken = 0  # by the next layer
    for place in reversed(range(len(layers))):
        plain = layers[place].plain
        if len(plain.shape) < 2:
            continue
        linear = plain.kind == "Linear"
        stacked, rest = divmod(plain.shape[0], taken) if linear and taken else (0, 0)
        if plain.role == "" and not rest and 1 < stacked < 5:
            yield place, {"stack": stacked}
        taken = plain.shape[1] if linear else 0


def norms_behind(layers: Sequence[Layer]) -> dict[int, int]:
    """The place of the norm of each matrix and convolution: the next layer, if it is a vector of as many numbers.

    Where a network registers several convolutions and then as many batch norms, these belong to them in their order.
    """
    found, first = {}, None
    for place, (layer, after) in enumerate(pairwise(layers)):
        if len(layer.shape) > 1:
            if len(after.shape) == 1 and after.shape[0] == layer.shape[0]:
                found[place] = place + 1
            first = place + 1
        elif first == place and _is_batch_norm(layer) and _is_batch_norm(after):
            found |= _in_their_order(layers, first)
    return found


def _in_their_order(layers: Sequence[Layer], first: int) -> dict[int, int]:
    """The convolutions in a row before `first` and their batch norms, which begin there; {} if one has no convolution.

    The last norm belongs to the last convolution of its size: layers without a norm may stand before the others.
    """
    norm = first
    while norm + 1 < len(layers) and _is_batch_norm(layers[norm + 1]):
        norm += 1
    found, place = {}, first - 1
    while norm >= first and place >= 0 and len(layers[place].shape) > 1:
        if layers[place].shape[0] == layers[norm].shape[0]:
            found[place] = norm
            norm -= 1
        place -= 1
    return found if norm < first else {}


def _is_batch_norm(layer: Layer) -> bool:
    return layer.kind.startswith("BatchNorm")
