"""Convolutions side by side that split their channels among them, as MixNet's do: seen as the one layer that they make.

Branch `conv_dw.1` of 5 × 5 sees channels 48 ... 95 of 144 and gives as many. With `conv_dw.0` of 3 × 3 and `conv_dw.2`
of 7 × 7 it makes one depthwise convolution of 144 channels and 7 × 7, in which smaller kernels have zeros around them.
Pointwise convolutions that are split make one matrix, with the branches as blocks on the diagonal.

Three functions use this view. `merged` lets matching see one layer. `joined` writes out the layer of the source, with
its zeros. `own` finds what falls to a branch of the target: a branch gets what would come to its place in the layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, MutableMapping, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from dpiat.architecture import Architecture, Block, Layer
from dpiat.levels import is_main
from dpiat.operators import Index, Indices, are_slices
from dpiat.standardization import DEPTHWISE, Branch, LayerTensors, Network


def merged(network: Network) -> Network:
    """The network with one layer for convolutions side by side. Each convolution knows its place in the layer."""
    groups = list(_side_by_side(network))
    if not groups:
        return network
    wholes: dict[str, Layer] = {}  # by the first of its branches
    places: dict[str, Branch] = {}
    # Outputs lie behind one another in all layers, and inputs too unless they are depthwise, whose weights have one
    # input for each output. A smaller kernel lies in the centre of the largest one: so "same" padding has them.
    for name, layers in groups:
        whole = _whole(name, layers)
        wholes[layers[0].name] = whole
        starts = [0, 0]
        for layer in layers:
            kernel = [(most - size) // 2 for most, size in zip(whole.shape[2:], layer.shape[2:], strict=True)]
            places[layer.name] = Branch(name, whole.shape, (*starts, *kernel))
            starts[0] += layer.shape[0]
            starts[1] += 0 if layer.kind.startswith(DEPTHWISE) else layer.shape[1]
    blocks = [
        replace(
            block,
            layers=tuple(
                wholes.get(layer.name, layer)
                for layer in block.layers
                if layer.name in wholes or layer.name not in places
            ),
        )
        for block in network.architecture.blocks
    ]
    layers = [layer._replace(branch=places[layer.name]) if layer.name in places else layer for layer in network.layers]
    return network._replace(architecture=_with(network.architecture, blocks), layers=layers)


def split(network: Network) -> Network:
    """The network with each of its convolutions side by side as a layer of its own."""
    members = _members(network.layers)
    if not members:
        return network
    blocks = []
    for block in network.architecture.blocks:
        layers: list[Layer] = []
        for layer in block.layers:
            layers += [branch.plain for branch in members[layer.name]] if layer.name in members else [layer]
        blocks.append(replace(block, layers=tuple(layers)))
    layers = [layer._replace(branch=None) for layer in network.layers]
    return network._replace(architecture=_with(network.architecture, blocks), layers=layers)


def _with(architecture: Architecture, blocks: Sequence[Block]) -> Architecture:
    return Architecture(architecture.name, tuple(blocks), architecture.structured)


def _members(layers: Sequence[LayerTensors]) -> dict[str, list[LayerTensors]]:
    """The branches of each layer that branches make, by its name."""
    found: dict[str, list[LayerTensors]] = {}
    for layer in layers:
        if layer.branch is not None:
            found.setdefault(layer.branch.whole, []).append(layer)
    return found


def _side_by_side(network: Network) -> Iterator[tuple[str, list[Layer]]]:
    """Find convolutions side by side, each group with the name of the module that they are numbered children of.

    A batch norm behind the group has as many channels as all outputs together. The inputs together are what the layer
    before gives; depthwise convolutions have as many inputs as outputs.
    """
    # A list of numbered convolutions may also be one of several that see the same input (an Inception block), or that
    # follow one another. Only the numbers of channels tell: if all see the same input, their inputs add up to a
    # multiple of what the layer before gives.
    if not any(layer.name.endswith(".0") for layer in network.layers):
        return  # as in most networks
    given = 0  # by the matrix before
    for block in network.architecture.blocks:
        layers = [layer for layer in block.layers if layer.shape]
        start = 0
        while start < len(layers):
            stop, name = start + 1, _above(layers[start], "0")
            while name and stop < len(layers) and _above(layers[stop], str(stop - start)) == name:
                stop += 1
            group = layers[start:stop]
            if len(group) > 1 and stop < len(layers) and _are_split(group, layers[stop], given):
                yield name, group
            if is_main(layers[start]):
                given = sum(layer.shape[0] for layer in group)
            start = stop


def _above(layer: Layer, key: str) -> str:
    """The name of the module that a convolution is a child of under this key; "" for any other layer or key."""
    name, _, last = layer.name.rpartition(".")
    convolves = layer.kind.startswith(("Conv", DEPTHWISE)) and "Transpose" not in layer.kind
    return name if last == key and convolves and len(layer.shape) > 2 else ""


def _are_split(layers: Sequence[Layer], norm: Layer, given: int) -> bool:
    """Do convolutions split the channels that the layer before gives, and those that the norm behind them has?"""
    out, into = (sum(layer.shape[axis] for layer in layers) for axis in (0, 1))
    if not norm.kind.startswith("BatchNorm") or norm.shape != (out,):
        return False
    depthwise = [layer.kind.startswith(DEPTHWISE) for layer in layers]
    if any(depthwise):
        return all(depthwise) and all(layer.shape[1] == 1 for layer in layers)
    return into == given and len({len(layer.shape) for layer in layers}) == 1


def _whole(name: str, layers: Sequence[Layer]) -> Layer:
    first = layers[0]
    out = sum(layer.shape[0] for layer in layers)
    into = 1 if first.kind.startswith(DEPTHWISE) else sum(layer.shape[1] for layer in layers)
    kernel = [max(sizes) for sizes in zip(*(layer.shape[2:] for layer in layers), strict=True)]
    return Layer(name, first.kind, (out, into, *kernel), first.role)


# --- from one to the other --------------------------------------------------------------------------------------------


def spread(source: Network, target: Network, partner: MutableMapping[str, str]) -> None:
    """Give the partner of a layer to the branches that make the layer.

    Where the branches of source and target have equal shapes, branch i takes branch i: their tensors are copied as they
    are, with no way through the dense layer. Otherwise each branch takes the dense layer, and `own` finds its part.
    """
    ours, theirs = _members(target.layers), _members(source.layers)
    for whole, branches in ours.items():
        by = partner.pop(whole, None)
        if by is None:
            continue
        given = theirs.get(by, ())
        alike = [branch.plain.shape for branch in given] == [branch.plain.shape for branch in branches]
        for place, branch in enumerate(branches):
            partner[branch.name] = given[place].name if alike else by


def joined(network: Network, names: Collection[str]) -> list[LayerTensors]:
    """The layers among `names` that branches make, each with its weight as the dense layer has it (out, in, ...)."""
    return [_joined(branches) for whole, branches in _members(network.layers).items() if whole in names]


def _joined(branches: Sequence[LayerTensors]) -> LayerTensors:
    first = branches[0]
    place = first.branch
    tensors: dict[str, Tensor] = {}
    for local, tensor in first.tensors.items():
        parts = [branch.tensors[local].detach() for branch in branches if local in branch.tensors]
        if tensor.dim() == 1 and len(parts) == len(branches):
            tensors[local] = torch.cat(parts)
        elif local == "weight":
            tensors[local] = tensor.new_zeros(place.shape)
            for branch in branches:
                tensors[local][_own_part(branch.branch, branch.tensors[local])].copy_(branch.tensors[local])
    plain = first.plain._replace(name=place.whole, shape=place.shape)
    return LayerTensors(place.whole, first.module, tensors, plain=plain)


def _own_part(branch: Branch, tensor: Tensor) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(branch.starts, tensor.shape, strict=True))


def as_whole(layer: LayerTensors) -> LayerTensors:
    """A branch seen as the layer that it makes with others: shapes alone, on the meta device."""
    place = layer.branch
    shapes = {local: place.shape if local == "weight" else place.shape[:1] for local in layer.tensors}
    tensors = {local: torch.empty(shapes[local], dtype=t.dtype, device="meta") for local, t in layer.tensors.items()}
    plain = layer.plain._replace(name=place.whole, shape=place.shape)
    return layer._replace(tensors=tensors, views={}, plain=plain, branch=None)


def own(indices: Indices, layer: LayerTensors, source: LayerTensors) -> Indices:
    """The part of the indices for a whole layer that falls to one of its branches, in the branch's own coordinates."""
    # Slices stay slices, which a write and a report handle without a table of elements. An operator that chooses
    # channels gives lists of places; these are crossed out into single elements, as what falls to a branch need not be
    # the same channels for each output.
    found = {}
    for local, (to, by) in indices.items():
        tensor, given = layer.tensors[local], source.tensors[local]
        rank, place = tensor.dim(), layer.branch
        whole = place.shape if local == "weight" else place.shape[:1]
        if are_slices(to, rank) and are_slices(by, rank):
            found[local] = _own_slices(to, by, place.starts[:rank], tensor.shape)
        else:
            found[local] = _own_places(_places(to, whole), _places(by, given.shape), place.starts[:rank], tensor.shape)
    return found


def _own_slices(to: Index, by: Index, starts: Sequence[int], sizes: Sequence[int]) -> tuple[Index, Index]:
    ours, theirs = [], []
    for mine, other, start, size in zip(to, by, starts, sizes, strict=True):
        begin, end = max(mine.start, start), min(mine.stop, start + size)
        end = max(begin, end)
        ours.append(slice(begin - start, end - start))
        theirs.append(slice(other.start + begin - mine.start, other.start + end - mine.start))
    return tuple(ours), tuple(theirs)


def _own_places(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], starts: Sequence[int], sizes: Sequence[int]
) -> tuple[Index, Index]:
    inside = torch.ones_like(ours[0], dtype=torch.bool)
    for mine, start, size in zip(ours, starts, sizes, strict=True):
        inside &= (mine >= start) & (mine < start + size)
    return (
        tuple(mine[inside] - start for mine, start in zip(ours, starts, strict=True)),
        tuple(other[inside] for other in theirs),
    )


def _places(index: Index, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """The places along each dimension of all elements that an index of any form chooses."""
    numbers = torch.arange(prod(shape), device="cpu").view(tuple(shape))[index].flatten()
    return torch.unravel_index(numbers, tuple(shape))
