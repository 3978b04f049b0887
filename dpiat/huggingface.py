"""The network of a Hugging Face folder: the class that its config.json names, built without memory for weights.

The class says in which order the layers come, which the files do not: .safetensors sorts tensors by their names. It
also says how many heads an attention has, and of which kind a layer is.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpiat.checkpoints import CONFIG, first_line
from dpiat.stored import as_network, fill, with_tied

LEGACY = {".gamma": ".weight", ".beta": ".bias"}  # how TensorFlow's layer norms are called in older files


def network(folder: Path, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network that config.json describes, with these tensors in the place of its own. They are not copied.

    The class is the one under "architectures", or the class without a head where the tensors of the head are missing.
    Tensors that the class does not know are left out with a warning, as transformers does. Where the class joins
    several tensors of the files, such as experts, in one, the tensors stay as they are, in the order of the class.

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
            placed, unknown, order = _placed(tensors, found)
            if not (misfit := _misfit(placed, found, order)):
                if unknown:
                    what = f"{unknown[0]} and {len(unknown) - 1} more tensors" if len(unknown) > 1 else unknown[0]
                    warnings.warn(
                        f"{folder}: {what} left out, which {type(found).__name__} does not have", stacklevel=4
                    )
                if order:
                    return as_network({key: tensors[key] for key in sorted(order, key=order.get)})
                return fill(found, placed)
            why = why or misfit
    except Exception as error:  # whatever a configuration or a constructor raises
        raise ValueError(f"transformers cannot build it from {CONFIG}: {first_line(error)}") from error
    raise ValueError(f"{CONFIG} does not fit: {why}")


def _outlines(transformers: Any, config: Any) -> Iterator[nn.Module]:
    """The networks that a configuration may describe, on the meta device: with their heads, and without."""
    for name in getattr(config, "architectures", None) or ():
        if isinstance(cls := getattr(transformers, name, None), type) and issubclass(cls, nn.Module):
            with torch.device("meta"):
                found = cls(config)
            if hasattr(found, "tie_weights"):  # transformers 5.0 does so with the weights alone
                found.tie_weights()
            yield found
    with torch.device("meta"):
        yield transformers.AutoModel.from_config(config, trust_remote_code=False)


def _placed(tensors: Mapping[str, Tensor], network: nn.Module) -> tuple[dict[str, Tensor], list[str], dict[str, int]]:
    """The tensors by their names in a network's state dict, the names that it does not have, and an order.

    The order is the place of each tensor among the network's, where the class joins tensors of the file in one of its
    own, such as those of experts. Where only names differ, the order is empty.
    """
    names = network.state_dict(keep_vars=True)
    places = {name: place for place, name in enumerate(names)}
    prefix = f"{getattr(network, 'base_model_prefix', '')}."
    ignored = getattr(network, "_keys_to_ignore_on_load_unexpected", None) or ()
    placed, unknown, order, joined = {}, [], {}, False
    renamed = _renaming(network)
    for key, tensor in tensors.items():
        end = next((end for end in LEGACY if key.endswith(end)), "")
        old = [key.removesuffix(end) + LEGACY[end]] if end else []
        new, converted = renamed(key)
        written = [new] if converted else [key, new, *old]
        called = [name for w in written for name in (w, prefix + w, w.removeprefix(prefix)) if name in names]
        if called:
            placed[called[0]] = tensor
            order[key] = places[called[0]]
            joined = joined or converted
        elif not any(re.search(pattern, key) for pattern in ignored):
            unknown.append(key)
    return with_tied(placed, names), unknown, order if joined else {}


def _renaming(network: nn.Module) -> Callable[[str], tuple[str, bool]]:
    """What a tensor in a file is called in a network of today's transformers, and whether its values change too."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, rename_source_key
    except ImportError:  # an older transformers has the names of its files
        return lambda key: (key, False)
    mapping = get_model_conversion_mapping(network)
    values = [step for step in mapping if isinstance(step, WeightConverter)]
    names = [step for step in mapping if not isinstance(step, WeightConverter)]

    def renamed(key: str) -> tuple[str, bool]:
        name, pattern = rename_source_key(key, names, values)
        return name, pattern is not None

    return renamed


def _misfit(placed: Mapping[str, Tensor], network: nn.Module, joined: Mapping[str, int]) -> str:
    """Why tensors cannot be those of a network; "" if they can. Shapes of joined tensors are not compared."""
    for key, tensor in network.state_dict(keep_vars=True).items():
        if key not in placed:
            return f"{type(network).__name__} has {key}, which the weights have not"
        if placed[key].shape != tensor.shape and not joined:
            theirs, ours = (" × ".join(map(str, t.shape)) for t in (placed[key], tensor))
            return f"{key} is {theirs} in the weights and {ours} in {type(network).__name__}"
    return ""
