"""A network as plain data, in paper mode or in default mode."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from dpiat.architecture import Architecture
from dpiat.standardization import Network, own_tensors, read_paper
from dpiat.stored import WRAPPERS, Stored
from dpiat.structure import read_structure

Mode = Literal["default", "paper"]
MODES = get_args(Mode)
VERSION = 6  # of the default mode; raised whenever some network is matched otherwise than before


def standardize(module: nn.Module, mode: Mode = "default") -> Architecture:
    """Divide a network into blocks of layers, as its author nested its modules (section 3.1, Algorithm 1).

    Args:
        module: The network, on any device, the meta device included. Is only read. DataParallel,
            DistributedDataParallel and torch.compile are looked through. In a state dict (`dpiat.load`), shapes tell
            the kinds of layers.
        mode: In "default" mode, every module or bare parameter with weights is a layer: blocks are what repeats in
            numbered lists, and runs are the single layers between them. Layers that are stacked in one tensor are taken
            apart ("attn.qkv[query]"), convolutions with groups are of other kinds, and `role` says what a layer is
            for. In "paper" mode, Algorithm 1 finds the blocks. Every leaf module is a layer, activations included, and
            only convolutions, linear layers and batch norms have shapes, as in the authors' code. The others stay in
            the list, where they lengthen the ranges of Eq. 3.

    Returns:
        The network as plain data, without tensors.

    Raises:
        TypeError: If `module` is not an nn.Module, or one that torch.jit.script made.
        ValueError: If the network has lazy parameters that no forward pass has given a shape yet, or the packed weights
            of a quantized network.

    Examples:
        >>> print(standardize(torchvision.models.resnet18()))
    """
    return read(module, mode, isinstance(module, Stored)).architecture


def read(module: nn.Module, mode: Mode = "default", shapes_alone: bool = False, head_size: int = 0) -> Network:
    """The network as `standardize` gives it, with its tensors.

    With `shapes_alone`, kinds follow from the tensors and not from the classes of modules, as they do in a state dict:
    so a network can be compared with a state dict. `head_size` is then the size of an attention's head, 0 if unknown.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"a network must be a torch.nn.Module, got {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError("a scripted network does not show its modules: pass the original one, or its state_dict()")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    module = unwrapped(module)
    return read_paper(module, shapes_alone) if mode == "paper" else read_structure(module, shapes_alone, head_size)


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside of DataParallel, DistributedDataParallel or torch.compile."""
    while len(module._modules) == 1 and not own_tensors(module):
        key, child = next(iter(module._modules.items()))
        if key not in WRAPPERS or child is None:
            break
        module = child
    return module
