"""A network of which only the state dict is there: a tree of modules made of the tensors' names.

The order of the tensors matters: layers are matched in the order in which the network defines them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from dpiat.parametrized import CHAINS, HOOKS

NESTED = ("state_dict", "model_state_dict", "model", "state", "state_dict_ema", "model_ema")  # where trainers put it
WRAPPERS = ("module", "_orig_mod")  # where DataParallel, DistributedDataParallel and torch.compile keep the network
PREFIXES = tuple(f"{wrapper}." for wrapper in (*WRAPPERS, "model"))  # the last one is Lightning's
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
UNORDERED = (
    "name the network, as in dpiat.load(..., architecture='resnet18') or --architecture resnet18, or pass one whose "
    "tensors have these names, as in dpiat.load(..., like=network)"
)


class Stored(nn.Module):
    """A node of the tree that the names of tensors make: a network without code, or a part of one."""


def tensors_in(state: Any, name: str) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the state dict inside, without the prefixes of wrappers."""
    # Trainers write a mapping of mappings: {"state_dict": ..., "optimizer": ..., "epoch": 3}. The usual names come
    # first. A mapping of two networks, such as a GAN's, is refused: nobody says which of the two is meant.
    while isinstance(state, Mapping) and (inner := _inner(state)) is not None:
        state = inner
    tensors = {k: t for k, t in state.items() if isinstance(t, Tensor)} if isinstance(state, Mapping) else {}
    numbers = not any(is_lazy(tensor) or tensor.dim() for tensor in tensors.values())
    if numbers and len(several := _networks(state)) > 1 and isinstance(several[0], str):
        raise ValueError(f"{name} holds several networks, such as {several[0]!r} and {several[1]!r}: give one of them")
    if not tensors or not all(isinstance(key, str) for key in tensors):
        raise ValueError(f"{name} holds no tensors by their names: give a state dict")
    return {key: tensors[whole] for key, whole in _unwrapped(tensors)[0].items()}


def _inner(state: Mapping) -> Mapping | None:
    """The mapping that a trainer put the tensors in: under a usual name, or the only mapping that holds tensors."""
    if key := next((key for key in NESTED if isinstance(state.get(key), Mapping)), None):
        return state[key]
    found = _networks(state)
    if len(found) != 1 or any(isinstance(value, Tensor) and value.dim() for value in state.values()):
        return None  # a weight beside the mapping belongs to the network too; a single number is a loss
    return state[found[0]]


def _networks(state: Any) -> list[str]:
    """The names of the mappings that hold tensors."""
    inner = {key: t for key, t in state.items() if isinstance(t, Mapping)} if isinstance(state, Mapping) else {}
    return [key for key, mapping in inner.items() if any(isinstance(value, Tensor) for value in mapping.values())]


def _unwrapped(tensors: Mapping[str, Tensor], beside: bool = False) -> tuple[dict[str, str], list[str]]:
    """The names of a network's tensors without wrappers, each with its whole name; and the names that wrappers hold.

    With `beside`, wrappers may hold vectors and numbers beside their network, such as a loss. A bias shows that the
    prefix is not a wrapper's, but a part of the network.
    """
    inner, outer = {key: key for key in tensors}, []
    while prefix := next((p for p in PREFIXES if any(key.startswith(p) for key in inner)), ""):
        own = [key for key in inner if not key.startswith(prefix)]
        if own and not (beside and all(_is_vector(tensors[inner[key]]) and not key.endswith("bias") for key in own)):
            break  # the prefix is the name of a part of a network
        outer += [inner.pop(key) for key in own]
        inner = {key.removeprefix(prefix): whole for key, whole in inner.items()}
    return inner, outer


def _is_vector(tensor: Tensor) -> bool:
    """Does a tensor have at most one dimension?"""
    return not is_lazy(tensor) and tensor.dim() < 2


def of_network(tensors: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names in the state dict of a network, whatever either of the two is wrapped in.

    Numbers and vectors that a wrapper holds beside its network, such as the weights of a loss, are left out, unless the
    network is in such a wrapper too.
    """
    (inner, outer), (names, beside) = _unwrapped(tensors, True), _unwrapped(network, True)
    given = {key: tensors[whole] for key, whole in inner.items()}
    given = with_tied(given, {key: network[whole] for key, whole in names.items()})
    found = {names.get(key, key): tensor for key, tensor in given.items()}
    return found | {key: tensors[key] for key in outer if key in beside}


def in_order(
    tensors: Mapping[str, Tensor], name: str, ordered: bool | None, like: nn.Module | None, why: str = ""
) -> Mapping[str, Tensor]:
    """The tensors in their network's order: the order of `like`, if its tensors have the same names, or their own.

    `ordered` says whether their own is the network's; None if nobody knows, and the names must tell. Raises ValueError
    if it seems not to be, with the reason `why` nobody else knows it.
    """
    if like is not None:
        state = {key: t for key, t in nn.Module.state_dict(like, keep_vars=True).items() if isinstance(t, Tensor)}
        found = of_network(tensors, state)
        if found.keys() <= state.keys() and state.keys() - found.keys() <= set(_unwrapped(state, True)[1]):
            return {key: found[key] for key in state if key in found}
    if ordered is False or (ordered is None and _reordered(tensors)):
        reason = f" ({why})" if why else ""
        raise ValueError(f"{name} has its tensors in an order that is not the network's{reason}: {UNORDERED}")
    return tensors


def with_tied(tensors: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by all their names. A tied tensor has several in the network, and some formats keep one alone."""
    held = {id(tensor): tensors[key] for key, tensor in network.items() if key in tensors}
    return {**tensors, **{key: held[id(t)] for key, t in network.items() if key not in tensors and id(t) in held}}


def fill(network: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Put tensors in the place of a network's own, by the names of its state dict, and return the network.

    Nothing is copied. A tensor under several names stays one parameter.
    """
    parameters: dict[int, nn.Parameter] = {}
    for key, tensor in tensors.items():
        path, _, last = key.rpartition(".")
        module = network.get_submodule(path)
        if last not in module._parameters:
            module._buffers[last] = tensor
            continue
        if id(tensor) not in parameters:
            parameters[id(tensor)] = nn.Parameter(tensor, requires_grad=False)
        module._parameters[last] = parameters[id(tensor)]
    return network


def as_network(tensors: Mapping[str, Tensor]) -> Stored:
    """The tensors of a state dict in a tree of modules. They are not copied."""
    root = Stored()
    for key, tensor in _computed(tensors).items():
        *path, last = key.split(".")
        node = root
        for part in path:
            node = node._modules.setdefault(part, Stored())
        node.register_buffer(last, tensor)
    _join_aliases(root)
    return root


def _join_aliases(node: nn.Module) -> None:
    """Make children with the same tensors one node: they are one module under two names.

    Children with a single tensor are left alone: they may be two modules with a tied weight.
    """
    seen: dict[tuple, nn.Module] = {}
    for name, child in node._modules.items():
        _join_aliases(child)
        held = tuple((key, *_place(tensor)) for key, tensor in child.state_dict(keep_vars=True).items())
        if len(held) > 1 and all(address for _, address, _ in held):
            node._modules[name] = seen.setdefault(held, child)


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    """The address of a tensor in memory, 0 if it has none, as on the meta device, and its shape."""
    if is_lazy(tensor) or tensor.layout != torch.strided:
        return 0, ()
    return tensor.data_ptr(), tuple(tensor.shape)


def _reordered(tensors: Mapping[str, Tensor]) -> bool:
    """Did a format put these tensors in another order than their network's?

    In a network's order, the tensors of a module stand together, weights before biases, and layer 2 before layer 10.
    """
    # .safetensors sorts tensors by their names, and nothing in a file says so. A sorted order is taken for a format's
    # if the network's would differ: if a bias now stands before its weight, or layer 10 before layer 2. A sorted order
    # without either is left alone: it may be the network's own.
    paths = [key.split(".") for key in tensors]
    while paths and paths[-1][-1] in STATISTICS:  # {**parameters, **buffers}, whose buffers come last
        paths.pop()
    if paths and _scattered([path[:-1] for path in paths]):
        return True
    keys = [key for key, tensor in tensors.items() if tensor.is_floating_point()]
    if keys != sorted(keys):
        return False
    biased = any(key.replace("weight", "bias") in tensors for key in keys if "weight" in key)
    return biased or keys != sorted(keys, key=_numbered)


def _scattered(paths: Sequence[Sequence[str]]) -> bool:
    """Do tensors of another module stand between the tensors of some module?"""
    for depth in range(1, max(map(len, paths)) + 1):
        modules = [path for path, _ in groupby(tuple(path[:depth]) for path in paths) if len(path) == depth]
        if len(set(modules)) < len(modules):
            return True
    return False


def _numbered(key: str) -> str:
    """The name with all numbers in 20 digits, so that 2 is sorted before 10."""
    return re.sub(r"\d+", lambda number: number[0].zfill(20), key)


def _computed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the weight in place of the tensors that weight_norm, spectral_norm or pruning keep for it."""
    made, used = {}, set()
    for name, value, (one, *others) in _recipes():
        for key in tensors:
            layer = key.removesuffix(one)
            parts = [key, *(layer + other for other in others)]
            if layer != key and all(part in tensors for part in parts):
                made[key] = layer + name, value(*(tensors[part] for part in parts))
                used.update(parts[1:])
    return dict(made.get(key, (key, tensor)) for key, tensor in tensors.items() if key not in used)


def _recipes() -> Iterator[tuple[str, Callable[..., Tensor], list[str]]]:
    """The name of a computed tensor, how it is computed, and the ends of the names of what it is computed from."""
    values = {WeightNorm: _weight_normed, SpectralNorm: _spectral_normed, BasePruningMethod: torch.mul}
    for kind, ends in HOOKS.items():
        for name in ("weight", "bias") if kind is BasePruningMethod else ("weight",):
            yield name, values[kind], [name + end for part in ends for end in part]
    chain = f"{CHAINS}.weight."
    yield "weight", _weight_normed, [f"{chain}original0", f"{chain}original1"]
    yield "weight", _spectral_normed, [f"{chain}original", f"{chain}0._u", f"{chain}0._v"]


def _spectral_normed(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The weight over the norm that its singular vectors give."""
    # A state dict does not say along which dimension the weight was made a matrix: 0, or 1 for transposed convolutions.
    # Where the lengths of both vectors fit several, the true one has the largest u^T W v.
    u, v = u.to(weight.dtype), v.to(weight.dtype)
    fitting = (weight.movedim(d, 0).flatten(1) for d in range(weight.dim()) if weight.shape[d] == len(u))
    norms = [torch.dot(u, torch.mv(matrix, v)) for matrix in fitting if matrix.shape[1] == len(v)]
    return weight / torch.stack(norms).amax() if norms else weight


def _weight_normed(g: Tensor, v: Tensor) -> Tensor:
    """The weight of directions `v` and norms `g`: one norm for each entry of one dimension, or one for all."""
    dimension = next((d for d, size in enumerate(g.shape) if size > 1), 0 if g.dim() else -1)
    return torch._weight_norm(v, g, dimension)
