"""A network as plain data: blocks of layers, each a name, a kind and a shape. No tensors, no modules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from typing import NamedTuple

import numpy as np


class Layer(NamedTuple):
    """One layer of a network.

    Attributes:
        name: The layer's dotted path in the module, "blocks.1.0.conv_pw".
        kind: The family of its class, "Conv2d".
        shape: The shape of its weight tensor, (out, in, kernel, ...); () for a layer without weights such as an
            activation.
        role: What the layer is for, as far as its name tells (`dpiat.roles`); "" in paper mode.
    """

    name: str
    kind: str
    shape: tuple[int, ...] = ()
    role: str = ""

    @property
    def signature(self) -> tuple[str, tuple[int, ...]]:
        """All that the paper's matching looks at: layers of equal signature are interchangeable."""
        return self.kind, self.shape

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}{list(self.shape) if self.shape else ''}"


@dataclass(frozen=True)
class Block:
    """Layers that belong together, such as one inverted residual; or a single layer that stands alone.

    Attributes:
        name: The block's dotted path in the module.
        layers: In the order of the definition.
        run: Whether these are the single layers between two blocks, such as the stem or the head (default mode).
        level: How many times the resolution of what comes out of the block is halved down to the network's lowest one;
            None where nobody says (`dpiat.levels`).
        skip: Whether the block adds its input to its output; None where nobody says.
    """

    name: str
    layers: tuple[Layer, ...]
    run: bool = False
    level: int | None = None
    skip: bool | None = None

    @cached_property
    def signature(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return tuple(layer.signature for layer in self.layers)

    @cached_property
    def stage(self) -> str:
        """The dotted path of the list that the block is in: "stages.1.blocks" of "stages.1.blocks.0.body"."""
        # The number of an element is not always at the end: a block that is all in one module has that module's name.
        numbered = re.fullmatch(r"(.*)\.[^.]*\d[a-z]?(\.[^.\d]*)*", self.name)
        return numbered[1] if numbered else self.name.rpartition(".")[0]

    def __str__(self) -> str:
        return f"[{self.name}]\n" + "\n".join(f"  {layer}" for layer in self.layers)


@dataclass(frozen=True)
class Architecture:
    """A standardized network: its blocks in the order of its definition (section 3.1, figures 7 and 8).

    `print()` shows every block with its layers.

    Attributes:
        name: The name of the network's class.
        blocks: In the order of the definition.
        structured: Whether the blocks are those of the default mode.

    Examples:
        >>> Architecture("mine", (Block("stem", (Layer("stem.conv", "Conv2d", (16, 3, 3, 3)),)),))
    """

    name: str
    blocks: tuple[Block, ...]
    structured: bool = False

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, block after block."""
        return tuple(layer for block in self.blocks for layer in block.layers)

    @cached_property
    def signature(self) -> tuple:
        """Architectures of equal signature are interchangeable for matching."""
        return tuple(block.signature for block in self.blocks)

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
    """An architecture as tables for the matching: equal blocks and equal layers once, nothing without weights.

    Networks repeat their blocks, so that a table over different blocks is several times smaller than one over all.

    Attributes:
        blocks: The blocks that have weights.
        positions: Where each of these blocks stands in the architecture, (blocks, 1).
        weighted: The layers with weights of each of these blocks.
        block_numbers: Which of the `n_blocks` different blocks each block is, (blocks,).
        groups: The different blocks as columns of tables, from low blocks to tall ones.
        families: The `n_layers` different layers are numbered family by family. For each family (kind, dimensions),
            the number of its first layer, and the sizes of all its layers (dimensions, layers).
    """

    def __init__(self, blocks: Sequence[Block]):
        weighted = [[layer for layer in block.layers if layer.shape] for block in blocks]
        rows = np.flatnonzero([len(layers) for layers in weighted])
        self.positions = Positions(rows[:, None])
        self.blocks = [blocks[i] for i in rows]
        self.weighted = [weighted[i] for i in rows]
        height = {block.signature: len(layers) for block, layers in zip(self.blocks, self.weighted, strict=True)}
        different = sorted(height, key=lambda signature: _size(height[signature]))
        self.n_blocks = len(different)
        number = {signature: i for i, signature in enumerate(different)}
        self.block_numbers = np.array([number[block.signature] for block in self.blocks], dtype=int)

        members: dict[tuple[str, int], dict] = {}
        for kind, sizes in (item for signature in different for item in signature if item[1]):
            members.setdefault((kind, len(sizes)), {})[kind, sizes] = None
        number = {layer: i for i, layer in enumerate(chain.from_iterable(members.values()))}
        self.n_layers = len(number)
        self.families = {
            family: (
                number[next(iter(layers))],
                np.array(list(zip(*(sizes for _, sizes in layers), strict=True)), dtype=float),
            )
            for family, layers in members.items()
        }
        columns = [[(number[item], p) for p, item in enumerate(signature) if item[1]] for signature in different]
        self.groups: list[Group] = []
        for _, group in groupby(columns, lambda column: _size(len(column))):
            first = self.groups[-1].columns.stop if self.groups else 0
            self.groups.append(Group(first, list(group), self.n_layers))

    def place(self, number: int) -> tuple[int, int]:
        """The group of one of the different blocks and its column there."""
        group = max(g for g, group in enumerate(self.groups) if group.columns.start <= number)
        return group, number - self.groups[group].columns.start


class Positions:
    """Where elements stand in their sequences: `table` (elements, sequences), ascending in each sequence."""

    def __init__(self, table: np.ndarray):
        self.table = table

    @cached_property
    def roots(self) -> np.ndarray:
        """The square root of the length of the range of d + 1 elements that ends at element i: (d, i, sequence).

        Where fewer than d + 1 elements end at i, the range is that of all of them. Elements that were left out count
        to the length: Eq. 3 divides by the length in the network, activations included.
        """
        i = np.arange(len(self.table))
        return np.sqrt(self.table - self.table[np.maximum(i - i[:, None], 0)] + 1)


def _size(layers: int) -> int:
    """The group of a block by its number of layers with weights: 1, 2 to 4, 5 to 16, 17 to 64, ..."""
    return ((layers - 1).bit_length() + 1) // 2


class Group:
    """Different blocks as the columns of a table. A column holds the block's layers with weights, from the top.

    Attributes:
        columns: The numbers of the blocks.
        numbers: The numbers of the layers, (width, columns), with `filler` below the end of a block.
        positions: Where each layer stands in its block, (width, columns). Layers without weights count.
    """

    def __init__(self, first: int, columns: Sequence[Sequence[tuple[int, int]]], filler: int):
        self.columns = slice(first, first + len(columns))
        width = max(map(len, columns))
        self.numbers = np.full((width, len(columns)), filler)
        table = np.zeros((width, len(columns)), dtype=int)
        for c, column in enumerate(columns):
            self.numbers[: len(column), c], table[: len(column), c] = zip(*column, strict=True)
            table[len(column) :, c] = column[-1][1]  # scores are 0 there; any place that keeps the order
        self.positions = Positions(table)
