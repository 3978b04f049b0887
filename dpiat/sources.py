"""What can be a source: a module, a state dict, a file that holds one, or the name of a network."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import json
import pickle
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import Parameter, signature
from itertools import permutations
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpiat.stored import as_network, in_order, of_network, tensors_in

Source = nn.Module | Mapping[str, Any] | str | PathLike

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors")
ORDER = "dpiat order"  # of the metadata in a .safetensors file: the names of the tensors, as JSON
HUBS = ("hf-hub:", "hf_hub:", "local-dir:")  # where timm takes a network from, if it is none of its own


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
    tensors = tensors_in(state, name)
    if architecture:
        return _filled(architecture, tensors, name)
    return as_network(in_order(tensors, name, ordered, like))


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
    return tensors_in(_read(file)[0], str(file))


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


def first_line(error: Exception) -> str:
    """What an error says first, for a message of one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)
