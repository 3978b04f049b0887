"""Moving the weights (section 3.4): `transfer` does it, `plan` says what it would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from dpiat.alignment import align
from dpiat.architecture import Architecture
from dpiat.assignment import MATCHINGS, Matcher, MatchingName, best, check_matching
from dpiat.branches import joined, spread
from dpiat.filling import CLASSES, NEW_INPUTS, NewInputs
from dpiat.heads import HEADS, Head, new_heads, other_inputs, treat_heads
from dpiat.new import WAYS, New, neutral_gates, passing_layers, silent_blocks, silent_heads
from dpiat.operators import OPERATORS, Operator, OperatorName
from dpiat.pairing import complete, keep_norms, reasons, share_among_experts
from dpiat.plan import NO_PARTNER, Plan, Treatment, read_both
from dpiat.reading import MODES, Mode, unwrapped
from dpiat.recipe import BEST, Recipe
from dpiat.report import Report
from dpiat.sources import Source, load
from dpiat.stored import Stored
from dpiat.writing import Write

NO_STRIDES = "the source is a state dict, which tells no strides: blocks of other resolutions can match"
# The names of Table 12.
PaperMatching = Literal["DPMatching", "BipartiteMatching", "NBipartiteMatching", "RandomMatching"]
PaperOperator = Literal[
    "ClipTransfer", "ClipWithNormalization", "ClipWithNormalizationTransfer", "FullTransfer", "MagnitudeTransfer"
]
PAPER_NAMES: dict[str, str] = {
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
    mode: Mode | Recipe = "default",
    head: Head = "auto",
    matching: MatchingName | PaperMatching | Matcher = "dp",
    operator: OperatorName | PaperOperator | Operator = "clip",
    optimizer: tuple[Optimizer, Optimizer] | None = None,
    inputs: NewInputs = "repeat",
    new: New = "identity",
) -> Report:
    """Initialize `target` with the knowledge of `source`, a trained network of another architecture.

    Matches the blocks of both networks by dynamic programming on the shapes of their weights, and the layers in them by
    kind, role and shape. Then fills every matched tensor of the target, in place. A tensor without a counterpart keeps
    its values. The guide says more (docs/library.md), and docs/networks.md says what the default mode understands.

    Args:
        source: A module, a state dict, a file of weights (.pt, .pth, .bin, .safetensors), a folder that
            `save_pretrained` wrote, or a timm name, which brings its pretrained weights. Is only read. Values in files
            are read one tensor after the other, and only where they are written: the source may be larger than the
            memory. A state dict tells the kinds of layers by shapes alone, and does not tell the groups of
            convolutions. `dpiat.load` says which files need the name of their network.
        target: The network to fill. Its devices, dtypes, `requires_grad` and training flags stay as they are.
        mode: "default" reads blocks, roles and the meaning of axes. A network transferred to itself, to the same
            network of another library, or from its own state dict computes the same function. "paper" is the authors'
            algorithm, bit for bit: weights and biases of convolutions, linear layers and batch norms by their shapes
            alone. A `dpiat.recipe.Recipe` is the default mode with its ideas switched one by one.
        head: What happens to a classifier. "auto" fills a classifier only from a classifier of as many classes; "skip"
            never; "copy" also like any other layer, cropped rows of other classes included (as "auto" and "copy" do in
            paper mode). A mapping {target class: source class} fills the classes that it names. A mapping {layer:
            {target class: source class}} does this for layers by their names, in which * and ? are wildcards.
        matching: Which source layer fills which target layer: "dp", "bipartite", "nbipartite", "random", or a function
            of two architectures, source and target, that gives a `Matching`. The names of the paper's Table 12 will do
            too.
        operator: Which entries of a source layer fill which entries of a target layer: "leading" channels, the
            "centre" crop, "clip" (the crop of the mode: "leading" in default mode, "centre" in paper mode),
            "clip_normalized" (the same crop, then the spread of a fresh network), "full", "magnitude", "uniform", or a
            function (see `dpiat.operators`). The names of Table 12 will do too.
        optimizer: The source's and the target's optimizer. The state of Adam or SGD then goes the way of the weights.
        inputs: What input channels get that the source's first convolution does not have. "repeat" gives them the
            others' weights in turn, at an equal response to what is the same in all channels; "zero" keeps the response
            to the old channels.
        new: How blocks, convolutions and classifiers start that the source does not have. With "identity", the last
            layers of a new residual block are zero, so that the block does nothing at first. The same holds for all but
            the first of several blocks that one block of the source fills. A new convolution among filled layers gives
            what it takes (Net2DeeperNet, arXiv 1511.05641). A classifier of other classes starts with zero weights, so
            that no random answer disturbs the features. With "random", all these keep the target's values, and a copy
            is a copy.

    Returns:
        A report with one entry for each tensor of the target: parameters and saved buffers.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: For an unknown name, lazy parameters, weights that cannot be read or written (on the meta device,
            shared with the source, ...), or a file that holds no weights. Then nothing is written.

    Note:
        A classifier is a layer whose name says so ("class_embed", "cls_score", "classifier"), wherever the layer
        stands. If no name says so, the last layer is one, with the layers beside it that see the same inputs (boxes, a
        distillation token) and auxiliary classifiers of as many classes. A head that is tied to an embedding is filled
        as the embedding is, by the numbers of its tokens, unless it is skipped.

        A weight that is computed from others (torch.nn.utils.parametrize, weight_norm, spectral_norm, pruning) comes as
        near to what it receives as the others can bring it.

    Examples:
        >>> from dpiat import transfer
        >>> report = transfer(trained, new)
        >>> print(report.summary())
    """
    planned, writes = _plan(source, target, mode, head, matching, operator, inputs, new)
    return planned.carry_out(writes, optimizer)


def plan(
    source: Source,
    target: nn.Module,
    mode: Mode | Recipe = "default",
    head: Head = "auto",
    matching: MatchingName | PaperMatching | Matcher = "dp",
    operator: OperatorName | PaperOperator | Operator = "clip",
    inputs: NewInputs = "repeat",
    new: New = "identity",
) -> Plan:
    """What `transfer` with these arguments would do. Changes nothing, and works on the meta device.

    Args:
        source: As of `transfer`.
        target: As of `transfer`. Needs no memory for its weights until the plan is applied.
        mode: "default" or "paper".
        head: "auto", "skip", "copy", or a mapping of classes.
        matching: A name or a function.
        operator: A name or a function.
        inputs: "repeat" or "zero".
        new: "identity" or "random".

    Returns:
        A plan that can be printed, changed, kept as text, drawn and applied.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: For an unknown name, lazy parameters, or a file that holds no weights.

    Examples:
        >>> planned = plan("resnet18", target)
        >>> print(planned)
        >>> planned.drop("fc").apply()
    """
    return _plan(source, target, mode, head, matching, operator, inputs, new)[0]


def _plan(source, target, mode, head, matching, operator, inputs, new) -> tuple[Plan, list[Write]]:
    """The plan, and what it takes to carry it out while the networks are as they are."""
    recipe, mode = (mode, "default") if isinstance(mode, Recipe) else (BEST, mode)
    _check_arguments(target, mode, head, inputs, new)
    matcher, operator = _chosen("matching", matching, MATCHINGS), _chosen("operator", operator, OPERATORS)
    source = load(source, like=target)
    giver, taker = read_both(source, target, mode, recipe)
    architectures = giver.architecture, taker.architecture
    aligned = matcher is best and mode == "default"
    matched = align(*architectures, recipe) if aligned else matcher(*architectures)
    if matcher not in MATCHINGS.values():
        check_matching(matched, *architectures)
    partner = {pair.target.name: pair.source.name for pair in matched.layers}
    if mode == "default":
        if aligned:
            keep_norms(giver, taker, partner, recipe.gates)
        complete(giver, taker, matched, partner)
        share_among_experts(taker, partner)
    kept, mapped = treat_heads(*architectures, partner, head, mode)
    # What else happens to a target layer: each question has rules of its own, and paper mode asks for classes alone.
    rules, silent, passing, why, made = dict.fromkeys(mapped, CLASSES), {}, {}, {}, []
    if mode == "default":
        rules |= dict.fromkeys(other_inputs(giver, taker, partner), NEW_INPUTS[inputs])
        if recipe.gates:
            silent |= neutral_gates(taker, partner)
        if new == "identity" and aligned:
            silent |= silent_blocks(taker, unwrapped(target), matched, partner)
            passing = passing_layers(taker, partner, kept)
        if new == "identity" and recipe.head:
            silent |= silent_heads(taker, new_heads(kept))
        spread(giver, taker, partner)
        made = joined(giver, set(partner.values()))
        why = reasons(giver, taker, partner)
    by = {layer.name: layer for layer in (*giver.layers, *made)}
    treatments = {
        name: Treatment(
            by.get(partner.get(name)),
            kept.get(name, ""),
            rules.get(name, ""),
            why.get(name, NO_PARTNER),
            silent.get(name, ""),
            passing.get(name, ""),
        )
        for name in (layer.name for layer in taker.layers)
    }
    planned = Plan(source, target, Report(()), mode, operator, mapped, recipe)
    found = list(planned.entries(treatments, taker.layers, taker.order))
    report = Report(tuple(entry for entry, _ in found), _notes(source, taker.architecture))
    return replace(planned, report=report), [write for _, writes in found for write in writes]


def _check_arguments(target: Any, mode: Any, head: Any, inputs: Any, new: Any) -> None:
    if not isinstance(target, nn.Module):
        raise TypeError(f"target must be a torch.nn.Module, got {type(target).__name__}")
    for key, value, known in (("mode", mode, MODES), ("inputs", inputs, NEW_INPUTS), ("new", new, WAYS)):
        if value not in known:
            raise ValueError(f"{key} must be one of {', '.join(known)}, got {value!r}")
    if not isinstance(head, Mapping) and head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)} or {{target class: source class}}, got {head!r}")


def _notes(source: nn.Module, target: Architecture) -> tuple[str, ...]:
    """What is to be known of a plan: a state dict tells no strides, where the target's blocks have any."""
    return (NO_STRIDES,) if isinstance(source, Stored) and any(block.level for block in target.blocks) else ()


def _chosen(key: str, value: Any, known: Mapping[str, Any]) -> Any:
    """The function that a name of ours or of the paper stands for, or a function of the user's."""
    if isinstance(value, str) and PAPER_NAMES.get(value, value) in known:
        return known[PAPER_NAMES.get(value, value)]
    if not callable(value):
        raise ValueError(f"{key} must be one of {', '.join(known)}, or a function, got {value!r}")
    return value
