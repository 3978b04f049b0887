"""nn.Module -> Architecture: Algorithm 1 of the paper (appendix A.1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss
from torch.nn.parameter import is_lazy

from dpiat.architecture import Architecture, Block, Layer
from dpiat.parametrized import CHAINS, chains, computed
from dpiat.stored import Stored

MODES = ("default", "paper")

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# The kinds that the paper matches. A module of one of these classes, or of a subclass, is one layer even if it has
# children, such as timm's BatchNormAct2d.
PAPER_KINDS = (*CONVOLUTIONS, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Linear)
# What default mode takes for one kind as well, whichever subclass it is, and what goes by other names.
OTHER_KINDS = (
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.Embedding, nn.EmbeddingBag),
)
ALIASES = {"syncbatchnorm": "BatchNorm2d", "frozenbatchnorm": "BatchNorm2d", "rmsnorm": "RMSNorm"}
DIMENSIONS = {5: "Conv3d", 4: "Conv2d", 3: "Conv1d", 2: "Linear", 1: "Norm"}  # the kinds that shapes alone give away
# A convolution whose groups see one input channel each is of a kind of its own, except in paper mode.
DEPTHWISE = "Depthwise"
# What Algorithm 1 counts to decide whether a list of layers is a block of its own.
COUNTED = frozenset(prefix + cls.__name__ for cls in (*CONVOLUTIONS, nn.Linear) for prefix in ("", DEPTHWISE))
WRAPPERS = ("module", "_orig_mod")  # where DataParallel, DistributedDataParallel and torch.compile keep the network


def standardize(module: nn.Module, mode: str = "default") -> Architecture:
    """Divide a network into blocks of layers, as its author nested its modules (section 3.1, Algorithm 1).

    Every leaf module is a layer, activations included. A tensor that is no part of a leaf (a class token, a layer
    scale) is a layer of kind "Parameter". Depthwise convolutions are of kinds of their own, and convolutions have
    strides. With mode="paper" they are like other convolutions, and only convolutions, linear layers and batch norms
    have shapes, as in the authors' code; the others stay in the list, where they lengthen the ranges of Eq. 3.

    The module is only read: on any device, the meta device included. DataParallel, DistributedDataParallel and
    torch.compile are looked through; in default mode also what holds a network and, beside it, vectors and numbers at
    most, such as an average's or a loss's. Of a state dict (`dpiat.load`), the kinds of layers are what the shapes
    tell.

    Raises TypeError if `module` is not an nn.Module, or one that torch.jit.script made, ValueError if it has lazy
    parameters that no forward pass has given a shape yet, or the packed weights of a quantized network.

        >>> print(standardize(torchvision.models.resnet18()))
    """
    return read(module, mode, isinstance(module, Stored)).architecture


class LayerWeights(NamedTuple):
    """A layer with its parameters and saved buffers, by their names in the layer; "" for a tensor that is a layer.

    A tensor that is computed, by weight_norm for example, stands in the place of those that it is computed from.
    """

    name: str
    module: nn.Module
    tensors: dict[str, Tensor]

    def path(self, local: str) -> str:
        """The name of a tensor in the state dict of the network."""
        return f"{self.name}.{local}" if self.name and local else self.name or local


class Network(NamedTuple):
    """A network as plain data, and its layers that have tensors, in the order of its state dict."""

    architecture: Architecture
    weights: list[LayerWeights]


def read(module: nn.Module, mode: str = "default", shapes_alone: bool = False) -> Network:
    """The network as `standardize` gives it, with its tensors.

    With `shapes_alone`, kinds follow from the tensors and not from the classes of modules, as they do in a state dict,
    so that a network can be compared with one of which only the state dict is there.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"a network must be a torch.nn.Module, got {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError("a scripted network does not show its modules: pass the original one, or its state_dict()")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    module = unwrapped(module)
    reader = _Reader(mode == "paper", shapes_alone, {id(module)} if mode == "paper" else set(_to_the_network(module)))
    elements = reader.blocks(module, "")
    blocks = (Block(e.name, (e,)) if isinstance(e, Layer) else e for e in elements)
    return Network(Architecture(type(module).__name__, tuple(blocks)), reader.weights)


def unwrapped(module: nn.Module) -> nn.Module:
    """The network itself inside of DataParallel, DistributedDataParallel or torch.compile."""
    while len(module._modules) == 1 and not _own_tensors(module):
        key, child = next(iter(module._modules.items()))
        if key not in WRAPPERS or child is None:
            break
        module = child
    return module


def _to_the_network(module: nn.Module) -> Iterator[int]:
    """The ids of what wraps a network and of the network itself.

    A module wraps its child if all else that it holds are vectors and numbers, as an average or a loss has them.
    """
    yield id(module)
    children = [child for child in module._modules.values() if child is not None and _has_matrices(_tensors(child))]
    if len(children) == 1 and not _has_matrices(_own_tensors(module)):
        yield from _to_the_network(children[0])


def _has_matrices(tensors: Iterable[tuple[str, Tensor]]) -> bool:
    return any(is_lazy(tensor) or tensor.dim() > 1 for _, tensor in tensors)


class _Reader:
    """One walk through the tree of modules, which collects the tensors on its way.

    `networks` are the ids of modules whose content is that of the network, and no block of it.
    """

    def __init__(self, paper: bool, shapes_alone: bool, networks: set[int]):
        self.paper, self.shapes_alone, self.networks = paper, shapes_alone, networks
        self.weights: list[LayerWeights] = []
        self.convolutions = 0  # so far, with shapes alone

    def kind(self, module: nn.Module) -> str:
        """The kind that a module is a layer of, whatever is inside it; "" if only its class tells."""
        if self.paper:
            return paper_kind(type(module))
        kind, alias = known_kind(type(module)), _alias(type(module))
        return kind or (alias if alias and not any(map(_has_tensors, module._modules.values())) else "")

    def blocks(self, module: nn.Module, name: str) -> list[Layer | Block]:
        """The content of one node of the tree: single layers and blocks, in order (Algorithm 1)."""
        children = module._modules
        if self.shapes_alone:  # modules without tensors leave no trace in a state dict
            children = {key: child for key, child in children.items() if _has_tensors(child)}
        alone = children.keys() == {CHAINS} and (self.shapes_alone or chains(module))
        if not children or self.kind(module) or alone:
            return [self.layer(module, name)]
        prefix = f"{name}." if name else ""
        content: list[Layer | Block] = []
        for key, tensor in _own_tensors(module):
            self.weights.append(LayerWeights(prefix + key, module, {"": tensor}))
            if not self.paper:
                content.append(Layer(prefix + key, "Parameter", _shape([tensor], prefix + key)))
        seen: set[int] = set()  # by id: modules may have an equality of their own
        for child_name, child in children.items():
            if child is None:
                continue
            inner = self.blocks(child, prefix + child_name)
            if id(child) in seen:  # under two names here, and still one layer
                continue
            seen.add(id(child))
            spliced = id(child) in self.networks or len(inner) == 1
            if spliced or any(isinstance(e, Block) for e in inner) or _counted(inner) <= 1:
                content += inner
            else:
                content.append(Block(prefix + child_name, tuple(inner)))
        n_blocks = sum(isinstance(e, Block) and len(e.layers) > 1 for e in content)
        if id(module) not in self.networks and n_blocks < len(content) - n_blocks:
            return [layer for e in content for layer in (e.layers if isinstance(e, Block) else (e,))]
        return content

    def layer(self, module: nn.Module, name: str) -> Layer:
        tensors = dict(_tensors(module) if module._modules else _own_tensors(module))
        if _packs(type(module)) and _packed(module, tensors):
            named = name or "the network"
            raise ValueError(f"{named} has packed weights, as quantized layers do: use the network as it was before")
        if module._forward_pre_hooks or CHAINS in module._modules:
            tensors = computed(module, tensors)
        kind = self.kind(module)
        if not tensors:
            return Layer(name, kind or type(module).__name__)
        self.weights.append(LayerWeights(name, module, tensors))
        if isinstance(module, _Loss) and not module._parameters:  # weights of its own classes
            return Layer(name, type(module).__name__)
        weight = tensors.get("weight") if kind else None
        shape = _shape(tensors.values() if weight is None else [weight], name)
        if self.shapes_alone:
            kind = "BatchNorm" if "running_mean" in tensors else DIMENSIONS.get(len(shape), "Parameter")
            if any(key.startswith("weight_hh") for key in tensors):
                kind = "Recurrent"
            if self.paper:
                return Layer(name, kind, () if kind in ("Norm", "Recurrent", "Parameter") else shape)
            convolution = len(shape) > 2
            depthwise = DEPTHWISE if convolution and self.convolutions and shape[1] == 1 < shape[0] else ""
            self.convolutions += convolution  # the first one may see grey images
            return Layer(name, depthwise + kind, shape)
        if self.paper:
            return Layer(name, kind or _class(module), () if weight is None else shape)
        if not shape or not isinstance(module, CONVOLUTIONS):
            return Layer(name, kind or _class(module), shape)
        depthwise = DEPTHWISE if 1 < module.groups == module.in_channels else ""
        return Layer(name, depthwise + kind, shape, module.stride)


@cache
def paper_kind(cls: type[nn.Module]) -> str:
    """The name of the paper's kind that a class belongs to, "" if to none."""
    return next((kind.__name__ for kind in PAPER_KINDS if issubclass(cls, kind)), "")


def _has_tensors(module: nn.Module | None) -> bool:
    return module is not None and len(nn.Module.state_dict(module, keep_vars=True)) > 0


@cache
def _packs(cls: type[nn.Module]) -> bool:
    """Could it save what is neither parameter nor buffer, as quantized layers do?"""
    return cls._save_to_state_dict is not nn.Module._save_to_state_dict


def _packed(module: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Does it save more than these tensors, and has no parameters, or integers that mean nothing without the rest?"""
    if not module.state_dict(keep_vars=True).keys() - tensors.keys():
        return False
    return not tensors or not all(t.is_floating_point() or t.is_complex() for t in module.parameters(recurse=False))


@cache
def known_kind(cls: type[nn.Module]) -> str:
    """The name of the kind that a class belongs to in default mode, "" if to none."""
    return paper_kind(cls) or next((kind.__name__ for kind in OTHER_KINDS if issubclass(cls, kind)), "")


@cache
def _alias(cls: type[nn.Module]) -> str:
    """The kind that the name of a class stands for, "" if for none."""
    return next((kind for part, kind in ALIASES.items() if part in cls.__name__.lower()), "")


def _class(module: nn.Module) -> str:
    """The name of a module's class, or of the one that it had before it was parametrized."""
    return (type(module).__base__ if chains(module) else type(module)).__name__


def _counted(layers: list[Layer]) -> int:
    return sum(layer.kind in COUNTED for layer in layers)


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters and saved buffers of a layer and its children."""
    found = _own_tensors(module) if module._parameters or module._buffers else []
    for key, child in module._modules.items():
        if child is not None:
            found += [(f"{key}.{local}", tensor) for local, tensor in _tensors(child)]
    return found


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    found = [(key, tensor) for key, tensor in module._parameters.items() if tensor is not None]
    if module._buffers:
        unsaved = module._non_persistent_buffers_set
        found += [(key, t) for key, t in module._buffers.items() if t is not None and key not in unsaved]
    return found


def _shape(tensors: Iterable[Tensor], name: str) -> tuple[int, ...]:
    """The shape of the first of the largest tensors: (1,) of a single number, () without elements to be moved."""
    try:
        tensor = max(tensors, key=Tensor.numel)
    except ValueError as error:
        named = name or "the network"
        raise ValueError(f"{named} has lazy parameters without a shape: run one forward pass first") from error
    return (tuple(tensor.shape) or (1,)) if tensor.numel() else ()
