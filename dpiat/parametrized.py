"""Weights that are computed from others: torch.nn.utils.parametrize, what there was before it, and pruning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _Orthogonal, _SpectralNorm, _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

CHAINS = "parametrizations"  # the child that torch.nn.utils.parametrize gives a module
# The hooks that compute a tensor before each forward pass. For each, the ends of names: of the tensors that the hook
# computes from, and of the tensors that the hook keeps beside these.
HOOKS = {
    WeightNorm: (("_g", "_v"), ()),
    SpectralNorm: (("_orig",), ("_u", "_v")),
    BasePruningMethod: (("_orig",), ("_mask",)),
}
ITERATIONS = 15  # of the power method, as torch gives to a new spectral norm


def chains(module: nn.Module) -> Mapping[str, ParametrizationList]:
    """The parametrizations of a module's tensors, by the tensors' names.

    A module may have a child of the name "parametrizations" that is another thing: then there are none.
    """
    if CHAINS not in module._modules:  # which has no get() in a scripted module
        return {}
    child = module._modules[CHAINS]
    found = child._modules if isinstance(child, nn.ModuleDict) else {}
    return found if all(isinstance(chain, ParametrizationList) for chain in found.values()) else {}


def hooks(module: nn.Module) -> dict[str, Any]:
    """The hooks of a module that compute a tensor, by the tensor's name."""
    found: list[Any] = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, tuple(HOOKS))]
    return {hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name: hook for hook in found}


def _paths(name: str, hook: Any) -> tuple[list[str], list[str]]:
    """The names of the tensors that a hook computes a tensor from, and of the tensors that it keeps beside them."""
    ends = next(ends for kind, ends in HOOKS.items() if isinstance(hook, kind))
    return tuple([name + end for end in part] for part in ends)


def originals(module: nn.Module) -> dict[str, list[str]]:
    """The computed tensors of a module, each with the paths of the tensors that it is computed from."""
    found = {}
    for name, chain in chains(module).items():
        keys = [key for key in (*chain._parameters, *chain._buffers) if key.startswith("original")]
        found[name] = [f"{CHAINS}.{name}.{key}" for key in keys]
    return found | {name: _paths(name, hook)[0] for name, hook in hooks(module).items()}


def basis(module: nn.Module, name: str) -> dict[str, Tensor]:
    """All tensors that a tensor is computed from, by their paths in the module: the originals, and buffers beside them.

    Gives nothing for a tensor that is not computed.
    """
    if hook := hooks(module).get(name):
        return {path: getattr(module, path) for part in _paths(name, hook) for path in part}
    chain = chains(module).get(name)
    return chain.state_dict(prefix=f"{CHAINS}.{name}.", keep_vars=True) if chain else {}


@torch.no_grad()
def computed(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a module, where a computed tensor takes the place of the tensors that it is computed from."""
    found = originals(module)
    if not found:
        return tensors
    paths = {path for name in found for path in basis(module, name)}
    kept = {path: t for path, t in tensors.items() if path not in paths and not path.startswith(f"{CHAINS}.")}
    return {name: _value(module, name) for name in found} | kept


@torch.no_grad()
def solved(module: nn.Module, name: str, wanted: Tensor, source: nn.Module) -> list[Tensor]:
    """Find values to compute a tensor from, such that it is `wanted`, or as near as possible; for `assign`.

    They are the source's own values if these give the tensor: then nothing is rounded. The module is left as it was.
    Raises ValueError if a parametrization has no right inverse.
    """
    # A tensor can be computed only by the module itself, from the values that it holds: parametrizations are classes of
    # the user's. So values are tried in the module, and `finally` puts the old ones back, whatever was raised. That
    # keeps the promise that nothing is written unless everything can be: `assign` writes when all tensors are solved.
    mine, theirs = basis(module, name), basis(source, name)
    before = [tensor.clone() for tensor in mine.values()]
    try:
        if {key: t.shape for key, t in mine.items()} == {key: t.shape for key, t in theirs.items()}:
            _write(mine.values(), theirs.values())
            if torch.equal(_value(module, name), wanted):
                return [tensor.clone() for tensor in mine.values()]
            _write(mine.values(), before)
        with torch.random.fork_rng([wanted.device] if wanted.is_cuda else []):  # orthogonal completes bases at random
            inverse = _inverse(module, name, wanted)
        _write([mine[path] for path in originals(module)[name]], inverse)
        # Spectral norm divides by the largest singular value, which it estimates by vectors that it keeps. The vectors
        # are those of the old weight, so that the estimate would be wrong until training has run for a while.
        if any(path.endswith("_u") for path in mine):
            for _ in range(ITERATIONS):
                _value(module, name, iterate=True)
        return [tensor.clone() for tensor in basis(module, name).values()]  # orthogonal may have replaced one of them
    finally:
        for path, tensor in mine.items():
            owner, _, key = path.rpartition(".")
            owner = module.get_submodule(owner)
            (owner._parameters if key in owner._parameters else owner._buffers)[key] = tensor
        _write(mine.values(), before)


@torch.no_grad()
def assign(module: nn.Module, name: str, values: Sequence[Tensor]) -> None:
    """Write the values that a tensor is computed from, in place."""
    _write(basis(module, name).values(), values)
    if name in hooks(module):
        setattr(module, name, _value(module, name))


def _write(tensors: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _value(module: nn.Module, name: str, iterate: bool = False) -> Tensor:
    """A computed tensor, as it is in eval mode: in training mode, spectral norm would change its buffers.

    With `iterate`, spectral norm does change them: its singular vectors come nearer to those of the weight.
    """
    match hooks(module).get(name):
        case SpectralNorm() as hook:
            return hook.compute_weight(module, do_power_iteration=iterate)
        case WeightNorm() as hook:
            return hook.compute_weight(module)
        case BasePruningMethod() as hook:
            return hook.apply_mask(module)
    chain = chains(module)[name]
    before = [(step, step.training) for step in chain.modules()]
    try:
        for step, _ in before:
            step.training = iterate and isinstance(step, _SpectralNorm)
        return chain()
    finally:
        for step, training in before:
            step.training = training


def _inverse(module: nn.Module, name: str, wanted: Tensor) -> list[Tensor]:
    """The originals that give a tensor."""
    # Steps are undone from the last one to the first. An orthogonal weight cannot be any tensor: the nearest orthogonal
    # one, U V^T of the singular value decomposition, stands for the wanted one.
    if hook := hooks(module).get(name):
        if not isinstance(hook, WeightNorm):
            return [wanted]
        g = torch.norm_except_dim(wanted, 2, hook.dim)
        return [g, _directed(g, wanted, getattr(module, f"{name}_v"))]
    chain = chains(module)[name]
    for step in reversed(chain):
        message = f"{type(step).__name__} of {name} has no right_inverse: its weights cannot be set"
        if not hasattr(step, "right_inverse"):
            raise ValueError(message)
        try:
            if isinstance(step, _Orthogonal):
                u, _, v = torch.linalg.svd(wanted, full_matrices=False)
                wanted = u @ v
            wanted = step.right_inverse(wanted)
        except torch.linalg.LinAlgError as error:
            raise ValueError(f"{name} cannot be orthogonal: the values for it are not all finite") from error
        except NotImplementedError as error:  # some have a right inverse for some settings only, such as orthogonal
            raise ValueError(message) from error
        if isinstance(step, _WeightNorm):
            g, v = wanted
            wanted = g, _directed(g, v, chain.original1)
    return [wanted] if isinstance(wanted, Tensor) else list(wanted)


def _directed(g: Tensor, v: Tensor, before: Tensor) -> Tensor:
    """The directions of weight norm. Where a norm is 0, the old direction stays: 0 / 0 is not a number."""
    return torch.where(g == 0, before, v)
