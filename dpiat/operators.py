"""Which entries of a source tensor fill which entries of a target tensor."""

from __future__ import annotations

Slices = tuple[slice, ...]


def clip(target: tuple[int, ...], source: tuple[int, ...]) -> tuple[Slices, Slices]:
    """ClipTransfer: the centre crop of the source goes to the centre crop of the target (appendix A.2).

    Takes the two shapes, of equal rank, and returns the index of the filled part of the target and of the part of the
    source that fills it. Along each dimension the larger of the two is cropped to the smaller one, from the 0-based
    start floor((x - y) / 2).

        >>> clip((9, 3), (4, 3))
        ((slice(2, 6), slice(0, 3)), (slice(0, 4), slice(0, 3)))
    """
    pairs = [_centre(t, s) for t, s in zip(target, source, strict=True)]
    return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)


def _centre(t: int, s: int) -> tuple[slice, slice]:
    """The filled part of a target dimension and the part of the source dimension that fills it."""
    if t > s:
        return slice((t - s) // 2, (t - s) // 2 + s), slice(0, s)
    return slice(0, t), slice((s - t) // 2, (s - t) // 2 + t)
