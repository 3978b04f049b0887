"""Moving the weights (section 3.4): `transfer` does it, `plan` says what it would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dpiat.alignment import align
from dpiat.assignment import MATCHINGS, Matcher, best, check_matching
from dpiat.branches import joined, of_one, spread
from dpiat.filling import CLASSES, NEW_INPUTS
from dpiat.heads import HEADS, Head, other_inputs, treat_heads
from dpiat.new import WAYS, neutral_gates, silent_blocks
from dpiat.operators import OPERATORS, Operator
from dpiat.pairing import complete, keep_norms, reasons
from dpiat.plan import Plan, read_both
from dpiat.reading import MODES
from dpiat.recipe import BEST, Recipe
from dpiat.report import Report
from dpiat.sources import Source, load
from dpiat.writing import Write

# Those of Table 12.
PAPER_NAMES = {
    "ClipTransfer": "clip",
    "ClipWithNormalization": "clip_normalized",
    "ClipWithNormalizationTransfer": "clip_normalized",
    "FullTransfer": "full",
    "MagnitudeTransfer": "magnitude",
    "DPMatching": "dp",
    "RandomMatching": "random",
    "BipartiteMatching": "bipartite",
    "NBipartiteMatching": "nbipartite",
}


def transfer(
    source: Source,
    target: nn.Module,
    mode: str | Recipe = "default",
    head: Head = "auto",
    matching: str | Matcher = "dp",
    operator: str | Operator = "clip",
    optimizer: tuple[Optimizer, Optimizer] | None = None,
    inputs: str = "repeat",
    new: str = "identity",
) -> Report:
    """Initialize `target` with the knowledge of `source`, a trained network of another architecture.

    Matches the blocks of both by dynamic programming on the shapes of their weights, and the layers in them by kind,
    role and shape; then fills every matched tensor, in place. Tensors without a counterpart keep their values. `source`
    is not modified; nor are devices, dtypes, requires_grad and the training flag of either.

    `source` is a module, a state dict, the path of one (.pt, .pth, .bin), a folder that `save_pretrained` wrote, or a
    timm name, which brings its pretrained weights. Values in files are read one tensor after the other, and only those
    that are written: the source may be larger than the memory. Of a state dict the kinds of layers are what the shapes
    tell; the groups of its convolutions are not known. A .safetensors file is taken if its tensors have the names of
    `target`'s, or if `dpiat transfer` wrote it; of others `dpiat.load` makes a module, if you name their network.

    mode="default" knows what a network is made of (docs/networks.md): blocks, roles, and what each axis of a tensor
    means. A network transferred to itself, to the same network of another library, or from its own state dict computes
    the same function. Stacked projections are taken apart, heads go whole, tokens and positions keep their numbers,
    grids of positions and patches are resampled, and what a constructor computes is left. mode="paper" is the authors'
    algorithm: weights and biases of convolutions, linear layers and batch norms by their shapes alone, a classifier
    like any other layer.

    head="auto" fills a classifier only from a classifier of as many classes, matched or not; "skip" never; "copy" also
    like any other layer, cropped rows of other classes included, as both do in paper mode; a mapping {target class:
    source class} fills the classes that it names, and {layer: {target class: source class}} those of layers by their
    names (* and ? stand for what they do in file names). Classifiers are the layers whose names say so ("class_embed",
    "cls_score", "classifier"), wherever they stand, or else the last layer and those beside it that see the same inputs
    (boxes, a distillation token) and auxiliary classifiers of as many classes. A head that is tied to an embedding is
    filled as that is, by the numbers of its tokens, unless it is skipped.

    `matching` is "dp", "bipartite", "nbipartite", "random", or a function of two architectures, source and target,
    that gives a `Matching`; `operator` is "clip" (the leading channels, in paper mode the centre crop),
    "clip_normalized", "full", "magnitude", "uniform", or a function (see `dpiat.operators`); the names of the paper's
    Table 12 will do too. `optimizer`, the source's and the target's, also moves the state of Adam or SGD.

    `inputs` says what input channels get that the source's first convolution does not have: "repeat" gives them the
    others' weights in turn, at an equal response to what is the same in all; "zero" keeps the response to the old ones.

    `new` says what a residual block starts as that the source has no block for, or none of its own: "identity", with
    zeros in its last layers and else as it would be, so that a network with more blocks computes what the source does;
    or "random", as it was, or like the source's block that others come from as well.

    A weight that is computed from others (torch.nn.utils.parametrize, weight_norm, spectral_norm, pruning) comes as
    near to what it receives as they can bring it.

    Returns a report with one entry for each target tensor. Raises TypeError if an argument is of another type,
    ValueError for an unknown name, lazy parameters, weights that cannot be read or written (on the meta device, shared
    with the source, ...), or a file that holds no weights. Then nothing is written.

        >>> from dpiat import transfer
        >>> report = transfer(trained, new)
        >>> print(report.summary())
    """
    planned, writes = _plan(source, target, mode, head, matching, operator, inputs, new)
    return planned.carry_out(writes, optimizer)


def plan(
    source: Source,
    target: nn.Module,
    mode: str | Recipe = "default",
    head: Head = "auto",
    matching: str | Matcher = "dp",
    operator: str | Operator = "clip",
    inputs: str = "repeat",
    new: str = "identity",
) -> Plan:
    """What `transfer` with these arguments would do. Changes nothing, and works on the meta device."""
    return _plan(source, target, mode, head, matching, operator, inputs, new)[0]


def _plan(source, target, mode, head, matching, operator, inputs, new) -> tuple[Plan, list[Write]]:
    """The plan, and what it takes to carry it out while the networks are as they are."""
    if not isinstance(target, nn.Module):
        raise TypeError(f"target must be a torch.nn.Module, got {type(target).__name__}")
    recipe, mode = (mode, "default") if isinstance(mode, Recipe) else (BEST, mode)
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if inputs not in NEW_INPUTS:
        raise ValueError(f"inputs must be one of {', '.join(NEW_INPUTS)}, got {inputs!r}")
    if new not in WAYS:
        raise ValueError(f"new must be one of {', '.join(WAYS)}, got {new!r}")
    if not isinstance(head, Mapping) and head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)} or {{target class: source class}}, got {head!r}")
    matcher, operator = _chosen("matching", matching, MATCHINGS), _chosen("operator", operator, OPERATORS)
    source = load(source, like=target)
    giver, taker = read_both(source, target, mode, recipe)
    architectures = giver.architecture, taker.architecture
    matched = partial(align, recipe=recipe)(*architectures) if _aligns(matcher, mode) else matcher(*architectures)
    if matcher not in MATCHINGS.values():
        check_matching(matched, *architectures)
    partner = {pair.target.name: pair.source.name for pair in matched.layers}
    if mode == "default":
        if matcher is best:
            keep_norms(giver, taker, partner, recipe.gates)
        complete(giver, taker, matched, partner)
    kept, mapped = treat_heads(*architectures, partner, head, mode)
    rules, silent, why, made = dict.fromkeys(mapped, CLASSES), {}, {}, []
    if mode == "default":
        rules |= dict.fromkeys(other_inputs(giver, taker, partner), NEW_INPUTS[inputs])
        if recipe.gates:
            silent |= neutral_gates(taker, partner)
        if new == "identity" and matcher is best:
            silent |= silent_blocks(giver, taker, target, matched, partner)
        spread(giver, taker, partner)
        made = joined(giver, of_one(partner, giver.weights))
        why = reasons(giver, taker, partner)
    planned = Plan(source, target, Report(()), mode, operator, mapped, recipe)
    givers = [*giver.weights, *made]
    found = list(planned.entries(givers, taker.weights, partner, kept, rules, why, silent, taker.order))
    report = Report(tuple(entry for entry, _ in found))
    return replace(planned, report=report), [write for _, writes in found for write in writes]


def _aligns(matcher: Matcher, mode: str) -> bool:
    return matcher is best and mode == "default"


def _chosen(key: str, value: Any, known: Mapping[str, Any]) -> Any:
    """One of ours by its name or the paper's, or a function of the user's."""
    if isinstance(value, str) and PAPER_NAMES.get(value, value) in known:
        return known[PAPER_NAMES.get(value, value)]
    if not callable(value):
        raise ValueError(f"{key} must be one of {', '.join(known)}, or a function, got {value!r}")
    return value
