"""GHN-2 (Knyazev et al., 2110.13100): a graph neural network that predicts all parameters of a network from its graph.

    embed kinds and shapes -> pass messages along the graph, forward and backward -> decode a tensor for each node
                           -> tile or slice it to the parameter's shape -> scale it by fan-in

The modules have the names that the published checkpoints use, `ghn2_cifar10.pt` and `ghn2_imagenet.pt`, so that these
load. Batch-norm statistics are not predicted. A network keeps the statistics that it was built with, and its first
epoch estimates them, as after random init.
"""

from __future__ import annotations

import io
import pickle
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.datasets import IMAGENET_CLASSES
from experiments.ghn2_graph import KINDS, Graph, Node, trace
from experiments.settings import UserError

# What makes a graph hypernetwork a GHN-2, and not one of those that the paper compares GHN-2 with.
CONFIG = {"hypernet": "gatedgnn", "decoder": "conv", "weight_norm": True, "ve": True, "layernorm": True}
PUBLISHED = {10: "CIFAR10", IMAGENET_CLASSES: "ImageNet"}  # the data of the published checkpoints, by classes


class MLP(nn.Module):
    """Two linear layers with a ReLU between them, and a last ReLU unless the output is parameters."""

    def __init__(self, inputs: int, hidden: int, outputs: int, last_relu: bool = True):
        super().__init__()
        last = [nn.ReLU()] if last_relu else []
        self.fc = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs), *last)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class ShapeEncoder(nn.Module):
    """Embeds a shape (out, in, height, width) as four vectors side by side. The last row of a table means no shape."""

    def __init__(self, hidden: int, classes: int, largest_kernel: int):
        super().__init__()
        steps = (range(8, 64, 8), range(64, 4096, 16), range(4096, 8193, 32))
        self.channels = tuple(sorted({1, 3, classes, *(n for step in steps for n in step)}))
        self.sides = tuple(sorted({*range(1, max(12, largest_kernel), 2), 14, 16}))
        self.embed_spatial = nn.Embedding(len(self.sides) + 1, hidden // 4)
        self.embed_channel = nn.Embedding(len(self.channels) + 1, hidden // 4)

    def forward(self, shapes: list[tuple[int, ...] | None]) -> Tensor:
        rows = torch.tensor([self._rows(shape) for shape in shapes], device=self.embed_channel.weight.device)
        tables = (self.embed_channel, self.embed_channel, self.embed_spatial, self.embed_spatial)
        return torch.cat([table(rows[:, axis]) for axis, table in enumerate(tables)], dim=1)  # (n, hidden)

    def _rows(self, shape: tuple[int, ...] | None) -> tuple[int, ...]:
        if shape is None:
            return len(self.channels), len(self.channels), len(self.sides), len(self.sides)
        out, inputs, height, width = (*shape, 1, 1, 1)[:4]
        channels = (_nearest(self.channels, 8 if 3 < n < 8 else n) for n in (out, inputs))
        return *channels, *(_nearest(self.sides, 3 if n == 2 else n) for n in (height, width))


@cache  # a network has few sizes, and the list is long
def _nearest(values: tuple[int, ...], wanted: int) -> int:
    """Return the index of the nearest value; of two that are as near, the index of the smaller value."""
    return min(range(len(values)), key=lambda index: (abs(values[index] - wanted), values[index]))


class GatedGNN(nn.Module):
    """One sweep along the edges and one sweep against them (Eq. 3, 4 of the paper).

    A node is updated once in a sweep, after the nodes that it hears from:
    h_v <- GRU(sum over neighbours u of MLP(h_u) + sum over nodes u with a path to v of MLP_ve(h_u) / its length, h_v).
    """

    def __init__(self, hidden: int):
        super().__init__()
        self.mlp = MLP(hidden, hidden // 2, hidden)
        self.mlp_ve = MLP(hidden, hidden // 2, hidden)
        self.gru = nn.GRUCell(hidden, hidden)

    def forward(self, h: Tensor, distances: Tensor) -> Tensor:
        """Update the states `h`, (n, hidden), by the lengths of paths in `distances`, (n, n)."""
        near = (distances == 1).to(h)  # (to, from)
        far = torch.where(distances > 0, 1 / distances, 0).to(h)
        h = self._sweep(h, near, far)
        return self._sweep(h.flip(0), near.T.flip(0, 1), far.T.flip(0, 1)).flip(0)

    def _sweep(self, h: Tensor, near: Tensor, far: Tensor) -> Tensor:
        """Update the nodes one after the other. `near` and `far` are zero on and above the diagonal."""
        states, messages, virtual = [], [], []
        for v, state in enumerate(h.split(1)):
            heard = torch.zeros_like(state)
            if v:
                heard = near[v : v + 1, :v] @ torch.cat(messages) + far[v : v + 1, :v] @ torch.cat(virtual)
            states.append(self.gru(heard, state))
            messages.append(self.mlp(states[-1]))
            virtual.append(self.mlp_ve(states[-1]))
        return torch.cat(states)


class Decoder(nn.Module):
    """Turns the state of a node into a weight of at most `largest` (out, in, height, width), or a classifier's."""

    def __init__(self, hidden: int, largest: tuple[int, ...], classes: int):
        super().__init__()
        self.largest = largest
        outputs, inputs, height, width = largest
        self.fc = nn.Sequential(nn.Linear(hidden, 4 * hidden * height * width), nn.ReLU())
        convolutions = nn.Conv2d(4 * hidden, 8 * hidden, 1), nn.Conv2d(8 * hidden, outputs * inputs, 1)
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1])
        self.class_layer_predictor = nn.Sequential(nn.ReLU(), nn.Conv2d(outputs, classes, 1))

    def forward(self, h: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        """Decode states (n, hidden) into weights (n, *shape): the leading corner of the largest weight."""
        # Only the leading corner of the largest weight is used, so the rows of the linear layers that lead outside of
        # the corner are left out: the same values in a fraction of the time and memory.
        outputs, inputs, height, width = shape
        grid = torch.arange(self.fc[0].out_features, device=h.device).view(-1, *self.largest[2:])
        used = grid[:, :height, :width].flatten()
        x = F.linear(h, self.fc[0].weight[used], self.fc[0].bias[used]).relu().view(len(h), -1, height, width)
        pairs = torch.arange(self.conv[2].out_channels, device=h.device).view(self.largest[:2])
        used = pairs[:outputs, :inputs].flatten()
        x = self.conv[1](self.conv[0](x))
        return F.conv2d(x, self.conv[2].weight[used], self.conv[2].bias[used]).view(len(h), *shape)

    def classifier(self, h: Tensor, inputs: int) -> Tensor:
        """Decode states (n, hidden) into the weights of classifiers, (n, classes, inputs)."""
        x = self(h, (self.largest[0], inputs, 1, 1))
        return self.class_layer_predictor(x[..., 0])[..., 0]


class GHN2(nn.Module):
    """A graph hypernetwork.

    Args:
        classes: The number of classes of the networks that it predicts.
        largest: The largest weight that is decoded, (out, in, height, width).
        hidden: The size of a node's state.
    """

    def __init__(self, classes: int, largest: tuple[int, ...] = (64, 64, 16, 16), hidden: int = 32):
        super().__init__()
        self.largest = largest
        vector = max(largest[:2])
        self.embed = nn.Embedding(len(KINDS), hidden)
        self.shape_enc = ShapeEncoder(hidden, classes, largest[3])
        self.gnn = GatedGNN(hidden)
        self.ln = nn.LayerNorm(hidden)
        self.decoder = Decoder(hidden, largest, classes)
        self.decoder_1d = MLP(hidden, 2 * hidden, 2 * vector, last_relu=False)
        self.bias_class = nn.Sequential(nn.ReLU(), nn.Linear(vector, classes))

    def forward(self, graph: Graph) -> dict[str, Tensor]:
        """Predict every parameter of a network from its graph: tensors by name, with gradients.

        Raises UserError for a kernel that is larger than the decoder's.
        """
        decoders = self.decoders(graph)
        h, found = self.states(graph), {}  # (n, hidden)
        for (decoder, *shape), indices in decoders.items():
            decoded = getattr(self, decoder)(h[indices], *shape)
            for node, tensor in zip((graph.nodes[index] for index in indices), decoded, strict=True):
                if len(node.shape) > 1:
                    found[node.name] = scaled(tiled(tensor, node.shape))
                    continue
                weight, bias = (tiled(row, node.shape) for row in tensor)  # a node that is a bias uses the second half
                if node.kind == "bias":
                    found[node.name] = torch.tanh(bias / 5)
                    continue
                found[node.name] = 2 * torch.sigmoid(weight / 2)
                if node.bias:
                    found[node.bias] = torch.tanh(bias / 5)
        return found

    def states(self, graph: Graph) -> Tensor:
        """Compute the states that the decoders read, (n, hidden)."""
        device = self.embed.weight.device
        kinds = torch.tensor([KINDS.index(node.kind) for node in graph.nodes], device=device)
        h = self.embed(kinds) + self.shape_enc([node.shape for node in graph.nodes])
        return self.ln(self.gnn(h, graph.distances().to(device)))

    def decoders(self, graph: Graph) -> dict[tuple[Any, ...], list[int]]:
        """Group the nodes that have parameters by their decoder, and by the shape that is decoded.

        Raises UserError as `forward` does.
        """
        classifier, found = graph.classifier, defaultdict(list)
        for index, node in enumerate(graph.nodes):
            if node.name:
                found[self._decoder(node, node.name in classifier)].append(index)
        return found

    def _decoder(self, node: Node, classifies: bool) -> tuple[Any, ...]:
        if len(node.shape) == 1:
            return ("class_vectors" if classifies else "vectors",)
        outputs, inputs, *kernel = (*node.shape, 1, 1)[:4]
        if kernel[0] > self.largest[2] or kernel[1] > self.largest[3]:
            limit = "×".join(map(str, self.largest[2:]))
            raise UserError(f"GHN-2 cannot predict {node.name}: its kernel is {kernel[0]}×{kernel[1]}, at most {limit}")
        inputs = min(inputs, self.largest[1])
        if classifies:
            return "class_weights", inputs
        return "weights", (min(outputs, self.largest[0]), inputs, *kernel)

    def weights(self, h: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        """Decode states into weights, (n, *shape)."""
        return self.decoder(h, shape)

    def class_weights(self, h: Tensor, inputs: int) -> Tensor:
        """Decode states into the weights of classifiers, (n, classes, inputs)."""
        return self.decoder.classifier(h, inputs)

    def vectors(self, h: Tensor) -> Tensor:
        """Decode states into a weight and a bias each, (n, 2, channels)."""
        return self.decoder_1d(h).unflatten(1, (2, -1))

    def class_vectors(self, h: Tensor) -> Tensor:
        """Decode states into the biases of classifiers, (n, 2, classes)."""
        return self.bias_class(self.vectors(h))


def tiled(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Cut a predicted tensor to `shape`, or repeat it along channels where the parameter is larger."""
    tensor = tensor.view(tensor.shape[: len(shape)])
    for axis, size in enumerate(shape[:2]):
        tensor = tensor.index_select(axis, torch.arange(size, device=tensor.device) % tensor.shape[axis])
    return tensor


def scaled(weight: Tensor) -> Tensor:
    """Multiply a weight by sqrt(beta / fan-in), where beta makes up for a ReLU after the layer (section 4.2).

    Beta is 2. Beta is 1 for filters of one input channel, which are taken for depthwise layers without a ReLU.
    """
    kernel = weight.shape[2:]
    beta = 1 if kernel and (weight.shape[1] == 1 or kernel[0] < kernel[1]) else 2
    return weight * (beta / weight[0].numel()) ** 0.5


# --- checkpoints ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """A trained GHN-2."""

    ghn: GHN2
    learned: str  # the data set that the GHN-2 learned from


def read(file: Path) -> Checkpoint:
    """Read a published checkpoint, or a checkpoint of `scripts/train_ghn2.py`. Raises UserError for any other file."""
    try:
        content = torch.load(io.BytesIO(file.read_bytes()), map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{file} is not a checkpoint of GHN-2: torch.load finds no tensors in it, or not all"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in ("config", "state_dict")):
        raise UserError(f"{file} is not a checkpoint of GHN-2: it needs config and state_dict")
    return Checkpoint(_network(file, content), str(content.get("learned") or _learned(content["config"])))


def _network(file: Path, content: dict[str, Any]) -> GHN2:
    config = content["config"]
    for key, value in CONFIG.items():
        if config.get(key) != value:
            raise UserError(f"{file} is not a GHN-2: its {key} is {config.get(key)!r}, not {value!r}")
    try:
        largest = tuple(map(int, config["max_shape"]))
        ghn = GHN2(int(config["num_classes"]), largest, int(config.get("hid", 32)))
        ghn.load_state_dict(content["state_dict"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise UserError(f"{file} is not of GHN-2's format: {cause}") from error
    if not all(tensor.isfinite().all() for tensor in ghn.state_dict().values()):
        raise UserError(f"{file} holds values that are not finite")
    return ghn.eval()


def _learned(config: dict[str, Any]) -> str:
    return PUBLISHED.get(config["num_classes"], f"{config['num_classes']} classes")


def to_checkpoint(ghn: GHN2, learned: str) -> dict[str, Any]:
    """Return the content of a checkpoint that `read` and the published code can read."""
    config = CONFIG | {"max_shape": ghn.largest, "hid": ghn.embed.embedding_dim}
    config["num_classes"] = ghn.bias_class[1].out_features
    return {"config": config, "state_dict": ghn.state_dict(), "learned": learned}


@torch.no_grad()
def fill(network: nn.Module, ghn: GHN2, image_size: int) -> None:
    """Overwrite every parameter of a network with what a GHN-2 predicts.

    Args:
        network: Changed in place. Its buffers stay.
        ghn: The GHN-2.
        image_size: The side of the network's input, in pixels, at which its graph is traced.

    Raises:
        UserError: The GHN-2 cannot predict the network.
    """
    predicted = ghn(trace(network, image_size))
    for name, parameter in network.named_parameters():
        parameter.copy_(predicted[name])
