"""Layers of default mode: canonical views of the tensors that a module stores.

A fused `qkv` is three layers, a packed gate two; a Conv1D is seen transposed; "gamma" is a weight. Writing into a view
writes the parameter, and an optimizer's state goes the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from dpiat import roles
from dpiat.architecture import Layer
from dpiat.parametrized import CHAINS
from dpiat.standardization import (
    CONVOLUTIONS,
    DEPTHWISE,
    DIMENSIONS,
    GROUPED,
    NO_VIEWS,
    LayerTensors,
    View,
    is_matrix,
    known_class,
    layer_tensors,
    shape_of,
)
from dpiat.stored import Stored

CONSTANT = "Constant"  # what a network computes from its own settings, such as a sinusoid: no knowledge
RECURRENT = "Recurrent"  # followed by the number of its gates: 4 of an LSTM, 3 of a GRU, 1
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# Names of tensors that stand for the usual ones.
ALIASES = {
    **dict.fromkeys(("gamma", "g", "lambda1", "scale", "kernel"), "weight"),
    **dict.fromkeys(("beta", "b"), "bias"),
}
# Buffers that libraries save and that hold no knowledge, by the ends of their names.
COMPUTED = (
    *("relative_position_index", "relative_coords_table", "attn_mask", "position_ids", "token_type_ids", "inv_freq"),
    *("pe", "masked_bias", "causal_mask", "num_batches_tracked"),
)
OUTPUTS = ("proj", "out_proj", "o_proj", "c_proj", "wo", "o", "out", "dense", "to_out")  # of an attention
BY_HEADS = ("query_key_value",)  # head by head: its query, its key, its value
EXPERTS = "experts"  # ends the name of a module whose tensors stack the experts of a mixture
PACKED = ("gate_up_proj", "w12")  # a gate, and what it lets through
STACKED = roles.GATE, roles.INTO  # in this order
HEADS = ("num_heads", "n_heads", "num_attention_heads", "n_head", "heads", "nhead", "num_query_heads")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_local_kv_heads")
GPT2 = ("c_attn", "c_proj", "c_fc", "q_attn")  # of a kind that stores (in, out)


class HeadCounts(NamedTuple):
    """How many heads an attention has."""

    queries: int
    keys: int


def layers_of(
    module: nn.Module,
    name: str,
    shapes_alone: bool,
    above: Sequence[nn.Module] = (),
    bare: Mapping[str, Tensor] | None = None,
    head_size: int = 0,
) -> list[LayerTensors]:
    """The layers that a module makes with all that is in it, or that its `bare` tensors make; none without tensors.

    `above` are the modules around it, the nearest first. `head_size` is the size of an attention's head where no module
    tells the number of heads, as in a state dict; 0 if unknown.
    """
    # Three steps: the tensors by their usual names, what kind of layer they make, and the layers stacked in it.
    views = NO_VIEWS
    if bare is None:
        tensors = layer_tensors(module, name)
    else:
        prefix = "".join(name.rpartition(".")[:2])
        names = {key: key.rpartition("_")[2] if len(bare) > 1 else "weight" for key in bare}
        views = {names[key]: View(prefix + key, key, tensor) for key, tensor in bare.items()}
        tensors = {names[key]: tensor for key, tensor in bare.items()}
    if not tensors:
        return []
    if name.endswith(EXPERTS) and (experts := _experts(name, module, tensors)):
        return [_described(layer, "Linear", layer.role, above) for layer in experts]
    whole = LayerTensors(name, module, tensors, views)
    if "weight" not in tensors:
        whole = _canonical(whole)
    kind = _kind(module, name, whole.tensors, shapes_alone, bare is not None)
    if len(tensors) == 1 and "weight" not in tensors:
        key = next(iter(tensors))
        whole = whole.renamed({key: "weight" if kind == "Parameter" else ALIASES.get(key, key)})
    if kind == CONSTANT:
        return [whole._replace(plain=Layer(name, CONSTANT))]
    if kind == RECURRENT:
        return [_recurrent(whole)]
    weight = whole.tensors.get("weight")
    if weight is not None and weight.dim() == 2 and _is_transposed(whole, above):
        whole = whole.seen("weight", Tensor.t)
    role = _role(whole, above)
    if (kind in ("Linear", "Conv2d", "Conv1d") and module.__dict__.get("groups", 1) == 1) or bare:
        found = _taken_apart(whole, role, above, shapes_alone, head_size)
    else:
        found = [whole]
    return [_described(layer, kind, layer.role or role, above) for layer in found]


def opaque(tensor: Tensor) -> bool:
    """Is a tensor one that cannot be seen in parts? A class such as DTensor has operations of its own."""
    own = type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
    return own or tensor.layout != torch.strided or tensor.is_quantized


def _kind(module: nn.Module, name: str, tensors: Mapping[str, Tensor], shapes_alone: bool, bare: bool) -> str:
    """The kind of a layer: of its class, where that is known; else what the names and shapes of its tensors tell."""
    weight = tensors.get("weight")
    if bare and len(tensors) == 1:
        constant = not weight.is_floating_point() and not weight.is_complex()
        is_buffer = not isinstance(module, Stored) and name.rpartition(".")[2] in module._buffers
        if constant or is_buffer or name.endswith(COMPUTED):
            return CONSTANT
        return "Parameter"
    if not shapes_alone and (kind := known_class(module)):
        if isinstance(module, CONVOLUTIONS) and module.groups > 1:
            return (DEPTHWISE if module.groups == module.in_channels else GROUPED) + kind
        return kind
    if isinstance(module, _Loss) and not module._parameters:
        return CONSTANT
    if any(key.startswith("weight_hh") for key in tensors):
        return RECURRENT
    learned = isinstance(module, Stored) or module._parameters or CHAINS in module._modules
    if weight is None and not learned and not (tensors.keys() & set(STATISTICS)):
        return CONSTANT
    if len(tensors) == 1 and next(iter(tensors)) in COMPUTED:
        return CONSTANT
    if "running_mean" in tensors:
        return "BatchNorm"
    if weight is None:
        largest = max(tensors.values(), key=Tensor.numel)
        return "Parameter" if len(tensors) == 1 else DIMENSIONS.get(largest.dim(), "Parameter")
    kind = DIMENSIONS.get(weight.dim(), "Parameter") if max(weight.shape, default=1) < weight.numel() else "Norm"
    if kind == "Linear" and "bias" not in tensors and roles.role(name) in roles.TABLES:
        return "Embedding"
    if weight.dim() > 2 and weight.shape[1] == 1 < weight.shape[0]:
        return DEPTHWISE + kind
    bias = tensors.get("bias")
    if weight.dim() > 2 and bias is not None and len(bias) == weight.shape[1] != weight.shape[0]:
        return kind.replace("Conv", "ConvTranspose")
    return kind


def _canonical(layer: LayerTensors) -> LayerTensors:
    """The layer with its tensors under the usual names, where no two would have the same one."""
    if len(layer.tensors) < 2:
        return layer
    found = [ALIASES.get(key, key) for key in layer.tensors]
    names = {key: name for key, name in zip(layer.tensors, found, strict=True) if found.count(name) == 1}
    return layer.renamed(names) if any(key != name for key, name in names.items()) else layer


def _is_transposed(layer: LayerTensors, above: Sequence[nn.Module]) -> bool:
    """Does a matrix have its outputs in columns, as Hugging Face's Conv1D?"""
    module, tensors = layer.module, layer.tensors
    if not isinstance(module, Stored):
        return type(module).__name__ == "Conv1D" and known_class(module) == ""
    weight, bias = tensors["weight"], tensors.get("bias")
    if bias is not None and weight.shape[0] != weight.shape[1]:
        return len(bias) == weight.shape[1]
    if layer.name.rpartition(".")[2] not in GPT2 or not above:
        return False
    fused = above[0]._modules.get("c_attn")  # which has more outputs than inputs
    weight = _weight_of(fused)
    return weight is not None and weight.dim() == 2 and weight.shape[1] > weight.shape[0]


def _taken_apart(
    layer: LayerTensors, role: str, above: Sequence[nn.Module], shapes_alone: bool, head_size: int
) -> list[LayerTensors]:
    """The layers that are stacked in a layer along its outputs; the layer itself where nothing is stacked."""
    stem = layer.name.rpartition(".")[2].lower()
    for wrapper in ("_orig_mod", "base_layer"):
        if stem == wrapper:
            stem = layer.name.split(".")[-2].lower()
    weight = layer.tensors.get("weight")
    if weight is None or weight.dim() < 2:
        return [layer]
    parts, sizes = roles.fused(stem), _of_a_state_space(weight, above) if stem == "x_proj" else []
    stacked = parts or sizes or stem in PACKED or (role == roles.INTO and _is_packed(layer, above))
    if not stacked or any(map(opaque, layer.tensors.values())):
        return [layer]
    if sizes:
        return _cut_apart(layer, roles.STATE_SPACE, sizes)
    if parts:
        count = head_counts(above)
        if count is None and head_size and not len(weight) % (len(parts) * head_size):
            count = HeadCounts(*[len(weight) // (len(parts) * head_size)] * 2)
        return _projections(layer, parts, stem in BY_HEADS, count)
    if len(weight) % 2:
        return [layer]
    # A gate and the hidden units that it lets through have equal shapes, so that only their order tells them apart.
    # Most libraries put the gate first. timm's GluMlp says where it does not; a state dict does not say.
    half = len(weight) // 2
    last = not shapes_alone and bool(above) and above[0].__dict__.get("gate_last") is True
    return _cut_apart(layer, STACKED[::-1] if last else STACKED, [half, half])


def _of_a_state_space(weight: Tensor, above: Sequence[nn.Module]) -> list[int]:
    """The rows of a Mamba's time step, inputs and outputs of the state, which its `x_proj` gives; [] for others."""
    around = above[0] if above else nn.Module()
    taken = _weight_of(around._modules.get("dt_proj"))
    state = around._parameters.get("A_log", around._buffers.get("A_log"))
    if taken is None or state is None or taken.dim() != 2 or len(weight) != taken.shape[1] + 2 * state.shape[-1]:
        return []
    return [taken.shape[1], state.shape[-1], state.shape[-1]]


def _weight_of(module: nn.Module | None) -> Tensor | None:
    """The weight of a module, which is a buffer in a state dict's tree of modules."""
    return None if module is None else module._parameters.get("weight", module._buffers.get("weight"))


def _is_packed(layer: LayerTensors, above: Sequence[nn.Module]) -> bool:
    """Does a layer give twice what the next layer in its feed-forward network takes?"""
    out = len(layer.tensors["weight"])
    for key, child in above[0]._modules.items() if above else ():
        if child is not None and roles.role(f"mlp.{key}") == roles.OUT_OF:
            weight = _weight_of(child)
            if weight is not None and weight.dim() > 1 and prod(weight.shape[2:]) == 1:
                return 2 * weight.shape[1] == out
    return False


def _experts(name: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> list[LayerTensors]:
    """The layers of a mixture's experts that are stacked in tensors (experts, outputs, inputs).

    None where the tensors are of another form: some libraries store (experts, inputs, outputs).
    """
    if any(tensor.dim() != 3 or opaque(tensor) for tensor in tensors.values()):
        return []
    parts = {key: STACKED if key in PACKED else (roles.role(f"{name}.{key}"),) for key in tensors}
    told = sorted(part for of_tensor in parts.values() for part in of_tensor)
    if told not in ([roles.INTO, roles.OUT_OF], [roles.GATE, roles.INTO, roles.OUT_OF]):
        return []
    sizes = {key: (tensor.shape[1] // len(parts[key]), tensor.shape[2]) for key, tensor in tensors.items()}
    hidden, width = next(size for key, size in sizes.items() if roles.INTO in parts[key])
    if any(size != ((width, hidden) if roles.OUT_OF in parts[key] else (hidden, width)) for key, size in sizes.items()):
        return []
    if any(tensor.shape[1] % len(parts[key]) for key, tensor in tensors.items()):
        return []
    found = []
    for key, tensor in tensors.items():
        path = f"{name}.{key}"
        whole = LayerTensors(path, module, {"weight": tensor}, {"weight": View(path, key, tensor)})
        whole, rows = whole.seen("weight", _rows_of_all), sizes[key][0]
        labels = ((expert, part) for expert in range(len(tensor)) for part in parts[key])
        for place, (expert, part) in enumerate(labels):
            found.append(whole.cut(f"{expert}, {part}", [(place * rows, rows)], part))
    return found


def _rows_of_all(tensor: Tensor) -> Tensor:
    """The rows of all experts, one expert after another."""
    return tensor.flatten(0, 1)


def _projections(
    layer: LayerTensors, parts: Sequence[str], by_heads: bool, count: HeadCounts | None
) -> list[LayerTensors]:
    """The queries, keys and values that are stacked in a layer; the layer itself where nobody can tell the rows."""
    # Most libraries stack all queries, all keys, all values. Some stack head by head: query, key and value of head 0,
    # then of head 1 (BLOOM, GPT-NeoX), or where several queries share a key, these queries, their key and their value
    # (Falcon). A wrong guess would mix heads without an error, so that without a number of heads nothing is cut there.
    rows, into = layer.tensors["weight"].shape[:2]
    equal, rest = divmod(rows, len(parts))
    if by_heads and count is None:
        return [layer]
    if by_heads and count.queries == count.keys and not rest and not equal % count.queries:
        return _cut_apart(layer, parts, [equal // count.queries] * len(parts), count.queries)
    sizes = [equal] * len(parts)
    if len(parts) == 3 and (rest or equal != into or (count and count.keys != count.queries)):
        if count and not rows % (count.queries + 2 * count.keys):
            size = rows // (count.queries + 2 * count.keys)
            if by_heads and count.keys > 1 and count.queries != count.keys:
                return _cut_apart(layer, parts, [count.queries // count.keys * size, size, size], count.keys)
            sizes = [size * count.queries, size * count.keys, size * count.keys]
        elif rows > into and not (rows - into) % 2 and rest:
            sizes = [
                into,
                (rows - into) // 2,
                (rows - into) // 2,
            ]  # queries as wide as the inputs, keys that are shared
    if sum(sizes) != rows:
        if len(parts) != 3 or rows != 2 * into:
            return [layer]
        parts, sizes = (roles.KEY, roles.VALUE), [into, into]  # two projections under the name of three
    return _cut_apart(layer, parts, sizes)


def _cut_apart(layer: LayerTensors, parts: Sequence[str], sizes: Sequence[int], times: int = 1) -> list[LayerTensors]:
    """Cut a layer into parts of so many rows, one after another, and all of them so many times."""
    step, start, found = sum(sizes), 0, []
    for part, size in zip(parts, sizes, strict=True):
        found.append(layer.cut(part, [(time * step + start, size) for time in range(times)], part))
        start += size
    return found


def head_counts(above: Sequence[nn.Module]) -> HeadCounts | None:
    """The heads of the nearest attention around a layer that says how many it has."""
    for module in above:
        for facts in (module.__dict__, getattr(module.__dict__.get("config"), "__dict__", {})):
            count = next((facts[key] for key in HEADS if isinstance(facts.get(key), int)), 0)
            if count > 0:
                keys = next((facts[key] for key in KEY_HEADS if isinstance(facts.get(key), int)), count)
                multi_query = facts.get("multi_query") is True and not facts.get("new_decoder_architecture")
                return HeadCounts(count, 1 if multi_query else keys)
    return None


def _recurrent(layer: LayerTensors) -> LayerTensors:
    """A recurrent layer with the axis of its gates, and of the two directions that its inner layers see."""
    tensors = layer.tensors
    hidden = next(t for key, t in tensors.items() if key.startswith("weight_hh"))
    projected = next((t.shape[0] for key, t in tensors.items() if key.startswith("weight_hr")), 0)
    rows = len(hidden)
    size = next((t.shape[1] for key, t in tensors.items() if key.startswith("weight_hr")), hidden.shape[1])
    gates = rows // size if not rows % size else 1
    both = any(key.endswith("_reverse") for key in tensors)
    given = projected or size  # what a direction gives
    for key, tensor in tensors.items():
        if key.startswith("weight_hr"):
            continue
        inner = both and key.startswith("weight_ih") and not key.startswith("weight_ih_l0")
        if tensor.dim() and len(tensor) == gates * size:
            layer = layer.seen(key, _Unflatten(gates, 2 if inner and tensor.shape[1] == 2 * given else 1))
    shape = shape_of(tensors.values(), layer.name)
    return layer._replace(plain=Layer(layer.name, f"{RECURRENT}{gates}", shape), gives=2 * given if both else 0)


@dataclass(frozen=True)
class _Unflatten:
    """Rows as (gates, hidden), columns as (directions, hidden)."""

    gates: int
    directions: int

    def __call__(self, tensor: Tensor) -> Tensor:
        found = tensor.unflatten(0, (self.gates, -1))
        return found.unflatten(2, (self.directions, -1)) if self.directions > 1 else found


def _beside_queries(above: Sequence[nn.Module]) -> bool:
    """Is the module around a layer an attention, whatever its name?"""
    if not above:
        return False
    children = {key.lower() for key in above[0]._modules}
    own = {*above[0]._parameters, *above[0]._buffers}
    if not own.isdisjoint(("in_proj_weight", "q_proj_weight")):
        return True
    return not children.isdisjoint(roles.FUSED) or any(roles.role(key) == roles.QUERY for key in children)


def _role(layer: LayerTensors, above: Sequence[nn.Module]) -> str:
    """What a whole layer is for."""
    role = roles.role(layer.name)
    if not role and len(layer.tensors) == 1:  # a module of one parameter may be called by it
        role = roles.role(layer.path(next(iter(layer.tensors))))
    if not role and layer.name.rpartition(".")[2] in OUTPUTS and _beside_queries(above):
        role = roles.PROJECTED
    return role


def roles_of_a_module(layers: Sequence[Layer]) -> list[str]:
    """The roles of the matrices of one module, where names leave out what the others and the shapes tell.

    Two matrices that go to another width and back are a feed-forward network, or a squeeze and excitation. The only
    nameless one beside queries, keys and values is the attention's output.
    """
    told = [layer.role for layer in layers]
    nameless = [layer for layer in layers if not layer.role]
    if not nameless or not all(map(_is_pointwise, nameless)):
        return told
    if len(nameless) == 1 and roles.VALUE in told and roles.PROJECTED not in told:
        told[told.index("")] = roles.PROJECTED
    elif len(nameless) == len(layers) == 2 and layers[0].shape[:2] == layers[1].shape[1::-1]:
        hidden, width = layers[0].shape[:2]
        if hidden > width:
            return [roles.INTO, roles.OUT_OF]
        if hidden < width and layers[0].kind == layers[1].kind == "Conv2d":  # of linear layers, it may be an adapter
            return [roles.REDUCE, roles.EXPAND]
    return told


def with_role(layer: LayerTensors, role: str, above: Sequence[nn.Module]) -> LayerTensors:
    """The layer with a role that its own name does not tell."""
    return _described(layer, layer.plain.kind, role, above)


def _is_pointwise(layer: Layer) -> bool:
    """Is a layer a linear layer or a convolution that sees one place at a time?"""
    return is_matrix(layer) and prod(layer.shape[2:]) == 1 and not layer.kind.startswith((DEPTHWISE, GROUPED))


def _described(layer: LayerTensors, kind: str, role: str, above: Sequence[nn.Module]) -> LayerTensors:
    """The layer with what matching sees of it."""
    weight = layer.tensors.get("weight")
    if weight is None:
        shape = shape_of(layer.tensors.values(), layer.name)
    else:
        shape = tuple(weight.shape) or (1,)
        if 0 in shape:
            shape = ()
    if layer.split:
        shape = (shape[0] * shape[1], *shape[2:])
    if role:
        if role in (roles.INTO, roles.OUT_OF) and len(shape) > 1:  # libraries name a squeeze and excitation so too
            out, into = shape[:2]
            role = roles.REDUCE if role == roles.INTO and out < into else role
            role = roles.EXPAND if role == roles.OUT_OF and out > into else role
        if role == roles.ROUTER and shape[0] > shape[-1]:  # as many outputs as hidden units, and not as experts
            role = roles.GATE
        if role.endswith(roles.PROJECTIONS) and (count := head_counts(above)):
            layer = layer._replace(heads=count.keys if role.endswith((roles.KEY, roles.VALUE)) else count.queries)
    plain = Layer(layer.name, kind, shape, role)  # below, written out: `_replace` takes three times as long
    return LayerTensors(layer.name, layer.module, layer.tensors, layer.views, plain, role, layer.heads, layer.split)
