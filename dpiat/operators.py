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
    return _centre(target, source), _centre(source, target)


def _centre(of: tuple[int, ...], other: tuple[int, ...]) -> Slices:
    starts = [max(x - y, 0) // 2 for x, y in zip(of, other, strict=True)]
    return tuple(slice(a, a + min(x, y)) for a, x, y in zip(starts, of, other, strict=True))
