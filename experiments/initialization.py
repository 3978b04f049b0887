"""The weights that a training starts from: one function for each name of `init`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

import dpiat
from dpiat.assignment import RandomMatching
from dpiat.operators import FullTransfer
from dpiat.reading import VERSION, Mode
from experiments import ghn2, models
from experiments.settings import UserError, first_line

# Net2Net's noise, as a share of the standard deviation of a layer's weights. Without noise, copies of a channel would
# get the same gradients and stay copies.
NOISE = 0.01
# The first version of the default mode that moves the same weights between the networks of trials as today's.
SAME_SINCE = 5
Initialized = tuple[nn.Module, dict[str, Any]]  # a network, and facts for its record


@dataclass(frozen=True)
class Method:
    """How weights are moved: the arguments of `dpiat.transfer`."""

    # The names of these fields are keys of records. Their defaults are those of the oldest records, which have no such
    # keys: another default here would give these records' trials other ids.
    mode: str = "paper"
    matching: str = "dp"
    operator: str = "clip"
    head: str = "auto"
    version: int = 1  # the version of the default mode's rules; the paper's mode has version 1 alone

    def arguments(self, seed: int) -> dict[str, Any]:
        """Return the arguments of `dpiat.transfer`. `seed` decides what a method draws at random."""
        arguments = asdict(self)
        del arguments["version"]
        if self.matching == "random":
            arguments["matching"] = RandomMatching(seed)
        if self.operator == "full":
            arguments["operator"] = FullTransfer(seed)
        return arguments


@dataclass(frozen=True)
class Start:
    """All that the first weights of a network may depend on."""

    model: str  # the name of the network
    classes: int
    seed: int
    image_size: int = 224  # pixels
    method: Method = Method()
    source_model: str = ""  # the name of the source's network
    source: Callable[[], nn.Module] | None = None  # loads or trains the source when it is called
    checkpoint: Path | None = None  # the file that init.checkpoint names


class Initialization(NamedTuple):
    """One name of `init`: how the network is made, and what its trial needs."""

    make: Callable[[Start], Initialized]
    from_source: bool = False  # whether its trial has a source, and the fields of a method
    from_file: bool = False  # whether its trial needs init.checkpoint
    check: Callable[[Start], None] | None = None  # raises UserError, before a source is trained for nothing


def initialize(name: str, start: Start) -> Initialized:
    """Make the network of a trial with its first weights.

    Args:
        name: A name of INITIALIZATIONS.
        start: All that the weights may depend on.

    Returns:
        The network, and facts about its weights for the record.
    """
    torch.manual_seed(start.seed)
    return INITIALIZATIONS[name].make(start)


def _random(start: Start) -> Initialized:
    return models.build(start.model, start.classes), {}


def _pretrained(start: Start) -> Initialized:
    """The network's own ImageNet weights. The classifier is drawn anew unless the classes are ImageNet's."""
    return models.build(start.model, start.classes, imagenet=True), {}


def _dpiat(start: Start) -> Initialized:
    """The random weights of the seed, overwritten with what the source gives."""
    method = start.method
    if method.mode == "default" and not SAME_SINCE <= method.version <= VERSION:
        raise UserError(f"init.version={method.version} is not in this code: check out the commit of its records")
    target, trained = models.build(start.model, start.classes), start.source()
    report = dpiat.transfer(trained, target, **method.arguments(start.seed))
    similarity = dpiat.similarity(trained, target, cast(Mode, method.mode))
    return target, {"similarity": similarity, **_facts(report, trained)}


def _grown(method: Callable[..., dpiat.Report], start: Start, **arguments: Any) -> Initialized:
    """The random weights of the seed, overwritten by a method for networks that differ in width and depth alone."""
    target, trained = models.build(start.model, start.classes), start.source()
    try:
        report = method(trained, target, **arguments)
    except ValueError as error:
        raise _not_admissible(start, error) from error
    return target, _facts(report, trained)


def _facts(report: dpiat.Report, source: nn.Module) -> dict[str, Any]:
    """What a record says of a transfer. The digest tells sources apart that the same settings gave on two machines."""
    return {"filled": report.share, "elements": report.elements, "source weights": models.weights_digest(source)}


def _net2net(start: Start) -> Initialized:
    return _grown(dpiat.net2net, start, seed=start.seed, noise=NOISE)


def _fna(start: Start) -> Initialized:
    return _grown(dpiat.fna, start)


def _check_grown(method: Callable[..., dpiat.Report], start: Start) -> None:
    """Try the method with random weights. Raises UserError if it does not take the two networks."""
    if error := _refusal(method, start.source_model, start.model, start.classes):
        raise _not_admissible(start, error) from error


@cache
def _refusal(method: Callable[..., dpiat.Report], source: str, target: str, classes: int) -> ValueError | None:
    """Return why a method does not take two networks. Cached: the seeds of a grid ask the same, half a second each."""
    with torch.random.fork_rng(devices=[]):
        networks = (models.build(name, classes) for name in (source, target))
        try:
            method(*networks)
        except ValueError as error:
            return error
    return None


def _not_admissible(start: Start, error: ValueError) -> UserError:
    return UserError(f"{start.model} cannot grow from {start.source_model}: {first_line(error)}")


def _ghn2(start: Start) -> Initialized:
    """The parameters that a trained GHN-2 predicts, and the buffers of a new network."""
    network, checkpoint = models.build(start.model, start.classes), ghn2.read(start.checkpoint)
    ghn2.fill(network, checkpoint.ghn, start.image_size)
    return network, {"ghn2": checkpoint.learned}


def _check_ghn2(start: Start) -> None:
    network, checkpoint = models.build(start.model, start.classes), ghn2.read(start.checkpoint)
    checkpoint.ghn.decoders(ghn2.trace(network, start.image_size))


# A new name needs an entry here, a file in configs/init, and a word in the help text of settings.py.
INITIALIZATIONS = {
    "random": Initialization(_random),
    "pretrained": Initialization(_pretrained),
    "dpiat": Initialization(_dpiat, from_source=True),
    "net2net": Initialization(_net2net, from_source=True, check=partial(_check_grown, dpiat.net2net)),
    "fna": Initialization(_fna, from_source=True, check=partial(_check_grown, dpiat.fna)),
    "ghn2": Initialization(_ghn2, from_file=True, check=_check_ghn2),
}
