"""How alike two layers are, by the shapes of their weights (Eq. 1)."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np

from dpiat.architecture import Compact, Layer


def score(target: Layer, source: Layer) -> float:
    """Eq. 1: the product over the dimensions of min(t_i / s_i, s_i / t_i), in [0, 1].

    The strides of convolutions, where the layers have them (not in paper mode), count like dimensions. 0 for layers of
    different kinds, of different numbers of dimensions, or without weights.

        >>> score(Layer("a", "Conv2d", (32, 16, 3, 3)), Layer("b", "Conv2d", (16, 16, 3, 3)))
        0.5
    """
    if not target.shape or target.kind != source.kind or len(target.sizes) != len(source.sizes):
        return 0.0
    product = 1.0
    for t_i, s_i in zip(target.sizes, source.sizes, strict=True):
        product *= min(t_i, s_i) / max(t_i, s_i)
    return product


def score_matrix(target: Compact, source: Compact) -> np.ndarray:
    """Eq. 1 for all pairs of different layers of two architectures: (target layers, source layers)."""
    product = np.ones((len(target.families), len(source.families)))
    for t_i, s_i in zip_longest(target.sizes, source.sizes, fillvalue=np.ones(1)):
        product *= np.minimum(t_i[:, None], s_i) / np.maximum(t_i[:, None], s_i)
    numbers: dict[tuple[str, int], int] = {}
    t, s = (
        np.array([numbers.setdefault(family, len(numbers)) for family in families], dtype=int)
        for families in (target.families, source.families)
    )
    return np.where(t[:, None] == s, product, 0.0)
