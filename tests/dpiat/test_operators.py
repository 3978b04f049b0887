"""Which entries each operator moves; appendix A.2 and Table 12."""

import copy
import math

import numpy as np
import pytest
import torch
from networks import trained
from torch import nn

from dpiat import Plan, plan, standardize, transfer
from dpiat.operators import OPERATORS, FullTransfer, Weights, centre, clip, magnitude, shared, uniform
from dpiat.recipe import Recipe


def test_centre_crops_start_at_the_lower_half():
    """0-based: 4 into 9 lands on 2..5; of 9 into 4, 2..5 is taken."""
    assert centre((4, 3), (9, 3)) == ((slice(2, 6), slice(0, 3)), (slice(0, 4), slice(0, 3)))
    assert centre((9,), (4,)) == ((slice(0, 4),), (slice(2, 6),))
    assert centre((), ()) == ((), ())


def dense(convolution: nn.Conv2d) -> torch.Tensor:
    """The weight of the dense convolution that one with groups stands for."""
    out, inner, *kernel = convolution.weight.shape
    weight = torch.zeros(out, inner * convolution.groups, *kernel)
    for o in range(out):
        start = o // (out // convolution.groups) * inner
        weight[o, start : start + inner] = convolution.weight[o]
    return weight


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((8, 8, 2), (16, 16, 2)),
        ((8, 8, 2), (16, 16, 4)),
        ((16, 16, 4), (8, 8, 2)),
        ((12, 6, 3), (18, 12, 6)),
        ((8, 8, 4), (12, 12, 1)),
        ((8, 8, 8), (12, 12, 1)),
        ((12, 12, 1), (8, 8, 8)),
        ((8, 16, 8), (12, 12, 4)),
        ((6, 6, 6), (9, 9, 9)),
    ],
)
@torch.no_grad()
def test_groups_are_cropped_as_the_dense_convolution_that_they_stand_for(source, target):
    by, to = (nn.Conv2d(i, o, 3, groups=g, bias=False) for o, i, g in (source, target))
    to.weight.zero_()
    indices = clip(*(Weights({"weight": layer.weight}, "Conv2d", layer.groups) for layer in (by, to)))
    index = indices["weight"]
    to.weight[index[0]] = by.weight[index[1]]
    to_index, by_index = centre(dense(by).shape, dense(to).shape)
    expected = torch.zeros_like(dense(to))
    expected[to_index] = dense(by)[by_index]
    possible = dense(nn.Conv2d(target[1], target[0], 3, groups=target[2])) != 0
    assert torch.equal(dense(to), torch.where(possible, expected, 0))


@torch.no_grad()
def test_clip_is_the_crop_of_the_mode():
    """ "leading" in default mode and "centre" in paper mode, which mean the same in both."""
    source, target = nn.Sequential(nn.Conv2d(3, 8, 3)), nn.Sequential(nn.Conv2d(3, 4, 3))
    first, middle = source[0].weight[:4], source[0].weight[2:6]
    for mode, clipped in (("default", first), ("paper", middle), (Recipe(leading=False), middle)):
        for operator, expected in (("leading", first), ("centre", middle), ("clip", clipped)):
            transfer(source, target, mode=mode, operator=operator, head="copy")
            assert torch.equal(target[0].weight, expected), (mode, operator)


@torch.no_grad()
def test_query_key_and_value_are_cropped_one_by_one():
    source, target = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(12, 2)
    target.in_proj_weight.zero_()
    transfer(source, target)
    for theirs, ours in zip(source.in_proj_weight.chunk(3), target.in_proj_weight.chunk(3), strict=True):
        for head, wider in zip(theirs.chunk(2), ours.chunk(2), strict=True):  # each head into its own
            assert torch.equal(wider[:4, :8], head)
        assert int((ours != 0).sum()) == 64


class Conv1D(nn.Module):
    """That of Hugging Face's GPT-2: a linear layer with its weight as (in, out)."""

    def __init__(self, out: int, inputs: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(inputs, out)), nn.Parameter(torch.rand(out))


class Attention(nn.Module):
    def __init__(self, width: int, name: str, layer: nn.Module):
        super().__init__()
        self.before = nn.Linear(width, width)
        self.add_module(name, layer)
        self.after = nn.LayerNorm(width)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["c_attn", "qkv_proj", "qkv"])
@torch.no_grad()
def test_projections_are_known_by_the_names_of_other_libraries(name):
    stack, along = (Conv1D, -1) if name == "c_attn" else (lambda out, inputs: nn.Linear(inputs, out), 0)
    source, target = (Attention(width, name, stack(3 * width, width)) for width in (8, 12))
    wrapped = copy.deepcopy(target)
    transfer(source, target)
    given, filled = (network.get_submodule(name) for network in (source, target))
    for theirs, ours in zip(given.weight.chunk(3, along), filled.weight.chunk(3, along), strict=True):
        assert torch.equal(ours[:8, :8], theirs)
    for theirs, ours in zip(given.bias.chunk(3), filled.bias.chunk(3), strict=True):
        assert torch.equal(ours[:8], theirs)
    setattr(wrapped, name, torch.compile(wrapped.get_submodule(name)))
    transfer(source, wrapped)
    assert torch.equal(wrapped.get_submodule(name).weight, filled.weight)


@pytest.mark.parametrize(
    ("name", "rows", "parts"),
    [
        ("qkv_proj", 24, ["query", "key", "value"]),
        ("qkv_proj", 14, ["query", "key", "value"]),  # grouped queries: 8, 3 and 3
        ("qkv_proj", 9, ["query", "key", "value"]),  # heads that are narrower than the inputs
        ("qkv_proj", 7, [""]),
        ("kv_proj", 16, ["key", "value"]),
        ("qkv", 24, ["query", "key", "value"]),
        ("in_proj", 24, ["query", "key", "value"]),
    ],
)
def test_parts_are_what_the_name_and_the_shape_say(name, rows, parts):
    network = nn.ModuleDict({"attn": nn.ModuleDict({name: nn.Linear(8, rows), "proj": nn.Linear(8, 8)})})
    found = [layer.name.removeprefix(f"attn.{name}").strip("[]") for layer in standardize(network).layers[:-1]]
    assert found == parts


@pytest.mark.parametrize("operator", ["clip", "clip_normalized"])
@pytest.mark.parametrize(("rows", "width"), [(7, 4), (12, 4), (7, 6), (9, 3)])
@torch.no_grad()
def test_a_token_gets_the_row_of_its_own_number(rows, width, operator):
    """Those of both networks are numbered from the first one, however many there are and whatever the file says."""

    def make(rows: int, width: int) -> nn.Module:
        return nn.Sequential(nn.Embedding(rows, width), nn.Linear(width, 4), nn.LayerNorm(4))

    source, into, other = make(9, 4), make(rows, width), make(rows, width)
    report = transfer(source, into, operator=operator)
    transfer(source.state_dict(), other, operator=operator)
    count, channels = min(9, rows), min(4, width)
    for target in (into, other):
        assert torch.equal(target[0].weight[:count, :channels], source[0].weight[:count, :channels])
    assert report.entries[0].filled == count * min(4, width)


def convolution(out: int, inputs: int, values=None) -> Weights:
    weight = torch.randn(out, inputs, 1, 1) if values is None else torch.tensor(values)[:, :, None, None]
    return Weights({"weight": weight, "bias": torch.randn(out)}, "Conv2d")


def filled(operator, source: Weights, target: Weights, name: str = "weight") -> torch.Tensor:
    """The target's tensor after the transfer, nan where nothing was written."""
    to, by = operator(source, target)[name]
    result = torch.full_like(target.tensors[name], math.nan)
    result[to] = source.tensors[name][by]
    return result


def test_magnitude_takes_the_channels_of_largest_norm_in_their_order():
    source = convolution(3, 3, [[5.0, 0.0, -5.0], [0.1, 6.0, 0.2], [-7.0, 0.0, 1.0]])
    target = convolution(2, 2)
    assert filled(magnitude, source, target).flatten(1).tolist() == [[5.0, -5.0], [-7.0, 1.0]]
    assert torch.equal(filled(magnitude, source, target, "bias"), source.tensors["bias"][[0, 2]])
    larger = filled(magnitude, source, convolution(4, 5)).flatten(1)
    assert torch.equal(larger[:3, :3], source.tensors["weight"].flatten(1)) and larger[3:].isnan().all()
    norm = Weights({"weight": torch.tensor([3.0, -1.0, 2.0]), "running_mean": torch.tensor([1.0, 2.0, 3.0])})
    small = Weights({"weight": torch.ones(2), "running_mean": torch.zeros(2)})
    assert filled(magnitude, norm, small).tolist() == [3, 2]
    assert filled(magnitude, norm, small, "running_mean").tolist() == [1, 3]


def test_uniform_takes_evenly_spaced_entries():
    source = Weights({"weight": torch.arange(8.0)})
    assert filled(uniform, source, Weights({"weight": torch.zeros(4)})).tolist() == [0, 2, 4, 6]
    assert filled(uniform, source, Weights({"weight": torch.zeros(3)})).tolist() == [0, 4, 7]
    assert filled(uniform, source, Weights({"weight": torch.zeros(1)})).tolist() == [0]
    assert filled(uniform, source, Weights({"weight": torch.zeros(0)})).tolist() == []
    assert filled(uniform, source, Weights({"weight": torch.zeros(10)}))[1:9].tolist() == list(range(8))


def selected(weight: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The uniform selection as the authors of weight selection publish it, dimension by dimension."""
    for dimension, size in enumerate(shape):
        whole = weight.shape[dimension]
        if whole % size == 0:
            indices = torch.arange(size) * (whole // size)
        else:
            indices = torch.round(torch.linspace(0, whole - 1, size)).long()
        weight = torch.index_select(weight, dimension, indices)
    return weight


@pytest.mark.parametrize("mode", ["default", "paper"])
@pytest.mark.parametrize(("out", "into", "kernel"), [(24, 12, 5), (24, 16, 3), (17, 16, 3), (40, 23, 4), (7, 13, 7)])
@torch.no_grad()
def test_uniform_is_the_published_selection(mode, out, into, kernel):
    """Multiples of the target's size and others, in whatever mode."""
    source = nn.Sequential(nn.Conv2d(3, 48, 1), nn.Conv2d(48, 40, 7))
    target = nn.Sequential(nn.Conv2d(3, into, 1), nn.Conv2d(into, out, kernel))
    transfer(source, target, mode=mode, operator="uniform")
    for theirs, ours in zip(source, target, strict=True):
        assert torch.equal(ours.weight, selected(theirs.weight, ours.weight.shape))
        assert torch.equal(ours.bias, selected(theirs.bias, ours.bias.shape))


def test_full_repeats_source_entries_around_the_centre():
    source, target = convolution(3, 4), convolution(7, 2)
    weight, bias = (filled(FullTransfer(), source, target, name) for name in ("weight", "bias"))
    assert not weight.isnan().any()
    assert torch.equal(weight[2:5], source.tensors["weight"][:, 1:3])
    rows = [int((source.tensors["bias"] == value).nonzero()) for value in bias]  # the same for weight and bias
    assert torch.equal(weight, source.tensors["weight"][rows][:, 1:3])
    draws = {str(FullTransfer(seed)(source, target)["bias"][1]) for seed in range(9)}
    assert len(draws) > 1 and str(FullTransfer(3)(source, target)) == str(FullTransfer(3)(source, target))


@torch.no_grad()
def test_clip_with_normalization_gives_the_spread_of_a_fresh_network():
    source, target = trained("mobilenetv2_050", 0), trained("mobilenetv2_100", 1)
    report = transfer(source, target, operator="clip_normalized")
    assert report.entries == plan(source, target).report.entries
    written = {entry.target for entry in report.entries if entry.action not in ("left", "zero")}
    for name, module in target.named_modules():
        if isinstance(module, nn.Conv2d) and f"{name}.weight" in written:
            assert float(module.weight.std()) == pytest.approx(
                math.sqrt(2 / (len(module.weight) * module.weight[0, 0].numel()))
            )
    assert float(target.classifier.weight.std()) == pytest.approx(1 / math.sqrt(3 * target.classifier.in_features))
    clipped = trained("mobilenetv2_100", 1)
    transfer(source, clipped)
    assert torch.equal(target.bn1.weight, clipped.bn1.weight)


@pytest.mark.parametrize("name", OPERATORS)
def test_float8_is_filled_by_each_operator(name):
    source, target = nn.Linear(5, 4), nn.Linear(3, 4)
    for parameter in target.parameters():
        parameter.data = parameter.to(torch.float8_e4m3fn)
    before = target.weight.float()
    report = transfer(source, target, operator=name, head="copy")
    assert report.share == 1 and report.entries[0].note == "float32 → float8_e4m3fn"
    assert target.weight.dtype == torch.float8_e4m3fn and not torch.equal(target.weight.float(), before)


@pytest.mark.parametrize("name", OPERATORS)
def test_integers_are_copied_by_each_operator(name):
    source, target = nn.Linear(5, 4), nn.Linear(5, 4)
    for value, layer in enumerate((source, target)):
        layer.weight = nn.Parameter(torch.arange(20).view(4, 5) * (1 - value), requires_grad=False)
    transfer(source, target, operator=name)
    assert torch.equal(target.weight, source.weight)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_network_transferred_to_itself_is_copied_by_each_operator(name):
    source, target = trained("mixnet_s", 0), trained("mixnet_s", 1)
    report = transfer(source, target, operator=name)
    assert report.share == 1
    if name != "clip_normalized":
        assert all(
            torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_the_dry_run_of_each_operator_tells_what_happens(name):
    source, first, second = trained("mixnet_s", 0), trained("mnasnet_100", 1), trained("mnasnet_100", 1)
    planned = plan(source, first, operator=name)
    before = {key: tensor.clone() for key, tensor in first.state_dict().items()}
    planned.apply()
    for entry in planned.report.entries:
        if not before[entry.target].is_floating_point():
            continue
        changed = int((first.state_dict()[entry.target] != before[entry.target]).sum())
        written = entry.filled + entry.zeros
        assert name == "clip_normalized" or 0.99 * written <= changed <= written
    Plan.from_json(planned.to_json(), source, second).apply()
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def corner(source: Weights, target: Weights):
    both = {name: tuple(map(slice, map(min, s.shape, t.shape))) for name, s, t in shared(source, target)}
    return {name: (index, index) for name, index in both.items() if name != "bias"}


def test_an_operator_of_the_users_own():
    source, target = nn.Linear(3, 4), nn.Linear(5, 2)
    before = target.bias.clone()
    planned = plan(source, target, operator=corner, head="copy")
    assert [(e.action, e.filled, e.note) for e in planned.report.entries] == [
        ("partly filled", 6, ""),
        ("left", 0, "the operator leaves it"),
    ]
    with pytest.raises(ValueError, match="an operator of your own: pass it as operator="):
        Plan.from_json(planned.to_json(), source, target)
    Plan.from_json(planned.to_json(), source, target, operator=corner).apply()
    assert torch.equal(target.weight[:, :3], source.weight[:2]) and torch.equal(target.bias, before)


@pytest.mark.parametrize(
    "index",
    [([0, 2],), [0, 2], (np.array([0, 2]),), (range(0, 3, 2),), slice(0, 2), 1, (torch.tensor([True, False, True]),)],
)
@torch.no_grad()
def test_whatever_indexes_a_tensor_is_an_index(index):
    source, target = nn.Linear(3, 3), nn.Linear(3, 3)
    expected = target.weight.clone()
    expected[index] = source.weight[index]
    report = transfer(source, target, operator=lambda source, target: {"weight": (index, index)}, head="copy")
    assert torch.equal(target.weight, expected)
    assert report.entries[0].filled == source.weight[index].numel()


def test_an_operator_that_finishes_leaves_what_the_plan_leaves():
    """The paper's mode rescales a bias that has no counterpart, too, as the authors' code does."""
    source = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3))
    for mode, bias_stays in (("default", True), ("paper", False)):
        target = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
        before = {name: tensor.clone() for name, tensor in target.named_parameters()}
        plan(source, target, mode, operator="clip_normalized").drop("1.weight").apply()
        assert torch.equal(target[1].weight, before["1.weight"]) and not torch.equal(target[1].bias, before["1.bias"])
        assert torch.equal(target[0].bias, before["0.bias"]) == bias_stays


def test_what_an_operator_must_not_return_is_named_before_anything_is_written():
    source, target = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    before = target[0].weight.clone()

    def too_far(source: Weights, target: Weights):
        return {"weight": ((slice(0, 4), slice(0, 4)), (torch.arange(1, 5), slice(0, 4)))}

    def unequal(source: Weights, target: Weights):
        return {"weight": ((slice(0, 4), slice(0, 4)), (slice(0, 3), slice(0, 4)))}

    def twice(source: Weights, target: Weights):
        return {"weight": ((torch.zeros(4, dtype=torch.long),), (slice(0, 4),))}

    for operator, error, message in (
        (lambda source, target: None, TypeError, "an operator must return {tensor: .*}, got NoneType"),
        (too_far, ValueError, r"the operator's indices for 0\.weight do not fit \(index 4 is out of bounds"),
        (unequal, ValueError, r"the operator's indices choose 4×4 and 3×4 elements of 0\.weight and 0\.weight"),
        (twice, ValueError, r"the operator's indices choose an element of 0\.weight more than once"),
    ):
        with pytest.raises(error, match=message):
            transfer(source, target, operator=operator, head="copy")
    assert torch.equal(target[0].weight, before)
    with pytest.raises(TypeError, match=r"a matching must give a dpiat\.matching\.Matching, got NoneType"):
        transfer(source, target, matching=lambda source, target: None)


def test_the_papers_names_will_do():
    source, target = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    for matching, operator in (("dp", "clip"), ("bipartite", "magnitude")):
        name = {"dp": "DPMatching", "clip": "ClipTransfer", "bipartite": "BipartiteMatching"}
        by_paper = plan(source, target, matching=name[matching], operator=name.get(operator, "MagnitudeTransfer"))
        assert by_paper.report == plan(source, target, matching=matching, operator=operator).report


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_default_device_does_not_matter(operator):
    source = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.MultiheadAttention(8, 2), nn.Linear(8, 4))
    target = nn.Sequential(nn.Conv2d(4, 12, 3, groups=4), nn.MultiheadAttention(16, 2), nn.Linear(16, 6))
    for head in ("copy", {0: 3}):
        expected = plan(source, target, operator=operator, head=head).report
        with torch.device("meta"):
            assert plan(source, target, operator=operator, head=head).report == expected


def test_magnitude_knows_the_outputs_of_a_transposed_convolution():
    source, target = nn.ConvTranspose2d(4, 4, 1), nn.ConvTranspose2d(2, 2, 1)
    with torch.no_grad():
        source.weight.copy_((torch.arange(4.0)[:, None] + 10 * torch.arange(4.0))[..., None, None])
    given, wanted = (Weights(dict(layer.named_parameters()), "ConvTranspose2d") for layer in (source, target))
    assert filled(magnitude, given, wanted).flatten(1).tolist() == [[22, 32], [23, 33]]
    assert torch.equal(filled(magnitude, given, wanted, "bias"), source.bias[2:])


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", OPERATORS)
def test_layers_without_elements_are_no_mistake(name):
    source, target = (nn.Sequential(nn.Linear(0, 3), nn.Linear(3, 2)) for _ in range(2))
    transfer(source, target, operator=name, head="copy")
    assert name == "clip_normalized" or torch.equal(target[1].weight, source[1].weight)
