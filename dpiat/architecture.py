"""A network as plain data: blocks of layers, each a name, a kind and a shape. No tensors, no modules."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

import numpy as np


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a network.

    `name` is its dotted path in the module ("blocks.1.0.conv_pw"), `kind` the family of its class ("Conv2d") and
    `shape` the shape of its weight tensor, () for a layer without weights such as an activation. `stride` is that of a
    convolution along each of its dimensions, () in paper mode, which does not look at it.
    """

    name: str
    kind: str
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """What Eq. 1 compares."""
        return self.shape + self.stride

    @property
    def signature(self) -> tuple[str, tuple[int, ...]]:
        """All that matching looks at: layers of equal signature are interchangeable."""
        return self.kind, self.sizes

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}{list(self.shape) if self.shape else ''}"


@dataclass(frozen=True)
class Block:
    """Layers that belong together, such as one inverted residual; or a single layer that stands alone."""

    name: str
    layers: tuple[Layer, ...]

    @cached_property
    def signature(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return tuple(layer.signature for layer in self.layers)

    def __str__(self) -> str:
        return f"[{self.name}]\n" + "\n".join(f"  {layer}" for layer in self.layers)


@dataclass(frozen=True)
class Architecture:
    """A standardized network: its blocks in the order of its definition (section 3.1, figures 7 and 8).

    `print()` shows every block with its layers; `layers` is the flat view.
    """

    name: str
    blocks: tuple[Block, ...]

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(layer for block in self.blocks for layer in block.layers)

    @cached_property
    def max_score(self) -> int:
        """The score of this architecture matched with itself: one for every layer with weights (section 3.5)."""
        return sum(1 for layer in self.layers if layer.shape)

    @cached_property
    def compact(self) -> Compact:
        return Compact(self.blocks)

    def __str__(self) -> str:
        head = f"{self.name}: {len(self.blocks)} blocks, {len(self.layers)} layers, {self.max_score} with weights"
        return "\n".join([head, *map(str, self.blocks)])


class Compact:
    """An architecture as tables for the matching: equal blocks and equal layers once, layers without weights left out.

    `sizes` (dimensions, layers) are those of the different layers, filled up with ones, and `families` their kinds and
    numbers of dimensions. `groups` hold the different blocks that have weights: those of one such layer, and
    the others. `place[i]` says where the i-th block of the architecture is: (group, column), None without weights.
    `weighted[i]` are its layers with weights.
    """

    def __init__(self, blocks: Sequence[Block]):
        self.weighted = [[layer for layer in block.layers if layer.shape] for block in blocks]
        signatures, index = _unique(block.signature for block in blocks)
        layers, numbers = _unique(item for signature in signatures for item in signature if item[1])
        self.families = [(kind, len(sizes)) for kind, sizes in layers]
        self.sizes = np.array(list(zip_longest(*(sizes for _, sizes in layers), fillvalue=1)), dtype=float)
        number = iter(numbers)
        columns = [[(next(number), p) for p, item in enumerate(signature) if item[1]] for signature in signatures]
        grouped = [[c for c in columns if len(c) == 1], [c for c in columns if len(c) > 1]]
        self.groups = [Group(group) for group in grouped]
        where = {id(column): (g, c) for g, group in enumerate(grouped) for c, column in enumerate(group)}
        self.place = [where.get(id(columns[i])) for i in index]


class Group:
    """Different blocks as the columns of tables; a column holds the block's layers with weights, from the top.

    `numbers` (width, columns) are indices of layers, -1 below the end of a block; `positions` (width, columns) their
    places in the block, layers without weights counted.
    """

    def __init__(self, columns: Sequence[Sequence[tuple[int, int]]]):
        width = max(map(len, columns), default=0)
        self.numbers = np.full((width, len(columns)), -1)
        self.positions = np.zeros((width, len(columns)), dtype=int)
        for c, column in enumerate(columns):
            self.numbers[: len(column), c], self.positions[: len(column), c] = zip(*column, strict=True)
            self.positions[len(column) :, c] = column[-1][1]  # scores are 0 there; any place that keeps the order


def _unique(items: Iterable[Hashable]) -> tuple[list, list[int]]:
    """The different items in the order of their first occurrence, and for each item its index among them."""
    numbers: dict = {}
    index = [numbers.setdefault(item, len(numbers)) for item in items]
    return list(numbers), index
