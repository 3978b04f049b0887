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
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from dpiat import reading
from dpiat.architecture import Architecture, Block, Layer
from dpiat.files import replacing
from dpiat.sources import first_line

logger = logging.getLogger(__name__)

# Raise this number when the layout of the file changes, or how a network is read without a new version of the default
# mode. Users have files of the old number in their caches, which would be wrong; they are built again.
FORMAT = 2
BROKEN = (OSError, EOFError, zlib.error, ValueError, KeyError, IndexError, TypeError)  # what a damaged file may raise


def timm_architectures(names: Sequence[str] | None = None) -> dict[str, Architecture]:
    """The architectures of timm by name, in its order, without the names of their layers; `names` None: of all of timm.

    Reads the index in the user's cache folder. If there is none for this version of timm, of torch and of the default
    mode, builds it on all cores, which takes minutes: a terminal shows a bar. Leaves out architectures that cannot be
    built, and logs their names with the reason.

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
        logger.warning("%s cannot be read and is built again (%s)", file, error)
    built = _built(names)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as written:
            written.write_bytes(gzip.compress(json.dumps(_packed(built), separators=(",", ":")).encode(), mtime=0))
    except OSError as error:
        logger.warning("the index cannot be kept and will be built again (%s)", error)
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
    """Where the index of these names is kept: another file for each version of what decides its content."""
    decisive = (str(FORMAT), str(reading.VERSION), torch.__version__, *names)
    digest = hashlib.sha256("\0".join(decisive).encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dpiat"
    return folder / f"timm-{import_timm().__version__}-{digest.hexdigest()[:12]}.json.gz"


def _built(names: Sequence[str]) -> dict[str, Architecture]:
    """The architectures that can be built, in the order of the names."""
    from tqdm import tqdm  # comes with timm, which needs huggingface_hub

    logger.info("building the index of %d networks of timm, once", len(names))
    found: dict[str, Architecture | str] = {}
    # As in torch's data loaders; other ways to start a process would run the user's script again.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(mp_context=context, initializer=_quiet) as pool:
        futures = {pool.submit(_architecture, name): name for name in names}
        for future in tqdm(as_completed(futures), "index of timm", len(futures), False, unit=" networks", disable=None):
            found[futures[future]] = future.result()
    for name in names:
        if isinstance(found[name], str):
            logger.warning("%s left out: %s", name, found[name])
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
    return replace(block, name=stage, layers=tuple(layers))


def _packed(architectures: Mapping[str, Architecture]) -> dict[str, list | dict]:
    """Plain lists, with each different layer and each different block once."""
    blocks = {block: i for i, block in enumerate(dict.fromkeys(b for a in architectures.values() for b in a.blocks))}
    layers = {layer: i for i, layer in enumerate(dict.fromkeys(layer for block in blocks for layer in block.layers))}
    return {
        "layers": list(layers),
        "blocks": [[b.name, [layers[layer] for layer in b.layers], b.run, b.level, b.skip] for b in blocks],
        "architectures": {name: [blocks[block] for block in a.blocks] for name, a in architectures.items()},
    }


def _unpacked(lists: Mapping) -> dict[str, Architecture]:
    """The architectures of plain lists; equal blocks are the same object."""
    layers = [Layer(*(tuple(v) if isinstance(v, list) else v for v in values)) for values in lists["layers"]]
    blocks = [Block(name, tuple(layers[i] for i in numbers), *facts) for name, numbers, *facts in lists["blocks"]]
    return {
        name: Architecture(name, tuple(blocks[i] for i in numbers), structured=True)
        for name, numbers in lists["architectures"].items()
    }
