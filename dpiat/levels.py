"""The resolution at which each block of a network works, and whether the block adds its input to its output.

Both follow from the modules: from the strides and dilations of convolutions, and from what blocks say of their
shortcuts. Levels count from the lowest resolution, so that it does not matter how often the stem halves an image, or
with what: a block of level 0 gives the lowest one. A state dict tells neither.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import log2, prod

from torch import nn

from dpiat import roles
from dpiat.architecture import Block, Layer
from dpiat.standardization import CONVOLUTIONS, DEPTHWISE, GROUPED, MATRICES, LayerTensors
from dpiat.stored import Stored

ASIDE = (roles.SHORTCUT, roles.REDUCE, roles.EXPAND)  # beside the way through a block
STRIDES = (2, 4, 8)  # that a dilation may stand for
IN_ATTENTION = re.compile(roles.ATTENTION)
OF_QUERIES, OF_KEYS = re.compile(r"(^|_)q(uery|ueries)?(_|$)"), re.compile(r"(^|_)(kv?|vk?|keys?|values?)(_|$)")
SKIPS = ("has_skip", "use_shortcut", "use_res_connect", "has_residual", "use_residual")  # what libraries call it


def leveled(
    blocks: Sequence[Block], layers: Sequence[LayerTensors], network: nn.Module, doublings: Mapping[str, int]
) -> tuple[Block, ...]:
    """The blocks with their levels and shortcuts; unchanged where there are only tensors.

    `doublings` says how often the picture is doubled right before a layer.
    """
    if isinstance(network, Stored):
        return tuple(blocks)
    convolutions = [layer for layer in layers if len(layer.plain.shape) > 2 and isinstance(layer.module, CONVOLUTIONS)]
    halvings = {layer.name: _halvings(layer.module) for layer in convolutions}
    given_up = [0] * len(blocks)
    if any(layer.module.dilation[0] > 1 for layer in convolutions):
        given_up = _strides_given_up(blocks, {layer.name: layer.module.dilation[0] for layer in convolutions})
    # Single layers follow one another, so that each of their strides counts. In a block, two layers with a stride are
    # mostly the main way and its shortcut, which halve the same picture: the greater stride counts once.
    halved, steps = 0, []
    for block, more in zip(blocks, given_up, strict=True):
        each = [halvings.get(layer.name, 0) for layer in block.layers]
        if any(each):
            each = [times if _on_the_way(layer, block) else 0 for times, layer in zip(each, block.layers, strict=True)]
        step = sum(each) if block.run else max(each, default=0)
        if doublings:
            step -= sum(doublings.get(layer.name, 0) for layer in block.layers)
        halved += step
        steps.append((halved + more, step))
    most = max((done for done, _ in steps), default=0)
    # The level of a block is the number of halvings from its resolution to the lowest one, which is mostly the last.
    # Runs have no level: they match runs, and the stem of one network may halve once and that of another twice. A block
    # with a stride does not add its input, whatever its settings say: its output has another size.
    return tuple(
        block if block.run else Block(block.name, block.layers, False, most - done, step == 0 and _adds(block, network))
        for block, (done, step) in zip(blocks, steps, strict=True)
    )


def _strides_given_up(blocks: Sequence[Block], dilations: Mapping[str, int]) -> list[int]:
    """How many strides gave way to dilated convolutions in each block, or in a block before it.

    So networks for segmentation keep the resolution of their last stages ("atrous" convolutions): a stage of dilation 2
    sees what it saw behind a stride of 2. The block that gives up its stride often keeps the dilation of those before
    it, so that the block behind it tells. Other dilations, such as 12, 24 and 36 side by side, are no strides.
    """
    own = []  # what each block alone tells
    for block in blocks:
        wide = [dilations[layer.name] for layer in block.layers if prod(layer.shape[2:]) > 1 if layer.name in dilations]
        own.append(int(log2(min(wide))) if not block.run and wide and min(wide) in STRIDES else 0)
    found, most = [], 0
    for block, after, here, behind in zip(blocks, [*blocks[1:], None], own, [*own[1:], 0], strict=True):
        beside = after is not None and after.stage == block.stage and ends(after)[1] == ends(block)[1]
        most = max(most, here, behind if beside else 0)
        found.append(most)
    return found


def _on_the_way(layer: Layer, block: Block) -> bool:
    """Does what a layer of an attention's block gives have a place in what the block gives?

    PVT and SegFormer shrink the picture that keys and values come from. What an attention gives has the places of its
    queries.
    """
    words = layer.name.removeprefix(f"{block.name}.").lower().split(".")
    if layer.role.endswith((roles.KEY, roles.VALUE)) or any(map(OF_KEYS.search, words)):
        return False
    if any(map(OF_QUERIES.search, words)):
        return True
    attends = any(layer.role == roles.VALUE for layer in block.layers)
    return not (attends and any(map(IN_ATTENTION.fullmatch, words[:-1])))


def _halvings(module: nn.Module) -> int:
    """How often a convolution halves its picture; less than 0 for a transposed convolution."""
    stride = max(module.stride)
    if stride == 1:  # as of most
        return 0
    times = round(log2(stride))
    return -times if "Transpose" in type(module).__name__ else times


def submodule(network: nn.Module, name: str) -> nn.Module | None:
    """The module of a dotted name; None if there is none, as in a state dict or for a block of bare parameters."""
    for key in name.split("."):
        network = network._modules.get(key) if network is not None else None
    return network


def _adds(block: Block, network: nn.Module) -> bool:
    """Does a block without a stride add its input? If its module does not say: yes, if it keeps the width."""
    module = submodule(network, block.name)
    facts: Mapping = module.__dict__ if module is not None else {}
    said = next((facts[key] for key in SKIPS if isinstance(facts.get(key), bool)), None)
    if said is None:
        into, out = ends(block)
        return into == out
    return said


def ends(block: Block) -> tuple[int, int]:
    """The channels that a block takes and gives, by its first and last matrix; (0, 0) without a matrix."""
    into, _, out = widths(block)
    return into, out


def widths(block: Block) -> tuple[int, int, int]:
    """The channels that a block takes, the most that it has inside, and those that it gives; 0 where there are none."""
    main = [layer for layer in block.layers if is_main(layer)]
    if not main:
        return 0, 0, 0
    first, last = main[0].shape, main[-1].shape
    into = first[0] if main[0].kind.startswith((DEPTHWISE, GROUPED)) else first[1]
    return into, max([layer.shape[0] for layer in main[:-1]], default=0), last[0]


def is_main(layer: Layer) -> bool:
    """Does a layer lie on the main way through a block: a matrix or convolution outside its shortcut and gates?"""
    return len(layer.shape) > 1 and layer.role not in ASIDE and layer.kind.startswith(MATRICES)
