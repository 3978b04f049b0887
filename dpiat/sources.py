"""What can be a source: a module, a state dict without code, a file that holds one, or a name of timm's."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import json
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import Parameter, signature
from itertools import groupby, permutations
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Source = nn.Module | Mapping[str, Any] | str | PathLike

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors")
NESTED = ("state_dict", "model_state_dict", "model", "state", "state_dict_ema", "model_ema")  # where trainers put it
ORDER = "dpiat order"  # of the metadata in a .safetensors file: the names of the tensors, as JSON
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
PARAMETRIZED = "parametrizations.weight."
UNORDERED = (
    "has its tensors in an order that is not the network's: name the network, as in "
    "dpiat.load(..., architecture='resnet18') or --architecture resnet18"
)
HUBS = ("hf-hub:", "hf_hub:", "local-dir:")  # where timm takes a network from, if it is none of its own
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel and DDP, torch.compile, Lightning


class Stored(nn.Module):
    """A network of which only the tensors are known: one node of the tree that their names make."""


def load(
    source: Source, pretrained: bool = True, architecture: str | None = None, like: nn.Module | None = None
) -> nn.Module:
    """The network that `source` stands for: a module as it is, anything else read.

    A state dict, or a path that ends in .pt, .pth, .bin, .ckpt, .tar or .safetensors, gives a module that holds the
    tensors and cannot compute; "state_dict", "model" and the like are looked into, and so is the only mapping of
    tensors; the prefixes of DataParallel, DistributedDataParallel, torch.compile and Lightning are removed. Any other
    string is a timm name ("hf-hub:user/repository" and "local-dir:folder" too), or package.module:callable; with
    `pretrained`, timm's come with their weights.

    `architecture`, a name, says which network a state dict is of. A .safetensors file needs it, unless `dpiat transfer`
    wrote it: it keeps tensors in an order of its own, and layers are matched in the network's. With `like`, a module,
    tensors of the same names as its own are taken in its order.

    Raises TypeError for another type, ValueError for a file or a name that gives no network.

        >>> load("weights.safetensors", architecture="resnet18")
    """
    if isinstance(source, nn.Module):
        return source
    if not isinstance(source, (Mapping, str, PathLike)):
        raise TypeError(
            f"source must be a torch.nn.Module, a state dict, a path or a timm name, got {type(source).__name__}"
        )
    if isinstance(source, Mapping):
        name, state, ordered = "the state dict", source, False
    elif is_file(source):
        name, (state, ordered) = str(source), _read(Path(source))
    else:
        return build(str(source), pretrained)
    tensors = _tensors(state, name)
    if architecture:
        return _filled(architecture, tensors, name)
    return _stored(_in_order(tensors, name, ordered, like))


def sketch(source: Source, architecture: str | None = None, like: nn.Module | None = None) -> nn.Module:
    """What `load` gives, but of a name without its weights, and without memory for them where that is possible."""
    if isinstance(source, str) and not is_file(source):
        return outline(source)
    return load(source, architecture=architecture, like=like)


def sketches(
    names: Iterable[str | PathLike], architecture: str | None = None, like: nn.Module | None = None
) -> Iterator[tuple[str, nn.Module]]:
    """What names, files, folders of files and patterns of timm's names (* and ?) stand for, by name, one by one.

    Of a folder or a pattern, one that fails is named on stderr and left out. Raises ValueError for one that was named.
    """
    names = [str(name) for name in names]
    for name in _expanded(names):
        try:
            network = sketch(name, architecture, like)
        except Exception as error:
            if name in names:
                raise ValueError(first_line(error)) from error
            print(f"dpiat: {name} left out: {first_line(error)}", file=sys.stderr)
            continue
        yield name, network


def _expanded(names: Sequence[str]) -> list[str]:
    """The names, with patterns and folders replaced by what they stand for."""
    expanded: list[str] = []
    for name in names:
        if name.endswith("/") and not Path(name).is_dir():
            raise ValueError(f"no folder {name}")
        if Path(name).is_dir():
            files = sorted(file for file in Path(name).iterdir() if file.suffix in SUFFIXES)
            if not files:
                raise ValueError(f"no files of weights in {name}: they end in {', '.join(SUFFIXES)}")
            expanded += map(str, files)
            continue
        if not set(name) & set("*?"):
            expanded.append(name)
            continue
        found = fnmatch.filter(importlib.import_module("timm").list_models(), name)
        if not found:
            raise ValueError(f"no timm name is like {name!r}")
        expanded += found
    return list(dict.fromkeys(expanded))


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors in a file of weights by their names, wherever a trainer put them, without its prefixes.

    Raises ValueError if the file is not there, not whole, or holds none.
    """
    return _tensors(_read(file)[0], str(file))


def is_file(source: str | PathLike) -> bool:
    """Does this stand for a file of weights, and not for a name?"""
    return not isinstance(source, str) or source.endswith(SUFFIXES) or Path(source).is_file()


def is_timm_name(name: str) -> bool:
    """Does this stand for one of timm's networks?"""
    return ":" not in name and not is_file(name)


def build(name: str, pretrained: bool = False, classes: int | None = None) -> nn.Module:
    """The network of a timm name or of package.module:callable, with so many classes, or its own number.

    The callable is called with num_classes if it takes it. Raises ValueError for a name that gives no network.
    """
    arguments = {} if classes is None else {"num_classes": classes}
    if name.endswith(SUFFIXES):
        raise ValueError(f"{name} is a file of weights, not a network: give a timm name or package.module:callable")
    if ":" not in name or name.startswith(HUBS):
        return _from_timm(name, pretrained, arguments)
    function = resolve(name)
    try:
        parameters = signature(function).parameters
        network = function(**arguments) if "num_classes" in parameters else _built(function, parameters, arguments)
    except Exception as error:  # whatever a constructor may raise
        raise ValueError(f"cannot build {name!r}: {first_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} gave a {type(network).__name__}, not a torch.nn.Module")
    return network


def _built(function: Callable, parameters: Mapping[str, Parameter], arguments: dict[str, int]) -> Any:
    """What a function gives that does not name `arguments`, but may take them and pass them on."""
    if arguments and any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        try:
            return function(**arguments)
        except TypeError as error:  # it passes them to something that may not take them
            if "num_classes" not in str(error):
                raise
    return function()


def outline(name: str, classes: int | None = None) -> nn.Module:
    """The network of a name, without memory for its weights unless its constructor reads their values."""
    try:
        with torch.device("meta"):
            return build(name, classes=classes)
    except Exception:  # whatever a constructor raises that finds no values there
        return build(name, classes=classes)


def _from_timm(name: str, pretrained: bool, arguments: dict[str, int]) -> nn.Module:
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ValueError("names of networks need timm: pip install timm, or give package.module:callable") from error
    if not name.startswith(HUBS) and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "give a timm name, package.module:callable or a file"
        raise ValueError(f"unknown network {name!r}: {hint}")
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:
        if not pretrained:
            raise ValueError(f"cannot build {name!r}: {first_line(error)}") from error
        raise ValueError(f"no pretrained weights for {name} ({first_line(error)}): give a file of weights") from error


def resolve(name: str) -> Callable[..., Any]:
    """The callable of "package.module:callable"; the current folder counts. Raises ValueError if there is none."""
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ValueError(f"cannot import {name!r}: {error}; give package.module:callable") from error
    except AttributeError as error:
        raise ValueError(f"cannot import {name!r}: module {module} has no {attribute!r}") from error
    except Exception as error:  # whatever the module does when it is imported
        raise ValueError(f"cannot import {name!r}: {first_line(error)}") from error


def _read(file: Path) -> tuple[Any, bool]:
    """What a file holds, and whether it says that its tensors are in their network's order."""
    if not file.is_file():
        raise ValueError(f"{file} is a folder: name a file in it" if file.is_dir() else f"{file} does not exist")
    try:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, "pt") as stored:
                names, order = stored.keys(), json.loads((stored.metadata() or {}).get(ORDER, "[]"))
                ordered = sorted(names) == sorted(order)
                return {key: stored.get_tensor(key) for key in (order if ordered else names)}, ordered
        with warnings.catch_warnings(action="ignore"):  # of what is an error in a line below
            return torch.load(file, map_location="cpu", weights_only=True), False
    except ModuleNotFoundError as error:
        raise ValueError(f"{file} needs safetensors: pip install safetensors") from error
    except Exception as error:  # safetensors and torch raise what they like for a broken file
        if isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error):
            raise ValueError(f"{file} holds more than tensors: load it yourself and pass the module") from error
        words = first_line(error)
        if "TorchScript" in words:
            raise ValueError(
                f"{file} is a TorchScript archive: pass torch.jit.load({str(file)!r}).state_dict()"
            ) from error
        why = f" ({words})" if " " in words else ""  # not of bytes that pickle makes something of, such as a number
        raise ValueError(f"{file} is not a complete file of weights{why}") from error


def _tensors(state: Any, name: str) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the one in it, without the prefixes of wrappers."""
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
    """The mapping that a trainer put the tensors in: under one of the usual names, or the only one that holds any."""
    if key := next((key for key in NESTED if isinstance(state.get(key), Mapping)), None):
        return state[key]
    found = _networks(state)
    if len(found) != 1 or any(isinstance(value, Tensor) and value.dim() for value in state.values()):
        return None  # a tensor beside it that is one number is no weight, but a loss
    return state[found[0]]


def _networks(state: Any) -> list[str]:
    """The names of the mappings that hold tensors."""
    inner = {key: t for key, t in state.items() if isinstance(t, Mapping)} if isinstance(state, Mapping) else {}
    return [key for key, mapping in inner.items() if any(isinstance(value, Tensor) for value in mapping.values())]


def _unwrapped(tensors: Mapping[str, Tensor], beside: bool = False) -> tuple[dict[str, str], list[str]]:
    """The names of a network's tensors without wrappers, each with its whole name; and those that wrappers hold.

    Wrappers may hold vectors and numbers `beside` their network, but no biases.
    """
    inner, outer = {key: key for key in tensors}, []
    while prefix := next((p for p in PREFIXES if any(key.startswith(p) for key in inner)), ""):
        own = [key for key in inner if not key.startswith(prefix)]
        if own and not (beside and all(_is_vector(tensors[inner[key]]) and not key.endswith("bias") for key in own)):
            break  # what has this name is a part of a network
        outer += [inner.pop(key) for key in own]
        inner = {key.removeprefix(prefix): whole for key, whole in inner.items()}
    return inner, outer


def _is_vector(tensor: Tensor) -> bool:
    """Is it a vector or a number?"""
    return not is_lazy(tensor) and tensor.dim() < 2


def of_network(tensors: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names that they have in the state dict of a network, whatever one of both is wrapped in.

    Numbers and vectors that a wrapper holds beside its network, such as those of a loss, are left out, unless the
    network is in such a wrapper too.
    """
    (inner, outer), (names, beside) = _unwrapped(tensors, True), _unwrapped(network, True)
    given = {key: tensors[whole] for key, whole in inner.items()}
    given = _with_tied(given, {key: network[whole] for key, whole in names.items()})
    found = {names.get(key, key): tensor for key, tensor in given.items()}
    return found | {key: tensors[key] for key in outer if key in beside}


def _in_order(tensors: Mapping[str, Tensor], name: str, ordered: bool, like: nn.Module | None) -> Mapping[str, Tensor]:
    """The tensors in their network's order. Raises ValueError if they seem not to be, and `like` has other names."""
    if like is not None:
        state = {key: t for key, t in nn.Module.state_dict(like, keep_vars=True).items() if isinstance(t, Tensor)}
        found = of_network(tensors, state)
        if found.keys() <= state.keys() and state.keys() - found.keys() <= set(_unwrapped(state, True)[1]):
            return {key: found[key] for key in state if key in found}
    if not ordered and (name.endswith(".safetensors") or _reordered(tensors)):
        raise ValueError(f"{name} {UNORDERED}")
    return tensors


def _with_tied(tensors: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, and under each of its names one that the network has under several and a format keeps under one."""
    held = {id(tensor): tensors[key] for key, tensor in network.items() if key in tensors}
    return {**tensors, **{key: held[id(t)] for key, t in network.items() if key not in tensors and id(t) in held}}


def _stored(tensors: Mapping[str, Tensor]) -> Stored:
    """The tensors of a state dict in a tree of modules; they are shared, not copied."""
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
    """Make one node of children with the same tensors: they are one module under two names.

    Not of a single tensor: two modules may be tied in it.
    """
    seen: dict[tuple, nn.Module] = {}
    for name, child in node._modules.items():
        _join_aliases(child)
        held = tuple((key, *_place(tensor)) for key, tensor in child.state_dict(keep_vars=True).items())
        if len(held) > 1 and all(address for _, address, _ in held):
            node._modules[name] = seen.setdefault(held, child)


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    """Where in memory a tensor is, 0 if nowhere, as on the meta device, and its shape."""
    if is_lazy(tensor) or tensor.layout != torch.strided:
        return 0, ()
    return tensor.data_ptr(), tuple(tensor.shape)


def _reordered(tensors: Mapping[str, Tensor]) -> bool:
    """Did a format put these tensors in another order than their network's?

    There, those of a module stand together, weights before their biases, and layer 2 before layer 10.
    """
    paths = [key.split(".") for key in tensors]
    while paths and paths[-1][-1] in STATISTICS:  # {**parameters, **buffers}
        paths.pop()
    if paths and _scattered([path[:-1] for path in paths]):
        return True
    keys = [key for key, tensor in tensors.items() if tensor.is_floating_point()]
    if keys != sorted(keys):
        return False
    biased = any(key.replace("weight", "bias") in tensors for key in keys if "weight" in key)
    return biased or keys != sorted(keys, key=_numbered)


def _scattered(paths: Sequence[Sequence[str]]) -> bool:
    """Is there a module with others between what it holds?"""
    for depth in range(1, max(map(len, paths)) + 1):
        modules = [path for path, _ in groupby(tuple(path[:depth]) for path in paths) if len(path) == depth]
        if len(set(modules)) < len(modules):
            return True
    return False


def _numbered(key: str) -> str:
    """The name with its numbers in as many digits, so that 2 is sorted before 10."""
    return re.sub(r"\d+", lambda number: number[0].zfill(20), key)


def _filled(architecture: str, tensors: Mapping[str, Tensor], name: str) -> nn.Module:
    """A network of this name that holds these tensors, whatever its number of classes."""
    network = outline(architecture)
    names = network.state_dict(keep_vars=True)
    tensors = of_network(tensors, names)
    missing, unknown = (sorted(a - b) for a, b in permutations((names.keys(), tensors.keys())))
    if missing or unknown:
        word, key = ("no", missing[0]) if missing else ("an unknown", unknown[0])
        raise ValueError(f"{name} is not of {architecture}: it has {word} tensor {key}")
    for key, tensor in tensors.items():
        path, _, last = key.rpartition(".")
        module = network.get_submodule(path)
        if last in module._parameters:
            module._parameters[last] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[last] = tensor
    return network


def _computed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with a weight in place of what weight_norm, spectral_norm or pruning keep for it."""
    made, used = {}, set()
    for name, weight, one, *others in (
        ("weight", _weight_normed, "weight_g", "weight_v"),
        ("weight", _weight_normed, f"{PARAMETRIZED}original0", f"{PARAMETRIZED}original1"),
        ("weight", _spectral_normed, "weight_orig", "weight_u", "weight_v"),
        ("weight", _spectral_normed, f"{PARAMETRIZED}original", f"{PARAMETRIZED}0._u", f"{PARAMETRIZED}0._v"),
        ("weight", torch.mul, "weight_orig", "weight_mask"),
        ("bias", torch.mul, "bias_orig", "bias_mask"),
    ):
        for key in tensors:
            layer = key.removesuffix(one)
            parts = [key, *(layer + other for other in others)]
            if layer != key and all(part in tensors for part in parts):
                made[key] = layer + name, weight(*(tensors[part] for part in parts))
                used.update(parts[1:])
    return dict(made.get(key, (key, tensor)) for key, tensor in tensors.items() if key not in used)


def _spectral_normed(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The weight over the norm that the singular vectors give: along the dimension that they fit, or fit best."""
    u, v = u.to(weight.dtype), v.to(weight.dtype)
    fitting = (weight.movedim(d, 0).flatten(1) for d in range(weight.dim()) if weight.shape[d] == len(u))
    norms = [torch.dot(u, torch.mv(matrix, v)) for matrix in fitting if matrix.shape[1] == len(v)]
    return weight / torch.stack(norms).amax() if norms else weight


def _weight_normed(g: Tensor, v: Tensor) -> Tensor:
    """The weight of directions and norms, one norm for each entry of one dimension, or one for all."""
    dimension = next((d for d, size in enumerate(g.shape) if size > 1), 0 if g.dim() else -1)
    return torch._weight_norm(v, g, dimension)


def first_line(error: Exception) -> str:
    """What an error says first, for a message of one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)
