"""What holds for every pair of networks: random ones, drawn by hypothesis."""

import copy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from torch import nn

from dpiat import Plan, coverage, plan, similarity, standardize, transfer
from dpiat.assignment import best

pytestmark = pytest.mark.slow

settings.register_profile("dpiat", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("dpiat")

WIDTHS = st.sampled_from([1, 2, 3, 4, 6, 8])


class Residual(nn.Module):
    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, x):
        return x + self.body(x)


@st.composite
def kinds(draw) -> list[str]:
    return draw(st.lists(st.sampled_from(["dense", "grouped", "depthwise", "residual", "norm"]), max_size=5))


def network(kinds: list[str], widths: list[int], inputs: int = 3, classes: int = 5) -> nn.Module:
    """A convolutional network of these parts, of twice the widths in turn; in eval mode, with nothing at a default."""
    layers, last = [nn.Conv2d(inputs, 2 * widths[0], 3, padding=1)], 2 * widths[0]
    for i, kind in enumerate(kinds):
        width = 2 * widths[(i + 1) % len(widths)]
        if kind == "dense":
            layers += [nn.Conv2d(last, width, 3, padding=1), nn.ReLU()]
            last = width
        elif kind == "grouped":
            layers += [nn.Conv2d(last, width, 1, groups=2), nn.ReLU()]
            last = width
        elif kind == "depthwise":
            layers += [nn.Conv2d(last, last, 3, padding=1, groups=last), nn.BatchNorm2d(last)]
        elif kind == "residual":
            body = nn.Sequential(nn.Conv2d(last, width, 1), nn.BatchNorm2d(width), nn.Conv2d(width, last, 3, padding=1))
            layers.append(Residual(body))
        else:
            layers += [nn.BatchNorm2d(last), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes)).eval()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 + torch.rand_like(tensor))
    return net


@st.composite
def networks(draw) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 9)))
    widths = draw(st.lists(WIDTHS, min_size=1, max_size=3))
    return network(draw(kinds()), widths, draw(st.sampled_from([1, 3, 4])), draw(st.sampled_from([2, 5])))


def snapshot(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@given(networks())
def test_identity(source):
    target = copy.deepcopy(source)
    with torch.no_grad():
        for tensor in target.state_dict().values():
            tensor.add_(1)
    assert transfer(source, target).share == 1
    assert equal(source.state_dict(), target.state_dict())
    assert similarity(source, target) == coverage(source, target) == 1


@given(networks(), networks())
def test_looking_changes_nothing_and_the_source_is_only_read(source, target):
    before = snapshot(source), snapshot(target)
    similarity(source, target)
    dry = str(plan(source, target))
    assert equal(before[0], source.state_dict()) and equal(before[1], target.state_dict())
    assert str(transfer(source, target)) == dry
    assert equal(before[0], source.state_dict())


@given(
    networks(),
    networks(),
    st.sampled_from(["default", "paper"]),
    st.sampled_from(["clip", "full", "magnitude", "uniform"]),
)
def test_no_element_outside_the_plan_changes_and_shares_add_up(source, target, mode, operator):
    marked = {name: torch.full_like(tensor, -9) for name, tensor in target.state_dict().items()}
    target.load_state_dict(marked)
    report = transfer(source, target, mode, "copy", operator=operator)
    assert [entry.target for entry in report.entries] == list(marked)
    for entry in report.entries:
        changed = int((target.state_dict()[entry.target] != -9).sum())
        assert changed == entry.filled + entry.zeros <= entry.elements and (entry.action == "left") == (changed == 0)
    assert sum(report.elements.values()) == sum(tensor.numel() for tensor in marked.values())


@given(networks(), networks(), st.sampled_from(["clip", "clip_normalized", "full", "magnitude", "uniform"]))
def test_a_plan_kept_as_text_writes_the_same_bits(source, target, operator):
    other = copy.deepcopy(target)
    planned = plan(source, target, operator=operator)
    planned.apply()
    Plan.from_json(planned.to_json(), source, other).apply()
    assert equal(target.state_dict(), other.state_dict())


@given(kinds(), st.lists(WIDTHS, min_size=1, max_size=3), st.lists(st.integers(0, 3), min_size=3, max_size=3))
@torch.no_grad()
def test_wider_with_zeros_is_the_same_function(kinds, widths, more):
    """Section 3.4, where the matching pairs the layers of one name. Groups would have to grow around their centres."""
    kinds = [kind for kind in kinds if kind != "grouped"]
    source = network(kinds, widths)
    target = network(kinds, [width + 2 * extra for width, extra in zip(widths, more, strict=False)])
    pairs = best(standardize(source), standardize(target)).layers
    assume(all(pair.source.name == pair.target.name for pair in pairs))
    for parameter in target.parameters():
        parameter.zero_()
    transfer(source, target)
    images = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(target(images), source(images), rtol=1e-4, atol=1e-4)


@given(networks(), networks())
def test_matching_is_ordered_and_each_target_occurs_once(source, target):
    giver, taker = standardize(source), standardize(target)
    found = best(giver, taker)
    places = {layer.name: i for i, layer in enumerate(taker.layers)}
    order = [places[pair.target.name] for pair in found.layers]
    assert order == sorted(set(order))
    first = {layer.name: i for i, layer in enumerate(giver.layers)}
    used = [first[pair.source.layers[0].name] for pair in found.blocks]
    assert used == sorted(used) and 0 <= similarity(giver, taker) <= 1 + 1e-12
