"""Values for positions: grids, relative offsets and patches of another size, resampled as their authors do."""

from __future__ import annotations

from functools import cache
from math import isqrt, prod

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

Rows = tuple[list[int], list[int]]


def resampled_grid(
    source: Tensor,
    shape: tuple[int, ...],
    prefixes: tuple[int, int],
    grids: tuple[tuple[int, int] | None, tuple[int, int] | None],
) -> tuple[Tensor, Rows] | None:
    """Positions (..., prefix + height · width, channels) for another grid, and which rows go where.

    The rows before the grid (class and distillation tokens) go to their like. The grid is resampled bicubically with
    antialiasing, as by ViT's and timm's loaders. `prefixes` and `grids` are what is known of the source and of the
    target. A grid that nobody knows is square. Gives None if a table is not a grid, whatever stands before it.
    """
    if prod(source.shape[:-2]) != 1 or prod(shape[:-2]) != 1:
        return None
    found = [_grid(*facts) for facts in zip((source.shape[-2], shape[-2]), prefixes, grids, strict=True)]
    if None in found:
        return None
    (before_s, size_s), (before_t, size_t) = found
    table = source.detach().reshape(-1, source.shape[-1])  # (rows, channels)
    if size_s != size_t:
        grid = table[before_s:].unflatten(0, size_s).permute(2, 0, 1)[None].float()  # (1, channels, h, w)
        if grid.is_meta:
            grid = grid.new_empty(1, grid.shape[1], *size_t)
        else:
            grid = interpolate(grid, size=size_t, mode="bicubic", antialias=True)
        table = torch.cat([table[:before_s], grid[0].permute(1, 2, 0).flatten(0, 1).to(table.dtype)])
    # Tokens are paired from the first one, and the grids from where each begins: a network without a class token gives
    # its first position to the other's first position, and not to the class token.
    alike, count = min(before_s, before_t), prod(size_t)
    to, by = ([*range(alike), *range(before, before + count)] for before in (before_t, before_s))
    return table.view(*source.shape[:-2], *table.shape), (to, by)


def _grid(rows: int, prefix: int, grid: tuple[int, int] | None) -> tuple[int, tuple[int, int]] | None:
    """The number of rows before a grid, and the size of the grid; None if the rows do not make one."""
    # Some networks have a class token without a position of its own, so that either `prefix` rows stand before the grid
    # or none. What a module says of its grid counts more than a square number: 4 × 9 patches are a square too.
    if grid is not None and rows - prod(grid) in (0, prefix):
        return rows - prod(grid), grid
    for before in (prefix, 0):
        side = isqrt(rows - before) if rows > before else 0
        if side and side**2 == rows - before:
            return before, (side, side)
    return None


def resampled_offsets(table: Tensor, rows: int) -> Tensor | None:
    """Biases of relative positions ((2 w - 1)², heads) for another window; three more rows for a class token stay.

    Known offsets are placed at distances that grow geometrically from the centre. The new offsets are interpolated
    between them, as BEiT's and timm's loaders do. Gives None if a table is not of a square window.
    """
    for extra in (0, 3):
        sides = [isqrt(size - extra) if size > extra else 0 for size in (len(table), rows)]
        if all(
            side > 1 and side % 2 and side**2 == size - extra
            for side, size in zip(sides, (len(table), rows), strict=True)
        ):
            break
    else:
        return None
    if table.is_meta:
        return table.new_empty(rows, table.shape[1])
    s, t = sides
    at = _distances(s, t)  # (s,)
    wanted = np.arange(t) - t // 2  # (t,)
    matrix = _interpolation(at, wanted)  # (t, s)
    grid = table[: s * s].detach().double().cpu().numpy().reshape(s, s, -1)
    values = np.einsum("ai,bj,ijh->abh", matrix, matrix, grid).reshape(t * t, -1)
    return torch.cat([torch.from_numpy(values).to(table), table[s * s :]])


def _distances(s: int, t: int) -> np.ndarray:
    """Where s offsets lie among t: at distances whose steps grow by one ratio from the centre to the ends."""
    # Near offsets matter most: the first one keeps its distance of 1, and the far ones are stretched. The ratio has no
    # closed form and is found by halving an interval, as in BEiT's code.
    low, high, ratio = 1.01, 1.5, 1.0
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio ** (s // 2)) / (1 - ratio) > t // 2:
            high = ratio
        else:
            low = ratio
    steps, at = [], 1.0
    for i in range(s // 2):
        steps.append(at)
        at += ratio ** (i + 1)
    return np.array([-step for step in reversed(steps)] + [0.0, *steps])


def _interpolation(at: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Linear interpolation between values at `at`, the first and last beyond them, as a matrix (wanted, at)."""
    matrix = np.zeros((len(wanted), len(at)))
    right = np.clip(np.searchsorted(at, wanted), 1, len(at) - 1)
    left = right - 1
    share = np.clip((wanted - at[left]) / (at[right] - at[left]), 0, 1)
    matrix[np.arange(len(wanted)), left] = 1 - share
    matrix[np.arange(len(wanted)), right] = share
    return matrix


def resampled_patches(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """A patch embedding's kernel (out, in, h, w) for patches of another size: FlexiViT's, section 3.4.

    The resized kernel gives for a resized patch what the kernel gave for the patch, or comes nearest to that.
    """
    # A resize is a linear map B. The response <w, x> to a patch x is that of w' to B x for all x if B^T w' = w, so that
    # w' is the pseudoinverse of B^T times w. A resized kernel B w would give responses that grow with the patch.
    if kernel.is_meta:
        return kernel.new_empty(*kernel.shape[:2], *size)
    matrix = _resizing(tuple(kernel.shape[2:]), size)  # (new, old)
    inverse = torch.linalg.pinv(matrix.T).to(kernel.device)  # (new, old)
    return (kernel.detach().float().flatten(2) @ inverse.T).unflatten(2, size).to(kernel.dtype)


@cache
def _resizing(old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """The matrix (new, old) of a bicubic resize of flattened patches."""
    with torch.device("cpu"):
        basis = torch.eye(prod(old)).view(-1, 1, *old)
        return interpolate(basis, size=new, mode="bicubic", antialias=True).flatten(1).T
