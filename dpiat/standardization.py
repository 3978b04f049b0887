"""nn.Module -> Architecture in paper mode: Algorithm 1 (appendix A.1). And what both modes know of kinds of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from dpiat.architecture import Architecture, Block, Layer
from dpiat.parametrized import CHAINS, chains, computed

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
MATRICES = ("Linear", "Conv", DEPTHWISE)  # beginnings of the kinds that are matrices or convolutions
NORMS = ("LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm", "Norm")  # likewise, of norms but for batch norms
# What Algorithm 1 counts to decide whether a list of layers is a block of its own.
COUNTED = frozenset(prefix + cls.__name__ for cls in (*CONVOLUTIONS, nn.Linear) for prefix in ("", DEPTHWISE))


class Branch(NamedTuple):
    """Where a convolution has its outputs, its inputs and its kernel in the layer that it makes with those beside it.

    `whole` is the name of that layer and `shape` the shape of its weight; `starts` is the first place along each axis.
    """

    whole: str
    shape: tuple[int, ...]
    starts: tuple[int, ...]


class View(NamedTuple):
    """Where a tensor of a layer is stored: its name in the state dict and in its module, and how it is seen.

    `label` names what is stacked with others in one tensor; `steps` lead from the stored tensor to the view of it.
    """

    path: str
    local: str
    stored: Tensor
    label: str = ""
    steps: tuple[Callable[[Tensor], Tensor], ...] = ()

    def __call__(self, tensor: Tensor) -> Tensor:
        """What is seen of a tensor that is like the stored one."""
        for step in self.steps:
            tensor = step(tensor)
        return tensor


NO_VIEWS: Mapping[str, View] = {}  # one for all, as there are many layers


class LayerTensors(NamedTuple):
    """A layer with its parameters and saved buffers, by their names in the layer; "" for a tensor that is a layer.

    A tensor that is computed, by weight_norm for example, stands in the place of those that it is computed from. In
    default mode a tensor may be a view of what is stored (`views`), and `plain` is what matching sees of the layer.

    `heads`: how many heads its outputs (of an attention's last projection: its inputs) are made of, 0 where nobody
    says; `split`: the same, where the view has an axis of them. `gives`: the outputs of a recurrent layer of two
    directions. `halves`: its inputs are two of one size side by side. `prefix`: of positions on a grid, the rows of
    tokens before it, and `grid`, (height, width) where a module says it; `prefix` is None for a sequence, whose
    positions begin at row `offset`. `patches`: it cuts an image in patches. `flat`: its inputs are a flattened picture
    of so many channels. `joined`: no layer before it has so many outputs, so that its inputs are joined from several.
    `stack`: its outputs are so many times what the next layer takes. `branch`: its place in a layer that it makes with
    others side by side (`dpiat.branches`). `norm`: what normalizes its outputs.
    """

    name: str
    module: nn.Module
    tensors: dict[str, Tensor]
    views: Mapping[str, View] = NO_VIEWS
    plain: Layer | None = None
    role: str = ""
    heads: int = 0
    split: int = 0
    gives: int = 0
    halves: bool = False
    prefix: int | None = None
    offset: int = 0
    grid: tuple[int, int] | None = None
    patches: bool = False
    flat: int = 0
    joined: bool = False
    stack: int = 0
    branch: Branch | None = None
    norm: LayerTensors | None = None

    def path(self, local: str) -> str:
        """The name of a tensor in the state dict of the network."""
        if local in self.views:
            return self.views[local].path
        return f"{self.name}.{local}" if self.name and local else self.name or local

    @property
    def module_name(self) -> str:
        """The name of the module that the layer is all or a part of."""
        return self.name.rpartition("[")[0] or self.name if self.name.endswith("]") else self.name

    def without(self, names: Iterable[str]) -> LayerTensors:
        """The layer with fewer tensors."""
        return self._replace(tensors={key: tensor for key, tensor in self.tensors.items() if key not in names})

    def piece(self, local: str) -> str:
        """The name of what the layer has of a stored tensor: "attn.qkv.weight[query]"."""
        label = self.views[local].label if local in self.views else ""
        return f"{self.path(local)}[{label}]" if label else self.path(local)

    def name_in_module(self, local: str) -> str:
        """The name of a tensor in its module."""
        return self.views[local].local if local in self.views else local

    def view(self, local: str, stored: Tensor) -> Tensor:
        """What the layer sees of a tensor that is like the stored one."""
        return self.views[local](stored) if local in self.views else stored

    def renamed(self, names: Mapping[str, str]) -> LayerTensors:
        views = {names.get(key, key): self._view(key) for key in self.tensors}
        return self._replace(tensors={names.get(k, k): t for k, t in self.tensors.items()}, views=views)

    def seen(self, local: str, *steps: Callable[[Tensor], Tensor]) -> LayerTensors:
        """The layer with one of its tensors seen otherwise."""
        view = self._view(local)
        tensors = {**self.tensors, local: view._replace(steps=steps)(self.tensors[local])}
        return self._replace(tensors=tensors, views={**self.views, local: view._replace(steps=view.steps + steps)})

    def cut(self, name: str, ranges: Sequence[tuple[int, int]], role: str) -> LayerTensors:
        """Some rows of the layer, from (start, number) pairs at equal distances, as a layer of its own."""
        (start, count), found = ranges[0], self
        distance = ranges[1][0] - start if len(ranges) > 1 else 0
        for local, tensor in self.tensors.items():
            if tensor.dim():
                found = found.seen(local, Rows(start, count, distance))
        views = {local: view._replace(label=name) for local, view in found.views.items()}
        split = len(ranges) if distance else 0
        return found._replace(name=f"{self.name}[{name}]", views=views, role=role, split=split)

    def _view(self, local: str) -> View:
        return self.views[local] if local in self.views else View(self.path(local), local, self.tensors[local])

    def stored(self, local: str) -> Tensor:
        """The tensor that a tensor of the layer is a view of."""
        return self.views[local].stored if local in self.views else self.tensors[local]


def is_matrix(layer: Layer) -> bool:
    """Is a layer a matrix or a convolution?"""
    return len(layer.shape) > 1 and layer.kind.startswith(MATRICES)


class Rows(NamedTuple):
    """A view of rows start ... start + count; of each group of `distance` rows, if that is not 0."""

    start: int
    count: int
    distance: int = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.distance:
            return tensor.unflatten(0, (-1, self.distance)).narrow(1, self.start, self.count)
        return tensor.narrow(0, self.start, self.count)


class Network(NamedTuple):
    """A network as plain data, and its layers that have tensors, in the order of its state dict.

    Where they are not, as a layer holds what is elsewhere or has several names, `order` has the places of the names.
    """

    architecture: Architecture
    layers: list[LayerTensors]
    order: Mapping[str, int] = {}


def read_paper(module: nn.Module, shapes_alone: bool) -> Network:
    """The network of Algorithm 1, in paper mode."""
    reader = _Reader(shapes_alone, module)
    elements = reader.blocks(module, "")
    blocks = (Block(e.name, (e,)) if isinstance(e, Layer) else e for e in elements)
    return Network(Architecture(type(module).__name__, tuple(blocks)), reader.layers)


class _Reader:
    """One walk through the tree of modules, which collects the tensors on its way (Algorithm 1, in paper mode)."""

    def __init__(self, shapes_alone: bool, network: nn.Module):
        self.shapes_alone, self.network = shapes_alone, network
        self.layers: list[LayerTensors] = []
        self.convolutions = 0  # so far, with shapes alone

    def blocks(self, module: nn.Module, name: str) -> list[Layer | Block]:
        """The content of one node of the tree: single layers and blocks, in order (Algorithm 1)."""
        children = module._modules
        if self.shapes_alone:  # modules without tensors leave no trace in a state dict
            children = {key: child for key, child in children.items() if has_tensors(child)}
        alone = children.keys() == {CHAINS} and (self.shapes_alone or chains(module))
        if not children or paper_kind(type(module)) or alone:
            return [self.layer(module, name)]
        prefix = f"{name}." if name else ""
        content: list[Layer | Block] = []
        for key, tensor in own_tensors(module).items():
            self.layers.append(LayerTensors(prefix + key, module, {"": tensor}))
        seen: set[int] = set()  # by id: modules may have an equality of their own
        for child_name, child in children.items():
            if child is None:
                continue
            inner = self.blocks(child, prefix + child_name)
            if id(child) in seen:  # under two names here, and still one layer
                continue
            seen.add(id(child))
            if len(inner) == 1 or any(isinstance(e, Block) for e in inner) or _counted(inner) <= 1:
                content += inner
            else:
                content.append(Block(prefix + child_name, tuple(inner)))
        n_blocks = sum(isinstance(e, Block) and len(e.layers) > 1 for e in content)
        if module is not self.network and n_blocks < len(content) - n_blocks:
            return [layer for e in content for layer in (e.layers if isinstance(e, Block) else (e,))]
        return content

    def layer(self, module: nn.Module, name: str) -> Layer:
        tensors, kind = layer_tensors(module, name), paper_kind(type(module))
        if not tensors:
            return Layer(name, kind or type(module).__name__)
        self.layers.append(LayerTensors(name, module, tensors))
        if isinstance(module, _Loss) and not module._parameters:  # weights of its own classes
            return Layer(name, type(module).__name__)
        weight = tensors.get("weight") if kind else None
        shape = shape_of(tensors.values() if weight is None else [weight], name)
        if not self.shapes_alone:
            return Layer(name, kind or _class(module), () if weight is None else shape)
        kind = "BatchNorm" if "running_mean" in tensors else DIMENSIONS.get(len(shape), "Parameter")
        recurrent = any(key.startswith("weight_hh") for key in tensors)
        return Layer(name, kind, () if recurrent or kind in ("Norm", "Parameter") else shape)


def layer_tensors(module: nn.Module, name: str) -> dict[str, Tensor]:
    """The tensors of a layer, computed ones in the place of what they are computed from.

    Raises ValueError for packed weights, as quantized layers have them.
    """
    tensors = _tensors(module) if module._modules else own_tensors(module)
    if packs(type(module)) and _packed(module, tensors):
        named = name or "the network"
        raise ValueError(f"{named} has packed weights, as quantized layers do: use the network as it was before")
    if module._forward_pre_hooks or CHAINS in module._modules:
        tensors = computed(module, tensors)
    return tensors


@cache
def paper_kind(cls: type[nn.Module]) -> str:
    """The name of the paper's kind that a class belongs to, "" if to none."""
    return next((kind.__name__ for kind in PAPER_KINDS if issubclass(cls, kind)), "")


def has_tensors(module: nn.Module | None) -> bool:
    return module is not None and len(nn.Module.state_dict(module, keep_vars=True)) > 0


@cache
def packs(cls: type[nn.Module]) -> bool:
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


def known_class(module: nn.Module) -> str:
    """The kind of default mode that a module is a layer of, whatever is inside it; "" if only its tensors tell."""
    if kind := known_kind(type(module)):
        return kind
    alias = _alias(type(module))
    return alias if alias and not any(map(has_tensors, module._modules.values())) else ""


@cache
def _alias(cls: type[nn.Module]) -> str:
    """The kind that the name of a class stands for, "" if for none."""
    return next((kind for part, kind in ALIASES.items() if part in cls.__name__.lower()), "")


def _class(module: nn.Module) -> str:
    """The name of a module's class, or of the one that it had before it was parametrized."""
    return (type(module).__base__ if chains(module) else type(module)).__name__


def _counted(layers: list[Layer]) -> int:
    return sum(layer.kind in COUNTED for layer in layers)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and saved buffers of a layer and its children."""
    found = own_tensors(module)
    for key, child in module._modules.items():
        if child is not None and (child._parameters or child._buffers or child._modules):
            found.update({f"{key}.{local}": tensor for local, tensor in _tensors(child).items()})
    return found


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    found = {key: tensor for key, tensor in module._parameters.items() if tensor is not None}
    if module._buffers:
        unsaved = module._non_persistent_buffers_set
        found |= {key: t for key, t in module._buffers.items() if t is not None and key not in unsaved}
    return found


def shape_of(tensors: Iterable[Tensor], name: str) -> tuple[int, ...]:
    """The shape of the first of the largest tensors: (1,) of a single number, () without elements to be moved."""
    try:
        tensor = max(tensors, key=Tensor.numel)
    except ValueError as error:
        named = name or "the network"
        raise ValueError(f"{named} has lazy parameters without a shape: run one forward pass first") from error
    return (tuple(tensor.shape) or (1,)) if tensor.numel() else ()
