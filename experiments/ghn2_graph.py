"""The graph of a network's operations, which GHN-2 reads: kinds of operations, shapes of parameters, and edges.

The graph comes from autograd, as in the GHN-2 paper (2110.13100), so that any network that runs has a graph. The
published checkpoints learned from such graphs. torch.fx would fail where code depends on values, and hooks would not
see additions.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.settings import UserError, first_line

# The order is the order of the rows in a checkpoint's embedding. "msa" (attention) and "pos_enc" (positions) keep their
# rows, but no operation is recognized as one of them: networks with attention are not predicted here.
KINDS = (
    *("max_pool", "avg_pool", "sep_conv", "dil_conv", "conv", "msa", "cse", "sum", "concat", "input", "bias", "bn"),
    *("ln", "pos_enc", "glob_avg"),
)
LONGEST = 50  # edges; longer shortest paths do not count as virtual edges (section 4.1)


@dataclass(frozen=True)
class Node:
    """One operation, or one of the two parameters of an operation: its weight, then its bias.

    A norm is one node for both parameters, `name` and `bias`.
    """

    kind: str
    inputs: tuple[int, ...]  # indices of earlier nodes
    shape: tuple[int, ...] | None = None  # the parameter's; (1, 1, height, width) for a pooling; else None
    name: str = ""  # the parameter's name in the network; "" without a parameter
    bias: str = ""  # the name of a norm's second parameter


@dataclass(frozen=True)
class Graph:
    """The nodes, each after its inputs."""

    nodes: tuple[Node, ...]

    @property
    def classifier(self) -> tuple[str, str]:
        """The names of the weight and the bias of the last layer; ("", "") if the network ends with another layer."""
        weight, bias = self.nodes[-2:] if len(self.nodes) > 1 else self.nodes * 2
        ends = bias.kind == "bias" and bias.inputs == (len(self.nodes) - 2,) and len(weight.shape) == 2
        return (weight.name, bias.name) if ends else ("", "")

    def distances(self) -> Tensor:
        """Return the lengths of shortest paths from column to row, (n, n); 0 for no path, or one over LONGEST."""
        n = len(self.nodes)
        lengths = torch.full((n, n), torch.inf)
        for v, node in enumerate(self.nodes):
            if node.inputs:
                lengths[v] = lengths[list(node.inputs)].amin(0) + 1
            lengths[v, v] = 0
        return lengths.where(lengths <= LONGEST, 0)


def trace(network: nn.Module, image_size: int) -> Graph:
    """Trace the graph of a network. The network is not changed.

    The trace runs on the network's device, which may be meta, and in eval mode: there is no dropout, and one image
    suffices for batch norms.

    Args:
        network: Takes images (n, 3, image_size, image_size).
        image_size: The side of an image, in pixels.

    Raises:
        UserError: The network cannot be run on such images, or has parameters that GHN-2 cannot predict.
    """
    network = deepcopy(network).eval().requires_grad_()
    names = {id(p): name for name, p in network.named_parameters()}
    if not names:
        raise UserError("GHN-2 has nothing to predict: the network has no parameters")
    device = next(network.parameters()).device
    # The image requires a gradient, so that it is in the graph too. A function that depends on parameters alone, as a
    # transposed weight does, can then be told from an operation on images.
    image = torch.zeros(1, 3, image_size, image_size, device=device, requires_grad=True)
    try:
        with torch.enable_grad():
            output = network(image)
    except Exception as error:  # whatever a user's network raises
        raise UserError(f"GHN-2 cannot follow the network on {image_size} px: {first_line(error)}") from error
    if not isinstance(output, Tensor) or output.grad_fn is None:
        raise UserError("GHN-2 cannot follow the network: its output is not a tensor that depends on parameters")
    graph = _GraphBuilder(network, names).build(output)
    predicted = {name for node in graph.nodes for name in (node.name, node.bias)}
    if missing := [name for name in names.values() if name not in predicted]:
        raise UserError(f"GHN-2 cannot predict {missing[0]}: the network's output does not depend on it")
    return graph


def _functions(output: Tensor) -> Iterable[Any]:
    """Yield every function behind an output, each after the functions whose results it takes."""
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


class _GraphBuilder:
    """Goes through autograd's functions and makes nodes of the operations that GHN-2 knows."""

    # GHN-2 does not know activations and reshapes. Such a function hands on what it takes: `ends` has for each function
    # the nodes whose results it hands on, which are the inputs of the next node. A weight may reach its layer through
    # functions too (a transposition, a cast): `own` has for each function the parameters that it depends on, as long as
    # it depends on nothing else. The first function that takes both, a parameter and a node, is the layer.

    def __init__(self, network: nn.Module, names: dict[int, str]):
        self.names = names
        self.owners = {id(p): m for m in network.modules() for p in m.parameters(recurse=False)}
        self.nodes: list[Node] = []

    def build(self, output: Tensor) -> Graph:
        ends: dict[Any, tuple[int, ...]] = {}
        own: dict[Any, tuple[Tensor, ...]] = {}
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
        """Add the nodes of a layer: its weight, which takes the inputs, then its bias, which takes the weight's."""
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
    """Return each item once, in order. Tensors are compared by identity."""
    return tuple({id(item) if isinstance(item, Tensor) else item: item for item in items}.values())


def _layer_kind(module: nn.Module) -> str | None:
    """Return the kind of a layer, or None. timm's layers are subclasses of torch's, so that isinstance decides."""
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return "dil_conv" if min(module.dilation) > 1 else "sep_conv"
    kinds = ((nn.Conv2d, "conv"), (nn.Linear, "conv"), (nn.BatchNorm2d, "bn"), (nn.LayerNorm, "ln"))
    return next((kind for cls, kind in kinds if isinstance(module, cls)), None)


def _kind(function: Any, taken: tuple[int, ...]) -> str | None:
    """Return the kind of an operation without parameters, or None if GHN-2 does not know the operation."""
    operation = function.name().partition("Backward")[0]
    if operation in ("Add", "Cat"):  # with a single node, something constant is added
        return {"Add": "sum", "Cat": "concat"}[operation] if len(taken) > 1 else None
    if operation == "Mean":
        return "glob_avg" if function._saved_keepdim else None
    if operation == "Mul":  # a squeeze-excite only with a hard gate, as in the networks that GHN-2 learned from
        gates = [each for view in _inputs(function) if view.name().startswith("View") for each in _inputs(view)]
        return "cse" if any(gate.name().startswith("Hard") for gate in gates) else None
    kinds = {"MaxPool2DWithIndices": "max_pool", "AvgPool2D": "avg_pool", "AdaptiveAvgPool2D": "glob_avg"}
    return kinds.get(operation)


def _pooled(function: Any) -> tuple[int, ...] | None:
    """Return the shape that stands for a pooling, or None."""
    size = getattr(function, "_saved_kernel_size", None)
    return size and (1, 1, *size, *size)[:4]
