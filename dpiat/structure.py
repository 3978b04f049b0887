"""nn.Module or state dict -> Architecture in default mode: blocks from what repeats, layers as views of stored tensors.

Modules without tensors leave no trace in a state dict, so that they count for nothing here: a network and its state
dict have one structure. Elements of a numbered list with alike contents are blocks, wherever nested; what stands
between blocks (the stem, a transition between stages, the head) is a run of single layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from math import log2
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dpiat import roles
from dpiat.architecture import Architecture, Block, Layer
from dpiat.branches import merged
from dpiat.context import in_context
from dpiat.layers import CONSTANT, LayerTensors, layers_of, roles_of_a_module, with_role
from dpiat.levels import leveled
from dpiat.parametrized import CHAINS, chains
from dpiat.standardization import Network, View, known_class, own_tensors, packs, without_shape

NUMBERED = re.compile(r"(.*?)_?(\d+)[a-z]?")  # "3", "layer3", "encoder_layer_3", "Mixed_5b"
BIASES = {"q_bias": roles.QUERY, "k_bias": roles.KEY, "v_bias": roles.VALUE}
Above = tuple[nn.Module, ...]  # the modules around one, the nearest first
SHORTCUT = re.compile(r"proj(\.\w+)?")
ALIKE = 0.5  # the part of the names in two elements that they share


def read_structure(module: nn.Module, shapes_alone: bool, head_size: int = 0) -> Network:
    """The network in default mode: its blocks and runs of layers, and the layers' tensors in state-dict order."""
    # First the tree of modules, then what neighbours tell of each other (`in_context`), then the blocks. Facts of
    # neighbours need all layers in a row, and what is a block needs to know which layers are matrices.
    walk = _Walk(shapes_alone, head_size)
    root = walk.node("", "", module) or _Node("", "")
    told = iter(in_context([layer for node in root.leaves for layer in node.own], shapes_alone))
    for node in root.leaves:
        node.own = [next(told) for _ in node.own]
    _find_stem(root)
    elements = list(_elements(root))
    if any(not block.run for block in elements):  # without a block, a run would be the whole network
        elements = list(_runs(elements))
    layers = [layer for node in root.leaves for layer in node.own]
    order = {}
    if walk.displaced:
        layers += [layer for node in walk.again for leaf in node.leaves for layer in leaf.own]
        order = {path: place for place, path in enumerate(nn.Module.state_dict(module, keep_vars=True))}
    blocks = leveled(elements, layers, module, walk.doublings)
    return merged(Network(Architecture(type(module).__name__, blocks, structured=True), layers, order))


class _once:
    """A property that is computed when it is first asked for: functools' cached_property without its lock."""

    def __init__(self, find: Callable):
        self.find = find

    def __get__(self, node: _Node, cls: type) -> Any:
        found = node.__dict__[self.find.__name__] = self.find(node)
        return found


@lru_cache(maxsize=2**14)
def _before_number(key: str) -> str | None:
    """The part of a name before the number at its end; None if there is no number at its end."""
    numbered = NUMBERED.fullmatch(key)
    return numbered and numbered[1]


@lru_cache(maxsize=2**16)
def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)


class _Node:
    """A module, or a bare parameter of a module. Modules without tensors have no node.

    A node has `children`, or `own` layers. `counted` is the number of matrices and convolutions in the node, `vectors`
    the number of layers that are vectors, as norms are.
    """

    counted = vectors = 0
    is_open = False  # whether a node's children are looked at, though it holds no list of blocks

    def __init__(self, key: str, name: str, children: Sequence[_Node] = (), own: Sequence[LayerTensors] = ()):
        self.key, self.name, self.children, self.own = key, name, children, own
        if children:
            self.below: list[_Node] = []
            for child in children:
                self.below += child.leaves
                self.counted += child.counted
                self.vectors += child.vectors
        for layer in own:
            plain = layer.plain
            if plain.kind != CONSTANT:
                rank = len(plain.shape)
                if rank == 1 or plain.kind == "Norm":  # which may be (1, C, 1, 1)
                    self.vectors += 1
                elif rank > 1 and plain.kind != "Parameter":
                    self.counted += 1

    @property
    def leaves(self) -> list[_Node]:
        """The nodes inside that hold tensors themselves, or this node."""
        # `below` never holds the node itself: Python frees cycles late, and a node holds tensors.
        return self.below if self.children else [self]

    @_once
    def layers(self) -> list[Layer]:
        return [layer.plain for leaf in self.leaves for layer in leaf.own if layer.plain.kind != CONSTANT]

    @_once
    def names(self) -> frozenset[str]:
        """The names of the layers inside, without the node's own name and without numbers."""
        start = len(self.name) + 1
        return frozenset([_without_numbers(leaf.name[start:]) for leaf in self.leaves])

    @_once
    def lists(self) -> list[list[_Node]]:
        """The lists of alike elements in this node, wherever nested."""
        # Libraries number their blocks in many ways ("3", "layer3", "Mixed_5b"), and number other things too. Children
        # are one list if their names are the same but for the number and two neighbours hold alike names, or two with
        # one between them: attentions and feed-forward networks may alternate. The first block of a stage may have a
        # shortcut that the others lack, and two different modules may have numbers.
        inside = [child for child in self.children if child.counted > 1]  # an element, or what holds elements
        if not inside or not any(child.children for child in self.children):
            return []  # elements are more than single layers
        groups: dict[str, list[_Node]] = {}  # by the part of the name before the number
        for child in inside:
            if (before := _before_number(child.key)) is not None:
                groups.setdefault(before, []).append(child)
        # In an element of a list, two numbered parts are parts of a block: GhostNet's "ghost1" and "ghost2", a
        # Conformer's "ffn1" and "ffn2". Were they blocks, the block around them would fall apart. Three or more are
        # blocks inside of a stage that has a number, as RDNet's are.
        if self.key.isdigit():
            groups = {before: group for before, group in groups.items() if not before or len(group) > 2}
        own = [group for group in groups.values() if _repeats(group)]
        return own + [group for child in inside for group in child.lists]

    @_once
    def is_container(self) -> bool:
        """Does the node hold blocks, so that it is not a block itself?

        The experts of a mixture and the parts of a layer repeat too. They have no norms of their own, and the layer
        around them has: so they are not blocks.
        """
        return any(map(_is_list_of_one, self.children)) or any(
            any(element.vectors for element in group) or not self.vectors for group in self.lists
        )

    @_once
    def has_list_of_one(self) -> bool:
        """Is there a list of one block in the node, wherever nested?"""
        return any(_is_list_of_one(child) or child.has_list_of_one for child in self.children)

    @_once
    def is_numbered(self) -> bool:
        return _before_number(self.key) is not None


class _Walk:
    """One walk through the tree of modules.

    With `shapes_alone`, kinds follow from shapes alone. `head_size` is the size of an attention's head, 0 if unknown.
    """

    def __init__(self, shapes_alone: bool, head_size: int):
        self.shapes_alone, self.head_size = shapes_alone, head_size
        self.seen: set[int] = set()  # by id: modules may have an equality of their own
        self.again: list[_Node] = []  # modules under their other names: each is one layer or block, under its first
        self.enlarged = 0  # how often the picture is doubled right before the next leaf
        self.doublings: dict[str, int] = {}  # of pictures, by the first layer after them
        self.displaced = False  # does a tensor stand elsewhere than in the order of the state dict?

    def node(self, key: str, name: str, module: nn.Module, above: Above = ()) -> _Node | None:
        """The node of a module; `above` are the modules around, the nearest first."""
        inside = module._modules
        if not inside or known_class(module):
            return self.leaf(key, name, module, above)
        prefix, children, around = f"{name}." if name else "", [], (module, *above)
        for child_key, child in inside.items():
            if child is None or not (child._parameters or child._modules or child._buffers or packs(type(child))):
                if isinstance(child, nn.Upsample):
                    self.enlarged += _doublings(child)
                continue  # such as an activation
            if id(child) in self.seen:
                self.once_more(child_key, prefix + child_key, child, around)
                continue
            self.seen.add(id(child))
            if found := self.node(child_key, prefix + child_key, child, around):
                children.append(found)
        if not children:
            return self.leaf(key, name, module, above)
        if len(children) == 1 and children[0].key == CHAINS and (self.shapes_alone or chains(module)):
            return self.leaf(key, name, module, above)
        if name:
            _tell_roles(children, around)
        if not (module._parameters or module._buffers):
            return _Node(key, name, children)
        own = _bare(self.with_biases(children, own_tensors(module), prefix))
        bare = [self.leaf(stem, prefix + stem, module, around, tensors) for stem, tensors in own.items()]
        return _Node(key, name, [*filter(None, bare), *children])

    def once_more(self, key: str, name: str, module: nn.Module, above: Above) -> None:
        """Take down the other names of a module that the walk has seen: the state dict has them too."""
        walk = _Walk(self.shapes_alone, self.head_size)
        if found := walk.node(key, name, module, above):
            self.again += [found, *walk.again]
            self.displaced = True

    def leaf(
        self, key: str, name: str, module: nn.Module, above: Above, bare: dict[str, Tensor] | None = None
    ) -> _Node | None:
        try:
            own = layers_of(module, name, self.shapes_alone, above, bare, self.head_size)
        except (RuntimeError, ValueError) as error:  # a lazy tensor has no shape, and raises where it is asked for one
            if any(map(is_lazy, (*module.parameters(), *module.buffers()))):
                raise without_shape(name) from error
            raise
        if own and self.enlarged:
            self.doublings[own[0].name], self.enlarged = self.enlarged, 0
        return _Node(key, name, own=own) if own else None

    def with_biases(self, children: list[_Node], own: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """The tensors that a module holds itself, without biases that belong to its projections.

        BEiT stores the biases of query and value beside the stacked `qkv`, which has no bias: they go to its layers.
        """
        biases = {key: BIASES[key] for key in own if key in BIASES}
        if not biases:
            return own
        left = dict(own)
        for leaf in (leaf for child in children for leaf in child.leaves):
            for place, layer in enumerate(leaf.own):
                key = next((key for key, role in biases.items() if role == layer.role and key in left), None)
                if key and "bias" not in layer.tensors:
                    tensor = left.pop(key)
                    views = {**layer.views, "bias": View(prefix + key, key, tensor)}
                    leaf.own[place] = layer._replace(tensors={**layer.tensors, "bias": tensor}, views=views)
                    self.displaced = True
        return left


def _tell_roles(children: list[_Node], above: Above) -> None:
    """Give the matrices of a module the roles that only all of them together tell."""
    places = []
    for child in children:
        if child.counted:
            if child.counted > 1 and child.children:
                return
            for leaf in child.leaves:  # the matrix of a child may have a norm beside it
                if leaf.counted:
                    places += [(leaf, place) for place, layer in enumerate(leaf.own) if len(layer.plain.shape) > 1]
    layers = [leaf.own[place] for leaf, place in places]
    if len(layers) < 2 or all(layer.plain.role for layer in layers):
        return
    told = roles_of_a_module([layer.plain for layer in layers])
    for (leaf, place), layer, role in zip(places, layers, told, strict=True):
        if role != layer.plain.role:
            leaf.own[place] = with_role(layer, role, above)


def _doublings(module: nn.Upsample) -> int:
    """How often a module doubles its picture; 0 where it does not say."""
    factor = module.scale_factor
    factor = max(factor) if isinstance(factor, tuple) else factor
    return round(log2(factor)) if factor else 0


def _is_list_of_one(node: _Node) -> bool:
    """Is a module a list of one block?"""
    return len(node.children) == 1 and node.children[0].key.isdigit() and node.children[0].counted > 1


def _bare(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The layers of a module's own tensors: "in_proj_weight" and "in_proj_bias" are one, any other tensor is one."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        stem, _, last = key.rpartition("_")
        paired = stem and last in ("weight", "bias") and {f"{stem}_weight", f"{stem}_bias"} <= tensors.keys()
        found.setdefault(stem if paired else key, {})[key] = tensor
    return found


def _alike(a: _Node, b: _Node) -> bool:
    shared = len(a.names & b.names)
    return shared >= ALIKE * (len(a.names) + len(b.names) - shared)


def _repeats(group: Sequence[_Node]) -> bool:
    """Are two neighbours alike, or two with one between them?"""
    return any(_alike(a, b) for a, b in [*pairwise(group), *zip(group, group[2:], strict=False)])


def _find_stem(root: _Node) -> None:
    """Mark the module that the network begins with, if its name has a number and no module beside it is alike.

    ResNet-D's "conv1" holds three convolutions. As a block it would match the source's first block, and the network's
    first convolution would stay random.
    """
    node = root
    while following := next((child for child in node.children if child.counted), None):
        before = _before_number(following.key)
        alike = (_alike(following, child) for child in node.children if child is not following)
        following.is_open = bool(before) and not any(alike)
        node = following


def _elements(node: _Node) -> Iterator[Block]:
    """The blocks of a network and the single layers between them, in order."""
    # A node is opened if it holds blocks, or if nothing says that it is one: without a number in its name, two
    # convolutions in a module are a stem or a head as often as a block.
    if node.children and (node.is_container or node.is_open or not (node.is_numbered and node.counted > 1)):
        stages = [child for child in node.children if child.is_numbered and child.is_container]
        for child in node.children if stages else ():
            if not child.is_container and child.has_list_of_one:  # a stage of one block, beside stages of several
                child.is_open |= any(_alike(child, stage) for stage in stages)
        for child in node.children:
            yield from _elements(child)
    elif node.children:
        while len(node.children) == 1 and node.children[0].children:  # a stage of one block
            node = node.children[0]
        start = len(node.name) + 1
        layers = [_in_block(layer, start) if "proj" in layer.name else layer for layer in node.layers]
        yield Block(node.name, tuple(layers))
    else:
        for place, layer in enumerate(node.own):
            if layer.plain.role == roles.SHORTCUT:  # a "downsample" between blocks is the only way, not a shortcut
                node.own[place] = layer._replace(plain=layer.plain._replace(role=""))
            if layer.plain.kind != CONSTANT:
                yield Block(layer.name, (node.own[place].plain,), run=True)


def _in_block(layer: Layer, start: int) -> Layer:
    """The layer of a block: "proj" is the name of a shortcut in a block alone. Its name there begins at `start`."""
    if len(layer.shape) not in (1, 4) or not SHORTCUT.fullmatch(layer.name, start):
        return layer
    return layer._replace(role=roles.SHORTCUT)


def _runs(elements: list[Block]) -> Iterator[Block]:
    """The blocks, and the single layers between two of them as one run."""
    run: list[Layer] = []
    for block in [*elements, None]:
        if block is not None and block.run:
            run += block.layers
            continue
        if run:
            yield Block(_shared_path([layer.name for layer in run]), tuple(run), run=True)
            run = []
        if block is not None:
            yield block


def _shared_path(names: list[str]) -> str:
    """The name of the smallest module that holds all these layers; "" for the network."""
    paths = [name.split(".")[:-1] for name in names]
    alike = [len(set(words)) == 1 for words in zip(*paths, strict=False)]
    return ".".join(paths[0][: [*alike, False].index(False)])
