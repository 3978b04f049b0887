"""Which entries of a source layer fill which entries of a target layer: the transfer operators (section 3.4, Table 12).

An operator is a function of two layers. For every tensor that it fills it returns the index of the filled part of the
target and that of the part of the source that fills it: what `target[...] = source[...]` takes. One of your own:

    def corner(source: Weights, target: Weights) -> Indices:
        both = {name: tuple(map(slice, map(min, s.shape, t.shape))) for name, s, t in shared(source, target)}
        return {name: (index, index) for name, index in both.items()}

    transfer(source, target, operator=corner)
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Index = tuple[slice | Tensor, ...]
Indices = Mapping[str, tuple[Index, Index]]  # tensor name -> the filled part of the target, the part of the source


class Weights(NamedTuple):
    """What an operator sees of a layer: its tensors by their names in it, its kind, and how it is divided.

    `groups` are those of a convolution, `parts` how many equal projections are stacked in one (3 for query, key and
    value, 4 for the gates of an LSTM), along dimension `along`, 0 or 1. Both are 1 in paper mode.
    """

    tensors: Mapping[str, Tensor]
    kind: str = ""
    groups: int = 1
    parts: int = 1
    along: int = 0


Operator = Callable[[Weights, Weights], Indices]


def shared(source: Weights, target: Weights) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The tensors of one name and as many dimensions in both layers: name, source tensor, target tensor."""
    for name, t in target.tensors.items():
        s = source.tensors.get(name)
        if s is not None and s.dim() == t.dim():
            yield name, s, t


def clip(source: Weights, target: Weights) -> Indices:
    """ClipTransfer: the centre crop of the source goes to the centre crop of the target (appendix A.2).

    Along each dimension the larger of the two is cropped to the smaller one, from the 0-based start
    floor((x - y) / 2). A convolution with groups is cropped as the dense one that it stands for, stacked projections
    one by one; the projection of an LSTM (weight_hr) has no gates. The rows of an embedding are tokens or places, which
    both networks number from the first one.
    """
    indices = {}
    for name, s, t in shared(source, target):
        if s.shape != t.shape and source.parts == target.parts > 1 and not name.startswith("weight_hr"):
            indices[name] = _stacked(s.shape, t.shape, source.parts, source.along)
        elif s.shape != t.shape and is_table(target.kind):
            rows = slice(0, min(len(s), len(t)))
            to, by = centre(s.shape[1:], t.shape[1:])
            indices[name] = (rows, *to), (rows, *by)
        elif s.shape != t.shape and t.dim() > 1 and max(source.groups, target.groups) > 1:
            indices[name] = _grouped(s.shape, t.shape, source.groups, target.groups)
        else:
            indices[name] = centre(s.shape, t.shape)
    return indices


def is_centred(source: Weights, target: Weights) -> bool:
    """Does `clip` give the centre crop of every tensor of this pair?"""
    return source.groups == target.groups == source.parts == target.parts == 1 and not is_table(target.kind)


def is_table(kind: str) -> bool:
    """Does a layer of this kind look up rows by their numbers?"""
    return kind.startswith("Embedding")


def centre(source: Sequence[int], target: Sequence[int]) -> tuple[Index, Index]:
    """The centre crop of a source shape into a target shape of equal rank.

    >>> centre((4, 3), (9, 3))
    ((slice(2, 6), slice(0, 3)), (slice(0, 4), slice(0, 3)))
    """
    to, by = zip(*map(_centre, source, target), strict=True) if source else ((), ())
    return to, by


def _centre(s: int, t: int) -> tuple[slice, slice]:
    """The filled part of a target dimension and the part of the source dimension that fills it."""
    if t > s:
        return slice((t - s) // 2, (t - s) // 2 + s), slice(0, s)
    return slice(0, t), slice((s - t) // 2, (s - t) // 2 + t)


def _grouped(source: Sequence[int], target: Sequence[int], g_s: int, g_t: int) -> tuple[Index, Index]:
    """The centre crop between convolutions with groups, (out, in / groups, ...), in the view of the dense ones.

    Entry (o, i) of a group is entry (o, group · in / groups + i) of the dense weight, which is zero elsewhere. Filled
    is what both have after the crop, so that a wider target with zeros elsewhere computes what the source does.
    """
    (to, by), (to_kernel, by_kernel) = (centre(s, t) for s, t in ((source[:1], target[:1]), (source[2:], target[2:])))
    o_t, o_s = (_places(index[0]) for index in (to, by))  # (n,)
    in_s, in_t = source[1] * g_s, target[1] * g_t  # of the dense weights
    shift = (in_t - in_s) // 2 if in_t > in_s else -((in_s - in_t) // 2)
    first_t = o_t // (target[0] // g_t) * target[1]  # (n,), the dense input where the group of an output begins
    first_s = o_s // (source[0] // g_s) * source[1]
    i_t = _places(slice(0, target[1]))
    i_s = (first_t - shift - first_s)[:, None] + i_t  # (n, in_t / g_t)
    row, column = ((i_s >= 0) & (i_s < source[1])).nonzero(as_tuple=True)
    return (o_t[row], i_t[column], *to_kernel), (o_s[row], i_s[row, column], *by_kernel)


def _places(chosen: slice) -> Tensor:
    """On the CPU, whatever the default device."""
    return torch.arange(chosen.start, chosen.stop, device="cpu")


def _stacked(source: Sequence[int], target: Sequence[int], parts: int, along: int) -> tuple[Index, Index]:
    """The centre crops of projections that are stacked along a dimension, of a bias its only one."""
    d = min(along, len(source) - 1)
    one = [[size // parts if i == d else size for i, size in enumerate(shape)] for shape in (source, target)]
    chosen = []
    for index, shape in zip(centre(*one), (one[1], one[0]), strict=True):
        places = torch.cat([_places(index[d]) + part * shape[d] for part in range(parts)])
        chosen.append((*index[:d], places, *index[d + 1 :]))
    return tuple(chosen)


class ClipWithNormalization:
    """Clip; then weights get the spread of a fresh network, so that consecutive layers have outputs of like variance.

    The standard deviation is that of Kaiming's initialization (fan-out, ReLU) for convolutions, and PyTorch's default
    for linear layers; biases get PyTorch's default.
    """

    __call__ = staticmethod(clip)

    @staticmethod
    def finish(target: Weights) -> None:
        """Called with a layer of the target when it has been written."""
        weight, bias = (target.tensors.get(name) for name in ("weight", "bias"))
        if weight is None or not target.kind.endswith(("1d", "2d", "3d", "Linear")):
            return
        if weight.dim() < 2 or not weight.numel():
            return
        spread = 1 / math.sqrt(3 * weight[0].numel())
        _rescale(weight, math.sqrt(2 * weight.shape[1] / weight.numel()) if weight.dim() > 2 else spread)
        if bias is not None:
            _rescale(bias, spread)


def fractional(tensor: Tensor) -> bool:
    """Can these values be weights? Integers count, point, or stand for a weight by a scale of their own."""
    return tensor.is_floating_point() or tensor.is_complex()


def _rescale(tensor: Tensor, spread: float) -> None:
    """Give a tensor this standard deviation, unless its values are all alike, or integers."""
    if not fractional(tensor):
        return
    values = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # float8 is only kept, not computed with
    found = float(values.std()) if tensor.numel() > 1 else 0.0
    if found > 0:
        tensor.copy_(values.mul_(spread / found))


@dataclass(frozen=True)
class FullTransfer:
    """Clip where the source is larger; where the target is, the rest repeats source indices drawn at random."""

    seed: int = 0

    def __call__(self, source: Weights, target: Weights) -> Indices:
        return {
            name: _mesh([self._dimension(d, *sizes) for d, sizes in enumerate(zip(s.shape, t.shape, strict=True))])
            for name, s, t in shared(source, target)
        }

    def _dimension(self, dimension: int, s: int, t: int) -> tuple[list[int], list[int]]:
        """Equal for equal sizes, so that the tensors of a layer agree on its outputs."""
        drawn = random.Random(f"{self.seed} {dimension} {s} {t}").choices(range(s), k=max(t - s, 0))
        before = max(t - s, 0) // 2
        by = _centre(s, t)[1]
        return list(range(t)), [*drawn[:before], *range(by.start, by.stop), *drawn[before:]]


def magnitude(source: Weights, target: Weights) -> Indices:
    """MagnitudeTransfer: where the source is larger, its channels of largest L1 norm, in their order.

    Inputs are chosen by what they add to the chosen outputs. Kernels are centred. Where the target is larger, the
    source fills its leading channels.
    """
    weight = source.tensors.get("weight")
    if weight is None or not weight.dim():
        return clip(source, target)
    norms = weight.detach().float().abs()
    norms = norms.flatten(2).sum(2) if norms.dim() > 2 else norms.view(len(norms), -1)  # (out, in)
    out, into = 0, 1
    if "Transpose" in source.kind:
        norms, out, into = norms.T, 1, 0
    indices = {}
    for name, s, t in shared(source, target):
        dimensions = [_dimension(*_centre(*sizes)) for sizes in zip(s.shape, t.shape, strict=True)]
        dimension = out if name == "weight" else 0
        if s.dim() and s.shape[dimension] == len(norms):
            outputs = _largest(norms.sum(1), t.shape[dimension])
            dimensions[dimension] = list(range(len(outputs))), outputs
            if name == "weight" and s.dim() > 1:
                inputs = _largest(norms[outputs].sum(0), t.shape[into])
                dimensions[into] = list(range(len(inputs))), inputs
        indices[name] = _mesh(dimensions)
    return indices


def _largest(norms: Tensor, count: int) -> list[int]:
    """The places of the largest norms, in their order; on the meta device, where there are none, the first ones."""
    if norms.is_meta or count >= len(norms):
        return list(range(min(count, len(norms))))
    return norms.topk(count).indices.sort().values.tolist()


def uniform(source: Weights, target: Weights) -> Indices:
    """The uniform selection of "Initializing Models with Larger Ones" (arXiv 2311.18823): evenly spaced entries.

    Entry i of n is entry floor(i · N / n) of the source's N, along every dimension. Where the target is larger, the
    source fills its centre.
    """
    return {
        name: _mesh([_evenly(*sizes) for sizes in zip(s.shape, t.shape, strict=True)])
        for name, s, t in shared(source, target)
    }


def _evenly(s: int, t: int) -> tuple[list[int], list[int]]:
    return _dimension(*_centre(s, t)) if t >= s else (list(range(t)), [i * s // t for i in range(t)])


def _dimension(to: slice, by: slice) -> tuple[list[int], list[int]]:
    return list(range(to.start, to.stop)), list(range(by.start, by.stop))


def _mesh(dimensions: Sequence[tuple[list[int], list[int]]]) -> tuple[Index, Index]:
    """Places along each dimension -> indices of all their combinations."""
    rank = len(dimensions)
    shaped = [
        [torch.tensor(places, device="cpu", dtype=torch.long).view(-1, *[1] * (rank - 1 - d)) for places in pair]
        for d, pair in enumerate(dimensions)
    ]
    return tuple(pair[0] for pair in shaped), tuple(pair[1] for pair in shaped)


OPERATORS: dict[str, Operator] = {
    "clip": clip,
    "clip_normalized": ClipWithNormalization(),
    "full": FullTransfer(),
    "magnitude": magnitude,
    "uniform": uniform,
}
