"""Files of weights, and folders of them as Hugging Face's libraries write them: mapped into memory, not read.

Only the names and shapes of tensors are read at once. The values stay in the file until somebody uses them, so that a
checkpoint may be larger than the memory.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors")
ORDER = "dpiat order"  # of the metadata in a .safetensors file: the names of the tensors, as JSON
CONFIG = "config.json"
INDEX = ".index.json"  # after the name of the file that the shards would be without it
# The names that transformers and diffusers give to weights, the first one before the others.
WEIGHTS = (
    "model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
)
ZIP = b"PK\3\4"  # how a file begins that torch.save wrote since version 1.6: what torch.load can map


def read(place: Path) -> tuple[Any, bool | None]:
    """What a file or a network's folder holds, and whether its tensors are in their network's order.

    True if the file says so, False if its format has an order of its own, None if nobody knows.

    Raises ValueError if the file is not there or not whole, or if the shards of a folder are not those of its index.
    """
    if is_network(place):
        return _read_folder(place)
    if not place.is_file():
        raise ValueError(f"{place} is a folder: name a file in it" if place.is_dir() else f"{place} does not exist")
    return _read_file(place)


def is_network(folder: Path) -> bool:
    """Does a folder hold one network, as `save_pretrained` writes it, and not files of several?"""
    if not folder.is_dir():
        return False
    if (folder / CONFIG).is_file() or next(folder.glob(f"*{INDEX}"), None):
        return True
    files = files_in(folder)
    return len(files) == 1 and files[0].name in WEIGHTS


def files_in(folder: Path) -> list[Path]:
    """The files of weights in a folder, by their names."""
    return sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())


def _read_folder(folder: Path) -> tuple[Any, bool | None]:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return _read_file(folder / name)
        if (folder / f"{name}{INDEX}").is_file():
            return _read_shards(folder / f"{name}{INDEX}")
    files, indices = files_in(folder), sorted(folder.glob(f"*{INDEX}"))
    if len(indices) == 1:
        return _read_shards(indices[0])
    if not files:
        raise ValueError(f"{folder} holds no weights: they would be in {WEIGHTS[0]}, or in shards with an index")
    if len(files) > 1 or "-of-" in files[0].name:
        several = f"{files[0].name} and {files[-1].name}" if len(files) > 1 else files[0].name
        raise ValueError(f"{folder} holds {several}, and no {WEIGHTS[0]}{INDEX} that joins shards: name one file")
    return _read_file(files[0])


def _read_shards(index: Path) -> tuple[dict[str, Any], bool | None]:
    """What the shards hold that an index names, in the order of their names."""
    shards: dict[str, list[str]] = {}
    try:
        for name, shard in json.loads(index.read_text())["weight_map"].items():
            shards.setdefault(shard, []).append(name)
        files = {index.parent / shard: names for shard, names in sorted(shards.items())}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of shards: it has no weight_map of names and files") from error
    if missing := [file for file in files if not file.is_file()]:
        raise ValueError(f"{missing[0]} is missing, which {index.name} names")
    state: dict[str, Any] = {}
    known: bool | None = None
    for file, names in files.items():
        tensors, ordered = _read_file(file)
        held = tensors if isinstance(tensors, Mapping) else {}
        if absent := [name for name in names if name not in held]:
            raise ValueError(f"{index} does not fit its shards: {file.name} has no tensor {absent[0]}")
        state.update(held)
        known = None if ordered is None else False  # an order is that of one file
    return state, known


def _read_file(file: Path) -> tuple[Any, bool | None]:
    try:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, "pt") as stored:
                names, order = stored.keys(), json.loads((stored.metadata() or {}).get(ORDER, "[]"))
                ordered = sorted(names) == sorted(order)
                return {key: stored.get_tensor(key) for key in (order if ordered else names)}, ordered
        with open(file, "rb") as begin:
            mapped = begin.read(len(ZIP)) == ZIP
        with warnings.catch_warnings(action="ignore"):  # torch warns of what it then raises
            return torch.load(str(file), map_location="cpu", weights_only=True, mmap=mapped), None
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
        why = f" ({words})" if " " in words else ""  # a single word is what pickle read in the bytes of a broken file
        raise ValueError(f"{file} is not a complete file of weights{why}") from error


def first_line(error: Exception) -> str:
    """What an error says first, for a message of one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)
