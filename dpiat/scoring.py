"""How alike two layers are, by the shapes of their weights (Eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpiat.architecture import Layer


def score(target: Layer, source: Layer) -> float:
    """Eq. 1: the product over the dimensions of min(t_i / s_i, s_i / t_i), in [0, 1].

    0 for layers of different kinds, of different numbers of dimensions, or without weights.

        >>> score(Layer("a", "Conv2d", (32, 16, 3, 3)), Layer("b", "Conv2d", (16, 16, 3, 3)))
        0.5
    """
    return float(score_matrix([target], [source])[0, 0])


def score_matrix(targets: Sequence[Layer], sources: Sequence[Layer]) -> np.ndarray:
    """Eq. 1 for every pair: float64 of shape (len(targets), len(sources))."""
    rank = max((len(layer.shape) for layer in (*targets, *sources)), default=0)
    t, s = _table(targets, rank), _table(sources, rank)  # (n, 1 + rank), (m, 1 + rank)
    matrix = np.ones((len(targets), len(sources)))
    for i in range(rank):
        t_i, s_i = t[:, None, i], s[None, :, i]
        matrix *= np.minimum(t_i, s_i) / np.maximum(t_i, s_i)
    kinds = {key: number for number, key in enumerate({_family(layer) for layer in (*targets, *sources)})}
    t_kind = np.array([kinds[_family(layer)] for layer in targets])
    s_kind = np.array([kinds[_family(layer)] for layer in sources])
    weighted = np.array([bool(layer.shape) for layer in targets])
    return np.where((t_kind[:, None] == s_kind) & weighted[:, None], matrix, 0.0)


def _family(layer: Layer) -> tuple[str, int]:
    return layer.kind, len(layer.shape)


def _table(layers: Sequence[Layer], rank: int) -> np.ndarray:
    """Shapes as rows, filled up with ones, which change no product."""
    return np.array([layer.shape + (1,) * (rank - len(layer.shape)) for layer in layers], dtype=float).reshape(-1, rank)
