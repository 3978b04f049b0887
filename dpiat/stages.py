"""Two networks of one plan, layer by layer: for Net2Net and FNA, which need the same stages in both networks.

A stage is a list of blocks in a list of stages. Where a network has one flat list of blocks, a stage begins at a stride
or at another width.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import NamedTuple

from dpiat.architecture import Block, Layer
from dpiat.roles import SHORTCUT
from dpiat.standardization import LayerTensors, Network

Stage = list[Block]  # blocks in a row; or one run of single layers


class Aligned(NamedTuple):
    """The source layer of each target layer, by their names, and the blocks of the target that are new."""

    partner: dict[str, str]
    new: tuple[Block, ...]


def stages(network: Network) -> list[Stage]:
    """The stages of a network and the runs of layers between them, in order."""
    blocks = network.architecture.blocks
    tensors = {layer.name: layer for layer in network.layers}
    # torchvision's ResNet has its blocks in four lists, "layer1" to "layer4", and these are the stages. Its MobileNetV2
    # has all blocks in one list, "features", so that the list tells nothing. With nested lists, strides are not asked
    # for: a first block without a stride is still the first of its list.
    nested = len({block.stage for block in blocks if not block.run}) > 1
    found: list[Stage] = []
    for block in blocks:
        if found and not block.run and _goes_on(found[-1][-1], block, tensors, nested):
            found[-1].append(block)
        else:
            found.append([block])
    return found


def align_stages(source: Network, target: Network, repeat: bool) -> Aligned:
    """Pair the layers of two networks, stage by stage and block by block.

    Block i of a stage takes block i of the source's stage, which has L blocks. With `repeat`, any block beyond these
    takes the last one, block L - 1; otherwise the block is new.

    Raises ValueError if the stages, the layers of two blocks, or their kinds differ.
    """
    theirs, ours = stages(source), stages(target)
    if [stage[0].run for stage in theirs] != [stage[0].run for stage in ours]:
        raise ValueError(f"the target has {_count(ours)}, the source {_count(theirs)}: they must be the same stages")
    partner, new = {}, []
    for given, wanted in zip(theirs, ours, strict=True):
        if len(wanted) < len(given) and not repeat:
            shown = f"{wanted[0].stage or 'the target'} has {len(wanted)} block{'s' * (len(wanted) > 1)}"
            raise ValueError(f"{shown}, fewer than the {len(given)} of {given[0].stage or 'the source'}")
        for place, block in enumerate(wanted):
            if place < len(given) or repeat:
                partner |= _paired(given[min(place, len(given) - 1)], block)
            else:
                new.append(block)
    return Aligned(partner, tuple(new))


def _paired(source: Block, target: Block) -> dict[str, str]:
    """The layers of two blocks in their order; shortcuts only where both have them."""
    # The first block of a stage often has a convolution in its shortcut and the others do not. As a source of a later
    # block, it gives all but the shortcut.
    kept = {layer.role == SHORTCUT for layer in source.layers} == {layer.role == SHORTCUT for layer in target.layers}
    pairs = [[layer for layer in block.layers if kept or layer.role != SHORTCUT] for block in (source, target)]
    for one, other in zip_longest(*pairs):
        if one is None or other is None:
            raise ValueError(
                f"{(other or target).name} has no counterpart: {target.name or 'the target'} has "
                f"{len(pairs[1])} layers, {source.name or 'the source'} {len(pairs[0])}"
            )
        if one.kind != other.kind:
            raise ValueError(f"{other.name} is a {other.kind}, and {one.name} of the source a {one.kind}")
    return {other.name: one.name for one, other in zip(*pairs, strict=True)}


def _goes_on(before: Block, block: Block, tensors: dict[str, LayerTensors], nested: bool) -> bool:
    """Is a block in the stage of the one before it?"""
    if before.run or block.stage != before.stage:
        return False
    return nested or not (_steps(block, tensors) or _width(block) != _width(before))


def _steps(block: Block, tensors: dict[str, LayerTensors]) -> bool:
    """Does a layer of a block have a stride?"""
    modules = (tensors[layer.name].module for layer in block.layers if layer.name in tensors)
    strides = (getattr(module, "stride", 1) for module in modules)
    return any(max(stride) > 1 if isinstance(stride, tuple) else stride != 1 for stride in strides)


def _width(block: Block) -> int:
    """The channels that a block gives, by its last layer outside shortcuts."""
    main: list[Layer] = [layer for layer in block.layers if layer.role != SHORTCUT]
    return main[-1].shape[0] if main and main[-1].shape else 0


def _count(found: list[Stage]) -> str:
    return f"{sum(not stage[0].run for stage in found)} stages with {sum(stage[0].run for stage in found)} runs between"
