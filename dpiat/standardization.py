"""nn.Module -> Architecture in paper mode: Algorithm 1 (appendix A.1); and what both modes know of kinds of layers."""

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
# A convolution whose groups see one input channel each, or several each, is of a kind of its own, except in paper mode.
DEPTHWISE, GROUPED = "Depthwise", "Grouped"
CONVOLVES = ("Conv", DEPTHWISE, GROUPED)  # beginnings of the kinds that are convolutions
MATRICES = ("Linear", *CONVOLVES)  # beginnings of the kinds that are matrices or convolutions
NORMS = ("LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm", "Norm")  # likewise, of norms but for batch norms
# What Algorithm 1 counts to decide whether a list of layers is a block of its own.
COUNTED = frozenset(prefix + cls.__name__ for cls in (*CONVOLUTIONS, nn.Linear) for prefix in ("", DEPTHWISE, GROUPED))


class Branch(NamedTuple):
    """Where a convolution lies in the layer that it makes with the convolutions beside it.

    `whole` is the name of that layer and `shape` the shape of its weight. `starts` is the convolution's first place
    along each axis: outputs, inputs, kernel.
    """

    whole: str
    shape: tuple[int, ...]
    starts: tuple[int, ...]


class View(NamedTuple):
    """Where a tensor of a layer is stored, and how it is seen.

    `path` is the name of the stored tensor in the state dict and `local` its name in the module. `label` tells the view
    from others of the same stored tensor ("query"). `steps` lead from the stored tensor to the view.
    """

    path: str
    local: str
    stored: Tensor
    label: str = ""
    steps: tuple[Callable[[Tensor], Tensor], ...] = ()

    def __call__(self, tensor: Tensor) -> Tensor:
        """The view of a tensor that has the form of the stored one, such as the state that an optimizer keeps of it."""
        for step in self.steps:
            tensor = step(tensor)
        return tensor


NO_VIEWS: Mapping[str, View] = {}  # one for all, as there are many layers


class LayerTensors(NamedTuple):
    """A layer with its parameters and saved buffers.

    Attributes:
        name: The dotted path of the module, or of the bare parameter, with the label of a layer that is stacked with
            others in one tensor: "attn.qkv[query]".
        module: The module that holds the tensors.
        tensors: By their names in the layer; "" for a tensor that is a layer. A tensor that is computed, by weight_norm
            for example, stands in the place of those that it is computed from.
        views: Where the tensors are stored that are views, as in default mode many are.
        plain: What matching sees of the layer (default mode).
        role: The role of a layer that is stacked with others; `plain.role` is the role of every layer.
        heads: How many heads the outputs (for an attention's last projection: the inputs) are made of; 0 where nobody
            says.
        split: The same, where the view has an axis of heads.
        gives: The number of outputs of a recurrent layer with two directions; 0 for any other layer.
        halves: Whether the inputs are two tensors of one size, side by side.
        prefix: For positions on a grid, the number of rows of tokens before the grid; None for positions in a sequence.
        offset: For positions in a sequence, the row of the first one.
        grid: For positions on a grid, (height, width), where a module says it.
        patches: Whether the layer cuts an image into patches.
        flat: How many channels the picture has that was flattened to the inputs; 0 where there is none.
        joined: Whether the inputs are joined from several layers: no layer before has so many outputs.
        stack: How many times what the next layer takes the outputs are; 0 where they are not.
        branch: The place in a layer that the convolution makes with others side by side (`dpiat.branches`).
        norm: The layer that normalizes the outputs.
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
        """The name of the module, which may hold more layers than this one."""
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
        """The layer's view of a tensor that has the form of the stored one."""
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
        """Cut out rows of the layer as a layer of its own; `ranges` are (start, number) at equal distances."""
        # Several ranges are the heads of an attention that is stored head by head. All of them are one strided view,
        # (heads, rows of a head, ...), so that a write into the view writes the stored tensor.
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
    """A view of rows start ... start + count; with a `distance`, the same rows of each group of `distance` rows."""

    start: int
    count: int
    distance: int = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.distance:
            return tensor.unflatten(0, (-1, self.distance)).narrow(1, self.start, self.count)
        return tensor.narrow(0, self.start, self.count)


class Network(NamedTuple):
    """A network as plain data, and the same network's layers with their tensors.

    `layers` are in the order of the state dict. They cannot be where a layer holds a tensor that is registered
    elsewhere or has a second name: then `order` tells the place of each name in the state dict.
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
        # Two rules of the paper make the blocks. A child with at least two convolutions or linear layers, and no block
        # inside, is a block: a batch norm and an activation alone say nothing of where a block ends. A module in which
        # single layers outnumber blocks gives up its blocks: an inverted residual holds a squeeze and excitation of two
        # convolutions, and is to be one block and not three pieces. Its parent then makes it a block by the first rule.
        # The network itself never gives up its blocks: it has no parent that could be a block.
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
            if id(child) in seen:  # under two names here, and still one layer; its tensors have both names
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
    """The name of the paper's kind that a class belongs to, or ""."""
    return next((kind.__name__ for kind in PAPER_KINDS if issubclass(cls, kind)), "")


def has_tensors(module: nn.Module | None) -> bool:
    return module is not None and len(nn.Module.state_dict(module, keep_vars=True)) > 0


@cache
def packs(cls: type[nn.Module]) -> bool:
    """Can a module of this class save what is neither a parameter nor a buffer, as quantized layers do?"""
    return cls._save_to_state_dict is not nn.Module._save_to_state_dict


def _packed(module: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Does a module keep its weights where only its own code finds them?

    It saves more than these tensors. And it has no parameters, or they are integers, which mean nothing without the
    rest. A module that saves a counter beside its weights is not packed.
    """
    if not module.state_dict(keep_vars=True).keys() - tensors.keys():
        return False
    return not tensors or not all(t.is_floating_point() or t.is_complex() for t in module.parameters(recurse=False))


@cache
def known_kind(cls: type[nn.Module]) -> str:
    """The name of the kind that a class belongs to in default mode, or ""."""
    return paper_kind(cls) or next((kind.__name__ for kind in OTHER_KINDS if issubclass(cls, kind)), "")


def known_class(module: nn.Module) -> str:
    """The kind of a module that is one layer in default mode, whatever is inside; "" where only its tensors tell."""
    if kind := known_kind(type(module)):
        return kind
    alias = _alias(type(module))
    return alias if alias and not any(map(has_tensors, module._modules.values())) else ""


@cache
def _alias(cls: type[nn.Module]) -> str:
    """The kind that the name of a class stands for, or ""."""
    return next((kind for part, kind in ALIASES.items() if part in cls.__name__.lower()), "")


def _class(module: nn.Module) -> str:
    """The name of a module's class: of a parametrized module, the class that it had before."""
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
    found = {}  # by loops, as comprehensions take half as long again and every module is asked
    for key, tensor in module._parameters.items():
        if tensor is not None:
            found[key] = tensor
    if module._buffers:
        unsaved = module._non_persistent_buffers_set
        for key, tensor in module._buffers.items():
            if tensor is not None and key not in unsaved:
                found[key] = tensor
    return found


def shape_of(tensors: Iterable[Tensor], name: str) -> tuple[int, ...]:
    """The shape of the largest tensor, the first of several; (1,) for a single number, () if there are no elements."""
    try:
        tensor = max(tensors, key=Tensor.numel)
    except ValueError as error:
        raise without_shape(name) from error
    return (tuple(tensor.shape) or (1,)) if tensor.numel() else ()


def without_shape(name: str) -> ValueError:
    """What to raise for a layer with lazy parameters."""
    named = f"layer {name!r}" if name else "the network"
    return ValueError(f"{named} has lazy parameters without a shape: run one forward pass first")
