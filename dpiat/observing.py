"""What the stages of a network give for some images, without a change to the network.

A stage is all blocks of one resolution. Where all blocks have one resolution, a stage is all blocks of one list; where
there is only one list, each block is a stage. In a network without blocks, each matrix or convolution begins a stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dpiat.architecture import Block, Layer
from dpiat.heads import heads_of
from dpiat.levels import is_main, submodule
from dpiat.reading import read
from dpiat.sources import first_line

STEM, FEATURES, CLASSIFIER = "stem", "before the classifier", "classifier"
Images: TypeAlias = Tensor | Mapping[str, Any]


class Stage(NamedTuple):
    """A stage, or what stands before or behind all stages.

    `inside` are the names of the stage's blocks and single layers. The output of `module` is the output of the stage.
    For what stands before the classifier, it is the input of `module`. `width` is the number of its channels.
    """

    name: str
    inside: list[str]
    module: nn.Module | None = None
    width: int = 0
    level: int | None = None


def stages_of(network: nn.Module) -> list[Stage]:
    """The stem, the stages, what comes before the classifier, and the classifier, as far as the network has them."""
    found = read(network)
    modules = {layer.name: layer.module for layer in found.layers}
    blocks, heads = found.architecture.blocks, heads_of(found.architecture)[-1:]
    if all(block.run for block in blocks):
        layers = [layer for layer in found.architecture.layers if layer not in heads]
        stages, end = [_of_layers(part[0].name, part, modules) for part in _by_matrix(layers)], []
    else:
        stem, groups, end = _groups(blocks)
        stages = [_of_layers(STEM, stem, modules)] * bool(stem) + [_of_blocks(group, network) for group in groups]
        if len({stage.level for stage in stages if stage.name != STEM}) == 1:
            stages = [stage._replace(level=None) for stage in stages]
    head = heads[0] if heads else None
    stages.append(
        Stage(FEATURES, [layer.name for layer in end], *((modules[head.name], head.shape[1]) if head else ()))
    )
    return [*stages, Stage(CLASSIFIER, [head.name])] if head else stages


def _groups(blocks: Sequence[Block]) -> tuple[list[Layer], list[list[Block]], list[Layer]]:
    """The layers before all blocks; the blocks of each stage, with the runs before them; and the layers behind."""
    key = _key([block for block in blocks if not block.run])
    stem: list[Layer] = []
    groups: list[list[Block]] = []
    runs: list[Block] = []
    for block in blocks:
        if block.run:
            runs.append(block)
            continue
        if not groups:
            stem, runs = [layer for run in runs for layer in run.layers], []
        if groups and key(groups[-1][-1]) == key(block):
            groups[-1] += [*runs, block]
        else:
            groups.append([*runs, block])
        runs = []
    return stem, groups, [layer for run in runs for layer in run.layers]


def _key(blocks: Sequence[Block]) -> Callable[[Block], Any]:
    """A function of a block that is equal for the blocks of one stage."""
    keys = [lambda block: block.level, lambda block: block.name.rpartition(".")[0]]
    return next((key for key in keys if len({key(block) for block in blocks}) > 1), lambda block: block.name)


def _by_matrix(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    part: list[Layer] = []
    for layer in layers:
        if part and is_main(layer):
            yield part
            part = []
        part.append(layer)
    if part:
        yield part


def _of_layers(name: str, layers: Sequence[Layer], modules: Mapping[str, nn.Module]) -> Stage:
    """The stage of single layers, which gives what the last layer gives. A bare parameter has no module of its own."""
    last = next((layer for layer in reversed(layers) if layer.kind != "Parameter"), None)
    names = [layer.name for layer in layers]
    return Stage(name, names, modules.get(last.name), *last.shape[:1]) if last else Stage(name, names)


def _of_blocks(group: Sequence[Block], network: nn.Module) -> Stage:
    inside = [
        name for block in group for name in ([layer.name for layer in block.layers] if block.run else [block.name])
    ]
    first, last = next(block for block in group if not block.run), group[-1]
    name = first.name if first is last else f"{first.name} … {last.name}"
    widths = [layer.shape[0] for layer in last.layers if is_main(layer)]
    return Stage(name, inside, submodule(network, last.name), *(widths[-1:] or [0]), last.level)


# --- outputs ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def outputs(role: str, network: nn.Module, stages: Sequence[Stage], images: Images, count: int) -> dict[str, Tensor]:
    """What each stage gives, by its name: (images, channels), means over places. Errors call the network `role`."""
    seen: dict[str, Tensor] = {}

    def keep(stage: Stage, value: Any) -> None:
        if (found := _pooled(value, stage.width, count)) is not None:
            seen[stage.name] = found

    with ExitStack() as stack:
        stack.enter_context(unchanged(network))
        for stage in stages:
            if stage.module is not None:
                stack.callback(_hook(stage, keep).remove)
        try:
            result = called(network, images)
        except Exception as error:  # whatever its code raises
            raise ValueError(f"the {role} cannot take these images ({first_line(error)})") from error
    if FEATURES not in seen:
        keep(Stage(FEATURES, []), result)
    return seen


def _hook(stage: Stage, keep: Callable[[Stage, Any], None]) -> Any:
    module = stage.module
    assert module is not None
    if stage.name == FEATURES:
        return module.register_forward_pre_hook(lambda _, args, given: keep(stage, args or given), with_kwargs=True)
    return module.register_forward_hook(lambda _, args, output: keep(stage, output))


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[list[_BatchNorm]]:
    """Eval mode with the batch norms, which are given, in training mode. Afterwards each module has its mode again."""
    flags = [(module, module.training) for module in network.modules()]
    norms = [module for module, _ in flags if isinstance(module, _BatchNorm)]
    try:
        for module, _ in flags:
            module.training = False  # `eval()` may be a method of the user's that does more
        for norm in norms:
            norm.training = True
        yield norms
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Eval mode, but batch norms use the statistics of the batch and keep their own. Afterwards all is as it was.

    The statistics of a network that was just filled are often another network's, so that eval mode would show noise.
    """
    with in_eval_mode(network) as norms:
        tracks = [norm.track_running_stats for norm in norms]
        try:
            for norm in norms:
                norm.track_running_stats = False
            yield
        finally:
            for norm, own in zip(norms, tracks, strict=True):
                norm.track_running_stats = own


def called(network: nn.Module, images: Images) -> Any:
    """The network's output for images, or for a mapping of its arguments, on its own device and in its own dtype."""
    like = next((tensor for tensor in network.parameters() if tensor.is_floating_point()), None)

    def moved(value: Any) -> Any:
        if like is None or not isinstance(value, Tensor):
            return value
        return value.to(like) if value.is_floating_point() else value.to(like.device)

    return (
        network(**{k: moved(v) for k, v in images.items()}) if isinstance(images, Mapping) else network(moved(images))
    )


def _pooled(value: Any, width: int, count: int) -> Tensor | None:
    """The first tensor of an output as (images, channels), in double precision; None if no axis is of images."""
    while not isinstance(value, Tensor):
        inner = list(value.values()) if isinstance(value, Mapping) else value
        if not isinstance(inner, (tuple, list)) or not inner:
            return None
        value = inner[0]
    if value.dim() > 2 and len(value) != count == value.shape[1]:
        value = value.transpose(0, 1)  # places first
    if value.dim() < 2 or len(value) != count or not value.is_floating_point():
        return None
    value = value.detach().cpu().double()
    if value.dim() == 2:
        return value
    axes = (1, value.dim() - 1) if value.dim() > 3 else (2, 1)  # where channels usually are
    axis = next((axis for axis in axes if value.shape[axis] == width), axes[0])
    return value.movedim(axis, 1).flatten(2).mean(-1)
