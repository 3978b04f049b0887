"""How alike two layers are, by the shapes of their weights (Eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

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
    t, s = _table(targets), _table(sources)  # (dimensions, n), (dimensions, m)
    product = np.ones((len(targets), len(sources)))
    for t_i, s_i in zip_longest(t, s, fillvalue=np.ones(1)):
        product *= np.minimum(t_i[:, None], s_i) / np.maximum(t_i[:, None], s_i)
    numbers: dict[tuple[str, int], int] = {}
    t_kind, s_kind = (
        np.array([numbers.setdefault((layer.kind, len(layer.shape)), len(numbers)) for layer in layers], dtype=int)
        for layers in (targets, sources)
    )
    weighted = np.array([bool(layer.shape) for layer in targets], dtype=bool)
    return np.where((t_kind[:, None] == s_kind) & weighted[:, None], product, 0.0)


def _table(layers: Sequence[Layer]) -> np.ndarray:
    """Shapes as columns, filled up with ones, which change no product: (dimensions, layers)."""
    return np.array(list(zip_longest(*(layer.shape for layer in layers), fillvalue=1)), dtype=float)
