"""What default mode knows beyond shapes, and the state of optimizers."""

import copy
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn

from dpiat import plan, roles, standardize, transfer
from dpiat.filling import adapt_inputs
from dpiat.sources import load


def network(inputs: int, classes: int, width: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width, classes)
    )


@pytest.mark.parametrize(("given", "wanted"), [(3, 1), (1, 3), (3, 4), (4, 3), (2, 6), (5, 2)])
@torch.no_grad()
def test_input_channels_keep_the_response_to_what_is_the_same_in_all(given, wanted):
    source, target = network(given, 10), network(wanted, 10)
    report = transfer(source, target)
    assert report.entries[0].rule == "input channels" and report.entries[0].share == 1
    grey = torch.randn(2, 1, 7, 7)
    responses = [net[0](grey.expand(-1, channels, -1, -1)) for net, channels in ((source, given), (target, wanted))]
    torch.testing.assert_close(*responses)


def test_input_channels_need_no_values():
    with torch.device("meta"):
        planned = plan(network(3, 10), network(1, 10))
    assert planned.report.entries[0].rule == "input channels" and planned.report.entries[0].share == 1


class Conv1D(nn.Module):
    """What GPT-2 calls its linear layers."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))


def test_a_layer_is_no_convolution_for_its_name():
    source, target = (nn.Sequential(nn.Embedding(9, width), Conv1D(width, 3 * width)) for width in (4, 6))
    report = transfer(source, target, head="copy")
    assert not any(entry.rule for entry in report.entries)
    assert torch.equal(target[1].weight[:4, :12], source[1].weight)


def test_input_channels_meet_other_widths():
    source, target = network(3, 10, 8), network(1, 10, 12)
    before = target[0].weight.detach().clone()
    assert "input channels" in str(plan(source, target))
    transfer(source, target)
    torch.testing.assert_close(target[0].weight[:8, 0], source[0].weight.sum(1))
    assert torch.equal(target[0].weight[8:], before[8:])
    paper = network(1, 10, 8)
    transfer(source, paper, mode="paper")
    assert torch.equal(paper[0].weight[:, 0], source[0].weight[:, 1])  # the centre crop, green alone


def test_adapted_inputs_in_turn():
    weight = torch.tensor([[6.0, 1.0, 2.0]])[..., None]  # (1, 3, 1)
    assert adapt_inputs(weight, 4).flatten().tolist() == [3, 1, 2, 3]
    assert adapt_inputs(weight, 2).flatten().tolist() == [8, 1]
    assert adapt_inputs(weight, 3).flatten().tolist() == [6, 1, 2]


def test_a_depthwise_convolution_never_fills_a_dense_one():
    depthwise, dense = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3)
    for source, target in ((depthwise, dense), (dense, depthwise)):
        assert "the source has no layer of its kind" in str(plan(source, target))
        assert plan(source, target, mode="paper").report.share > 0


def test_classes_can_be_chosen():
    source, target = network(3, 1000), network(3, 4, 6)
    before = copy.deepcopy(target[4])
    report = transfer(source, target, head={0: 217, 3: 0})
    assert [(e.rule, e.filled) for e in report.entries[-2:]] == [("classes", 12), ("classes", 2)]
    assert torch.equal(target[4].weight[[0, 3]], source[4].weight[[217, 0], :6])
    assert torch.equal(target[4].bias[[0, 3]], source[4].bias[[217, 0]])
    assert torch.equal(target[4].weight[[1, 2]], before.weight[[1, 2]])
    kept = plan(source, target, head={1: 2})
    kept = type(kept).from_json(kept.to_json(), source, target)
    kept.apply()
    assert torch.equal(target[4].weight[1], source[4].weight[2, :6])
    for head, message in (
        ({4: 0}, "head maps class 4 of the target, whose classifier has 4"),
        ({0: 1000}, "head maps class 1000 of the source, whose classifier has 1000"),
    ):
        with pytest.raises(ValueError, match=message):
            plan(source, target, head=head)
    with pytest.raises(ValueError, match="head maps classes, and the target does not end in a classifier"):
        plan(source, nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), head={0: 0})


def trained(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        error = net(torch.randn(4, 3, 3, 3)).square().sum()
        error.backward()
        return error

    for _ in range(3):
        optimizer.step(loss)


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.Adam,
        lambda parameters: torch.optim.AdamW(parameters, fused=True),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    ],
)
def test_the_state_of_the_optimizer_moves_with_the_weights(make):
    source, same, wider = network(3, 10), network(3, 10), network(3, 10, 12)
    optimizers = [make(net.parameters()) for net in (source, same, wider)]
    trained(source, optimizers[0])
    transfer(source, same, optimizer=(optimizers[0], optimizers[1]))
    transfer(source, wider, optimizer=(optimizers[0], optimizers[2]))
    for theirs, ours, larger in zip(source.parameters(), same.parameters(), wider.parameters(), strict=True):
        given, moved, cropped = (o.state[p] for o, p in zip(optimizers, (theirs, ours, larger), strict=True))
        assert given.keys() == moved.keys() == cropped.keys()
        for key, value in given.items():
            assert torch.equal(moved[key], value) and moved[key] is not value
            assert cropped[key].shape == (larger.shape if value.dim() else ())
            assert cropped[key].sum() == pytest.approx(float(value.sum()), rel=1e-4, abs=1e-6)
    torch.manual_seed(0)
    trained(source, optimizers[0])
    torch.manual_seed(0)
    trained(same, optimizers[1])
    assert torch.equal(source[4].weight, same[4].weight)  # both went on alike
    trained(wider, optimizers[2])


def test_optimizers_of_two_classes_are_refused():
    source, target = network(3, 10), network(3, 10)
    optimizers = torch.optim.Adam(source.parameters()), torch.optim.SGD(target.parameters(), lr=0.1)
    before = target[0].weight.detach().clone()
    with pytest.raises(ValueError, match="the optimizers must be of one class, got Adam and SGD"):
        transfer(source, target, optimizer=optimizers)
    assert torch.equal(target[0].weight, before)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("kind", "projected"), [(nn.LSTM, 0), (nn.GRU, 0), (nn.LSTM, 4)])
def test_gates_are_cropped_one_by_one(kind, projected):
    torch.manual_seed(0)
    sizes = {"proj_size": projected} if projected else {}, {"proj_size": projected + 4} if projected else {}
    small, wide = kind(5, 6, num_layers=2, **sizes[0]), kind(5, 10, num_layers=2, **sizes[1])
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.zero_()
    transfer(small, wide)
    inputs = torch.randn(7, 3, 5)
    expected = small(inputs)[0]
    assert torch.allclose(wide(inputs)[0][..., : expected.shape[-1]], expected, atol=1e-6)


def test_the_projection_of_an_lstm_has_no_gates():
    source, target = nn.LSTM(5, 8, proj_size=4), nn.LSTM(5, 16, proj_size=8)
    report = transfer(source, target)
    assert [e.filled for e in report.entries if e.target == "weight_hr_l0"] == [4 * 8]


def test_a_scripted_network_is_refused_and_its_state_dict_is_taken():
    network = nn.Sequential(nn.Linear(3, 4))
    scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 4)))
    with pytest.raises(TypeError, match=r"a scripted network .*: pass the original one, or its state_dict\(\)"):
        transfer(scripted, network)
    transfer(dict(scripted.state_dict()), network, head="copy")
    assert torch.equal(network[0].weight, scripted.state_dict()["0.weight"])


def test_a_sparse_tensor_is_left_and_said_to_be_sparse():
    source, target = nn.Linear(3, 4), nn.Linear(3, 4)
    source.weight = nn.Parameter(source.weight.detach().to_sparse())
    weight, bias = transfer(source, target).entries
    assert (weight.action, weight.note, bias.action) == ("left", "sparse tensors are not treated", "copied")


def stepped(optimizer: torch.optim.Optimizer, net: nn.Module) -> torch.optim.Optimizer:
    trained(net, optimizer)
    return optimizer


def test_every_classifier_of_other_classes_is_kept():
    def model(classes: int) -> nn.Module:
        return timm.create_model("deit_tiny_distilled_patch16_224", num_classes=classes)

    with torch.device("meta"):
        entries = {entry.target: entry for entry in plan(model(1000), model(10), new="random").report.entries}
        same = plan(model(10), model(10)).report
    for name in ("head.weight", "head_dist.weight"):
        assert entries[name].note == "a classifier of 10 classes, of 1000 in the source"
    assert same.share == 1


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **options)


def sources_of(report, *names: str) -> list[str]:
    return [entry.source for entry in report.entries if entry.target in names]


@pytest.mark.parametrize("head", ["auto", "copy"])
def test_a_classifier_of_as_many_classes_is_the_partner_whatever_was_matched(head):
    swin, mnasnet = on_meta("swin_tiny_patch4_window7_224"), on_meta("mnasnet_100")
    assert sources_of(plan(swin, mnasnet, head=head).report, "classifier.weight") == ["head.fc.weight"]
    assert sources_of(plan(swin, mnasnet, mode="paper").report, "classifier.weight") != ["head.fc.weight"]
    with torch.device("meta"):
        googlenet = torchvision.models.googlenet(init_weights=False)
    assert sources_of(plan(googlenet, on_meta("resnet18"), head=head).report, "fc.weight") == ["fc.weight"]


def test_a_classifier_that_was_matched_to_one_of_its_shape_stays_with_it():
    distilled, plain = on_meta("deit_tiny_distilled_patch16_224"), on_meta("deit_tiny_patch16_224")
    assert sources_of(plan(distilled, plain).report, "head.weight") == ["head.weight"]
    back = plan(plain, distilled).report
    assert sources_of(back, "head.weight", "head_dist.weight") == ["head.weight"] * 2


class Auxiliary(nn.Module):
    """A classifier on the way, as GoogLeNet and torchvision's networks for segmentation have."""

    def __init__(self, classes: int, width: int = 8, auxiliary: bool = True):
        super().__init__()
        self.body = nn.Conv2d(3, width, 3)
        if auxiliary:
            self.aux = nn.Sequential(nn.Linear(width, 2 * width), nn.Linear(2 * width, classes))
        self.last = nn.Conv2d(width, width, 3)
        self.fc = nn.Linear(width, classes)


def entries(report) -> dict:
    return {entry.target: entry for entry in report.entries}


@pytest.mark.parametrize("classes", [5, 21])
def test_every_classifier_is_skipped(classes):
    found = entries(plan(Auxiliary(21), Auxiliary(classes), head="skip").report)
    left = {name for name, entry in found.items() if entry.note == "the classifier, which head='skip' leaves"}
    assert left == {"aux.1.weight", "aux.1.bias", "fc.weight", "fc.bias"}
    assert all(entry.action == "copied" for name, entry in found.items() if name not in left)
    paper = entries(plan(Auxiliary(21), Auxiliary(5), head="skip", mode="paper").report)
    assert (paper["aux.1.weight"].action, paper["fc.weight"].action) == ("cropped", "left")


def test_classes_are_chosen_for_every_classifier_that_has_a_partner():
    source, target = Auxiliary(21), Auxiliary(5)
    before = target.aux[1].weight.detach().clone()
    report = transfer(source, target, head={4: 20})
    assert {name for name, entry in entries(report).items() if entry.rule} == {
        *("aux.1.weight", "aux.1.bias", "fc.weight", "fc.bias")
    }
    assert torch.equal(target.aux[1].weight[4], source.aux[1].weight[20])
    assert torch.equal(target.fc.weight[4], source.fc.weight[20])
    assert torch.equal(target.aux[1].weight[:4], before[:4])
    found = entries(plan(Auxiliary(21, auxiliary=False), Auxiliary(5), head={4: 20}).report)
    assert found["fc.weight"].source == "fc.weight" and found["fc.weight"].rule == "classes"
    assert [(found[f"aux.1.{key}"].action, found[f"aux.1.{key}"].source) for key in ("weight", "bias")] == [
        ("zero", ""),  # no partner, so that the classifier is a new one
        ("left", ""),
    ]


class Boxes(nn.Module):
    """Two heads that see the same."""

    def __init__(self, classes: int, boxes: int = 4, width: int = 8):
        super().__init__()
        self.body, self.cls, self.box = nn.Linear(3, width), nn.Linear(width, classes), nn.Linear(width, boxes)


def test_a_classifier_beside_other_heads_is_kept():
    found = entries(plan(Boxes(1000), Boxes(10), new="random").report)
    assert found["cls.weight"].note == "a classifier of 10 classes, of 1000 in the source"
    assert found["box.weight"].action == found["body.weight"].action == "copied"
    found = entries(plan(Boxes(7, 28), Boxes(7, 24), new="random").report)
    assert (found["cls.weight"].action, found["box.weight"].action) == ("copied", "left")
    found = entries(plan(Boxes(1000), Boxes(10), head={0: 3}, new="random").report)  # the last one is the classifier
    assert (found["cls.weight"].action, found["box.weight"].rule) == ("left", "classes")
    assert plan(Boxes(7), Boxes(7)).report.share == 1


def test_what_stands_beside_an_auxiliary_classifier_is_a_head():
    def detector(classes: int) -> nn.Module:
        parts = {"stem": nn.Conv2d(3, 8, 3), "cls": nn.Linear(8, classes), "box": nn.Linear(8, 4 * classes)}
        return nn.ModuleDict(parts | {"mask": nn.Conv2d(8, 8, 3), "logits": nn.Conv2d(8, classes, 1)})

    found = entries(plan(detector(91), detector(5), new="random").report)
    assert {name for name, entry in found.items() if entry.action == "left"} == {
        f"{layer}.{local}" for layer in ("cls", "box", "logits") for local in ("weight", "bias")
    }
    assert plan(detector(5), detector(5)).report.share == 1


def test_projections_at_the_end_are_no_heads():
    def attention(width: int) -> nn.Module:
        return nn.ModuleDict(
            {"stem": nn.Linear(3, width), "qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, 5)}
        )

    assert entries(plan(attention(8), attention(12)).report)["qkv.weight"].source == "qkv.weight"


@pytest.mark.parametrize("options", [{}, {"kdim": 5}])
def test_the_last_projection_of_an_attention_is_no_classifier(options):
    source, target = (nn.MultiheadAttention(width, 2, **options) for width in (8, 12))
    transfer(source, target)
    for theirs, ours in zip(source.out_proj.weight.chunk(2, 1), target.out_proj.weight.chunk(2, 1), strict=True):
        assert torch.equal(ours[:8, :4], theirs)  # of each head


def test_a_classifier_may_be_called_out_proj():
    source, target = (nn.ModuleDict({"dense": nn.Linear(8, 8), "out_proj": nn.Linear(8, k)}) for k in (1000, 10))
    assert entries(plan(source, target, new="random").report)["out_proj.weight"].action == "left"


def test_inner_layers_of_as_many_outputs_are_no_classifiers():
    def gated(classes: int, width: int) -> nn.Module:
        parts = nn.Linear(3, width), nn.Linear(width, 1), nn.LayerNorm(width), nn.Linear(width, classes)
        return nn.Sequential(*parts)

    for head in ("auto", "skip"):
        found = entries(plan(gated(1000, 16), gated(1, 8), head=head, new="random").report)
        assert found["1.weight"].source == "1.weight" and found["3.weight"].action == "left"


@pytest.mark.parametrize(("name", "parts"), [("qkv", 3), ("c_attn", 3), ("kv", 2), ("qk", 2)])
def test_projections_stacked_in_a_convolution_are_cropped_one_by_one(name, parts):
    def attention(width: int) -> nn.Module:
        return nn.ModuleDict({"stem": nn.Conv2d(3, width, 3), name: nn.Conv2d(width, parts * width, 1)})

    source, target = attention(8), attention(4)
    with torch.no_grad():
        source[name].weight.copy_(torch.arange(parts).repeat_interleave(8)[:, None, None, None])
    transfer(source, target, head="copy")
    assert target[name].weight[:, 0, 0, 0].tolist() == [part for part in range(parts) for _ in range(4)]


def test_groups_are_no_other_input_channels():
    source, target = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 1, groups=2)
    with torch.no_grad():
        source.weight.copy_(torch.arange(1.0, 5)[None, :, None, None])
    transfer(nn.Sequential(source, nn.Conv2d(8, 8, 3)), nn.Sequential(target, nn.Conv2d(8, 8, 3)), head="copy")
    assert target.weight.flatten(1).tolist() == [[1, 2]] * 4 + [[3, 4]] * 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a, b: torch.optim.Adam(a.parameters()), "optimizer must be two"),
        (lambda a, b: [torch.optim.Adam(net.parameters()) for net in (b, a)], "the source's optimizer has none of its"),
        (
            lambda a, b: [
                stepped(torch.optim.Adafactor(a.parameters()), a),
                torch.optim.Adafactor(b.parameters()),
            ],
            "Adafactor keeps row_var of another shape than its parameter's: it cannot be cropped",
        ),
        (
            lambda a, b: [stepped(torch.optim.LBFGS(a.parameters()), a), torch.optim.LBFGS(b.parameters())],
            "LBFGS keeps al of several steps, which cannot be cropped",
        ),
    ],
)
def test_optimizers_whose_state_is_of_no_use_are_refused(make, message):
    source, target = network(3, 10), network(3, 10, 12)
    before = target[0].weight.detach().clone()
    with pytest.raises((TypeError, ValueError), match=message):
        transfer(source, target, optimizer=make(source, target))
    assert torch.equal(target[0].weight, before)


@pytest.mark.parametrize("head", [{0.0: 1.0}, {"0": 1}])
def test_classes_are_numbers(head):
    with pytest.raises(TypeError, match="head maps classes by their numbers, got"):
        plan(network(3, 10), network(3, 10), head=head)


@pytest.mark.parametrize("option", ["amsgrad", "centered", "momentum"])
def test_state_that_the_source_has_no_use_for_starts_from_zeros(option):
    make = torch.optim.Adam if option == "amsgrad" else torch.optim.RMSprop
    source, target = network(3, 10), network(3, 10)
    optimizers = stepped(make(source.parameters()), source), make(target.parameters(), **{option: 0.5})
    transfer(source, target, optimizer=optimizers)
    stepped(optimizers[1], target)
    frozen = torch.optim.Adam(source[-1].parameters()), torch.optim.Adam(target[-1].parameters())
    transfer(source, target, head="skip", optimizer=frozen)  # of the classifier alone, which is not written


def test_an_inner_layer_of_as_many_outputs_is_no_classifier():
    def make(width: int) -> nn.Module:
        return nn.Sequential(*(nn.Linear(width, width) for _ in range(4)))

    found = plan(make(128), make(64), new="random").report.entries
    assert {entry.target for entry in found if entry.action == "left"} == {"3.weight", "3.bias"}
    assert plan(make(128), make(64), head="copy").report.share == 1


class Gated(nn.Module):
    """A block that names its parts as few libraries do: an attention, a feed-forward network, a squeeze and excitation.

    `hidden` is the width between the two layers of the latter.
    """

    def __init__(self, width: int, hidden: int, convolutions: bool):
        super().__init__()
        pointwise = partial(nn.Conv2d, kernel_size=1) if convolutions else nn.Linear
        self.mixing = nn.Module()
        self.mixing.to_qkv, self.mixing.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rest = nn.Sequential(nn.LayerNorm(width), pointwise(width, hidden), nn.ReLU(), pointwise(hidden, width))


@pytest.mark.parametrize("stored", [False, True], ids=["module", "state dict"])
@pytest.mark.parametrize(
    ("hidden", "convolutions", "wanted"),
    [
        (32, False, [roles.INTO, roles.OUT_OF]),
        (32, True, [roles.INTO, roles.OUT_OF]),
        (2, True, [roles.REDUCE, roles.EXPAND]),
        (2, False, ["", ""]),  # a bottleneck or an adapter
        (8, True, ["", ""]),
    ],
)
def test_what_names_leave_out_the_other_matrices_of_a_module_tell(hidden, convolutions, wanted, stored):
    network = nn.Sequential(nn.Linear(3, 8), *[Gated(8, hidden, convolutions) for _ in range(2)], nn.Linear(8, 5))
    block = standardize(load(network.state_dict()) if stored else network).blocks[1]
    told = [layer.role for layer in block.layers if len(layer.shape) > 1]
    assert told == [roles.QUERY, roles.KEY, roles.VALUE, roles.PROJECTED, *wanted]


@pytest.mark.parametrize("name", ["blocks.3._se_reduce", "blocks.3.se_reduce", "blocks.3.se.fc.0"])
def test_squeeze_and_excitations_of_public_code_are_known(name):
    assert roles.role(name) == roles.REDUCE
