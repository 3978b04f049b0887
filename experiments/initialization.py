"""How a network gets the weights that its training starts from: one function for each name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import dpiat
from experiments import models

# A trained source is asked for only by those that need one.
Source = Callable[[], nn.Module]


def initialize(name: str, model: str, classes: int, seed: int, mode: str, source: Source) -> tuple[nn.Module, dict]:
    """The network `model` with its first weights, drawn by `seed`, and facts about them for the record."""
    torch.manual_seed(seed)
    return INITIALIZATIONS[name](model, classes, mode, source)


def _random(model: str, classes: int, mode: str, source: Source) -> tuple[nn.Module, dict[str, Any]]:
    return models.build(model, classes), {}


def _pretrained(model: str, classes: int, mode: str, source: Source) -> tuple[nn.Module, dict[str, Any]]:
    """The network's own ImageNet weights; its classifier is drawn anew unless the classes are ImageNet's."""
    return models.build(model, classes, imagenet=True), {}


def _dpiat(model: str, classes: int, mode: str, source: Source) -> tuple[nn.Module, dict[str, Any]]:
    """The random weights of the same seed, overwritten where the source has something to give."""
    target, trained = models.build(model, classes), source()
    report = dpiat.transfer(trained, target, mode=mode)
    facts = {"similarity": dpiat.similarity(trained, target, mode), "filled": report.share, "elements": report.elements}
    return target, facts


INITIALIZATIONS = {"random": _random, "pretrained": _pretrained, "dpiat": _dpiat}
