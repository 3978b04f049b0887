"""How a network gets the weights that its training starts from: one function for each name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

import dpiat
from dpiat.assignment import RandomMatching
from dpiat.operators import FullTransfer
from experiments import models

# A trained source is asked for only by those that need one.
Source = Callable[[], nn.Module]
Initialized = tuple[nn.Module, dict[str, Any]]


@dataclass(frozen=True)
class Method:
    """How weights are moved: the arguments of `dpiat.transfer`."""

    mode: str = "paper"
    matching: str = "dp"
    operator: str = "clip"
    head: str = "auto"

    def arguments(self, seed: int) -> dict[str, Any]:
        """What is drawn at random, is drawn by `seed`."""
        arguments = asdict(self)
        if self.matching == "random":
            arguments["matching"] = RandomMatching(seed)
        if self.operator == "full":
            arguments["operator"] = FullTransfer(seed)
        return arguments


def initialize(
    name: str, model: str, classes: int, seed: int, method: Method, source: Source
) -> tuple[nn.Module, dict]:
    """The network `model` with its first weights, drawn by `seed`, and facts about them for the record."""
    torch.manual_seed(seed)
    return INITIALIZATIONS[name](model, classes, seed, method, source)


def _random(model: str, classes: int, seed: int, method: Method, source: Source) -> Initialized:
    return models.build(model, classes), {}


def _pretrained(
    model: str, classes: int, seed: int, method: Method, source: Source
) -> tuple[nn.Module, dict[str, Any]]:
    """The network's own ImageNet weights; its classifier is drawn anew unless the classes are ImageNet's."""
    return models.build(model, classes, imagenet=True), {}


def _dpiat(model: str, classes: int, seed: int, method: Method, source: Source) -> Initialized:
    """The random weights of the same seed, overwritten where the source has something to give."""
    target, trained = models.build(model, classes), source()
    report = dpiat.transfer(trained, target, **method.arguments(seed))
    similarity = dpiat.similarity(trained, target, method.mode)
    return target, {"similarity": similarity, "filled": report.share, "elements": report.elements}


INITIALIZATIONS = {"random": _random, "pretrained": _pretrained, "dpiat": _dpiat}
