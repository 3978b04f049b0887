"""How alike two layers are, by the shapes of their weights (Eq. 1)."""

from __future__ import annotations

import numpy as np

from dpiat.architecture import Compact, Layer


def score(target: Layer, source: Layer) -> float:
    """Eq. 1: the product over the dimensions of min(t_i / s_i, s_i / t_i), in [0, 1].

    0 for layers of different kinds, of different numbers of dimensions, or without weights.

        >>> score(Layer("a", "Conv2d", (32, 16, 3, 3)), Layer("b", "Conv2d", (16, 16, 3, 3)))
        0.5
    """
    if not target.shape or target.kind != source.kind or len(target.shape) != len(source.shape):
        return 0.0
    product = 1.0
    for t_i, s_i in zip(target.shape, source.shape, strict=True):
        product *= min(t_i, s_i) / max(t_i, s_i)
    return product


def score_matrix(target: Compact, source: Compact) -> np.ndarray:
    """Eq. 1 for all pairs of different layers of two architectures: (target layers + 1, source layers + 1).

    The last row and the last column are 0.
    """
    scores = np.zeros((target.n_layers + 1, source.n_layers + 1))
    for family in target.families.keys() & source.families.keys():
        (i, t), (j, s) = target.families[family], source.families[family]
        t, s = t[:, :, None], s[:, None]  # (dimensions, target layers, 1), (dimensions, 1, source layers)
        ratios = np.minimum(t, s) / np.maximum(t, s)
        scores[i : i + t.shape[1], j : j + s.shape[2]] = np.multiply.reduce(
            ratios, axis=0
        )  # from the first dimension on
    return scores
