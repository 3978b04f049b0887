"""What default mode does with two different networks, one switch for each idea, so that each can be measured alone.

`BEST` is what `transfer` does. `results/recipe/` has the rows of the ablation: each is a value of `Recipe`, given as
`transfer(source, target, mode=Recipe(...))`. Nothing here changes what networks of equal shapes give to each other.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """The options of default mode; the first group decides what matches, the second how a matched layer is filled.

    `merge`: convolutions side by side, as MixNet's of 3 × 3 to 9 × 9, are one layer (`dpiat.branches`).
    `gates`: a squeeze and excitation matches its like only; where there is none to match, the target's last layer of it
    is zero, so that the gate is constant.
    `levels`: blocks match within one resolution, where strides tell it.
    `skip`: what a pair of blocks is worth of which one alone has a shortcut, in (0, 1].
    `relative`: Eq. 1 compares widths after dividing by the ratio of the networks' widths.

    `leading`: the operator "clip" is "leading", which takes the leading channels, as sums of different widths do;
    otherwise it is "centre", the paper's crop.
    `zeros`: in rows that are filled, there are zeros where nothing arrives.
    `head`: a classifier of other classes starts with zero weights, so that its random answers disturb no feature.
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
