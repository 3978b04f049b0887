"""A network as the graph of its operations that GHN-2 reads: kinds, shapes of parameters, and who feeds whom.

The graph is that of autograd, as in the GHN-2 paper (2110.13100): it needs no more of a network than that it can be
run, whatever its code looks like, and the published checkpoints learned from graphs of that origin. torch.fx would fail
where code depends on values, and hooks do not see additions.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.settings import UserError, first_line

# The order is that of the rows of a checkpoint's embedding. Attention and positions are not looked for: networks that
# have them are not GHN-2's to predict here.
KINDS = (
    *("max_pool", "avg_pool", "sep_conv", "dil_conv", "conv", "msa", "cse", "sum", "concat", "input", "bias", "bn"),
    *("ln", "pos_enc", "glob_avg"),
)
LONGEST = 50  # of the shortest paths that count as virtual edges (section 4.1)


@dataclass(frozen=True)
class Node:
    """One operation, or one of the two parameters of an operation: its weight, then its bias.

    A norm is one node for both, of which `name` and `bias` are the parameters.
    """

    kind: str
    inputs: tuple[int, ...]  # indices of earlier nodes
    shape: tuple[int, ...] | None = None  # of the parameter; (1, 1, height, width) of a pooling; None without
    name: str = ""  # of the parameter in the network, "" without
    bias: str = ""


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which each comes after its inputs."""

    nodes: tuple[Node, ...]

    @property
    def classifier(self) -> tuple[str, str]:
        """The names of the weight and the bias that a network ends with; ("", "") if that is no linear layer."""
        weight, bias = self.nodes[-2:] if len(self.nodes) > 1 else self.nodes * 2
        ends = bias.kind == "bias" and bias.inputs == (len(self.nodes) - 2,) and len(weight.shape) == 2
        return (weight.name, bias.name) if ends else ("", "")

    def distances(self) -> Tensor:
        """Lengths of the shortest paths, (n, n): from the column's node to the row's; 0 for none, or one too long."""
        n = len(self.nodes)
        lengths = torch.full((n, n), torch.inf)
        for v, node in enumerate(self.nodes):
            if node.inputs:
                lengths[v] = lengths[list(node.inputs)].amin(0) + 1
            lengths[v, v] = 0
        return lengths.where(lengths <= LONGEST, 0)


def trace(network: nn.Module, image_size: int) -> Graph:
    """The graph of a network that takes (n, 3, image_size, image_size); the network is not changed.

    Traced in eval mode, where there is no dropout and one image suffices for batch norms; on the network's own device,
    meta too. Raises UserError for a network whose parameters GHN-2 cannot predict.
    """
    network = deepcopy(network).eval().requires_grad_()
    names = {id(p): name for name, p in network.named_parameters()}
    if not names:
        raise UserError("GHN-2 has nothing to predict: the network has no parameters")
    device = next(network.parameters()).device
    # An image that requires a gradient is in the graph itself, so that what depends on parameters alone can be told.
    image = torch.zeros(1, 3, image_size, image_size, device=device, requires_grad=True)
    try:
        with torch.enable_grad():
            output = network(image)
    except Exception as error:  # whatever a user's network raises
        raise UserError(f"GHN-2 cannot follow the network on {image_size} px: {first_line(error)}") from error
    if not isinstance(output, Tensor) or output.grad_fn is None:
        raise UserError("GHN-2 cannot follow the network: its output is no tensor that depends on parameters")
    graph = _Builder(network, names).build(output)
    predicted = {name for node in graph.nodes for name in (node.name, node.bias)}
    if missing := [name for name in names.values() if name not in predicted]:
        raise UserError(f"GHN-2 cannot predict {missing[0]}: the network's output does not depend on it")
    return graph


def _functions(output: Tensor) -> Iterable[Any]:
    """Every function behind an output, each after those whose results it takes."""
    stack, seen = [(output.grad_fn, False)], set()
    while stack:
        function, inputs_done = stack.pop()
        if inputs_done:
            yield function
        elif function not in seen:
            seen.add(function)
            stack.append((function, True))
            stack += [(each, False) for each in _inputs(function)]


def _inputs(function: Any) -> list[Any]:
    return [each for each, _ in function.next_functions if each is not None]


class _Builder:
    """Goes through autograd's functions and keeps, for each, the nodes whose results it hands on.

    A function that is no operation for GHN-2, such as an activation or a reshape, hands on what it takes.
    """

    def __init__(self, network: nn.Module, names: dict[int, str]):
        self.names = names
        self.owners = {id(p): m for m in network.modules() for p in m.parameters(recurse=False)}
        self.nodes: list[Node] = []

    def build(self, output: Tensor) -> Graph:
        ends: dict[Any, tuple[int, ...]] = {}  # function -> nodes whose results it hands on
        own: dict[Any, tuple[Tensor, ...]] = {}  # function -> parameters, if it depends on them alone (a transposition)
        for function in _functions(output):
            inputs = _inputs(function)
            if hasattr(function, "variable"):
                known = id(function.variable) in self.names
                own[function] = (function.variable,) if known else ()
                ends[function] = () if known else self._add(Node("input", ()))
                continue
            parameters = _unique(p for each in inputs for p in own[each])
            taken = _unique(node for each in inputs for node in ends[each])
            own[function], ends[function] = (parameters, ()) if not taken else ((), taken)
            if taken and parameters:
                ends[function] = self._layer(parameters, taken)
            elif kind := _kind(function, taken):
                ends[function] = self._add(Node(kind, taken, _pooled(function)))
        if not ends[output.grad_fn]:
            raise UserError("GHN-2 cannot follow the network: its output does not depend on the image")
        return Graph(tuple(self.nodes))

    def _add(self, node: Node) -> tuple[int]:
        self.nodes.append(node)
        return (len(self.nodes) - 1,)

    def _layer(self, parameters: tuple[Tensor, ...], taken: tuple[int, ...]) -> tuple[int]:
        """The nodes of a layer: its weight, which takes the inputs, then its bias, which takes the weight's result."""
        found = {self.names[id(p)].rpartition(".")[2]: p for p in parameters}
        owners = {id(self.owners[id(p)]): self.owners[id(p)] for p in parameters}
        kind = _layer_kind(next(iter(owners.values())))
        if kind is None or len(owners) > 1 or not {"weight"} <= set(found) <= {"weight", "bias"}:
            other = next((p for key, p in found.items() if key not in ("weight", "bias")), parameters[0])
            name, owner = self.names[id(other)], type(self.owners[id(other)]).__name__
            known = "its layers are convolutions of images, linear layers, batch norms and layer norms"
            raise UserError(f"GHN-2 cannot predict {name}, a parameter of {owner}: {known}")
        names = {key: self.names[id(p)] for key, p in found.items()}
        shape, bias = tuple(found["weight"].shape), names.get("bias", "")
        if kind in ("bn", "ln"):
            return self._add(Node(kind, taken, shape, names["weight"], bias))
        end = self._add(Node(kind, taken, shape, names["weight"]))
        return self._add(Node("bias", end, tuple(found["bias"].shape), bias)) if bias else end


def _unique(items: Iterable[Any]) -> tuple[Any, ...]:
    """Each once, in order; tensors by identity."""
    return tuple({id(item) if isinstance(item, Tensor) else item: item for item in items}.values())


def _layer_kind(module: nn.Module) -> str | None:
    """By what a module is, not by its exact class: timm's layers are subclasses."""
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return "dil_conv" if min(module.dilation) > 1 else "sep_conv"
    kinds = ((nn.Conv2d, "conv"), (nn.Linear, "conv"), (nn.BatchNorm2d, "bn"), (nn.LayerNorm, "ln"))
    return next((kind for cls, kind in kinds if isinstance(module, cls)), None)


def _kind(function: Any, taken: tuple[int, ...]) -> str | None:
    """The kind of an operation without parameters; None if GHN-2 does not see it."""
    operation = function.name().partition("Backward")[0]
    if operation in ("Add", "Cat"):  # not of a constant
        return {"Add": "sum", "Cat": "concat"}[operation] if len(taken) > 1 else None
    if operation == "Mean":
        return "glob_avg" if function._saved_keepdim else None
    if operation == "Mul":  # a squeeze-excite, if its gate is the one of the networks that GHN-2 learned from
        gates = [each for view in _inputs(function) if view.name().startswith("View") for each in _inputs(view)]
        return "cse" if any(gate.name().startswith("Hard") for gate in gates) else None
    kinds = {"MaxPool2DWithIndices": "max_pool", "AvgPool2D": "avg_pool", "AdaptiveAvgPool2D": "glob_avg"}
    return kinds.get(operation)


def _pooled(function: Any) -> tuple[int, ...] | None:
    """The shape that stands for a pooling."""
    size = getattr(function, "_saved_kernel_size", None)
    return size and (1, 1, *size, *size)[:4]
