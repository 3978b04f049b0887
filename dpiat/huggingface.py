"""The network of a Hugging Face folder: the class that its config.json names, built without memory for weights.

The class says in which order the layers come, which the files do not: .safetensors sorts tensors by their names. It
also says how many heads an attention has, and of which kind a layer is.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpiat.checkpoints import CONFIG, first_line
from dpiat.stored import fill, with_tied

LEGACY = {".gamma": ".weight", ".beta": ".bias"}  # how TensorFlow's layer norms are called in older files


def network(folder: Path, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network that config.json describes, with these tensors in the place of its own; they are not copied.

    The class is the one under "architectures"; or the one without a head, where the tensors of the head are not
    there. Tensors that the class does not know are left out with a warning, as transformers does.

    Raises ValueError if transformers is not installed, does not know the network, or the tensors do not fit it.
    """
    try:
        transformers = importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise ValueError("pip install transformers, which knows it") from error
    why = ""
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        for found in _outlines(transformers, config):
            placed, unknown = _placed(tensors, found)
            if not (misfit := _misfit(placed, found)):
                if unknown:
                    what = f"{unknown[0]} and {len(unknown) - 1} more tensors" if len(unknown) > 1 else unknown[0]
                    warnings.warn(
                        f"{folder}: {what} left out, which {type(found).__name__} does not have", stacklevel=4
                    )
                return fill(found, placed)
            why = why or misfit
    except Exception as error:  # whatever a configuration or a constructor raises
        raise ValueError(f"transformers cannot build it from {CONFIG}: {first_line(error)}") from error
    raise ValueError(f"{CONFIG} does not fit: {why}")


def _outlines(transformers: Any, config: Any) -> Iterator[nn.Module]:
    """The networks that a configuration may be of, on the meta device: with their heads, and without."""
    for name in getattr(config, "architectures", None) or ():
        if isinstance(cls := getattr(transformers, name, None), type) and issubclass(cls, nn.Module):
            with torch.device("meta"):
                yield cls(config)
    with torch.device("meta"):
        yield transformers.AutoModel.from_config(config, trust_remote_code=False)


def _placed(tensors: Mapping[str, Tensor], network: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by their names in a network's state dict, and the names of those that it does not have."""
    names = network.state_dict(keep_vars=True)
    prefix = f"{getattr(network, 'base_model_prefix', '')}."
    ignored = getattr(network, "_keys_to_ignore_on_load_unexpected", None) or ()
    placed, unknown = {}, []
    for key, tensor in tensors.items():
        end = next((end for end in LEGACY if key.endswith(end)), "")
        written = [key, key.removesuffix(end) + LEGACY[end]] if end else [key]
        called = [name for w in written for name in (w, prefix + w, w.removeprefix(prefix)) if name in names]
        if called:
            placed[called[0]] = tensor
        elif not any(re.search(pattern, key) for pattern in ignored):
            unknown.append(key)
    return with_tied(placed, names), unknown


def _misfit(placed: Mapping[str, Tensor], network: nn.Module) -> str:
    """What keeps tensors from being those of a network; "" if nothing does."""
    for key, tensor in network.state_dict(keep_vars=True).items():
        if key not in placed:
            return f"{type(network).__name__} has {key}, which the weights have not"
        if placed[key].shape != tensor.shape:
            theirs, ours = (" × ".join(map(str, t.shape)) for t in (placed[key], tensor))
            return f"{key} is {theirs} in the weights and {ours} in {type(network).__name__}"
    return ""
