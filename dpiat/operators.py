"""Which entries of a source layer fill which entries of a target layer: the transfer operators (section 3.4, Table 12).

An operator is a function of two layers. For every tensor that the operator fills, it returns two indices, as
`target[...] = source[...]` takes them: the part of the target that is filled, and the part of the source that fills it.
An operator of your own:

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
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

OUT, IN, HEAD, HALF, GATE, KERNEL, TOKEN = "out", "in", "head", "half", "gate", "kernel", "token"
# What an axis means. An operator chooses places along all axes but TOKEN: both networks number tokens from the first.
AXES = (OUT, IN, HEAD, HALF, GATE, KERNEL, TOKEN)

Index = tuple[slice | Tensor, ...]
Indices = Mapping[str, tuple[Index, Index]]  # tensor name -> the filled part of the target, the part of the source


class Weights(NamedTuple):
    """What an operator sees of a layer.

    Attributes:
        tensors: By their names in the layer.
        kind: The kind of the layer, "Conv2d".
        groups: The groups of a convolution; 1 in paper mode.
        axes: The meaning of the axes of a tensor, where it is not the usual one: (out, in, kernel, ...) of a weight and
            (out,) of a vector. An attention's query is (head, out, in).
        rows: Which of the source's tokens or positions go where, where the first ones do not go to the first ones.
    """

    tensors: Mapping[str, Tensor]
    kind: str = ""
    groups: int = 1
    axes: Mapping[str, tuple[str, ...]] = {}
    rows: Mapping[str, tuple[list[int], list[int]]] = {}

    def axes_of(self, name: str) -> tuple[str, ...]:
        """The meaning of each axis of a tensor: a key of `AXES`."""
        return self.axes[name] if name in self.axes else _usual_axes(self.kind, self.tensors[name].dim())


@lru_cache(maxsize=2**10)
def _usual_axes(kind: str, rank: int) -> tuple[str, ...]:
    if rank < 2:
        return (OUT,) * rank
    if is_table(kind):
        return (TOKEN, *[OUT] * (rank - 1))
    channels = (IN, OUT) if "Transpose" in kind else (OUT, IN)
    return (*channels, *[KERNEL] * (rank - 2))


Operator = Callable[[Weights, Weights], Indices]
OperatorName = Literal["clip", "centre", "leading", "clip_normalized", "full", "magnitude", "uniform"]


def shared(source: Weights, target: Weights) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The tensors of one name and as many dimensions in both layers: name, source tensor, target tensor."""
    for name, t in target.tensors.items():
        s = source.tensors.get(name)
        if s is not None and s.dim() == t.dim():
            yield name, s, t


def clip(source: Weights, target: Weights) -> Indices:
    """ClipTransfer: the centre crop of the source goes to the centre crop of the target (appendix A.2).

    As an argument of `transfer`, `clip` is the crop of the mode: the centre crop in paper mode, `leading` in default
    mode. `centred` is the centre crop in both modes.

    Along each dimension the larger of the two sizes is cropped to the smaller one, from the 0-based start
    floor((x - y) / 2). A convolution with groups is cropped as the dense convolution that it stands for. The rows of an
    embedding are tokens or places, which both networks number from the first one.
    """
    return _each(source, target, _by_centre)


def centred(source: Weights, target: Weights) -> Indices:
    """The centre crop of `clip`, in every mode."""
    return clip(source, target)


def leading(source: Weights, target: Weights) -> Indices:
    """The leading channels of the source go to the leading ones of the target; kernels are centred.

    Where a network adds its input to a wider output, as ReXNet does, it adds to the leading channels. A sum over layers
    of different widths so meets the channels that it met in the source.
    """
    return _each(source, target, _by_start)


CROPS = (clip, centred, leading)  # fill as many places along each axis as the smaller layer has, unless rows are chosen


def _by_centre(name: str, axis: str, dimension: int, s: int, t: int) -> tuple[slice, slice]:
    return _centre(s, t)


def _by_start(name: str, axis: str, dimension: int, s: int, t: int) -> tuple[slice, slice]:
    return _centre(s, t) if axis == KERNEL else _first(s, t)


def _first(s: int, t: int) -> tuple[slice, slice]:
    places = slice(0, min(s, t))
    return places, places


Places = slice | list[int]
# Takes the name of a tensor, the meaning of an axis, the axis and its two sizes, of the source and of the target. Gives
# the places that are filled in the target, and the places of the source that fill them.
Choice = Callable[[str, str, int, int, int], tuple[Places, Places]]


def _each(source: Weights, target: Weights, choose: Choice) -> Indices:
    """The indices that follow from a choice of places along each axis."""
    indices: dict[str, tuple[Index, Index]] = {}
    vectors: dict[tuple, tuple[Index, Index]] = {}  # a batch norm has four of one size
    grouped, crops = max(source.groups, target.groups) > 1, choose in (_by_centre, _by_start)
    for name, s, t in shared(source, target):
        axes, rows, given, wanted = target.axes_of(name), target.rows.get(name), s.shape, t.shape
        if grouped and len(wanted) > 1 and given != wanted:
            indices[name] = _grouped(name, given, wanted, source.groups, target.groups, choose)
        elif rows is None and crops:
            indices[name] = _cropped(choose, axes, given, wanted)
        elif rows is None and len(wanted) == 1:
            if (axes, given, wanted) not in vectors:
                vectors[axes, given, wanted] = _chosen(choose, name, axes, given, wanted)
            indices[name] = vectors[axes, given, wanted]
        else:
            indices[name] = _chosen(choose, name, axes, given, wanted, rows)
    return indices


def _chosen(
    choose: Choice,
    name: str,
    axes: Sequence[str],
    given: Sequence[int],
    wanted: Sequence[int],
    rows: tuple[list[int], list[int]] | None = None,
) -> tuple[Index, Index]:
    places = enumerate(zip(axes, given, wanted, strict=True))
    return _mesh([_fixed(axis, rows, s, t) or choose(name, axis, d, s, t) for d, (axis, s, t) in places])


@lru_cache(maxsize=2**14)
def _cropped(
    choose: Choice, axes: tuple[str, ...], given: tuple[int, ...], wanted: tuple[int, ...]
) -> tuple[Index, Index]:
    """Slices along all axes, by a choice that asks for sizes alone: kept, as networks repeat their blocks."""
    return _chosen(choose, "", axes, given, wanted)


def _fixed(axis: str, rows: tuple[list[int], list[int]] | None, s: int, t: int) -> tuple[Places, Places] | None:
    """The places along an axis where an operator has nothing to choose, or None."""
    if axis == TOKEN and rows is not None and max(s, t) > 1:
        return rows
    return _first(s, t) if s == t or axis == TOKEN else None


def are_slices(index: Index, rank: int) -> bool:
    """Is an index a slice of known ends along every dimension?"""
    return (
        isinstance(index, tuple)
        and len(index) == rank
        and all(
            isinstance(places, slice) and None not in (places.start, places.stop) and places.step in (None, 1)
            for places in index
        )
    )


def is_centred(source: Weights, target: Weights) -> bool:
    """Does `clip` give the centre crop of every tensor of this pair?"""
    return source.groups == target.groups == 1 and not any(TOKEN in target.axes_of(name) for name in target.tensors)


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


def _grouped(
    name: str, source: Sequence[int], target: Sequence[int], g_s: int, g_t: int, choose: Choice
) -> tuple[Index, Index]:
    """The places between convolutions with groups, (out, in / groups, ...), found in their dense weights.

    Entry (o, i) of a group is entry (o, group · in / groups + i) of the dense weight, which is zero elsewhere. An entry
    is filled if it lies in a group on both sides: so a wider target with zeros elsewhere computes what the source does.
    """
    # An index of the grouped weights themselves would pair input i of any group with input i of another group: with
    # other numbers of groups, these are different channels.
    o_t, o_s = map(_places, choose(name, OUT, 0, source[0], target[0]))  # (n,)
    kernels = [_centre(s, t) for s, t in zip(source[2:], target[2:], strict=True)]
    in_t, in_s = target[1] * g_t, source[1] * g_s  # of the dense weights
    given = torch.full((in_t,), -1, device="cpu")  # (in_t,), the dense input that each one receives
    to, by = map(_places, choose(name, IN, 1, in_s, in_t))
    given[to] = by
    first_t = o_t // (target[0] // g_t) * target[1]  # (n,), the dense input where the group of an output begins
    first_s = o_s // (source[0] // g_s) * source[1]
    i_t = _places(slice(0, target[1]))
    dense = given[first_t[:, None] + i_t]  # (n, in_t / g_t)
    i_s = dense - first_s[:, None]
    row, column = ((dense >= 0) & (i_s >= 0) & (i_s < source[1])).nonzero(as_tuple=True)
    to_kernel, by_kernel = zip(*kernels, strict=True) if kernels else ((), ())
    return (o_t[row], i_t[column], *to_kernel), (o_s[row], i_s[row, column], *by_kernel)


def _places(chosen: Places) -> Tensor:
    """The places as a tensor on the CPU, whatever the default device."""
    if isinstance(chosen, slice):
        return torch.arange(chosen.start, chosen.stop, device="cpu")
    return torch.tensor(chosen, device="cpu", dtype=torch.long)


class ClipWithNormalization:
    """Clip; then give weights the spread of a fresh network, so that consecutive layers have outputs of like variance.

    Convolutions get the standard deviation of Kaiming's initialization (fan-out, ReLU), linear layers and biases that
    of PyTorch's default.
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
        leading = 2 if HEAD in target.axes_of("weight") else 1  # axes of outputs
        spread = 1 / math.sqrt(3 * math.prod(weight.shape[leading:]))
        of_convolution = weight.dim() > leading + 1
        _rescale(weight, math.sqrt(2 * weight.shape[leading] / weight.numel()) if of_convolution else spread)
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
    """Clip where the source is larger. Where the target is larger, fill the rest with entries drawn at random."""

    seed: int = 0

    def __call__(self, source: Weights, target: Weights) -> Indices:
        return _each(source, target, self._choice)

    def _choice(self, name: str, axis: str, dimension: int, s: int, t: int) -> tuple[Places, Places]:
        """Draw alike for equal sizes, so that the tensors of a layer agree on its outputs."""
        drawn = random.Random(f"{self.seed} {dimension} {s} {t}").choices(range(s), k=max(t - s, 0))
        before = max(t - s, 0) // 2
        by = _centre(s, t)[1]
        return list(range(t)), [*drawn[:before], *range(by.start, by.stop), *drawn[before:]]


def magnitude(source: Weights, target: Weights) -> Indices:
    """MagnitudeTransfer: where the source is larger, take its channels of largest L1 norm, in their order.

    Inputs are chosen by what they add to the chosen outputs. Kernels are centred. Where the target is larger, the
    source fills the leading channels.
    """
    weight = source.tensors.get("weight")
    if weight is None or weight.dim() == 0 or "weight" not in target.tensors:  # a recurrent layer has several
        return _each(source, target, lambda n, axis, d, s, t: _centre(s, t) if s > t else (slice(0, s),) * 2)
    axes = source.axes_of("weight")
    norms = weight.detach().float().abs()
    if KERNEL in axes:
        norms = norms.flatten(axes.index(KERNEL)).sum(-1)
    if source.groups > 1:
        norms = _dense(norms, source.groups)
    wanted = target.tensors["weight"].shape
    chosen: dict[str, list[int]] = {}
    for axis in (HEAD, OUT, IN) if len(wanted) == weight.dim() else ():  # inputs by the chosen outputs
        if axis in axes:
            d = axes.index(axis)
            others = [dimension for dimension in range(norms.dim()) if dimension != d]
            groups = target.groups if axis == IN and source.groups > 1 else 1
            chosen[axis] = _largest(norms.sum(others) if others else norms, wanted[d] * groups)
            norms = norms.index_select(d, torch.tensor(chosen[axis], dtype=torch.long, device=norms.device))

    def choose(name: str, axis: str, dimension: int, s: int, t: int) -> tuple[Places, Places]:
        if axis == KERNEL:
            return _centre(s, t)
        if t >= s:
            return slice(0, s), slice(0, s)
        if (axis in (OUT, HEAD) or name == "weight") and len(chosen.get(axis, ())) == t:
            return list(range(t)), chosen[axis]
        return _centre(s, t)

    return _each(source, target, choose)


def _dense(norms: Tensor, groups: int) -> Tensor:
    """The norms (out, in / groups) of a convolution with groups as norms (out, in) of the dense weight."""
    out, into = norms.shape
    found = norms.new_zeros(groups, out // groups, groups, into)
    for group in range(groups):
        found[group, :, group] = norms[group * (out // groups) : (group + 1) * (out // groups)]
    return found.view(out, groups * into)


def _largest(norms: Tensor, count: int) -> list[int]:
    """The places of the largest norms, in their order; on the meta device, which has no norms, the first places."""
    if norms.is_meta or count >= len(norms):
        return list(range(min(count, len(norms))))
    return norms.topk(count).indices.sort().values.tolist()


def uniform(source: Weights, target: Weights) -> Indices:
    """The uniform selection of "Initializing Models with Larger Ones" (arXiv 2311.18823): evenly spaced entries.

    Along every dimension, n of the source's N entries are taken at equal distances from the first to the last, rounded.
    Where N is a multiple of n, every N/n-th entry is taken from the first on, as in the authors' code. Where the target
    is larger, the source fills its centre.
    """
    return _each(source, target, lambda name, axis, d, s, t: _evenly(s, t))


def _evenly(s: int, t: int) -> tuple[Places, Places]:
    if t >= s:
        return _centre(s, t)
    if t and s % t == 0:
        return list(range(t)), list(range(0, s, s // t))
    # As in the authors' code, halves are rounded to the even number, and the distances are in single precision.
    return list(range(t)), torch.linspace(0, s - 1, t, dtype=torch.float32, device="cpu").round().long().tolist()


def _mesh(dimensions: Sequence[tuple[Places, Places]]) -> tuple[Index, Index]:
    """Places along each dimension -> indices of all their combinations."""
    if {type(places) for pair in dimensions for places in pair} <= {slice}:
        return tuple([to for to, _ in dimensions]), tuple([by for _, by in dimensions])
    rank = len(dimensions)
    shaped = [[_places(places).view(-1, *[1] * (rank - 1 - d)) for places in pair] for d, pair in enumerate(dimensions)]
    return tuple(pair[0] for pair in shaped), tuple(pair[1] for pair in shaped)


OPERATORS: dict[OperatorName, Operator] = {
    "clip": clip,
    "centre": centred,
    "leading": leading,
    "clip_normalized": ClipWithNormalization(),
    "full": FullTransfer(),
    "magnitude": magnitude,
    "uniform": uniform,
}
