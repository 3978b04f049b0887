"""What a plan says where something is not as its reader expects."""

import pytest
import torch
from torch import nn

from dpiat import plan, transfer


def attention(width: int) -> nn.Module:
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    parts = nn.ModuleDict({name: nn.Linear(width, width) for name in names})
    return nn.ModuleDict({"attn": parts, "norm": nn.LayerNorm(width), "fc": nn.Linear(width, 3)})


def test_a_tensor_from_another_known_role_is_noted():
    usual = plan(attention(8), attention(8))
    crossed = usual.pair("attn.q_proj", "attn.k_proj")
    found = {entry.target: entry for entry in crossed.report.entries}
    assert not any(entry.note for entry in usual.report.entries)
    assert found["attn.k_proj.weight"].source == "attn.q_proj.weight" and found["attn.k_proj.weight"].note
    assert crossed.report.summary() != usual.report.summary()


def test_applying_says_what_the_plan_said():
    source, target = attention(8), attention(8)
    crossed = plan(source, target).pair("attn.q_proj", "attn.k_proj")
    assert crossed.apply().summary() == crossed.report.summary()
    assert torch.equal(target["attn"]["k_proj"].weight, source["attn"]["q_proj"].weight)


class Scaled(nn.Module):
    """A few numbers that decide the function beside a large matrix."""

    def __init__(self, scaled: bool):
        super().__init__()
        self.body = nn.Linear(600, 600)
        if scaled:
            self.gamma = nn.Parameter(torch.full((2,), 1e-6))
        self.fc = nn.Linear(600, 3)


def test_what_is_left_is_not_rounded_away():
    report = plan(Scaled(False), Scaled(True)).report
    assert [entry.target for entry in report.entries if entry.action == "left"] == ["gamma"]
    assert 0.9995 < report.share < 1
    assert "100" not in report.summary().partition("%")[0]
    assert "100.0%" in plan(Scaled(True), Scaled(True)).report.summary()


def test_what_is_filled_is_not_rounded_to_nothing():
    report = plan(Scaled(True), Scaled(True)).drop("body").drop("fc").report
    assert 0 < report.share < 0.0005
    assert not report.summary().startswith("0.0%")


def test_a_table_shows_no_part_as_the_whole():
    source, target = nn.Sequential(nn.Embedding(998, 8)), nn.Sequential(nn.Embedding(1000, 8))
    (entry,) = plan(source, target).report.entries
    assert entry.action == "partly filled"
    assert "100%" not in str(plan(source, target))


@pytest.mark.parametrize(
    ("source", "target", "word"),
    [
        (nn.ConvTranspose2d(8, 8, 3), nn.Conv2d(8, 8, 3), "transpose"),
        (nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3), "depthwise"),
    ],
)
def test_a_reason_names_its_cause(source, target, word):
    """Not that nothing matched, where there is but one layer and it is of another kind."""
    source, target = (nn.Sequential(nn.Conv2d(3, 8, 1), layer, nn.Conv2d(8, 2, 1)) for layer in (source, target))
    found = {entry.target: entry for entry in plan(source, target).report.entries}
    assert found["1.weight"].action == "left" and word in found["1.weight"].note.lower()


def test_a_head_that_is_left_says_so_in_the_report():
    report = transfer(attention(8), nn.ModuleDict({**attention(8), "fc": nn.Linear(8, 7)}), new="random")
    left = [entry for entry in report.entries if entry.action == "left"]
    assert [entry.target for entry in left] == ["fc.weight", "fc.bias"]
    assert all("7" in entry.note and "3" in entry.note for entry in left)
