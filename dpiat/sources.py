"""What can be a source: a module, a state dict, a file that holds one, or the name of a network."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import Parameter, signature
from itertools import permutations
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpiat import huggingface
from dpiat.checkpoints import CONFIG, SUFFIXES, files_in, first_line, is_network, read
from dpiat.stored import as_network, fill, in_order, of_network, tensors_in

logger = logging.getLogger(__name__)

Source = nn.Module | Mapping[str, Any] | str | PathLike

HUBS = ("hf-hub:", "hf_hub:", "local-dir:")  # where timm takes a network from that is not its own


def load(
    source: Source, pretrained: bool = True, architecture: str | None = None, like: nn.Module | None = None
) -> nn.Module:
    """The network that `source` stands for: a module as it is, anything else read.

    Tensors of files are mapped into memory: values are read when they are used. As long as the network is in use, do
    not write to its files. You may replace them.

    Args:
        source: A state dict, or a path that ends in .pt, .pth, .bin, .ckpt, .tar or .safetensors, gives a module that
            holds the tensors and cannot compute. "state_dict", "model" and the like are looked into, and so is the only
            mapping of tensors; the prefixes of DataParallel, DistributedDataParallel, torch.compile and Lightning are
            removed. A folder that `save_pretrained` wrote (config.json with model.safetensors, pytorch_model.bin, or
            shards of one and their index) gives the network that config.json describes, if transformers or timm is
            installed and can build it; else a module that holds the tensors. Any other string is a timm name
            ("hf-hub:user/repository" and "local-dir:folder" too), or package.module:callable.
        pretrained: Whether timm's networks come with their weights.
        architecture: The name of the network that a state dict is of. A .safetensors file needs the name, unless `dpiat
            transfer` wrote the file: it keeps tensors in an order of its own, and layers are matched in the network's.
        like: A module: tensors of the same names as its own are taken in its order.

    Returns:
        A module with the weights of `source`.

    Raises:
        TypeError: If `source` is of another type.
        ValueError: For a file, a folder or a name that gives no network.

    Examples:
        >>> load("weights.safetensors", architecture="resnet18")
        >>> load("Llama-3.2-1B/")
    """
    if isinstance(source, nn.Module):
        return source
    if not isinstance(source, (Mapping, str, PathLike)):
        raise TypeError(
            f"source must be a torch.nn.Module, a state dict, a path or a timm name, got {type(source).__name__}"
        )
    ordered: bool | None
    if isinstance(source, Mapping):
        name, state, ordered = "the state dict", source, None
    elif is_stored(source):
        name, (state, ordered) = str(source), read(Path(source))
    else:
        return build(str(source), pretrained)
    tensors = tensors_in(state, name)
    if architecture:
        return _filled(architecture, tensors, name)
    why = ""
    if not isinstance(source, Mapping) and is_network(Path(source)):
        try:
            return _described(Path(source), {key: value for key, value in state.items() if isinstance(value, Tensor)})
        except ValueError as error:
            why = str(error)  # the names of the tensors may do
    return as_network(in_order(tensors, name, ordered, like, why))


def load_without_weights(source: Source, architecture: str | None = None, like: nn.Module | None = None) -> nn.Module:
    """What `load` gives, but a name gives a network without its weights, and without memory for them if possible."""
    if isinstance(source, str) and not is_stored(source):
        return build_on_meta(source)
    return load(source, architecture=architecture, like=like)


def networks_of(
    names: Iterable[str | PathLike], architecture: str | None = None, like: nn.Module | None = None
) -> Iterator[tuple[str, nn.Module]]:
    """The networks that names, files, folders and patterns of timm's names (* and ?) stand for, one by one, by name.

    A folder of one network, as `load` takes it, is that network. A network in any other folder or of a pattern is left
    out and logged if it fails. Raises ValueError if a name in `names` fails itself.
    """
    names = [str(name) for name in names]
    for name in _expanded(names):
        try:
            network = load_without_weights(name, architecture, like)
        except Exception as error:
            if name in names:
                raise ValueError(first_line(error)) from error
            logger.warning("%s left out: %s", name, first_line(error))
            continue
        yield name, network


def _expanded(names: Sequence[str]) -> list[str]:
    """The names, with patterns and folders replaced by what they stand for."""
    expanded: list[str] = []
    for name in names:
        if name.endswith("/") and not Path(name).is_dir():
            raise ValueError(f"no folder {name}")
        if Path(name).is_dir() and not is_network(Path(name)):
            found = sorted(files_in(Path(name)) + [folder for folder in Path(name).iterdir() if is_network(folder)])
            if not found:
                raise ValueError(f"no files of weights in {name}: they end in {', '.join(SUFFIXES)}")
            expanded += map(str, found)
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
    """The tensors in a file of weights by their names, wherever a trainer put them, without a wrapper's prefixes.

    Raises ValueError if the file is not there, is not whole, or holds no tensors.
    """
    return tensors_in(read(file)[0], str(file))


def is_stored(source: str | PathLike) -> bool:
    """Does a source stand for a file of weights or a folder, and not for a name?"""
    if not isinstance(source, str) or source.endswith(SUFFIXES) or Path(source).is_file():
        return True
    return (":" not in source and "/" in source) or is_network(Path(source))  # a folder may have a name of timm's


def is_timm_name(name: str) -> bool:
    """Does a name stand for one of timm's networks?"""
    return ":" not in name and not is_stored(name)


def build(name: str, pretrained: bool = False, classes: int | None = None) -> nn.Module:
    """The network of a timm name or of package.module:callable, with so many classes, or its own number.

    The callable is called with num_classes if it takes it. Raises ValueError for a name that gives no network.
    """
    arguments = {} if classes is None else {"num_classes": classes}
    if is_stored(name):
        kind = "folder" if Path(name).is_dir() else "file"
        raise ValueError(f"{name} is a {kind} of weights, not a network: give a timm name or package.module:callable")
    if ":" not in name or name.startswith(HUBS):
        return _from_timm(name, pretrained, arguments)
    function = imported(name)
    try:
        parameters = signature(function).parameters
        network = function(**arguments) if "num_classes" in parameters else _built(function, parameters, arguments)
    except Exception as error:  # whatever a constructor may raise
        raise ValueError(f"cannot build {name!r}: {first_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} gave a {type(network).__name__}, not a torch.nn.Module")
    return network


def _built(function: Callable, parameters: Mapping[str, Parameter], arguments: dict[str, int]) -> Any:
    """Call a function that does not name `arguments`, but may pass them on as keywords."""
    if arguments and any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        try:
            return function(**arguments)
        except TypeError as error:  # the function may pass them to another one, which does not take them
            if "num_classes" not in str(error):
                raise
    return function()


def build_on_meta(name: str, classes: int | None = None) -> nn.Module:
    """The network of a name, without memory for its weights, unless its constructor reads values of weights."""
    try:
        with torch.device("meta"):
            return build(name, classes=classes)
    except Exception:  # whatever a constructor raises that finds no values there
        return build(name, classes=classes)


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """What to do about a name that is not known: take one of the names like it, or what `otherwise` says."""
    near = difflib.get_close_matches(name, dict.fromkeys(known), n=3)
    return f"did you mean {', '.join(near)}?" if near else otherwise


def _from_timm(name: str, pretrained: bool, arguments: dict[str, int]) -> nn.Module:
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ValueError("names of networks need timm: pip install timm, or give package.module:callable") from error
    if not name.startswith(HUBS) and not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models(), "give a timm name, package.module:callable or a file")
        raise ValueError(f"unknown network {name!r}: {hint}")
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:
        if not pretrained:
            raise ValueError(f"cannot build {name!r}: {first_line(error)}") from error
        raise ValueError(f"no pretrained weights for {name} ({first_line(error)}): give a file of weights") from error


def imported(name: str) -> Callable[..., Any]:
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


def _filled(architecture: str, tensors: Mapping[str, Tensor], name: str) -> nn.Module:
    """A network of this name that holds these tensors, whatever its number of classes."""
    network = build_on_meta(architecture)
    names = network.state_dict(keep_vars=True)
    tensors = of_network(tensors, names)
    missing, unknown = (sorted(a - b) for a, b in permutations((names.keys(), tensors.keys())))
    if missing or unknown:
        word, key = ("no", missing[0]) if missing else ("an unknown", unknown[0])
        raise ValueError(f"{name} is not of {architecture}: it has {word} tensor {key}")
    return fill(network, tensors)


def _described(folder: Path, state: Mapping[str, Tensor]) -> nn.Module:
    """The network that the config.json of a folder describes, timm's or transformers', with its weights.

    Raises ValueError if nobody can build it.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
    except FileNotFoundError as error:
        raise ValueError(f"it has no {CONFIG}") from error
    except ValueError as error:
        raise ValueError(f"its {CONFIG} is not JSON") from error
    if isinstance(config, dict) and "architecture" in config and "architectures" not in config:
        return _filled(f"local-dir:{folder}", state, str(folder))
    return huggingface.network(folder, state)
