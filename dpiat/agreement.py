"""How alike two sets of features of the same images are, and what a linear classifier can read from one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

RIDGE = 1.0  # on standardized features, whose Gram matrix is divided by their number


def cka(a: Tensor, b: Tensor) -> float:
    """Linear CKA (1905.00414) of (images, channels) and (images, other channels), in double precision.

    1 if the two differ by a rotation and a scale alone, and 0 on average if they are independent: HSIC is estimated
    without bias (2010.15327), as the usual estimate grows with the number of channels. 0 where one is constant.
    """
    grams = [_gram(x) for x in (a, b)]
    both, first, second = (_hsic(x, y) for x, y in (grams, grams[:1] * 2, grams[1:] * 2))
    return float(both / (first * second).sqrt()) if first > 0 and second > 0 else 0.0


def _gram(features: Tensor) -> Tensor:
    centred = features - features.mean(0)
    return (centred @ centred.T).fill_diagonal_(0)  # (images, images)


def _hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    """The unbiased estimate of HSIC (Song et al. 2012), but for a factor, from Gram matrices with zero diagonals."""
    n = len(k)
    return (k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ l.sum(0))


def probe(features: Tensor, labels: Tensor) -> float:
    """The accuracy of a ridge regression of classes on (images, channels), learned from one half, tested on the other.

    Every class is halved. Raises ValueError if there are fewer than two classes, or no class has two images.
    """
    classes, numbers = labels.unique(return_inverse=True)
    tested = torch.zeros(len(labels), dtype=torch.bool)
    for number in range(len(classes)):
        tested[(numbers == number).nonzero().flatten()[1::2]] = True
    if len(classes) < 2 or not tested.any():
        raise ValueError("a probe needs images of two classes, and two images of a class")
    mean, spread = features[~tested].mean(0), features[~tested].std(0) + 1e-6
    train, test = ((part - mean) / spread for part in (features[~tested], features[tested]))
    wanted = nn.functional.one_hot(numbers[~tested], len(classes)).to(train)
    gram = train @ train.T / train.shape[1]
    gram.diagonal().add_(RIDGE)
    weights = torch.linalg.solve(gram, wanted - wanted.mean(0))
    found = test @ train.T / train.shape[1] @ weights + wanted.mean(0)
    return float((found.argmax(1) == numbers[tested]).double().mean())
