"""nn.Module -> Architecture: Algorithm 1 of the paper (appendix A.1)."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dpiat.architecture import Architecture, Block, Layer

MODES = ("default", "paper")

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# The kinds that the paper matches. A module of one of these classes, or of a subclass, is one layer even if it has
# children, such as timm's BatchNormAct2d.
PAPER_KINDS = (*CONVOLUTIONS, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Linear)
# A convolution whose groups see one input channel each is of a kind of its own, except in paper mode.
DEPTHWISE = "Depthwise"
# What Algorithm 1 counts to decide whether a list of layers is a block of its own.
COUNTED = frozenset(prefix + cls.__name__ for cls in (*CONVOLUTIONS, nn.Linear) for prefix in ("", DEPTHWISE))


def standardize(module: nn.Module, mode: str = "default") -> Architecture:
    """Divide a network into blocks of layers, as its author nested its modules (section 3.1, Algorithm 1).

    Every leaf module is a layer, activations included. A tensor that is no part of a leaf (a class token, a layer
    scale) is a layer of kind "Parameter". Depthwise convolutions are of kinds of their own, and convolutions have
    strides. With mode="paper" they are like other convolutions, and only convolutions, linear layers and batch norms
    have shapes, as in the authors' code; the others stay in the list, where they lengthen the ranges of Eq. 3.

    The module is only read: on any device, the meta device included.

    Raises TypeError if `module` is not an nn.Module, ValueError if it has lazy parameters that no forward pass has
    given a shape yet.

        >>> print(standardize(torchvision.models.resnet18()))
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"a network must be a torch.nn.Module, got {type(module).__name__}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    elements = _blocks(module, "", mode == "paper")
    blocks = (Block(e.name, (e,)) if isinstance(e, Layer) else e for e in elements)
    return Architecture(type(module).__name__, tuple(blocks))


def _blocks(module: nn.Module, name: str, paper: bool) -> list[Layer | Block]:
    """The content of one node of the module tree: single layers and blocks, in order (Algorithm 1)."""
    kind = paper_kind(type(module))
    if kind or not module._modules:
        return [_layer(module, name, kind, paper)]
    prefix = f"{name}." if name else ""
    content: list[Layer | Block] = []
    if not paper:
        content += [Layer(prefix + key, "Parameter", _shape(t, prefix + key)) for key, t in _own_tensors(module)]
    for child_name, child in module.named_children():
        inner = _blocks(child, prefix + child_name, paper)
        nested = any(isinstance(e, Block) for e in inner)
        if nested or sum(e.kind in COUNTED for e in inner) <= 1:
            content += inner
        else:
            content.append(Block(prefix + child_name, tuple(inner)))
    n_blocks = sum(isinstance(e, Block) and len(e.layers) > 1 for e in content)
    if name and n_blocks < len(content) - n_blocks:
        return [layer for e in content for layer in (e.layers if isinstance(e, Block) else (e,))]
    return content


class LayerTensor(NamedTuple):
    """A tensor of a network: its name in the state dict, its layer, its own name within the layer, and itself."""

    name: str
    layer: str
    local: str
    tensor: Tensor


def layer_tensors(module: nn.Module, name: str = "") -> list[LayerTensor]:
    """The parameters and saved buffers of a network by layer, in the order of its state dict."""
    prefix = f"{name}." if name else ""
    if not module._modules or paper_kind(type(module)):
        return [LayerTensor(prefix + local, name, local, tensor) for local, tensor in _tensors(module)]
    found = [LayerTensor(prefix + key, prefix + key, "", tensor) for key, tensor in _own_tensors(module)]
    for key, child in module._modules.items():
        if child is not None:
            found += layer_tensors(child, prefix + key)
    return found


@cache
def paper_kind(cls: type[nn.Module]) -> str:
    """The name of the paper's kind that a class belongs to, "" if to none."""
    return next((kind.__name__ for kind in PAPER_KINDS if issubclass(cls, kind)), "")


def _layer(module: nn.Module, name: str, kind: str, paper: bool) -> Layer:
    if paper:
        weight = module._parameters.get("weight") if kind else None
        return Layer(name, kind or type(module).__name__, () if weight is None else _shape(weight, name))
    shapes = [_shape(tensor, name) for _, tensor in _tensors(module)]
    shape = max(shapes, key=prod, default=())
    if not shape or not isinstance(module, CONVOLUTIONS):
        return Layer(name, kind or type(module).__name__, shape)
    depthwise = DEPTHWISE if 1 < module.groups == module.in_channels else ""
    return Layer(name, depthwise + kind, shape, module.stride)


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters and saved buffers of a layer and its children: its weight is the first of the largest ones."""
    found = _own_tensors(module)
    for key, child in module._modules.items():
        if child is not None:
            found += [(f"{key}.{local}", tensor) for local, tensor in _tensors(child)]
    return found


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    found = [(key, tensor) for key, tensor in module._parameters.items() if tensor is not None]
    if module._buffers:
        saved = module._buffers.keys() - module._non_persistent_buffers_set
        found += [(key, tensor) for key, tensor in module._buffers.items() if key in saved and tensor is not None]
    return found


def _shape(tensor: Tensor, name: str) -> tuple[int, ...]:
    """() for a tensor without elements: nothing can be moved there."""
    if is_lazy(tensor):
        raise ValueError(f"{name} has lazy parameters without a shape: run one forward pass first")
    return tuple(tensor.shape) if tensor.numel() else ()
