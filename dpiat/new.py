"""What the target has and the source has not: blocks and layers that do nothing at first, constant gates, classifiers.

A residual block without a counterpart starts as the identity: its last layers are zero, so that it adds nothing to its
input. So does a block whose counterpart has filled another block already. A network with more blocks than the source
then computes what the source computes. Whether zeros make the identity is tried on a copy of the block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping, Sequence, Set
from copy import deepcopy
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dpiat import roles
from dpiat.architecture import Architecture, Block
from dpiat.heads import INNER, new_heads
from dpiat.levels import ends, is_main, submodule
from dpiat.matching import Matching
from dpiat.operators import fractional
from dpiat.standardization import CONVOLUTIONS, NORMS, LayerTensors, Network

New = Literal["identity", "random"]  # what a new block starts as
WAYS = get_args(New)
SILENT, CONSTANT_GATE = "zero, so that a new block does nothing at first", "zero, so that the gate is constant"
NO_ANSWER = "zero, so that all classes are alike at first"
PASSES = "the identity, so that a new layer gives what it takes at first"


def neutral_gates(target: Network, partner: Mapping[str, str]) -> dict[str, str]:
    """The last layers of squeeze and excitations that nothing comes to, in blocks that something comes to.

    A random gate would scale the channels of a block that has the source's weights, each by another factor for each
    image. A gate of zero weights is one constant.
    """
    found = {}
    for block in target.architecture.blocks:
        if any(layer.name in partner for layer in block.layers):
            gates = (layer.name for layer in block.layers if layer.role == roles.EXPAND and layer.shape)
            found |= {name: CONSTANT_GATE for name in gates if name not in partner}
    return found


def passing_layers(target: Network, partner: MutableMapping[str, str], kept: Mapping[str, str]) -> dict[str, str]:
    """The convolutions that nothing comes to, between layers that something comes to; their norms lose their partners.

    A random layer in the midst of filled ones scrambles what comes through, so that the layers behind it see nothing
    that they know. Net2DeeperNet (arXiv 1511.05641) inserts layers as the identity for that reason. Here a layer may
    change the width: leading channels pass, further outputs keep their random values. The norm behind keeps its own
    values as well: the statistics of another layer's outputs would not fit.
    """
    filled = partner.keys() - kept.keys()
    between = _between(target.architecture, filled | new_heads(kept).keys())
    layers = {layer.name: layer for layer in target.layers}
    found = {}
    for block in target.architecture.blocks:
        if filled.isdisjoint(layer.name for layer in block.layers):
            continue
        for plain in block.layers:
            new = kept[plain.name] == INNER if plain.name in kept else plain.name not in partner
            layer = layers.get(plain.name) if new and plain.name in between and is_main(plain) else None
            if layer is not None and _can_pass(layer):
                found[plain.name] = PASSES
                if layer.norm is not None:
                    partner.pop(layer.norm.name, None)
    return found


def _between(architecture: Architecture, known: Set[str]) -> set[str]:
    """The layers after the first and before the last of these: what a network ends in keeps its own small weights."""
    names = [layer.name for layer in architecture.layers]
    places = [place for place, name in enumerate(names) if name in known]
    return set(names[places[0] : places[-1]]) if places else set()


def _can_pass(layer: LayerTensors) -> bool:
    """Has a layer an identity: a convolution whose kernel has a centre, and whose groups keep their width?"""
    module, weight = layer.module, layer.tensors.get("weight")
    if not isinstance(module, CONVOLUTIONS) or module.transposed or weight is None or layer.branch is not None:
        return False
    if module._parameters.get("weight") is not layer.stored("weight") or weight.shape != module.weight.shape:
        return False
    kept = module.groups == 1 or module.out_channels == module.in_channels
    return kept and fractional(weight) and all(size % 2 for size in module.kernel_size)


def identity(layer: LayerTensors) -> Tensor:
    """The leading rows of a convolution's weight, (rows, in / groups, *kernel), that give their own inputs."""
    weight = layer.tensors["weight"]
    out, into, *kernel = weight.shape
    rows = torch.arange(out if layer.module.groups > 1 else min(out, into), device=weight.device)
    values = torch.zeros_like(weight[: len(rows)])
    values[(rows, rows % into, *[size // 2 for size in kernel])] = 1
    return values


def silent_heads(target: Network, names: Mapping[str, str]) -> dict[str, str]:
    """The new classifiers that can start with zero weights, each with the reason.

    Random weights of a classifier send random gradients into features that came from the source. Adam makes steps of
    one size whatever the gradient, so that the first steps of training damage these features. Zero weights send no
    gradient until the classifier has learned something. Biases stay as they are: a bias may tell how frequent a class
    is, as in detectors. A layer without a bias keeps its weights: it is often a projection whose outputs are
    normalized, and zeros have no direction.
    """
    layers = (layer for layer in target.layers if layer.name in names)
    return {layer.name: f"{NO_ANSWER}: {names[layer.name]}" for layer in layers if _is_linear(layer)}


@torch.no_grad()
def _is_linear(layer: LayerTensors) -> bool:
    """Is what a layer gives proportional to its weight? Tried with two rows.

    A layer that normalizes its weight, or computes it from others, gives no number at zero.
    """
    weight = layer.tensors.get("weight")
    own = layer.module._parameters
    if weight is None or own.get("weight") is None or own.get("bias") is None or not fractional(weight):
        return False
    rows = (2, *layer.module.weight.shape[1:])
    given, bias = torch.ones(1, *rows[1:], device="cpu"), torch.ones(2, device="cpu")
    try:
        given_by = [
            functional_call(layer.module, {"weight": torch.full(rows, value, device="cpu"), "bias": bias}, given)
            for value in (0.0, 1.0, 2.0)
        ]
    except Exception:  # a module that takes more than its input: whatever its code raises
        return False
    at_zero, at_one, at_two = given_by
    return bool((at_zero == 1).all() and (at_one != 1).all() and torch.allclose(at_two - 1, 2 * (at_one - 1)))


def silent_blocks(target: Network, network: nn.Module, matched: Matching, partner: Mapping[str, str]) -> dict[str, str]:
    """The layers that are zero so that new blocks of the target do nothing.

    A block is new if nothing comes to it, in a network that something comes to. Where a block of the source goes to
    several blocks of its shapes, all but the first are new too: two copies in a row would do twice what one does.
    """
    if not partner:
        return {}
    new = list(_new_blocks(target, matched, partner))
    layers_of = {layer.name: layer for layer in target.layers} if new else {}
    tried: dict[tuple, bool] = {}  # once for blocks that are alike
    found = {}
    for block in new:
        module = submodule(network, block.name)
        if module is None:
            continue
        kind = type(module), tuple(_shapes(block))
        for place, names in enumerate(_candidates(block)):
            layers = [layers_of[name] for name in names if name in layers_of]
            if layers and (*kind, place) not in tried:
                tried[*kind, place] = _does_nothing(module, block, layers)
            if layers and tried[*kind, place]:
                found |= {layer.name: SILENT for layer in layers}
                break
    return found


def _new_blocks(target: Network, matched: Matching, partner: Mapping[str, str]) -> Iterator[Block]:
    pairs = {pair.target.name: pair.source for pair in matched.blocks}
    taken: Counter[str] = Counter()
    for block in target.architecture.blocks:
        if block.run or not any(layer.shape for layer in block.layers):
            continue
        source = pairs.get(block.name)
        if source is None:
            if not any(layer.name in partner for layer in block.layers):
                yield block
            continue
        if _shapes(source) == _shapes(block):
            taken[source.name] += 1
            if taken[source.name] > 1:
                yield block


def _shapes(block: Block) -> list[tuple[int, ...]]:
    return [layer.shape for layer in block.layers if layer.shape]


def _candidates(block: Block) -> Iterator[list[str]]:
    """Layers that could make a block the identity when they are zero, the likeliest first."""
    layers = [layer for layer in block.layers if layer.shape]
    branches = [layer.name for layer in layers if layer.role.endswith((roles.PROJECTED, roles.OUT_OF))]
    if branches:
        yield branches
    main = [place for place, layer in enumerate(layers) if is_main(layer)]
    if not main:
        return
    behind = [
        layer.name
        for layer in layers[main[-1] + 1 :]
        if layer.kind.startswith(("BatchNorm", *NORMS)) and len(layer.shape) == 1
    ]
    if behind:
        yield behind[:1]
    for place in reversed(main[-2:]):  # after the last one may come a small convolution over channels, which is a gate
        yield [layers[place].name]


@torch.no_grad()
def _does_nothing(module: nn.Module, block: Block, layers: Sequence[LayerTensors]) -> bool:
    """Is a block the identity when these layers are zero?"""
    # No rule tells where a block adds its input: before or behind an activation, scaled, or not at all. So a copy of
    # the block is called on a small example. A block that takes more than its input (a mask, positions) cannot be
    # called so. There the names of layers decide: the last layer of an attention or a feed-forward network is added.
    into, out = ends(block)
    if not into:
        return False
    named = all(layer.plain.role.endswith((roles.PROJECTED, roles.OUT_OF)) for layer in layers)
    try:
        copy = _on_cpu(module)
        tensors, start = copy.state_dict(keep_vars=True), len(block.name) + 1
        for layer in layers:
            for local in layer.tensors:
                tensors[layer.path(local)[start:]].zero_()
        given = _example(module, into)
        result = copy(given)
    except Exception:  # a block that takes more than its input: whatever its code raises
        return named and into == out
    result = result[0] if isinstance(result, (tuple, list)) else result
    if not isinstance(result, Tensor) or result.shape != given.shape:
        return False
    if named and not result.any():  # a norm and a feed-forward network alone: what is around them adds the input
        return any(layer.kind.startswith(NORMS) for layer in block.layers)
    return bool(torch.allclose(result, given))


def _on_cpu(module: nn.Module) -> nn.Module:
    """A copy of a block on the CPU in eval mode; tensors on the meta device get values."""
    if any(tensor.is_meta for tensor in module.state_dict().values()):
        copy = deepcopy(module).to_empty(device="cpu")
        for tensor in copy.state_dict().values():
            tensor.fill_(0.5 if tensor.is_floating_point() else 0)
    else:
        copy = deepcopy(module).cpu()
    return copy.float().eval()


def _example(module: nn.Module, channels: int) -> Tensor:
    """An input of a block: numbers above 0, which a ReLU behind the sum leaves as they are."""
    convolutions = [part for part in module.modules() if isinstance(part, CONVOLUTIONS)]
    generator = torch.Generator("cpu").manual_seed(0)
    rank = len(convolutions[0].kernel_size) if convolutions else 0
    shape = (1, channels, *[8] * rank) if rank else (1, 4, channels)
    return torch.rand(shape, generator=generator, device="cpu")  # whatever the default device
