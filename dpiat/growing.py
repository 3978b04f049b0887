"""Networks that grow out of smaller networks of the same plan: Net2Net keeps the function, FNA does not.

from dpiat import net2net

net2net(small, large)  # large now computes what small computes

Both need more of the two networks than `transfer` does: they must have the same stages of the same blocks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpiat.architecture import Block
from dpiat.branches import split
from dpiat.channels import Flow, follow, signatures
from dpiat.checking import Networks
from dpiat.layers import CONSTANT
from dpiat.reading import read
from dpiat.report import COPIED, CROPPED, LEFT, PARTLY, ZERO, Entry, Report
from dpiat.roles import EXPAND
from dpiat.stages import align_stages
from dpiat.standardization import DEPTHWISE, LayerTensors, Network
from dpiat.writing import Write, check, put

# The settings that must be equal in two convolutions or norms, where both have them.
SETTINGS = ("stride", "padding", "dilation", "padding_mode", "eps")
NEW, SILENT = "of a new block", "zero, so that a new block does nothing at first"
Found = tuple[Entry, Write | None]  # what a target tensor receives, and how


@torch.no_grad()
def net2net(
    source: nn.Module, target: nn.Module, seed: int = 0, noise: float = 0.0, example: Tensor | None = None
) -> Report:
    """Make `target`, a wider or deeper network of the same plan, compute what `source` computes (Net2Net, 1511.05641).

    Wider: channel j takes source channel g(j) = j as far as there are such, and beyond them a channel drawn by `seed`.
    Layers copy what they write by g and divide what they read by the number of copies. Channels that are added or
    multiplied with one another share one g. Deeper: a block is new if the source's stage has fewer blocks. The last
    layer of a new block is zero, so that nothing is added to its shortcut. Its other layers keep the target's values.

    Args:
        source: The smaller network. Is not modified; is called in eval mode on numbers of channels, not on values.
        target: The larger network, which is written in place.
        seed: Draws the channels that are copied, and the noise.
        noise: The standard deviation of what is added to copied filters, over the standard deviation of the layer's
            weights. With noise, copies do not stay alike.
        example: An input of both networks. Only its shape counts. Without it, an image of 64 or 224 pixels is taken.

    Returns:
        A report with one entry for each target tensor.

    Raises:
        TypeError: If an argument is not a module.
        ValueError: If the target is not admissible: a layer is narrower, has another kernel, stride, activation or
            place, or a new block cannot do nothing. Then nothing is written.

    Examples:
        >>> net2net(timm.create_model("tf_efficientnet_b0", pretrained=True), timm.create_model("tf_efficientnet_b1"))
    """
    given, wanted = _both(source, target)
    aligned = align_stages(given, wanted, repeat=False)
    pairs = _pairs(given, wanted, aligned.partner)
    _check_layers(given, wanted, pairs, aligned.new)
    old, new = follow(source, given.layers, example), follow(target, wanted.layers, example)
    _check_functions(old, new, aligned.partner)
    silent = {_last(block, new, wanted, aligned.partner) for block in aligned.new}
    chosen = _channels(old, new, aligned.partner, seed)
    wider = _Wider(old, new, chosen, noise, torch.Generator().manual_seed(seed))
    found: list[Found] = []
    for to in wanted.layers:
        for local in to.tensors:
            if to.name in silent and local in ("weight", "bias", ""):
                found.append(_silent(to, local))
            elif to.name not in pairs:
                found.append((Entry(to.path(local), tuple(to.tensors[local].shape), LEFT, note=NEW), None))
            else:
                by = pairs[to.name][0]
                value = wider.value(by, to, local)
                found.append(_found(by, to, local, value, value.numel()))
    return _written(found, source, target)


@torch.no_grad()
def fna(source: nn.Module, target: nn.Module) -> Report:
    """Initialize `target` from a network of the same stages and block layout (FNA, 2001.02525; FNA++, 2006.12986).

    Block i of a stage takes block min(i, L - 1) of the source's L blocks in it. A convolution takes the leading
    channels, out and in; a smaller kernel takes the centre of the source's. A larger kernel has the source's in its
    centre, and the convolution is zero elsewhere, in channels beyond too. Vectors, running statistics included, take
    the leading part. All else keeps the target's values: channels beyond, and linear layers.

    Args:
        source: The network that gives. Is not modified.
        target: The network that receives, in place.

    Returns:
        A report with one entry for each target tensor.

    Raises:
        TypeError: If an argument is not a module.
        ValueError: If the stages or the layers of two blocks differ. Then nothing is written.

    Examples:
        >>> fna(timm.create_model("mobilenetv2_100", pretrained=True), timm.create_model("mobilenetv2_140"))
    """
    given, wanted = _both(source, target)
    pairs = _pairs(given, wanted, align_stages(given, wanted, repeat=True).partner)
    found: list[Found] = []
    for to in wanted.layers:
        by = pairs[to.name][0] if to.name in pairs else None
        for local, tensor in to.tensors.items():
            path, shape = to.path(local), tuple(tensor.shape)
            theirs = by.tensors.get(local) if by else None
            if isinstance(to.module, nn.Linear):
                found.append((Entry(path, shape, LEFT, note="of a linear layer"), None))
            elif theirs is None or theirs.dim() != tensor.dim():
                found.append((Entry(path, shape, LEFT, note="no counterpart"), None))
            else:
                found.append(_found(by, to, local, *_adapted(theirs, tensor)))
    return _written(found, source, target)


def _both(source: nn.Module, target: nn.Module) -> tuple[Network, Network]:
    for name, network in (("source", source), ("target", target)):
        if not isinstance(network, nn.Module):
            raise TypeError(f"{name} must be a torch.nn.Module, got {type(network).__name__}")
    return split(read(source)), split(read(target))  # side by side, one kernel of each size has its own counterpart


def _pairs(given: Network, wanted: Network, partner: dict[str, str]) -> dict[str, tuple[LayerTensors, LayerTensors]]:
    theirs = {layer.name: layer for layer in given.layers}
    ours = {layer.name: layer for layer in wanted.layers}
    return {name: (theirs[by], ours[name]) for name, by in partner.items() if by in theirs and name in ours}


def _found(by: LayerTensors, to: LayerTensors, local: str, value: Tensor, filled: int, zeros: int = 0) -> Found:
    shape, source_shape = tuple(value.shape), tuple(by.tensors[local].shape)
    action = PARTLY if filled < value.numel() else COPIED if shape == source_shape else CROPPED
    entry = Entry(to.path(local), shape, action, filled, by.path(local), source_shape, zeros=zeros)
    return entry, Write(to, by, local, value, made=True)


def _written(found: Sequence[Found], source: nn.Module, target: nn.Module) -> Report:
    writes = [write for _, write in found if write is not None]
    check(writes, source)
    for write in writes:
        put(write.target, write.source, None)
    return Report(tuple(entry for entry, _ in found), networks=Networks(source, target))


# --- Net2Net ----------------------------------------------------------------------------------------------------------


def _check_layers(
    given: Network, wanted: Network, pairs: dict[str, tuple[LayerTensors, LayerTensors]], added: Sequence[Block]
) -> None:
    """Raise ValueError if a layer outside of new blocks has no counterpart, or cannot do what its counterpart does."""
    _check_all(given, {by.name for by, _ in pairs.values()}, "the target")
    _check_all(wanted, pairs.keys() | {layer.name for block in added for layer in block.layers}, "the source")
    for by, to in pairs.values():
        _check_layer(by, to)


def _check_all(network: Network, known: Collection[str], other: str) -> None:
    """Raise ValueError if a layer has no counterpart, such as a shortcut that changes the width."""
    for layer in network.layers:
        if layer.name not in known and layer.plain.kind != CONSTANT:
            raise ValueError(f"{layer.name} has no counterpart in {other}")


def _check_layer(by: LayerTensors, to: LayerTensors) -> None:
    """Raise ValueError if a layer cannot compute what a source layer computes."""
    # Shapes of kernels count as settings do: a larger kernel with zeros around would do, but its padding differs too.
    theirs, ours = by.plain.shape, to.plain.shape
    if by.tensors.keys() != to.tensors.keys():
        odd = min(by.tensors.keys() ^ to.tensors.keys())
        raise ValueError(f"{to.name} and {by.name} of the source do not both have {odd or 'a value'}")
    if theirs[2:] != ours[2:]:
        raise ValueError(f"{to.name} has a kernel of {_times(ours[2:])}, {by.name} of the source {_times(theirs[2:])}")
    for what, mine, other in zip(("outputs", "inputs"), ours, theirs, strict=False):
        if mine < other:
            raise ValueError(f"{to.name} has {mine} {what}, fewer than the {other} of {by.name} in the source")
    settings = SETTINGS if to.plain.kind.startswith(DEPTHWISE) else (*SETTINGS, "groups")
    for setting in settings:
        mine, other = (getattr(layer.module, setting, None) for layer in (to, by))
        if mine != other:
            raise ValueError(f"{to.name} has {setting} {mine}, {by.name} of the source {other}")


def _times(sizes: Iterable[int]) -> str:
    return " × ".join(map(str, sizes)) or "none"


def _check_functions(old: Flow, new: Flow, partner: dict[str, str]) -> None:
    for name, by in partner.items():
        mine, theirs = new.functions.get(name, ()), old.functions.get(by, ())
        if mine != theirs:
            behind = [" and ".join(dict.fromkeys(functions)) or "nothing" for functions in (mine, theirs)]
            raise ValueError(f"{name} has {behind[0]} behind it, {by} of the source {behind[1]}")


def _last(block: Block, flow: Flow, network: Network, partner: dict[str, str]) -> str:
    """The layer of a new block that makes the block do nothing when it is zero. Raises ValueError if there is none.

    Its outputs must be added to what the block is given.
    """
    # Channels that are added are one (`dpiat.channels`). So the outputs of such a layer are channels that layers with a
    # counterpart write too: the `stream`. A layer that writes some of them and others beside changes the width. The
    # zeros go into the last layer that treats these channels, often the norm behind the convolution: with zeros in the
    # convolution alone, the norm's bias would be added. An activation behind the sum changes what the block is given,
    # unless applying it twice is applying it once, as for ReLU: the block before has applied it.
    plain = {layer.name: layer.plain for layer in network.layers}
    known = signatures(flow, partner)
    stream = {number for number, layer in known.items() if any(what in ("writes", "input") for what, *_ in layer)}
    layers = {layer.name for layer in block.layers}
    inside = [name for name in flow.touches if name in layers]
    writers = [
        name
        for name in inside
        if flow.touches[name].reads is not None
        and plain[name].role != EXPAND
        and stream & set(flow.touches[name].writes)
    ]
    if not writers or any(not stream >= set(flow.touches[name].writes) for name in writers):
        raise ValueError(f"{block.name} changes width or stride or has no shortcut: a new block cannot do that")
    if len(writers) > 1:
        raise ValueError(f"{block.name} adds several layers to its shortcut, {' and '.join(writers)}: it cannot be new")
    behind = inside[inside.index(writers[0]) :]
    ends = [name for name in behind if plain[name].role != EXPAND and stream & set(flow.touches[name].writes)]
    last = ends[-1]
    if flow.touches[last].late or last in flow.added or inside[-1] in flow.added:
        what = flow.added.get(last) or flow.added.get(inside[-1]) or "it"
        raise ValueError(f"{block.name} applies {what} to its sum, which is not the identity: it cannot be new")
    return last


def _channels(old: Flow, new: Flow, partner: dict[str, str], seed: int) -> dict[int, int]:
    """The map g: the source channel of each target channel that some layer with a counterpart knows.

    A channel stands for a channel that the same layers read and write. Among these, the first channels stand for the
    first channels, and each further channel stands for a channel that is drawn.
    """
    # g must be one map for the whole network. A sum of a stem and ten blocks has one set of channels: if block 3 copied
    # other channels than the stem, the sum would add different things. Signatures make the sets: the layers (by their
    # names in the source) that read and write a channel. Channels with one signature can be exchanged without a change
    # of the function if all of these layers exchange them, which one map makes sure of.
    theirs = signatures(old, {name: name for name in old.touches})
    ours = signatures(new, partner)
    sources, targets = defaultdict(list), defaultdict(list)
    for number in sorted(theirs):
        sources[theirs[number]].append(number)
    for number in sorted(ours):
        targets[ours[number]].append(number)
    names = {by: name for name, by in partner.items()}
    for signature in [*targets, *sources]:
        if len(targets[signature]) < len(sources[signature]) or not sources[signature]:
            raise ValueError(_differ(signature, len(targets[signature]), len(sources[signature]), names))
    generator, chosen = torch.Generator().manual_seed(seed), {}
    for signature, numbers in targets.items():
        known = sources[signature]
        drawn = torch.randint(len(known), (len(numbers) - len(known),), generator=generator).tolist()
        chosen |= dict(zip(numbers, [*known, *(known[place] for place in drawn)], strict=True))
        if drawn and (new.rigid & set(numbers) or old.rigid & set(known)):
            name = names.get(next((name for _, name, _ in signature if name), ""), "the network")
            raise ValueError(f"{name} is wider, and a norm or softmax over its channels would not stay the same")
    return chosen


def _differ(signature: frozenset, mine: int, theirs: int, names: dict[str, str]) -> str:
    ends = [(what, name) for what, name, _ in signature if what == "output"]
    if ends:
        return f"the outputs differ: {'the target' if mine > theirs else 'the source'} has more classes"
    layers = {
        what: sorted(names.get(name, name) for each, name, _ in signature if each == what)
        for what in ("writes", "reads")
    }
    written = layers["writes"][0] if layers["writes"] else "the input"
    read = f" and read by {layers['reads'][0]}" if layers["reads"] else ""
    return f"{written}: of the channels that are written by it{read}, the target has {mine} and the source {theirs}"


def _silent(to: LayerTensors, local: str) -> Found:
    value = torch.zeros_like(to.tensors[local])
    entry = Entry(to.path(local), tuple(value.shape), ZERO, note=SILENT, zeros=value.numel())
    return entry, Write(to, to, local, value, made=True)


@dataclass(frozen=True)
class _Wider:
    """Net2WiderNet: rows by g, columns by g over the number of copies.

    `chosen` is g, `noise` and `generator` are of what is added to copies.
    """

    old: Flow
    new: Flow
    chosen: dict[int, int]
    noise: float
    generator: torch.Generator

    def value(self, by: LayerTensors, to: LayerTensors, local: str) -> Tensor:
        """What a target tensor receives."""
        theirs, tensor = by.tensors[local], to.tensors[local]
        touch, before = self.new.touches.get(to.name), self.old.touches.get(by.name)
        if touch is None or before is None or not tensor.dim() or tensor.numel() == 1 == theirs.numel():
            if theirs.shape != tensor.shape:
                raise ValueError(f"{to.path(local)} does not run, and has another shape than {by.path(local)}")
            return theirs.clone()
        rows = _places(touch.writes, before.writes, self.chosen)
        if tensor.dim() == 1 or touch.reads is None:
            return theirs.reshape(len(before.writes), -1)[rows].reshape(tensor.shape)
        transposed = "Transpose" in to.plain.kind
        if transposed and touch.groups > 1:
            raise ValueError(f"{to.name} is a transposed convolution with groups")
        theirs = theirs.transpose(0, 1) if transposed else theirs
        value = _divided(theirs, rows, _places(touch.reads, before.reads, self.chosen), touch.groups)
        if self.noise:
            self._add_noise(value, rows, theirs.std())
        return value.transpose(0, 1) if transposed else value

    def _add_noise(self, value: Tensor, rows: Tensor, spread: Tensor) -> None:
        """Add noise to the copies alone: the first of equal filters stays as it was."""
        again = torch.ones(len(rows), dtype=torch.bool)
        again[[rows.tolist().index(place) for place in dict.fromkeys(rows.tolist())]] = False
        drawn = torch.randn(value[again].shape, generator=self.generator).to(value)
        value[again] += self.noise * spread * drawn


def _divided(theirs: Tensor, rows: Tensor, columns: Tensor, groups: int = 1) -> Tensor:
    """The chosen rows and columns of a matrix, each column divided by the number of its copies."""
    # A channel that is there n times is read n times, so that each column has 1/n of the weight. Copies are counted in
    # each group by itself, as a group reads no channel of another.
    out, size, theirs_size = len(rows) // groups, len(columns) // groups, theirs.shape[1]
    parts = []
    for group in range(groups):
        inside = columns[group * size : (group + 1) * size] - group * theirs_size
        copies = Counter(inside.tolist())
        counts = theirs.new_tensor([copies[place] for place in inside.tolist()])
        part = theirs[rows[group * out : (group + 1) * out]][:, inside]
        parts.append(part / counts.view(-1, *[1] * (part.dim() - 2)))
    return torch.cat(parts)


def _places(mine: Sequence[int], theirs: Sequence[int], chosen: dict[int, int]) -> Tensor:
    """The place among the source layer's channels of each of a target layer's channels.

    A channel may have several places, as it has one for each pixel after flattening. Then the first place stands for
    the first one, the second for the second.
    """
    where: dict[tuple[int, int], int] = {}
    seen: Counter[int] = Counter()
    for place, number in enumerate(theirs):
        where[number, seen[number]] = place
        seen[number] += 1
    seen.clear()
    found = []
    for number in mine:
        found.append(where[chosen[number], seen[number]])
        seen[number] += 1
    return torch.tensor(found)


# --- FNA --------------------------------------------------------------------------------------------------------------


def _adapted(theirs: Tensor, ours: Tensor) -> tuple[Tensor, int, int]:
    """The source's leading channels with the kernel centred, and how many elements are the source's and are zeros."""
    value = ours.clone()
    if not ours.dim():
        return theirs.to(value).clone(), 1, 0
    to, by = [], []
    for axis, (mine, other) in enumerate(zip(ours.shape, theirs.shape, strict=True)):
        size = min(mine, other)
        starts = ((mine - size) // 2, (other - size) // 2) if axis > 1 else (0, 0)
        to.append(slice(starts[0], starts[0] + size))
        by.append(slice(starts[1], starts[1] + size))
    larger = any(mine > other for mine, other in zip(ours.shape[2:], theirs.shape[2:], strict=True))
    if larger:
        value.zero_()
    part = theirs[tuple(by)]
    value[tuple(to)] = part.to(value)
    return value, part.numel(), value.numel() - part.numel() if larger else 0
