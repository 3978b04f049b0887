"""What default mode does with two different networks, one switch for each idea, so that each can be measured alone.

`BEST` is what `transfer` does. `results/recipe/` has the rows of the ablation: each is a value of `Recipe`, given as
`transfer(source, target, mode=Recipe(...))`. Nothing here changes what networks of equal shapes give to each other.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """The rules of the default mode as switches, for `transfer(source, target, mode=Recipe(...))`.

    The first five decide what matches, the others how a matched layer is filled. `Recipe()` has all of them off, and
    `dpiat.recipe.BEST` is the default mode.

    Attributes:
        merge: Convolutions side by side, such as MixNet's of 3 × 3 to 9 × 9, are one layer.
        gates: A squeeze and excitation matches its like only. If there is none to match, the last layer of the target's
            is zero, so that the gate is constant.
        levels: Blocks match within one resolution, where strides tell the resolution.
        skip: What a pair of blocks is worth if one block alone has a shortcut, in (0, 1].
        relative: Eq. 1 compares widths after dividing by the ratio of the networks' widths.
        leading: The operator "clip" takes the leading channels, as sums of different widths do. Otherwise it takes the
            centre, as in the paper.
        zeros: In rows that are filled, there are zeros where nothing arrives.
        head: A classifier of other classes starts with zero weights, so that its random answers disturb no feature.

    Raises:
        ValueError: If `skip` is not in (0, 1].

    Examples:
        >>> transfer(source, target, mode=replace(BEST, levels=False))
    """

    merge: bool = False
    gates: bool = False
    levels: bool = False
    skip: float = 1.0
    relative: bool = False

    leading: bool = False
    zeros: bool = False
    head: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.skip <= 1:
            raise ValueError(f"skip must be in (0, 1], got {self.skip}")


BEFORE = Recipe()  # version 2 of the default mode
BEST = Recipe(merge=True, gates=True, levels=True, skip=0.6, relative=True, leading=True, zeros=True, head=True)
