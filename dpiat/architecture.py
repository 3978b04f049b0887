"""A network as plain data: blocks of layers, each a name, a kind and a shape. No tensors, no modules."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


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

    def __str__(self) -> str:
        head = f"{self.name}: {len(self.blocks)} blocks, {len(self.layers)} layers, {self.max_score} with weights"
        return "\n".join([head, *map(str, self.blocks)])
