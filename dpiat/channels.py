"""Which channels of a network are one: channels that are added or multiplied, wherever they are written.

`follow` runs a network in eval mode on numbers instead of activations: every element holds the number of its channel.
A convolution or a linear layer gives new numbers. Depthwise convolutions, norms, activations and pooling keep the
numbers. Views and concatenations move them. A sum makes two channels one, and so does a gate (squeeze-excite). No
weight is read, so that a network on the meta device will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from dpiat.standardization import CONVOLUTIONS, LayerTensors

SIDES = (64, 224)  # pixels of an input that nobody gives: the first that will do, as fewer pixels take less time
# Functions by their names without underscores.
MOVES = {"cat", "concat", "concatenate", "stack", "split", "chunk", "tensorsplit", "splitwithsizes", "unbind", "narrow"}
MOVES |= {"select", "getitem", "flatten", "unflatten", "view", "reshape", "permute", "transpose", "movedim", "squeeze"}
MOVES |= {"unsqueeze", "expand", "expandas", "contiguous", "clone", "channelshuffle", "roll", "flip"}
POOLS = {"interpolate", "upsample", "pad"}
REDUCES = {"mean", "sum", "amax", "amin"}
MIXES = {"matmul", "bmm", "mm", "einsum", "scaleddotproductattention", "normalize", "cumsum", "pixelshuffle", "sort"}
RIGID = {"layernorm", "groupnorm", "rmsnorm", "softmax", "logsoftmax"}  # right as long as no channel is there twice
MATRICES = {"linear", "conv1d", "conv2d", "conv3d", "convtranspose1d", "convtranspose2d", "convtranspose3d"}
ADDS = {"add", "iadd", "radd"}
# Applied twice, they do what they do once.
IDLE = {"dropout", "dropout1d", "dropout2d", "dropout3d", "featuredropout", "to", "type", "float", "double", "detach"}
IDEMPOTENT = {"relu", "hardtanh", "clamp", *IDLE}


class Touch(NamedTuple):
    """What a layer does with channels: it reads some and writes others, or it treats each by itself (`reads` None)."""

    reads: list[int] | None
    writes: list[int]
    groups: int = 1
    late: bool = False  # does the layer treat a sum, and not what goes into a sum?


class Flow(NamedTuple):
    """The channels of a network: what each layer does with them, in the order in which they run."""

    touches: Mapping[str, Touch]  # by the name of the layer
    given: list[int]  # the channels of the input
    result: list[int]  # the channels of the output
    rigid: frozenset[int]  # channels that must not be there twice
    functions: Mapping[str, tuple[str, ...]]  # the activations behind each layer
    added: Mapping[str, str]  # the activation behind the sum that a layer goes into, unless it is idempotent


class _Numbers(Tensor):
    """An activation whose elements are the numbers of their channels."""


def follow(module: nn.Module, layers: Iterable[LayerTensors], example: Tensor | None = None) -> Flow:
    """The channels of a network, as the layers that `dpiat.reading.read` finds treat them.

    `example` is an input. Only its shape counts. Without an example the input is an image of 64 or 224 pixels, with the
    channels that the first layer takes. Raises ValueError if nobody knows what a function does with channels.
    """
    layers = list(layers)
    if example is not None:
        return _followed(module, layers, (1, *example.shape[1:]))
    *first, last = (_input(layers, side) for side in SIDES)
    for shape in first:
        with suppress(RuntimeError, AssertionError):  # too small, or not what a linear layer after pictures takes
            return _followed(module, layers, shape)
    return _followed(module, layers, last)


def _followed(module: nn.Module, layers: list[LayerTensors], shape: tuple[int, ...]) -> Flow:
    mode = _Follow(layers)
    given = mode.new(shape[1])
    flags = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), mode:
            result = module(_spread(given, 1, shape))
    finally:
        for part, flag in flags.items():
            part.training = flag
    outputs = [out for out in tree_flatten(result)[0] if isinstance(out, _Numbers)]
    return mode.flow(given, [number for out in outputs for number in _along(out, 1, "the output")])


class _Follow(TorchFunctionMode):
    """Takes the place of every function of PyTorch that the network calls, and moves numbers as it would move channels.

    Functions are told by their names, in the tables above. A function that is in none of them, and whose result has
    another shape than its arguments broadcast to, is refused: a wrong guess would make two channels one, or copy the
    wrong one, and nobody would see it. Numbers that are one are kept as a forest (union-find).
    """

    def __init__(self, layers: list[LayerTensors]):
        super().__init__()
        self.layers = {id(layer.stored(local)): layer for layer in layers for local in layer.tensors}
        self.parents: list[int] = []  # of each channel, in the forest whose trees are the channels that are one
        self.touches: dict[str, Touch] = {}
        self.rigid: set[int] = set()
        self.functions: dict[str, tuple[str, ...]] = {}
        self.added: dict[str, str] = {}
        self.last, self.sum = "", False  # the layer that ran last, and whether a sum came after it

    def flow(self, given: list[int], result: list[int]) -> Flow:
        """The flow, with the least of the numbers that are one for each channel."""

        def least(numbers: Iterable[int]) -> list[int]:
            return [self._root(number) for number in numbers]

        touches = {
            name: touch._replace(reads=touch.reads and least(touch.reads), writes=least(touch.writes))
            for name, touch in self.touches.items()
        }
        return Flow(touches, least(given), least(result), frozenset(least(self.rigid)), self.functions, self.added)

    def new(self, count: int) -> list[int]:
        start = len(self.parents)
        self.parents.extend(range(start, start + count))
        return list(range(start, start + count))

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        values = [each for each in tensors if isinstance(each, _Numbers)]
        name = function.__name__.replace("_", "").lower()
        if name == "view" and values:  # numbers are expanded tensors (`_spread`), which have no view of most shapes
            return args[0].reshape(*args[1:])
        if not values or name in MOVES or name == "get":  # "get" reads an attribute, such as the shape
            return function(*args, **kwargs)
        if name == "setitem":
            self._unite(args[0][args[1]], args[2])
            return None
        layer = next((self.layers[id(each)] for each in tensors if id(each) in self.layers), None)
        if name in MATRICES:
            return self._matrix(name, layer, function, args, kwargs)
        if name in REDUCES:
            return _reduced(name, args, kwargs)
        shape = _shape(function, args, kwargs)
        if shape is None:
            return function(*args, **kwargs)
        if "pool" in name or (name in POOLS and len(shape) == values[0].dim() and shape[:2] == values[0].shape[:2]):
            return _spread(_along(values[0], 1, name), 1, shape)
        return self._elementwise(name, layer, values, shape)

    def _elementwise(
        self, name: str, layer: LayerTensors | None, values: Sequence[Tensor], shape: torch.Size
    ) -> Tensor:
        """What a sum, a product, a norm or an activation gives. Channels that meet in it become one."""
        if name in MIXES or shape != torch.broadcast_shapes(*(value.shape for value in values)):
            raise ValueError(f"what {name} does with channels, after {self.last or 'the input'}, is not known")
        value = values[0].expand(shape)
        for other in values[1:]:
            self._unite(value, other)
        if layer is not None:
            self._through(name, layer, value)
        elif len(values) > 1:
            self.sum = name in ADDS
        else:
            self._activation(name)
        if name in RIGID:
            self.rigid.update(value.as_subclass(Tensor).unique().long().tolist())
        return value

    def _matrix(self, name: str, layer: LayerTensors | None, function: Any, args: tuple, kwargs: dict) -> Tensor:
        if layer is None:
            raise ValueError(f"the weights of a {name} after {self.last or 'the input'} are computed from others")
        axis, shape = -1 if name == "linear" else 1, _shape(function, args, kwargs)
        reads = _along(args[0], axis, layer.name)
        groups = getattr(layer.module, "groups", 1) if isinstance(layer.module, CONVOLUTIONS) else 1
        if groups == len(reads) == shape[axis] > 1:
            self._touch(layer, Touch(None, reads))
            return _spread(reads, axis, shape)
        writes = self.new(shape[axis])
        self._touch(layer, Touch(reads, writes, groups))
        return _spread(writes, axis, shape)

    def _through(self, name: str, layer: LayerTensors, value: Tensor) -> None:
        """Take down a layer that has one number for each channel, or one for all."""
        tensor = max(layer.tensors.values(), key=Tensor.numel)
        if tensor.numel() == 1:
            self._touch(layer, Touch(None, []))
            return
        if name.endswith("norm") or name == "prelu":
            numbers = _along(value, 1 if name in ("batchnorm", "instancenorm", "groupnorm", "prelu") else -1, name)
        else:  # a parameter that is added or multiplied
            part = value[(0,) * (value.dim() - tensor.dim())] if value.dim() > tensor.dim() else value
            for axis, size in enumerate(tensor.shape):
                part = part.narrow(axis, 0, 1) if size == 1 else part
            numbers = part.as_subclass(Tensor).reshape(-1).long().tolist()
        if len(numbers) != tensor.numel():
            raise ValueError(f"which of its numbers {layer.name} has for which channel is not known")
        self._touch(layer, Touch(None, numbers, late=self.sum))

    def _touch(self, layer: LayerTensors, touch: Touch) -> None:
        if before := self.touches.get(layer.name):  # it runs twice
            for old, new in ((before.reads or [], touch.reads or []), (before.writes, touch.writes)):
                self._join(zip(old, new, strict=True))
        else:
            self.touches[layer.name] = touch
        self.last, self.sum = layer.name, False

    def _activation(self, name: str) -> None:
        name = {"relu6": "hardtanh"}.get(name, name)
        if self.sum and name not in IDEMPOTENT:
            self.added[self.last] = name
        if name not in IDLE:
            self.functions[self.last] = (*self.functions.get(self.last, ()), name)

    def _unite(self, one: Tensor, other: Any) -> None:
        """Make channels one that meet in a sum or a product.

        One channel that meets all channels, such as an attention map, stays a channel of its own.
        """
        if not isinstance(other, _Numbers) or (other.dim() == one.dim() > 1 and other.shape[1] == 1 < one.shape[1]):
            return
        # Along an expanded axis all elements are the same: one of them will do. And a pair of numbers is one number, so
        # that the different pairs of a large tensor are found by one call.
        one, other = torch.broadcast_tensors(one.as_subclass(Tensor), other.as_subclass(Tensor))
        for axis in range(one.dim()):
            if one.stride(axis) == other.stride(axis) == 0:
                one, other = one.narrow(axis, 0, 1), other.narrow(axis, 0, 1)
        count = len(self.parents)
        self._join(divmod(pair, count) for pair in (one.long() * count + other.long()).unique().tolist())

    def _join(self, pairs: Iterable[tuple[int, int]]) -> None:
        for one, other in pairs:
            one, other = sorted((self._root(one), self._root(other)))
            self.parents[other] = one

    def _root(self, number: int) -> int:
        while self.parents[number] != number:
            self.parents[number] = number = self.parents[self.parents[number]]
        return number


def _input(layers: list[LayerTensors], side: int) -> tuple[int, ...]:
    """The shape of an input, by the first layer."""
    for layer in layers:
        if isinstance(layer.module, nn.Linear):
            return 1, layer.module.in_features
        if isinstance(layer.module, CONVOLUTIONS):
            return 1, layer.module.in_channels, *[side] * len(layer.module.kernel_size)
    raise ValueError("the network has no convolution and no linear layer")


def _shape(function: Any, args: tuple, kwargs: dict) -> torch.Size | None:
    """The shape of what a function gives; None if that is not a tensor."""

    def on_meta(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        dtype = torch.float64 if value.is_floating_point() else value.dtype
        return torch.empty(value.shape, device="meta", dtype=dtype)

    found = function(*tree_map(on_meta, args), **tree_map(on_meta, kwargs))
    return found.shape if isinstance(found, Tensor) else None


def _spread(numbers: list[int], axis: int, shape: Iterable[int]) -> Tensor:
    """A tensor of a shape that holds the numbers along an axis, expanded along the others."""
    shape = tuple(shape)
    sizes = [1] * len(shape)
    sizes[axis] = -1
    return torch.tensor(numbers, dtype=torch.float64).view(sizes).expand(shape).as_subclass(_Numbers)


def _along(value: Tensor, axis: int, name: str) -> list[int]:
    """The numbers along an axis; they must be the same at all places of the other axes."""
    rows = value.as_subclass(Tensor).movedim(axis, -1)
    for other in range(rows.dim() - 1):
        if rows.stride(other) == 0:
            rows = rows.narrow(other, 0, 1)
    rows = rows.reshape(-1, rows.shape[-1])
    if len(rows) > 1 and not bool((rows == rows[:1]).all()):
        raise ValueError(f"{name} treats different channels as one")
    return rows[0].long().tolist()


def _reduced(name: str, args: tuple, kwargs: dict) -> Tensor:
    kwargs = {key: value for key, value in kwargs.items() if key != "dtype"}
    low, high = torch.amin(*args, **kwargs), torch.amax(*args, **kwargs)
    if not torch.equal(low, high):
        raise ValueError(f"{name} makes one channel of several")
    return low


def signatures(flow: Flow, partner: Mapping[str, str]) -> dict[int, frozenset]:
    """What is done with each channel: the layers that read, write or treat the channel, by their names in `partner`.

    Layers without a partner do not count.
    """
    found: dict[int, set] = {}
    for name, touch in flow.touches.items():
        if name not in partner:
            continue
        for what, numbers in (("reads", touch.reads or ()), ("writes", touch.writes)):
            size = max(len(numbers) // touch.groups, 1)
            for place, number in enumerate(numbers):
                found.setdefault(number, set()).add((what, partner[name], place // size))
    for what, numbers in (("input", flow.given), ("output", flow.result)):
        for place, number in enumerate(numbers):
            found.setdefault(number, set()).add((what, "", place))
    return {number: frozenset(layers) for number, layers in found.items()}
