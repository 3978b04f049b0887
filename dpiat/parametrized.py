"""Weights that are computed from others: torch.nn.utils.parametrize, and weight_norm as it was before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.weight_norm import WeightNorm

CHAINS = "parametrizations"  # the child that torch.nn.utils.parametrize gives a module


def originals(module: nn.Module) -> dict[str, list[str]]:
    """The computed tensors of a module, each with the paths of those that it is computed from."""
    found = {}
    if CHAINS in module._modules:
        for name, chain in module._modules[CHAINS].items():
            keys = [key for key in (*chain._parameters, *chain._buffers) if key.startswith("original")]
            found[name] = [f"{CHAINS}.{name}.{key}" for key in keys]
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            found[hook.name] = [f"{hook.name}_g", f"{hook.name}_v"]
    return found


@torch.no_grad()
def computed(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a module with the computed ones in the place of what they are computed from."""
    found = originals(module)
    paths = {path for each in found.values() for path in each}
    kept = {path: t for path, t in tensors.items() if path not in paths and not path.startswith(f"{CHAINS}.")}
    return {name: _value(module, name) for name in found} | kept


@torch.no_grad()
def assign(module: nn.Module, name: str, wanted: Tensor, source: nn.Module) -> None:
    """Write the originals of a tensor, in place, such that the module computes `wanted`.

    They are copied from `source`, if it has the same ones: then nothing is rounded. Raises ValueError if a
    parametrization has no right inverse.
    """
    paths = originals(module)[name]
    mine = [_at(module, path) for path in paths]
    if originals(source).get(name) == paths:
        theirs = [_at(source, path) for path in paths]
        if all(a.shape == b.shape for a, b in zip(mine, theirs, strict=True)):
            values = theirs
        else:
            values = _inverse(module, name, wanted)
    else:
        values = _inverse(module, name, wanted)
    for to, by in zip(mine, values, strict=True):
        to.copy_(by)
    if CHAINS not in module._modules:
        setattr(module, name, _value(module, name))


def _value(module: nn.Module, name: str) -> Tensor:
    if CHAINS in module._modules:
        return getattr(module, name)
    return _weight_norm(module, name).compute_weight(module)


def _inverse(module: nn.Module, name: str, wanted: Tensor) -> list[Tensor]:
    """The originals that give a tensor."""
    if CHAINS not in module._modules:
        return [torch.norm_except_dim(wanted, 2, _weight_norm(module, name).dim), wanted]
    for step in reversed(module._modules[CHAINS][name]):
        if not hasattr(step, "right_inverse"):
            raise ValueError(f"{type(step).__name__} of {name} has no right_inverse: its weights cannot be set")
        wanted = step.right_inverse(wanted)
    return [wanted] if isinstance(wanted, Tensor) else list(wanted)


def _at(module: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _weight_norm(module: nn.Module, name: str) -> WeightNorm:
    hooks = module._forward_pre_hooks.values()
    return next(hook for hook in hooks if isinstance(hook, WeightNorm) and hook.name == name)
