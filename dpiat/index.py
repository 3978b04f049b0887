"""All of timm's architectures as plain data: built once on the meta device, then read from the user's cache."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import logging
import multiprocessing
import os
import sys
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path

import torch

from dpiat import architecture, context, layers, parametrized, reading, roles, standardization, structure
from dpiat.architecture import Architecture, Block, Layer
from dpiat.files import draft
from dpiat.sources import first_line

BROKEN = (OSError, EOFError, zlib.error, ValueError, KeyError, IndexError, TypeError)  # what a damaged file may raise


def timm_architectures(names: Sequence[str] | None = None) -> dict[str, Architecture]:
    """The architectures of timm by name, in its order, without the names of their layers; `names` None: of all of timm.

    Reads the index in the user's cache folder. Where there is none for this version of timm, of torch and of the rules
    of standardization, it is built on all cores, which takes minutes; progress goes to stderr, and so do the names of
    architectures that cannot be built, with the reason: they are left out.

    Raises ModuleNotFoundError without timm.
    """
    timm = import_timm()
    names = timm.list_models() if names is None else list(names)
    file = cache_file(names)
    try:
        return _unpacked(json.loads(gzip.decompress(file.read_bytes())))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except BROKEN as error:
        print(f"dpiat: {file} cannot be read and is built again ({error})", file=sys.stderr)
    built = _built(names)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with draft(file) as written:
            written.write_bytes(gzip.compress(json.dumps(_packed(built), separators=(",", ":")).encode(), mtime=0))
    except OSError as error:
        print(f"dpiat: the index cannot be kept and will be built again ({error})", file=sys.stderr)
    return built


@cache
def pretrained() -> frozenset[str]:
    """The names of the architectures that timm has trained weights for, by its own list: nothing is looked up."""
    return frozenset(name.partition(".")[0] for name in import_timm().list_pretrained())


def import_timm():
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("timm's architectures need timm: pip install timm", name="timm") from error


def cache_file(names: Iterable[str]) -> Path:
    """Where the index of these names is kept: another file for all that could change what is in it."""
    modules = (architecture, context, layers, parametrized, reading, roles, standardization, structure)
    rules = [Path(module.__file__).read_bytes() for module in modules]
    rules.append(Path(__file__).read_bytes())
    digest = hashlib.sha256(b"\0".join([*rules, torch.__version__.encode(), *(name.encode() for name in names)]))
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dpiat"
    return folder / f"timm-{import_timm().__version__}-{digest.hexdigest()[:12]}.json.gz"


def _built(names: Sequence[str]) -> dict[str, Architecture]:
    """The architectures that can be built, in the order of the names."""
    found: dict[str, Architecture | str] = {}
    # As in torch's data loaders; other ways to start a process would run the user's script again.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(mp_context=context, initializer=_quiet) as pool:
        futures = {pool.submit(_architecture, name): name for name in names}
        for i, future in enumerate(as_completed(futures), 1):
            found[futures[future]] = future.result()
            if sys.stderr.isatty() or i % 100 == 0 or i == len(names):
                end = "\r" if sys.stderr.isatty() and i < len(names) else "\n"
                print(f"dpiat: {i} of {len(names)} architectures indexed", end=end, file=sys.stderr)
    for name, reason in found.items():
        if isinstance(reason, str):
            print(f"dpiat: {name} left out: {reason}", file=sys.stderr)
    return {name: found[name] for name in names if isinstance(found[name], Architecture)}


def _quiet() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable()


def _architecture(name: str) -> Architecture | str:
    """The architecture of a timm name, or why it cannot be built."""
    try:
        with torch.device("meta"):
            network = import_timm().create_model(name)
        found = reading.standardize(network)
    except Exception as error:  # whatever a constructor may raise: one of many must not stop the others
        return first_line(error)
    return Architecture(name, tuple(map(_inside, found.blocks)), structured=True)


def _inside(block: Block) -> Block:
    """The block with the names that its layers have in it: equal blocks are then kept once."""
    start = len(block.name) + 1
    names = ["" if block.run else layer.name[start:] for layer in block.layers]
    stage = "" if block.run else f"{block.name.rpartition('.')[0]}."
    layers = (layer._replace(name=name) for layer, name in zip(block.layers, names, strict=True))
    return Block(stage, tuple(layers), block.run)


def _packed(architectures: Mapping[str, Architecture]) -> dict[str, list | dict]:
    """Plain lists, with each different layer and each different block once."""
    blocks = {block: i for i, block in enumerate(dict.fromkeys(b for a in architectures.values() for b in a.blocks))}
    layers = {layer: i for i, layer in enumerate(dict.fromkeys(layer for block in blocks for layer in block.layers))}
    return {
        "layers": list(layers),
        "blocks": [[block.name, block.run, [layers[layer] for layer in block.layers]] for block in blocks],
        "architectures": {name: [blocks[block] for block in a.blocks] for name, a in architectures.items()},
    }


def _unpacked(lists: Mapping) -> dict[str, Architecture]:
    """The architectures of plain lists; equal blocks are the same object."""
    layers = [Layer(*(tuple(v) if isinstance(v, list) else v for v in values)) for values in lists["layers"]]
    blocks = [Block(name, tuple(layers[i] for i in numbers), run) for name, run, numbers in lists["blocks"]]
    return {
        name: Architecture(name, tuple(blocks[i] for i in numbers), structured=True)
        for name, numbers in lists["architectures"].items()
    }
