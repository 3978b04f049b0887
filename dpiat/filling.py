"""What goes from one layer to another: the layers' tensors brought to the same axes, then the rules, then the operator.

A rule takes the operator's place where the meaning of an axis says more than its size: classes, input channels,
positions on a grid, the time of a video. Rules are entries of `RULES`, in the order in which they are asked; each gives
values or places, or None where it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dpiat import roles
from dpiat.branches import as_whole, own
from dpiat.layers import RECURRENT
from dpiat.operators import (
    CROPS,
    GATE,
    HALF,
    HEAD,
    IN,
    KERNEL,
    OPERATORS,
    OUT,
    TOKEN,
    ClipWithNormalization,
    Index,
    Indices,
    Operator,
    Weights,
    are_slices,
    centre,
    clip,
    fractional,
    is_centred,
    is_table,
    leading,
    shared,
)
from dpiat.positions import resampled_grid, resampled_offsets, resampled_patches
from dpiat.recipe import BEST, Recipe
from dpiat.report import times
from dpiat.sources import first_line
from dpiat.standardization import (
    CONVOLUTIONS,
    CONVOLVES,
    DEPTHWISE,
    GROUPED,
    MATRICES,
    LayerTensors,
    known_kind,
    paper_kind,
)
from dpiat.stored import Stored

INPUTS, ZEROS, CLASSES = "input channels", "zero input channels", "classes"
OF_THE_NETWORK = (INPUTS, ZEROS, CLASSES)  # rules for layers that the whole network tells
NewInputs = Literal["repeat", "zero"]  # what becomes of input channels that the source does not have
NEW_INPUTS: dict[NewInputs, str] = {"repeat": INPUTS, "zero": ZEROS}
RULE_AND_RULE = ", "  # between the names of two rules that one tensor goes through
TIME, GRID, OFFSETS, PATCHES, FOLDED = "time", "grid", "offsets", "patches", "folded norm"


class Route(NamedTuple):
    """What goes from a source layer to a target layer: values, and where they go; None for the centre crops.

    `seen` is what an operator of ours sees of the target; None where axes have no meaning. `crop` says that every index
    chooses as many places along each axis as the smaller tensor has.
    """

    source: LayerTensors
    target: LayerTensors
    indices: Indices | None
    rules: Mapping[str, str]  # of each tensor that a rule fills
    seen: Weights | None = None
    crop: bool = False


@dataclass(frozen=True)
class Settings:
    """How layers are filled: in which mode, by which operator, and which classes of a classifier."""

    mode: str
    operator: Operator = clip
    classes: Mapping[str, Mapping[int, int]] = field(default_factory=dict)  # of each classifier, target: source
    recipe: Recipe = BEST

    @cached_property
    def chosen(self) -> Operator:
        """The operator, where those that crop take the leading channels in default mode."""
        crops = self.operator is clip or isinstance(self.operator, ClipWithNormalization)
        return leading if crops and self.mode != "paper" and self.recipe.leading else self.operator

    @cached_property
    def ours(self) -> bool:
        """Is the operator none of the user's? Zeros around what one of theirs writes are theirs to write."""
        return self.chosen in (*OPERATORS.values(), leading)


def route(by: LayerTensors, to: LayerTensors, rule: str, settings: Settings) -> Route:
    """How the target layer `to` is filled from the source layer `by`."""
    if settings.mode == "paper":
        given, wanted = (weights_of(layer, "paper") for layer in (by, to))
        operator = ChosenClasses(settings.classes[to.name]) if rule == CLASSES else settings.operator
        rules = dict.fromkeys(to.tensors, CLASSES) if rule == CLASSES else {}
        return Route(by, to, _indices(given, wanted, by, to, operator, settings), rules)
    if settings.operator is clip and not rule and _of_one_shape(by, to):
        return Route(by, to, None, {})  # as most layers of alike networks are
    if to.branch is not None and by.branch is None:
        return _to_branch(by, to, rule, settings)
    theirs, ours = _groups_of(by, to)
    by, to, axes = same_axes(by, to, max(theirs, ours) > 1)
    rules, rows = {}, _rows(by, to)
    for name, apply in RULES.items():
        if name in OF_THE_NETWORK and rule != name:
            continue
        found = apply(by, to)
        if found is NO_RULE and name != CLASSES:
            continue
        values, chosen = found
        by = by._replace(tensors={**by.tensors, **values})
        for local in to.tensors if name == CLASSES else values:
            rules[local] = f"{rules[local]}{RULE_AND_RULE}{name}" if local in rules else name
        rows |= chosen
    if max(theirs, ours) > 1 and (rules or all(map(_one_by_one, (by, to)))):
        theirs = ours = 1  # such a pair needs no more than its shapes
    given, wanted = Weights(by.tensors, _kind(by), theirs, axes, rows), Weights(to.tensors, _kind(to), ours, axes, rows)
    operator = settings.chosen
    if rule == CLASSES:
        operator = ChosenClasses(settings.classes[to.name], leading if operator is leading else clip)
    indices = _indices(given, wanted, by, to, operator, settings)
    crop = operator in CROPS and not rows and max(theirs, ours) == 1
    return Route(by, to, indices, rules, wanted if settings.ours or rule == CLASSES else None, crop)


def _to_branch(by: LayerTensors, to: LayerTensors, rule: str, settings: Settings) -> Route:
    """What comes to the place of a branch in the layer that it makes with others."""
    way = route(by, as_whole(to), rule, settings)
    fitting = {
        local: way.indices[local] if way.indices is not None else centre(way.source.tensors[local].shape, t.shape)
        for local, t in way.target.tensors.items()
        if t.dim() == to.tensors[local].dim()
        and local in way.source.tensors
        and way.source.tensors[local].dim() == t.dim()
        and (way.indices is None or local in way.indices)
    }
    return Route(way.source, to, own(fitting, to, way.source), way.rules, way.seen)


def unfilled(axes: tuple[str, ...], index: tuple[Index, Index], tensor: Tensor) -> Index | None:
    """The index of all rows that `index` fills in part, or None if it fills its rows whole.

    A row is what one output is computed from: its inputs and its kernel.
    """
    # Zeros are for rows that are filled in part: the source knows their output, and random weights of the other inputs
    # would add noise to it. A row that nothing comes to keeps the target's values: its output is new, and zeros would
    # make it dead. A vector has no rows.
    inner = [is_inner(axes, d) for d in range(tensor.dim())]
    if not any(inner):
        return None
    to = index[0]
    if are_slices(to, tensor.dim()):
        whole = all(
            not within or places.stop - places.start == size
            for within, places, size in zip(inner, to, tensor.shape, strict=True)
        )
        if whole or any(places.stop <= places.start for places in to):
            return None
        return tuple(slice(None) if within else places for within, places in zip(inner, to, strict=True))
    rows = [places for within, places in zip(inner, to, strict=True) if not within]
    rows = torch.broadcast_tensors(*rows) if rows else []
    filled = torch.zeros(
        [size for within, size in zip(inner, tensor.shape, strict=True) if not within], dtype=torch.bool, device="cpu"
    )
    filled[tuple(rows)] = True
    found = iter(filled.nonzero(as_tuple=True))
    return tuple(slice(None) if within else next(found) for within in inner)


def is_inner(axes: tuple[str, ...], d: int) -> bool:
    """Does an axis lie in the rows, and not across them? Heads and halves do where they are of the inputs."""
    return axes[d] in (IN, KERNEL, HALF) or (axes[d] == HEAD and OUT in axes[:d] and IN in axes)


def _of_one_shape(by: LayerTensors, to: LayerTensors) -> bool:
    """Does every tensor go whole to its like, whatever its axes mean?"""
    if by.offset != to.offset or (by.norm is not None and to.norm is None):
        return False
    for local, t in to.tensors.items():
        s = by.tensors.get(local)
        if s is None or s.shape != t.shape:
            return False
    return True


def weights_of(layer: LayerTensors, mode: str) -> Weights:
    """A layer as an operator sees it alone."""
    if mode == "paper":
        return Weights(layer.tensors, paper_kind(type(layer.module)))
    axes = {local: (HEAD, OUT, IN, KERNEL)[: t.dim()] for local, t in layer.tensors.items()} if layer.split else {}
    return Weights(layer.tensors, _kind(layer), _groups(layer), axes)


def _indices(
    given: Weights, wanted: Weights, by: LayerTensors, to: LayerTensors, operator: Operator, settings: Settings
) -> Indices | None:
    if operator is clip and is_centred(given, wanted):
        return None
    indices = operator(given, wanted)
    if operator is settings.operator and not settings.ours:
        _check_indices(indices, given, to, by)
    return indices


def _kind(layer: LayerTensors) -> str:
    return known_kind(type(layer.module)) or (layer.plain.kind if layer.plain else "")


def _groups(layer: LayerTensors) -> int:
    return layer.module.groups if isinstance(layer.module, CONVOLUTIONS) else 1


def _groups_of(by: LayerTensors, to: LayerTensors) -> tuple[int, int]:
    """The groups of both layers. A state dict tells its own by the shape (out, in / groups, ...), where there are any.

    Whether there are any, only the target's module says for sure.
    """
    ours, theirs = _groups(to), _groups(by)
    if ours > 1 and isinstance(by.module, Stored) and by.plain.kind.startswith((DEPTHWISE, GROUPED)):
        theirs = by.plain.shape[0] // by.plain.shape[1]
    return theirs, ours


def _one_by_one(layer: LayerTensors) -> bool:
    """Does every channel have a group and a filter of its own?"""
    module = layer.module
    if isinstance(module, CONVOLUTIONS):
        return module.groups == module.in_channels == module.out_channels
    return layer.plain is None or not layer.plain.kind.startswith(GROUPED)


# --- the same axes ----------------------------------------------------------------------------------------------------


def same_axes(
    by: LayerTensors, to: LayerTensors, grouped: bool
) -> tuple[LayerTensors, LayerTensors, dict[str, tuple[str, ...]]]:
    """Both layers with their tensors seen alike, and the meaning of the axes where it is not the usual one.

    A linear layer is seen as a 1 × 1 convolution where its partner is one, (C, 1, 1) as (C,), and the outputs of an
    attention's projections as (heads, channels) where the sizes differ. Groups of a convolution (`grouped`) say already
    which outputs and inputs belong together.
    """
    axes: dict[str, tuple[str, ...]] = {}
    kind, role = to.plain.kind if to.plain else "", to.plain.role if to.plain else ""
    # An operator pairs axis d of one tensor with axis d of the other. So the number of axes is made equal first, by
    # views, through which a write reaches the stored tensor. Then an axis that holds several things one after another
    # is split: a crop must not cut across gates, heads, halves or flattened pictures. At most one split is made, the
    # first that applies; where shapes are equal, nothing is cropped and no split is needed.
    recurrent, alone = kind.startswith(RECURRENT), kind == "Parameter"
    for name, t in to.tensors.items():
        s = by.tensors.get(name)
        if s is None:
            continue
        if s.dim() != t.dim():
            by, to = _same_rank(by, to, name)
            s, t = by.tensors[name], to.tensors[name]
        if recurrent and t.dim() > 1 and name.startswith(("weight_ih", "weight_hh", "bias")):
            axes[name] = (GATE, OUT, *([HALF] if t.dim() == 4 else []), *([IN] if t.dim() > 2 else []))
        elif alone and t.dim() > 1:
            axes[name] = _of_parameter(role, t)
        elif grouped or name not in ("weight", "bias") or s.shape == t.shape or s.dim() != t.dim():
            continue
        elif heads := _heads(by, to):
            by, to, axes[name] = _by_heads(by, to, name, heads, role)
        elif 1 < by.stack == to.stack and not is_table(_kind(to)) and s.shape[0] != t.shape[0]:
            by, to = (layer.seen(name, _Split(0, layer.stack)) for layer in (by, to))
            axes[name] = (GATE, OUT, *([IN] if t.dim() > 1 else []), *[KERNEL] * (t.dim() - 2))
        elif by.flat and to.flat and name == "weight":
            by, to = (layer.seen(name, _Split(1, layer.flat)) for layer in (by, to))
            axes[name] = (OUT, IN, KERNEL)
        elif by.halves and to.halves and name == "weight":
            by, to = (layer.seen(name, _Split(1, 2)) for layer in (by, to))
            axes[name] = (OUT, HALF, IN, *[KERNEL] * (t.dim() - 2))
    return by, to, axes


def _of_parameter(role: str, tensor: Tensor) -> tuple[str, ...]:
    """The axes of a parameter that stands alone: places from the first one, or channels."""
    if role == roles.OFFSET:
        return (TOKEN, HEAD) if tensor.dim() == 2 else (OUT,) * tensor.dim()
    if role == roles.POSITION or role.endswith("token") or role.endswith("tokens"):
        return (*[TOKEN] * (tensor.dim() - 1), OUT)
    return (OUT,) * tensor.dim()


def _same_rank(by: LayerTensors, to: LayerTensors, name: str) -> tuple[LayerTensors, LayerTensors]:
    """Bring two tensors to one number of dimensions, if they are the same but for some of size 1, or for heads."""
    s, t = by.tensors[name], to.tensors[name]
    if by.split and not to.split and s.dim() == t.dim() + 1 and not len(t) % len(s):
        return by, to.seen(name, _Split(0, len(s)))
    if to.split and not by.split and t.dim() == s.dim() + 1 and not len(s) % len(t):
        return by.seen(name, _Split(0, len(t))), to
    if {s.dim(), t.dim()} == {4, 5}:
        return by, to  # a picture's and a video's
    shapes = [[size for size in tensor.shape if size > 1] for tensor in (s, t)]
    if not to.plain.kind.startswith(MATRICES):
        same = len(shapes[0]) == len(shapes[1])
        return (by.seen(name, _squeezed), to.seen(name, _squeezed)) if same else (by, to)
    if s.dim() < t.dim() and prod(t.shape[s.dim() :]) == 1:
        return by.seen(name, _Ones(t.dim() - s.dim())), to
    if t.dim() < s.dim() and prod(s.shape[t.dim() :]) == 1:
        return by, to.seen(name, _Ones(s.dim() - t.dim()))
    if s.dim() == 2 and t.dim() > 2 and not s.shape[1] % prod(t.shape[2:]):  # of a flattened picture
        return by.seen(name, _Kernel(tuple(t.shape[2:]))), to
    if t.dim() == 2 and s.dim() > 2 and not t.shape[1] % prod(s.shape[2:]):
        return by, to.seen(name, _Kernel(tuple(s.shape[2:])))
    return by, to


def _squeezed(tensor: Tensor) -> Tensor:
    found = tensor.squeeze()
    return found if found.dim() else found[None]


class _Split(NamedTuple):
    """A view of a dimension as (parts, size)."""

    dimension: int
    parts: int

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor.unflatten(self.dimension, (self.parts, -1))


class _Ones(NamedTuple):
    """A view with more dimensions of size 1 at the end."""

    count: int

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor[(..., *[None] * self.count)]


class _Kernel(NamedTuple):
    """A view of the inputs of a linear layer as the channels and the places of the picture that was flattened."""

    shape: tuple[int, ...]

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor.unflatten(1, (-1, *self.shape))


def _heads(by: LayerTensors, to: LayerTensors) -> tuple[int, int] | None:
    """The numbers of heads of two projections; of one that does not say, by the size of the other's heads."""
    counts = [by.heads, to.heads]
    if not any(counts):
        return None
    axis = 1 if to.plain.role.endswith(roles.PROJECTED) else 0
    sizes = [
        prod(layer.tensors["weight"].shape[:2]) if layer.split else layer.tensors["weight"].shape[axis]
        for layer in (by, to)
    ]
    if not all(counts):
        known = counts.index(max(counts))
        size, rest = divmod(sizes[known], counts[known])
        if rest or sizes[1 - known] % size:
            return None
        counts[1 - known] = sizes[1 - known] // size
    return tuple(counts) if all(not size % count for size, count in zip(sizes, counts, strict=True)) else None


def _by_heads(
    by: LayerTensors, to: LayerTensors, name: str, counts: tuple[int, int], role: str
) -> tuple[LayerTensors, LayerTensors, tuple[str, ...]]:
    """Both with an axis of heads: in the inputs of an attention's last projection, in the outputs of the others."""
    inner = role.endswith(roles.PROJECTED)
    if inner and name == "bias":
        return by, to, (OUT,)
    rank = to.tensors[name].dim()
    if not (by.split and to.split):
        by, to = (
            layer.seen(name, _Split(1 if inner else 0, count)) for layer, count in zip((by, to), counts, strict=True)
        )
        rank += 1
    rest = [KERNEL] * (rank - 3)
    if inner:
        return by, to, (OUT, HEAD, IN, *rest)
    return by, to, (HEAD, OUT, *([IN] if rank > 2 else []), *rest)


# --- rules ------------------------------------------------------------------------------------------------------------

# A rule gives, by the names of tensors, values in place of the source's, and which of the source's rows go where.
Ruled = tuple[dict[str, Tensor], dict[str, tuple[list[int], list[int]]]]
Rule = Callable[[LayerTensors, LayerTensors], Ruled]
NO_RULE: Ruled = {}, {}


def _rows(by: LayerTensors, to: LayerTensors) -> dict[str, tuple[list[int], list[int]]]:
    """The rows of sequences of positions that do not begin with the first row."""
    if to.plain.role != roles.POSITION or by.offset == to.offset:
        return {}
    s, t = (layer.tensors.get("weight") for layer in (by, to))
    if s is None or t is None or s.dim() != t.dim() or t.dim() < 2:
        return {}
    count = min(s.shape[-2] - by.offset, t.shape[-2] - to.offset)
    return {"weight": tuple(list(range(layer.offset, layer.offset + count)) for layer in (to, by))}


def _input_channels(by: LayerTensors, to: LayerTensors) -> Ruled:
    return {"weight": adapt_inputs(by.tensors["weight"], to.tensors["weight"].shape[1])}, {}


def _zero_channels(by: LayerTensors, to: LayerTensors) -> Ruled:
    """The source's channels first and zeros for the others, which then change nothing until they are trained."""
    weight, channels = by.tensors["weight"], to.tensors["weight"].shape[1]
    if channels <= weight.shape[1]:
        return _input_channels(by, to)
    more = weight.new_zeros(weight.shape[0], channels - weight.shape[1], *weight.shape[2:])
    return {"weight": torch.cat([weight, more], 1)}, {}


def adapt_inputs(weight: Tensor, channels: int) -> Tensor:
    """A convolution's weight (out, in, ...) for another number of input channels: (out, channels, ...).

    Channels repeat in turn, and share what they stand for; or fold onto one another, and add up. Either way an image
    that is the same in all channels gives the response that it gave.
    """
    count = weight.shape[1]
    turn = torch.arange(max(channels, count), device="cpu") % min(channels, count)
    to = turn.to(weight.device)
    if channels < count:
        return weight.new_zeros(weight.shape[0], channels, *weight.shape[2:]).index_add_(1, to, weight)
    shares = turn.bincount()[turn].view(-1, *[1] * (weight.dim() - 2))
    return weight.index_select(1, to) / shares.to(weight.device)


def _weights(by: LayerTensors, to: LayerTensors, *ranks: int) -> tuple[Tensor, Tensor] | None:
    """The weights of both, if they are of different shapes and of these numbers of dimensions."""
    s, t = by.tensors.get("weight"), to.tensors.get("weight")
    if s is None or t is None or s.dim() not in ranks or t.dim() not in ranks or s.shape == t.shape:
        return None
    return s, t


def _convolves(layer: LayerTensors) -> bool:
    return layer.plain.kind.startswith(CONVOLVES)


def _time(by: LayerTensors, to: LayerTensors) -> Ruled:
    """A convolution over pictures for one over videos, and back: over time it adds up to the same."""
    s, t = by.tensors.get("weight"), to.tensors.get("weight")
    if s is None or t is None or {s.dim(), t.dim()} != {4, 5} or not _convolves(to):
        return NO_RULE
    if s.dim() == 5:
        return {"weight": s.sum(2)}, {}
    steps = t.shape[2]
    return {"weight": (s / steps).unsqueeze(2).expand(-1, -1, steps, -1, -1)}, {}


def _grid(by: LayerTensors, to: LayerTensors) -> Ruled:
    """Positions on another grid, around the rows of tokens that stand before it."""
    if to.plain.role != roles.POSITION or by.prefix is None or to.prefix is None:
        return NO_RULE
    if (found := _weights(by, to, 2, 3)) is None:
        return NO_RULE
    resampled = resampled_grid(found[0], tuple(found[1].shape), (by.prefix, to.prefix), (by.grid, to.grid))
    return NO_RULE if resampled is None else ({"weight": resampled[0]}, {"weight": resampled[1]})


def _offsets(by: LayerTensors, to: LayerTensors) -> Ruled:
    """Biases of relative positions for another window."""
    if to.plain.role != roles.OFFSET or (found := _weights(by, to, 2)) is None or len(found[0]) == len(found[1]):
        return NO_RULE
    table, rows = found[0], len(found[1])
    values = resampled_offsets(table, rows)
    times, rest = divmod(rows, len(table))
    if values is None and not rest and times % 2:  # windows of a video: each distance in time has the picture's biases
        values = table.repeat(times, 1)
    return NO_RULE if values is None else ({"weight": values}, {})


def _patches(by: LayerTensors, to: LayerTensors) -> Ruled:
    """The kernel of a patch embedding for patches of another size."""
    if not (by.patches and to.patches) or (found := _weights(by, to, 4)) is None:
        return NO_RULE
    if found[0].shape[2:] == found[1].shape[2:]:
        return NO_RULE
    return {"weight": resampled_patches(found[0], tuple(found[1].shape[2:]))}, {}


def _folded(by: LayerTensors, to: LayerTensors) -> Ruled:
    """A convolution and the batch norm behind it, for a convolution without one: weight and bias of both together."""
    norm, weight = by.norm, by.tensors.get("weight")
    if norm is None or to.norm is not None or weight is None or not {"weight", "bias"} <= to.tensors.keys():
        return NO_RULE
    mean, variance = (norm.tensors.get(name) for name in ("running_mean", "running_var"))
    if mean is None or variance is None or not fractional(weight):
        return NO_RULE
    scale = (variance + getattr(norm.module, "eps", 1e-5)).rsqrt()  # (out,)
    if "weight" in norm.tensors:
        scale = scale * norm.tensors["weight"]
    shift = norm.tensors["bias"] if "bias" in norm.tensors else torch.zeros_like(mean)
    bias = by.tensors.get("bias", torch.zeros_like(mean))
    out = 1 if "Transpose" in _kind(by) else 0
    if scale.shape[0] != weight.shape[out]:
        return NO_RULE
    shaped = scale.view([-1 if d == out else 1 for d in range(weight.dim())])
    return {"weight": weight.detach() * shaped, "bias": (bias - mean) * scale + shift}, {}


# A rule sees what the rules before it made: a stem may get other input channels, be inflated over time and take in its
# batch norm. The norm is folded last: it scales outputs, which the other rules leave alone.
RULES: dict[str, Rule] = {
    CLASSES: lambda by, to: NO_RULE,
    INPUTS: _input_channels,
    ZEROS: _zero_channels,
    TIME: _time,
    GRID: _grid,
    OFFSETS: _offsets,
    PATCHES: _patches,
    FOLDED: _folded,
}


@dataclass(frozen=True)
class ChosenClasses:
    """The operator of a classifier: rows by a mapping {target class: source class}, the rest clipped."""

    classes: Mapping[int, int]
    inputs: Operator = clip

    def __call__(self, source: Weights, target: Weights) -> Indices:
        rows = self.classes.keys(), self.classes.values()
        ours, theirs = (torch.tensor(list(chosen), device="cpu", dtype=torch.long) for chosen in rows)
        indices = {}
        for name, s, t in shared(source, target):
            for chosen, tensor in ((ours, t), (theirs, s)):
                if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(tensor):
                    raise ValueError(f"head maps classes that are not among the {len(tensor)} of a classifier's {name}")
            one = Weights({name: s[:1]}, source.kind), Weights({name: t[:1]}, target.kind)
            to, by = centre(s.shape, t.shape) if self.inputs is clip else self.inputs(*one)[name]
            indices[name] = (ours, *to[1:]), (theirs, *by[1:])
        return indices


def _check_indices(indices: Any, source: Weights, to: LayerTensors, by: LayerTensors) -> None:
    """Raise TypeError or ValueError for what an operator of the user's must not return."""
    if not isinstance(indices, Mapping):
        raise TypeError(
            f"an operator must return {{tensor: (target index, source index)}}, got {type(indices).__name__}"
        )
    for local, pair in indices.items():
        try:
            ours, theirs = pair
            shapes = _part(to.tensors[local], ours).shape, _part(source.tensors[local], theirs).shape
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"the operator's indices for {to.path(local)} do not fit ({first_line(error)})") from error
        if shapes[0] != shapes[1]:
            chosen = " and ".join(times(tuple(shape)) for shape in shapes)
            raise ValueError(
                f"the operator's indices choose {chosen} elements of {to.path(local)} and {by.path(local)}"
            )
        written = torch.zeros(to.tensors[local].shape, dtype=torch.bool, device="cpu")
        written[ours] = True
        if int(written.sum()) < prod(shapes[0]):
            raise ValueError(f"the operator's indices choose an element of {to.path(local)} more than once")


def _part(tensor: Tensor, index: Index) -> Tensor:
    """What an index chooses of a tensor, but for the values: what is out of its bounds shows."""
    return torch.zeros((), dtype=torch.bool, device="cpu").expand(tensor.shape)[index]
