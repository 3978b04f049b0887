"""What a transfer writes, what it leaves, and what it says about both."""

import copy
import json
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import timm
import torch
from networks import tied, trained
from torch import nn
from torch.nn.utils import spectral_norm
from torch.nn.utils.parametrizations import weight_norm

from dpiat import Plan, plan, similarity, standardize, transfer
from dpiat.assignment import MATCHINGS
from dpiat.branches import joined
from dpiat.operators import OPERATORS, centre
from dpiat.reading import read
from dpiat.transfer import PAPER_NAMES


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


# Plain convolutions, squeeze-and-excitation, mixed kernels, dense connections; then what the paper does not treat.
FAMILIES = ["resnet18", "tf_efficientnet_b0", "mixnet_s", "densenet121", "vit_tiny_patch16_224", "convnext_atto"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_network_transferred_to_itself_is_the_same_function(name):
    source, target = trained(name, 0), trained(name, 1)
    images = torch.randn(2, 3, 224, 224) if name.startswith("vit") else torch.randn(2, 3, 64, 64)
    assert not torch.equal(source(images), target(images))
    report = transfer(source, target)
    assert torch.equal(source(images), target(images))
    assert report.share == 1 and similarity(source, target) == 1


def test_nothing_is_changed_by_looking():
    source, target = trained("mnasnet_small", 0), trained("tf_efficientnet_lite0", 1).train()
    target.conv_stem.weight.requires_grad_(False)
    for network in (source, target):
        before, versions = state(network), {name: t._version for name, t in network.state_dict(keep_vars=True).items()}
        flags = [(m.training, [p.requires_grad for p in m.parameters(False)]) for m in network.modules()]
        similarity(source, target)
        plan(source, target)
        plan(source, target, mode="paper")
        after = network.state_dict(keep_vars=True)
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert versions == {name: t._version for name, t in after.items()}
        assert flags == [(m.training, [p.requires_grad for p in m.parameters(False)]) for m in network.modules()]


def test_only_the_target_is_written_and_in_place():
    source, target = trained("tf_efficientnet_lite0", 0), trained("mnasnet_small", 1).train()
    target.conv_stem.weight.requires_grad_(False)
    before, tensors = state(source), dict(target.state_dict(keep_vars=True))
    transfer(source, target)
    assert all(torch.equal(before[name], tensor) for name, tensor in source.state_dict().items())
    assert all(tensors[name] is tensor for name, tensor in target.state_dict(keep_vars=True).items())
    assert target.training and not target.conv_stem.weight.requires_grad and target.bn1.weight.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "paper"])
def test_the_report_is_what_happens(mode):
    source, target = trained("mixnet_s", 0), trained("mnasnet_100", 1)
    given, before = state(source), state(target)
    dry = str(plan(source, target, mode))
    report = transfer(source, target, mode)
    assert str(report) == dry
    wholes = {entry.source.rpartition(".")[0] for entry in report.entries}  # convolutions of a MixNet side by side
    given |= {layer.path("weight"): layer.tensors["weight"] for layer in joined(read(source), wholes)}
    for entry in report.entries:
        after, expected = target.state_dict()[entry.target], before[entry.target].clone()
        if entry.filled:
            to, by = centre(entry.source_shape, entry.shape)
            if mode == "default":  # leading channels, kernels centred
                first = tuple(slice(0, min(sizes)) for sizes in zip(entry.source_shape[:2], entry.shape, strict=False))
                to, by = first + to[2:], first + by[2:]
            if entry.zeros:
                expected[to[0]] = 0
            expected[to] = given[entry.source][by]
            assert expected[to].numel() == entry.filled
        elif entry.action == "zero":
            expected.zero_()
        assert torch.equal(after, expected)
        assert (entry.action in ("left", "zero")) == (entry.filled == 0) == bool(entry.note)
    assert [entry.target for entry in report.entries] == list(before)
    assert sum(report.elements.values()) == sum(tensor.numel() for tensor in before.values())


def test_paper_mode_copies_parameters_alone():
    source, target = trained("resnet18", 0), trained("resnet18", 1)
    before = state(target)
    transfer(source, target, mode="paper")
    for name, tensor in target.state_dict().items():
        is_parameter = isinstance(target.state_dict(keep_vars=True)[name], nn.Parameter)
        assert torch.equal(tensor, source.state_dict()[name] if is_parameter else before[name])


def mobile_net(width: int) -> nn.Module:
    """Convolutions, a depthwise one, batch norms and a classifier; the widths alone differ."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, groups=width),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 7),
    ).eval()


@pytest.mark.parametrize("widths", [(4, 9), (5, 8), (6, 6)])
@torch.no_grad()
def test_a_wider_copy_with_zeros_elsewhere_is_the_same_function(widths):
    """Section 3.4."""
    torch.manual_seed(0)
    source, target = (mobile_net(width) for width in widths)
    for tensor in source.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor))
    for parameter in target.parameters():
        parameter.zero_()
    transfer(source, target)
    images = torch.randn(4, 3, 12, 12)
    torch.testing.assert_close(target(images), source(images), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_real_network_wider_everywhere_is_the_same_function():
    source = trained("mobilenetv2_100", 0)
    target = timm.create_model("mobilenetv2_140", num_classes=10).eval()
    for parameter in target.parameters():
        parameter.zero_()
    transfer(source, target)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(target(images), source(images), atol=1e-4, rtol=1e-4)


def test_a_shared_tensor_is_written_once():
    def tied(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        network[2].weight = network[0].weight
        return network

    source, target = tied(0), tied(1)
    report = transfer(source, target)
    assert torch.equal(target[2].weight, source[0].weight) and target[2].weight is target[0].weight
    assert sum(report.elements.values()) == 16 + 4 + 4
    assert "the same tensor as 0.weight" in str(report)


def test_layers_without_a_bias_are_reported():
    report = transfer(nn.Sequential(nn.ReLU(), nn.Linear(4, 4, bias=False)), nn.Linear(4, 4))
    assert [(e.target, e.action, e.note) for e in report.entries] == [
        ("weight", "copied", ""),
        ("bias", "left", "1 has no bias"),
    ]


def test_a_lone_layer_meets_one_inside_a_network():
    source, target = nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), nn.Linear(4, 4)
    transfer(source, target)
    assert torch.equal(target.weight, source[1].weight) and torch.equal(target.bias, source[1].bias)


def test_batch_norms_without_weights_carry_their_statistics():
    source, target = nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(6, affine=False)
    source.running_mean += 3
    assert transfer(source, target).elements["partly filled"] == 8
    assert target.running_mean.tolist() == [3, 3, 3, 3, 0, 0]


def test_dtypes_are_kept():
    source, target = nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.bfloat16)
    transfer(source, target)
    assert torch.equal(target.weight, source.weight.to(torch.bfloat16))


def test_mistakes_are_named():
    with pytest.raises(TypeError, match=r"source must be a torch\.nn\.Module, a state dict, .* got list"):
        transfer([], nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"target must be a torch\.nn\.Module, got Architecture"):
        transfer(nn.Linear(2, 2), standardize(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="mode must be one of default, paper, got 'exact'"):
        plan(nn.Linear(2, 2), nn.Linear(2, 2), mode="exact")
    for key, known in (
        ("matching", "dp, bipartite, nbipartite, random"),
        ("operator", "clip, centre, leading"),
    ):
        with pytest.raises(ValueError, match=f"{key} must be one of {known}.* or a function, got 'exact'"):
            plan(nn.Linear(2, 2), nn.Linear(2, 2), **{key: "exact"})
    with pytest.raises(ValueError, match=r"head must be one of auto, copy, skip or \{target class: source class\}"):
        plan(nn.Linear(2, 2), nn.Linear(2, 2), head="none")


def listed(annotation) -> set[str]:
    """The strings of all `Literal` types in an annotation."""
    values = get_args(annotation)
    return set(values) if get_origin(annotation) is Literal else set().union(*map(listed, values))


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("mode", {"default", "paper"}),
        ("head", {"auto", "copy", "skip"}),
        ("matching", {*MATCHINGS, *(name for name, ours in PAPER_NAMES.items() if ours in MATCHINGS)}),
        ("operator", {*OPERATORS, *(name for name, ours in PAPER_NAMES.items() if ours in OPERATORS)}),
        ("inputs", {"repeat", "zero"}),
        ("new", {"identity", "random"}),
    ],
)
def test_a_signature_lists_the_names_that_are_known(key, known):
    for function in (transfer, plan):
        assert listed(get_type_hints(function)[key]) == known
    for name in known:
        plan(nn.Linear(2, 2), nn.Linear(2, 2), **{key: name})


def test_nothing_is_written_unless_everything_can_be():
    source, target = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    source[1] = nn.Linear(2, 2, device="meta")
    before = copy.deepcopy(target)
    with pytest.raises(ValueError, match=r"1\.weight is on the meta device and has no values"):
        transfer(source, target)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), target.parameters(), strict=True))


def test_a_plan_that_no_longer_fits_is_refused():
    target = nn.Sequential(nn.Linear(2, 2))
    planned = plan(nn.Sequential(nn.Linear(2, 2)), target)
    target[0] = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"0\.weight now has shape 3×3; it was planned with 2×2: make a new plan"):
        planned.apply()


def classifier(classes: int, width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, classes))


def test_a_classifier_of_other_classes_is_left():
    source, target = classifier(1000), classifier(10, 6)
    before = state(target)
    report = transfer(source, target, new="random")
    assert torch.equal(target[3].weight, before["3.weight"]) and torch.equal(target[3].bias, before["3.bias"])
    assert "a classifier of 10 classes, of 1000 in the source" in str(report)
    assert torch.equal(target[0].weight, source[0].weight[:6])
    transfer(source, target, head="copy")
    assert torch.equal(target[3].weight, source[3].weight[:10, :6])


def test_a_classifier_of_as_many_classes_is_copied_unless_told():
    source, target = classifier(10), classifier(10)
    before = state(target)
    assert "head='skip'" in str(transfer(source, target, head="skip"))
    assert torch.equal(target[3].weight, before["3.weight"])
    transfer(source, target)
    assert torch.equal(target[3].weight, source[3].weight)
    paper = {entry.target: entry.action for entry in plan(classifier(1000), target, mode="paper").report.entries}
    assert paper["3.weight"] == paper["3.bias"] == "cropped"  # like any other layer


def test_backbones_have_no_classifier():
    backbone = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    assert plan(nn.Sequential(nn.Conv2d(3, 9, 1), nn.BatchNorm2d(9)), backbone).report.share == 1


def test_a_plan_kept_as_text_writes_the_same():
    source, first, second = trained("mixnet_s", 0), trained("mnasnet_100", 1), trained("mnasnet_100", 1)
    planned = plan(source, first)
    kept = Plan.from_json(planned.to_json(), source, second)
    assert kept.report == planned.report
    planned.apply()
    kept.apply()
    assert all(torch.equal(a, b) for a, b in zip(state(first).values(), state(second).values(), strict=True))
    with pytest.raises(ValueError, match="not a plan that to_json wrote"):
        Plan.from_json("[]", source, second)


def test_a_plan_can_be_edited():
    source, target = classifier(10), classifier(10)
    before = state(target)
    edited = plan(source, target).drop("0").drop("3.bias")
    edited.apply()
    assert torch.equal(target[0].weight, before["0.weight"]) and torch.equal(target[3].bias, before["3.bias"])
    assert torch.equal(target[3].weight, source[3].weight) and str(edited).count("dropped") == 3
    deep = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    plan(deep, deep).pair(source="0", target="1").apply()
    assert torch.equal(deep[1].weight, deep[0].weight) and torch.equal(deep[1].bias, deep[0].bias)
    named = nn.ModuleDict({"head": nn.Linear(4, 4)})
    for change, message in (
        (lambda: plan(source, target).drop("9"), "the target has no '9': print the plan to see its names"),
        (lambda: plan(source, target).drop("3.wieght"), "the target has no '3.wieght': did you mean 3.weight"),
        (lambda: plan(named, named).drop("heads"), "the target has no 'heads': did you mean head"),
        (lambda: plan(named, named).pair("head", "haed"), "no layer 'haed' with weights: did you mean head"),
        (lambda: plan(source, target).pair("9", "0"), "the source has no layer '9' with weights"),
        (lambda: plan(source, target).pair("0", "2"), "the target has no layer '2' with weights"),
        (lambda: plan(source, nn.Sequential(nn.Embedding(3, 4))).pair("0", "0"), "no tensor of '0' has one of"),
    ):
        with pytest.raises(ValueError, match=message):
            change()


def test_a_shared_tensor_is_filled_through_the_name_that_matches():
    target = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    target[1].weight = target[0].weight
    source = nn.Sequential(nn.ReLU(), nn.Linear(4, 5))
    report = transfer(source, target, head="copy")
    assert torch.equal(target[0].weight, source[1].weight) and report.share == 1
    unmatched = plan(nn.Sequential(nn.ReLU()), target)  # counted under its first name, 0.weight
    given = Plan(source, target, unmatched.report).pair("1", "1")
    assert [(e.target, e.filled) for e in given.report.entries] == [("0.weight", 20), ("1.weight", 0)]
    assert sum(given.report.elements.values()) == 20


def test_a_plan_as_a_dataframe():
    planned = plan(classifier(10), classifier(10, 6))
    table = planned.to_dataframe().set_index("target")
    assert list(table.index) == [entry.target for entry in planned.report.entries]
    assert table.loc["0.weight", "action"] == "cropped" and table.loc["3.bias", "share"] == 1
    assert (table["filled"].sum() / table["elements"].sum()) == planned.report.share


class Positions(nn.Module):
    def __init__(self, length: int):
        super().__init__()
        self.table = nn.Embedding(length, 4)
        self.register_buffer("places", torch.arange(length)[None])

    def forward(self, inputs):
        return self.table(self.places[:, : inputs.shape[1]])


class Odd(torch.Tensor):
    """Stands for its values, and refuses what is done with them."""

    @staticmethod
    def __new__(cls, values: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)

    def __init__(self, values: torch.Tensor):
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].values)
        if function is torch.ops.aten.copy_.default and type(args[0]) is type(args[1]) is cls:
            args[0].values.copy_(args[1].values)
            return args[0]
        raise NotImplementedError(function)


@pytest.mark.parametrize("width", [3, 5])
def test_a_tensor_of_an_odd_class_is_filled_by_its_like_alone(width):
    """Such as the DTensor of a network that is spread over processes, or a quantized weight of torchao's."""

    def make(width: int, odd: bool) -> nn.Module:
        network = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 4))
        if odd:
            network[2].weight = nn.Parameter(Odd(torch.rand(4, width)), requires_grad=False)
        return network

    for given, wanted in ((True, False), (False, True), (True, True)):
        source, target = make(3, given), make(width, wanted)
        notes = {entry.target: entry.note for entry in transfer(source, target).entries}
        assert torch.equal(target[0].bias[:3], source[0].bias) and notes["2.bias"] == ""
        if given and wanted and width == 3:
            assert notes["2.weight"] == "" and torch.equal(target[2].weight.values, source[2].weight.values)
        else:
            assert notes["2.weight"] == "tensors of class Odd are filled by their like of equal shape alone"


def test_indices_are_not_cropped():
    source, target = Positions(9), Positions(5)
    report = transfer(source, target)
    assert {e.target: e.action for e in report.entries} == {"places": "left", "table.weight": "cropped"}
    assert "computed from the architecture, and not learned" in str(report)
    assert torch.equal(target(torch.zeros(1, 5)), source.table.weight[None, :5])
    same = Positions(9)
    assert transfer(source, same).share == 1


def test_a_source_that_shares_layers_with_the_target_does_not_change():
    source = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    target = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), source[0], nn.ReLU(), nn.Linear(4, 2))
    before = state(source), state(target)
    with pytest.raises(ValueError, match=r"2\.weight belongs to the source too, which must not change"):
        transfer(source, target)
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), source.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before[1].values(), target.state_dict().values(), strict=True))
    same = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    before = state(same)
    planned = plan(same, same, matching="random", head="copy")
    planned.apply()  # as if from a copy of itself
    for entry in planned.report.entries:
        assert torch.equal(same.state_dict()[entry.target], before[entry.source])


def sharing_in_another_order() -> tuple[nn.Module, nn.Module]:
    first, second = (weight_norm(nn.Linear(4, 4)) for _ in range(2))
    return nn.Sequential(first, nn.ReLU(), second), nn.Sequential(second, nn.ReLU(), first)


def view_into_another() -> tuple[nn.Module, nn.Module]:
    source, target = (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, size)) for size in (4, 3))
    target[2].weight = nn.Parameter(source[0].weight.data[1:])
    return source, target


def view_into_its_own() -> tuple[nn.Module, nn.Module]:
    source, target = (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, size)) for size in (4, 3))
    target[2].weight = nn.Parameter(source[2].weight.data[1:])
    return source, target


def hook_of_one_weight() -> tuple[nn.Module, nn.Module]:
    source, target = (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), spectral_norm(nn.Linear(4, 4))) for _ in range(2))
    target[2].weight_orig = source[0].weight
    return source, target


SHARING = [sharing_in_another_order, view_into_another, view_into_its_own, hook_of_one_weight]


@pytest.mark.parametrize("make", SHARING, ids=lambda make: make.__name__)
def test_no_memory_of_the_source_is_written(make):
    source, target = make()
    networks = [source, target]
    before = [{key: tensor.clone() for key, tensor in network.state_dict().items()} for network in networks]
    with pytest.raises(ValueError, match=r"^[02]\.weight belongs to the source too"):
        transfer(source, target, head="copy")
    for kept, network in zip(before, networks, strict=True):
        assert all(torch.equal(kept[key], tensor) for key, tensor in network.state_dict().items())


def test_parts_of_one_buffer_are_no_harm():
    """As flattened parameters are: neighbours in memory that do not overlap."""
    source, target = nn.Linear(4, 4), nn.Linear(4, 4)
    flat = torch.rand(32)
    source.weight, target.weight = nn.Parameter(flat[:16].view(4, 4)), nn.Parameter(flat[16:].view(4, 4))
    transfer(source, target, head="copy")
    assert torch.equal(flat[:16], flat[16:])


def test_what_an_operator_finishes_is_not_the_sources():
    shared = nn.Linear(4, 4)
    source, target = (nn.Sequential(shared, nn.ReLU(), nn.Linear(4, 2)) for _ in range(2))
    before = shared.weight.detach().clone()
    assert transfer(source, target).share == 1
    with pytest.raises(ValueError, match=r"0\.weight belongs to the source too"):
        transfer(source, target, operator="clip_normalized")
    assert torch.equal(shared.weight, before)


def test_tensors_that_cannot_be_written_are_named():
    source, target = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    target.append(nn.ReLU()).append(nn.Linear(4, 4))
    before = target[0].weight.detach().clone()
    target[2].weight = nn.Parameter(torch.zeros(1, 4).expand(4, 4))
    with pytest.raises(ValueError, match=r"2\.weight is expanded"):
        transfer(source, target)
    with torch.inference_mode():
        target[2] = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"2\.weight was made in inference mode"):
        transfer(source, target)
    with torch.inference_mode():
        target[2] = weight_norm(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"2\.weight was made in inference mode"):
        transfer(source, target, head="copy")
    assert torch.equal(target[0].weight, before)


def model(seed: int, tokens: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Embedding(tokens, 4), nn.Linear(4, 4), nn.Linear(4, tokens, bias=False))
    network[2].weight = network[0].weight
    return network


@pytest.mark.parametrize("tokens", [4, 6, 9])
def test_a_tied_embedding_is_filled_by_the_numbers_of_its_tokens(tokens):
    source, target = model(0), model(1, tokens)
    before, both = target[0].weight.detach().clone(), min(6, tokens)
    report = transfer(source, target)
    assert torch.equal(target[2].weight[:both], source[0].weight[:both])
    assert torch.equal(target[0].weight[both:], before[both:]) and target[0].weight is target[2].weight
    assert [entry.filled for entry in report.entries] == [4 * both, 16, 4, 0]


def test_a_tied_classifier_is_kept_under_all_of_its_names():
    source = model(0)
    for change in (lambda target: transfer(source, target, head="skip"), lambda t: plan(source, t).drop("2").apply()):
        target = model(1)
        before = target[2].weight.detach().clone()
        change(target)
        assert torch.equal(target[2].weight, before) and torch.equal(target[1].weight, source[1].weight)
    with pytest.raises(ValueError, match=r"head maps classes, and 2\.weight is 0\.weight as well"):
        transfer(source, model(1), head={0: 5})
    dropped = plan(source, model(1)).drop("2").drop("0")
    assert [e.filled for e in dropped.pair("0", "0").report.entries] == [24, 16, 4, 0]


def test_a_text_that_is_no_plan_of_these_networks_is_refused():
    source, target = classifier(10), classifier(10)
    before = state(target)
    text = plan(source, target).to_json()
    crossed = text.replace('"source": "1.weight"', '"source": "1.bias"')
    assert crossed != text
    with pytest.raises(ValueError, match=r"1\.bias is no counterpart of 1\.weight: make a new plan"):
        Plan.from_json(crossed, source, target).apply()
    with pytest.raises(ValueError, match=r"not a plan that to_json wrote .there is no action 'moved'"):
        Plan.from_json(text.replace('"copied"', '"moved"', 1), source, target)
    with pytest.raises(ValueError, match=r"not a plan that to_json wrote .there is no rule 'cropping'"):
        Plan.from_json(text.replace('"rule": ""', '"rule": "cropping"', 1), source, target)
    other = json.loads(text)
    other["entries"][2] |= {"source": "0.weight", "source_shape": [8, 3, 3, 3]}
    with pytest.raises(ValueError, match=r"1\.weight cannot be filled .0\.weight has 4 dimensions.: make a new plan"):
        Plan.from_json(json.dumps(other), source, target).apply()
    with pytest.raises(ValueError, match="not a plan that to_json wrote"):
        Plan.from_json('{"format": "dpiat plan 2", "entries": [1]}', source, target)
    mapped = plan(source, target, head={0: 1}).to_json().replace("[\n    0,", "[\n    99,")
    with pytest.raises(ValueError, match="head maps classes that are not among the 10"):
        Plan.from_json(mapped, source, target).apply()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), target.state_dict().values(), strict=True))


def test_a_pair_follows_the_mode():
    source, target = classifier(10), classifier(10)
    paired = plan(source, target, mode="paper").drop("1").pair("1", "1")
    assert {e.target for e in paired.report.entries if e.filled} >= {"1.weight", "1.bias"}
    assert not any(e.filled for e in paired.report.entries if "running" in e.target)
    grey = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    rgb = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    plan(rgb, grey).drop("0").pair("0", "0").apply()
    torch.testing.assert_close(grey[0].weight, rgb[0].weight.sum(1, keepdim=True))


def test_what_both_networks_share_and_is_written_to_itself_is_no_harm():
    mean = torch.rand(3)

    def make() -> nn.Module:
        network = classifier(10)
        network.register_buffer("mean", mean.view(1, 3, 1, 1))
        return network

    source, target = make(), make()
    assert transfer(source, target).share == transfer(source.state_dict(), source).share == 1
    assert torch.equal(target[0].weight, source[0].weight)


def test_casts_are_those_of_the_networks_when_the_plan_is_applied():
    source, target = (
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
    )
    planned = plan(source, target, head="copy")
    target.double()
    notes = {entry.target: entry.note for entry in planned.apply().entries}
    assert notes.pop("1.num_batches_tracked") == "" and set(notes.values()) == {"float32 → float64"}
    assert {entry.note for entry in planned.report.entries} == {""}


def test_the_report_of_a_plan_is_of_what_it_does():
    """Whatever its text says, and after a head of other classes has been put in."""
    source, target = classifier(10), classifier(10, 6)
    kept = json.loads(plan(source, target, head="skip").to_json())
    for entry in kept["entries"]:
        entry.update(filled=7, action="left" if entry["action"] == "left" else "copied")
    target[3] = nn.Linear(6, 4)
    report = Plan.from_json(json.dumps(kept), source, target).apply()
    assert report.entries[:-2] == plan(source, target, head="skip").report.entries[:-2]
    assert [(entry.shape, entry.filled) for entry in report.entries[-2:]] == [((4, 6), 0), ((4,), 0)]


def test_a_plan_is_of_all_tensors_of_its_target():
    source, target = tied(), tied()
    before = state(target)
    text = plan(source, target).to_json()

    def changed(change) -> str:
        kept = json.loads(text)
        change(kept["entries"])
        return json.dumps(kept)

    for change, message in (
        (lambda entries: entries.pop(), "the target and the plan do not have 1.bias alike: make a new plan"),
        (lambda entries: entries.append(entries[0]), "the target and the plan do not have 0.weight alike"),
        (lambda entries: entries[1].update(shared="1.bias"), "1.weight is not the same tensor as 1.bias"),
        (lambda entries: entries[1].update(shared="2.bias"), "1.weight is not the same tensor as 2.bias"),
    ):
        with pytest.raises(ValueError, match=message):
            Plan.from_json(changed(change), source, target).apply()
    target[1].weight = nn.Parameter(target[1].weight.detach().clone())
    with pytest.raises(ValueError, match=r"1\.weight is not the same tensor as 0\.weight: make a new plan"):
        Plan.from_json(text, source, target).apply()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), target.state_dict().values(), strict=True))


def test_a_plan_of_tensors_that_were_tied_since_is_refused():
    source, target = (nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)) for _ in range(2))
    planned = plan(source, target, head="copy")
    target[2].weight = target[0].weight
    before = state(target)
    with pytest.raises(ValueError, match=r"2\.weight is now the same tensor as 0\.weight: make a new plan"):
        planned.apply()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), target.state_dict().values(), strict=True))


def test_a_shared_embedding_with_no_numbers_is_no_harm():
    table = nn.Embedding(5, 4)
    nn.init.constant_(table.weight[0].detach(), float("nan"))
    source, target = (nn.Sequential(table, nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(2))
    assert transfer(source, target).share == 1


class Bare(nn.Module):
    """Parameters by these names, in no layer of torch's."""

    def __init__(self, **shapes: tuple[int, ...]):
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))


class Attention(nn.Module):
    """Self-attention with its projections fused or not, and perhaps some biases beside them, as in BEiT."""

    def __init__(self, width: int, heads: int, fused: bool, biases: bool = False):
        super().__init__()
        self.num_heads = heads
        if biases:
            self.q_bias, self.v_bias = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))
            self.table = nn.Parameter(torch.randn(9, heads))
        for name in ("qkv",) if fused else ("q_proj", "k_proj", "v_proj"):
            setattr(self, name, nn.Linear(width, 3 * width if fused else width, bias=not biases))
        self.proj = nn.Linear(width, width)


def same_layer_twice() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), nn.Sequential(layer, nn.ReLU()), layer, nn.Linear(4, 2))


NAMED = {
    "biases beside a projection": lambda: Attention(8, 2, True, biases=True),
    "one layer under three names": same_layer_twice,
    "names that stand for the same": lambda: nn.Sequential(nn.Linear(4, 4), Bare(gamma=(4,), scale=(4,))),
    "a usual name beside a matrix": lambda: nn.Sequential(nn.Linear(4, 4), Bare(gamma=(4,), kernel_of=(4, 4))),
    "a bias under two names": lambda: nn.Sequential(nn.Linear(4, 4), Bare(beta=(4,), bias=(4,), gamma=(4,))),
    "positions of height and width": lambda: nn.ModuleDict({"pos_embed": Bare(height=(7, 4), width=(7, 4))}),
}


@pytest.mark.parametrize("make", NAMED.values(), ids=NAMED.keys())
@pytest.mark.parametrize("stored", [False, True], ids=["module", "state dict"])
def test_each_tensor_is_reported_once_and_in_order(make, stored):
    source, target = make(), make()
    report = transfer(source.state_dict() if stored else source, target)
    assert [entry.target for entry in report.entries] == list(target.state_dict())
    assert sum(report.elements.values()) == sum(parameter.numel() for parameter in target.parameters())
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )
    assert report.share == 1


@pytest.mark.parametrize("operator", ["clip", "clip_normalized", "full", "magnitude", "uniform"])
def test_what_no_operator_can_look_into_is_left(operator):
    class Sparse(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.qkv, self.proj = nn.Module(), nn.Linear(width, width)
            self.qkv.weight = nn.Parameter(torch.eye(3 * width)[:, :width].to_sparse())

    report = transfer(Sparse(4), Sparse(8), operator=operator)
    assert [entry.note for entry in report.entries] == ["sparse tensors are not treated", "", ""]


def test_a_part_of_a_layer_is_paired_anew_and_the_others_stay():
    source, target = Attention(4, 2, False), Attention(8, 4, True)
    planned = plan(source, target).drop("proj").pair("q_proj", "qkv[key]")
    entry = planned.report.entries[0]
    assert entry.parts == ("q_proj.weight", "q_proj.weight", "v_proj.weight") and entry.filled == 3 * 16
    assert "another role (query, not key)" in planned.report.summary()
    assert Plan.from_json(planned.to_json(), source, target).apply() == planned.report
    alone = plan(source, target).drop("qkv").pair("k_proj", "qkv[key]")
    entry = alone.report.entries[0]
    assert (entry.action, entry.filled, entry.parts) == ("partly filled", 16, ("–", "k_proj.weight", "–"))
    assert alone.apply() == alone.report
    with pytest.raises(ValueError, match="no layer"):
        planned.pair("", "qkv")


def test_heads_are_outputs_when_a_layer_gets_the_spread_of_a_fresh_one():
    source, target = Attention(8, 2, True), Attention(16, 4, True)
    transfer(source, target, operator="clip_normalized")
    spread = 1 / (3 * 16) ** 0.5
    parts = target.qkv.weight.detach().unflatten(0, (3, 16))
    torch.testing.assert_close(parts.flatten(1).std(1), torch.full((3,), spread))


def test_projections_in_groups_are_cropped_as_the_dense_ones():
    class Aggregated(nn.Module):
        """The projections of an attention as a convolution with a group for each head."""

        def __init__(self, heads: int, size: int):
            super().__init__()
            width = heads * size
            self.num_heads, self.qkv = heads, nn.Conv2d(width, width, 1, groups=heads)
            self.proj = nn.Conv2d(width, width, 1, groups=heads)

    for source, target in (((3, 4), (4, 6)), ((6, 2), (3, 5)), ((12, 2), (2, 5))):
        report = transfer(Aggregated(*source), Aggregated(*target))
        assert 0 < report.share < 1
