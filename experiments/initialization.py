"""How a network gets the weights that its training starts from: one function for each name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import dpiat
from dpiat.assignment import RandomMatching
from dpiat.operators import FullTransfer
from dpiat.reading import VERSION
from experiments import ghn2, models
from experiments.settings import UserError, first_line

NOISE = 0.01  # of Net2Net, over the standard deviation of a layer's weights: copies do not stay alike
Initialized = tuple[nn.Module, dict[str, Any]]


@dataclass(frozen=True)
class Method:
    """How weights are moved: the arguments of `dpiat.transfer`."""

    mode: str = "paper"
    matching: str = "dp"
    operator: str = "clip"
    head: str = "auto"
    version: int = 1  # of the default mode; paper mode has one alone

    def arguments(self, seed: int) -> dict[str, Any]:
        """What is drawn at random, is drawn by `seed`."""
        arguments = asdict(self)
        del arguments["version"]
        if self.matching == "random":
            arguments["matching"] = RandomMatching(seed)
        if self.operator == "full":
            arguments["operator"] = FullTransfer(seed)
        return arguments


@dataclass(frozen=True)
class Start:
    """What the first weights of a network may depend on."""

    model: str
    classes: int
    seed: int
    image_size: int = 224
    method: Method = Method()
    source_model: str = ""  # the name of the source's network
    source: Callable[[], nn.Module] | None = None  # trains the source, or loads it, when it is called
    checkpoint: Path | None = None  # the user's file


class Initialization(NamedTuple):
    """One name of `init`: how it makes the network, and what a trial needs for it."""

    make: Callable[[Start], Initialized]
    from_source: bool = False  # its trial has a source, and the fields of a method
    from_file: bool = False  # its trial has init.checkpoint
    check: Callable[[Start], None] | None = None  # raises UserError before anything is trained


def initialize(name: str, start: Start) -> Initialized:
    """The network with its first weights, drawn by the seed, and facts about them for the record."""
    torch.manual_seed(start.seed)
    return INITIALIZATIONS[name].make(start)


def _random(start: Start) -> Initialized:
    return models.build(start.model, start.classes), {}


def _pretrained(start: Start) -> Initialized:
    """The network's own ImageNet weights; its classifier is drawn anew unless the classes are ImageNet's."""
    return models.build(start.model, start.classes, imagenet=True), {}


def _dpiat(start: Start) -> Initialized:
    """The random weights of the same seed, overwritten where the source has something to give."""
    method = start.method
    if method.mode == "default" and method.version != VERSION:
        raise UserError(f"init.version={method.version} is not in this code: check out the commit of its records")
    target, trained = models.build(start.model, start.classes), start.source()
    report = dpiat.transfer(trained, target, **method.arguments(start.seed))
    similarity = dpiat.similarity(trained, target, method.mode)
    return target, {"similarity": similarity, "filled": report.share, "elements": report.elements}


def _grown(method: Callable[..., dpiat.Report], start: Start, **arguments: Any) -> Initialized:
    """The random weights of the same seed, overwritten by a method that knows how networks of one plan are scaled."""
    target, trained = models.build(start.model, start.classes), start.source()
    try:
        report = method(trained, target, **arguments)
    except ValueError as error:
        raise _not_admissible(start, error) from error
    return target, {"filled": report.share, "elements": report.elements}


def _net2net(start: Start) -> Initialized:
    return _grown(dpiat.net2net, start, seed=start.seed, noise=NOISE)


def _fna(start: Start) -> Initialized:
    return _grown(dpiat.fna, start)


def _check_grown(method: Callable[..., dpiat.Report], start: Start) -> None:
    """Try with random weights, before the source is trained."""
    with torch.random.fork_rng(devices=[]):
        source, target = (models.build(name, start.classes) for name in (start.source_model, start.model))
    try:
        method(source, target)
    except ValueError as error:
        raise _not_admissible(start, error) from error


def _not_admissible(start: Start, error: ValueError) -> UserError:
    return UserError(f"{start.model} cannot grow from {start.source_model}: {first_line(error)}")


def _ghn2(start: Start) -> Initialized:
    """Every parameter as a trained graph hypernetwork predicts it; buffers as in a new network."""
    network, checkpoint = models.build(start.model, start.classes), ghn2.read(start.checkpoint)
    ghn2.fill(network, checkpoint.ghn, start.image_size)
    return network, {"ghn2": checkpoint.learned}


def _check_ghn2(start: Start) -> None:
    network, checkpoint = models.build(start.model, start.classes), ghn2.read(start.checkpoint)
    checkpoint.ghn.decoders(ghn2.trace(network, start.image_size))


# A new name is an entry here, a file in configs/init, and a word in the text of settings.py.
INITIALIZATIONS = {
    "random": Initialization(_random),
    "pretrained": Initialization(_pretrained),
    "dpiat": Initialization(_dpiat, from_source=True),
    "net2net": Initialization(_net2net, from_source=True, check=partial(_check_grown, dpiat.net2net)),
    "fna": Initialization(_fna, from_source=True, check=partial(_check_grown, dpiat.fna)),
    "ghn2": Initialization(_ghn2, from_file=True, check=_check_ghn2),
}
