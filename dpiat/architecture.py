"""A network as plain data: blocks of layers, each a name, a kind and a shape. No tensors, no modules."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a network.

    `name` is its dotted path in the module ("blocks.1.0.conv_pw"), `kind` the family of its class ("Conv2d") and
    `shape` the shape of its weight tensor, () for a layer without weights such as an activation.
    """

    name: str
    kind: str
    shape: tuple[int, ...] = ()

    @property
    def signature(self) -> tuple[str, tuple[int, ...]]:
        """All that matching looks at: layers of equal signature are interchangeable."""
        return self.kind, self.shape

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
    """The blocks of an architecture as tables for the matching: equal blocks once, layers without weights left out.

    `layers` are the different layers that have weights, `weighted` those of every block, `index` (blocks,) the column
    of every block in the tables. `table` (width, columns) holds indices into `layers`, -1 below the end of a block, and
    `positions` (width, columns) the places of these layers in their block.
    """

    def __init__(self, blocks: Sequence[Block]):
        self.weighted = [[layer for layer in block.layers if layer.shape] for block in blocks]
        signatures, index = _unique(block.signature for block in blocks)
        self.index = np.array(index, dtype=int)
        places = [[p for p, (_, shape) in enumerate(signature) if shape] for signature in signatures]
        kinds, numbers = _unique(item for signature in signatures for item in signature if item[1])
        self.layers = [Layer("", kind, shape) for kind, shape in kinds]
        width = max(map(len, places), default=0)
        self.table = np.full((width, len(signatures)), -1)
        self.positions = np.zeros((width, len(signatures)), dtype=int)
        number = iter(numbers)
        for column, place in enumerate(places):
            self.table[: len(place), column] = [next(number) for _ in place]
            self.positions[: len(place), column] = place
            # Below the end of a block scores are 0; any place will do that keeps the order.
            self.positions[len(place) :, column] = place[-1] if place else 0


def _unique(items: Iterable[Hashable]) -> tuple[list, list[int]]:
    """The different items in the order of their first occurrence, and for each item its index among them."""
    numbers: dict = {}
    index = [numbers.setdefault(item, len(numbers)) for item in items]
    return list(numbers), index
