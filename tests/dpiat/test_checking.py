"""What a report says of the networks before training: agreement, own values, and that nothing changes."""

import copy
import pickle

import numpy as np
import pytest
import timm
import torch
from networks import small, trained
from torch import nn

from dpiat import Report, fna, plan, transfer
from dpiat.agreement import cka, probe
from dpiat.observing import outputs, stages_of

CNN = "mobilenetv2_050"
IMAGES = torch.rand(12, 3, 64, 64, generator=torch.Generator().manual_seed(0))
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 2}


def vit(depth: int, seed: int, **settings) -> nn.Module:
    torch.manual_seed(seed)
    return timm.models.VisionTransformer(**{**VIT, **settings}, depth=depth, num_classes=10)


def plain(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return small(10, width)


def state(network: nn.Module) -> dict:
    """All that a check must leave alone."""
    modules = dict(network.named_modules())
    return {
        "tensors": {name: tensor.clone() for name, tensor in network.state_dict().items()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in network.named_parameters()},
        "flags": {name: module.training for name, module in modules.items()},
        "norms": {name: (m.momentum, m.track_running_stats) for name, m in modules.items() if hasattr(m, "momentum")},
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules.values()),
        "wanted": [p.requires_grad for p in network.parameters()],
    }


def same(before, now) -> bool:
    if isinstance(before, dict):
        return before.keys() == now.keys() and all(same(before[key], now[key]) for key in before)
    return torch.equal(before, now) if isinstance(before, torch.Tensor) else before == now


# --- the networks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", [False, True])
def test_neither_network_changes(failing):
    source, target = trained(CNN, 0), trained(CNN, 1)
    report = transfer(source, target)
    target.train()
    target.blocks[1].eval()  # a user's own choice
    target(IMAGES).sum().backward()
    source.conv_stem.weight.requires_grad_(False)
    before = state(source), state(target)
    assert any(g is not None for g in before[1]["gradients"].values())
    random = torch.get_rng_state()
    if failing:
        with pytest.raises(ValueError, match="the source cannot take these images"):
            report.check(IMAGES[:, :2])
    else:
        report.check(IMAGES, torch.arange(12) % 2)
    assert same(before[0], state(source)) and same(before[1], state(target))
    assert torch.equal(random, torch.get_rng_state())


def test_a_module_with_an_eval_of_its_own_is_put_back():
    class Frozen(nn.Sequential):
        def train(self, mode: bool = True):
            super().train(mode)
            for part in self:
                part.train(False)
            return self

    source, target = plain(16, 0), Frozen(*plain(16, 1))
    report = transfer(source, target)
    target[1].training = True  # which its train() would not give back
    before = state(target)
    report.check(IMAGES)
    assert same(before, state(target))


def test_a_report_keeps_no_network_in_memory():
    source, target = plain(8, 0), plain(8, 1)
    report = transfer(source, target)
    first = report.check(IMAGES)
    kept = source.state_dict()
    del source
    with pytest.raises(ValueError, match=r"the source is not in memory any more: check\(images, source=network\)"):
        report.check(IMAGES)
    again = plain(8, 2)
    again.load_state_dict(kept)
    assert report.check(IMAGES, source=again) == first
    del target
    with pytest.raises(ValueError, match="the target is not in memory any more"):
        report.check(IMAGES, source=again)


def test_a_report_from_another_process_checks_what_it_is_given():
    source, target = plain(8, 0), plain(8, 1)
    report = transfer(source, target)
    sent = pickle.loads(pickle.dumps(report))
    assert sent == report == copy.deepcopy(report)
    with pytest.raises(ValueError, match="the source is not in memory"):
        sent.check(IMAGES)
    assert sent.check(IMAGES, source=source, target=target) == report.check(IMAGES)


def test_a_source_that_cannot_compute_is_refused():
    source, target = plain(8, 0), plain(8, 1)
    state_dict = source.state_dict()
    planned = plan(state_dict, target)
    report = planned.apply()
    with pytest.raises(ValueError, match=r"the source is a state dict and cannot compute: check\(images, source="):
        report.check(IMAGES)
    assert report.check(IMAGES, source=source).stages[0].agreement == pytest.approx(1)
    with pytest.raises(ValueError, match="the target is on the meta device"):
        report.check(IMAGES, source=source, target=copy.deepcopy(target).to("meta"))


def test_a_plan_that_is_not_applied_has_nothing_to_check():
    with pytest.raises(ValueError, match="a plan that is not applied"):
        plan(plain(8, 0), plain(8, 1)).report.check(IMAGES)


def test_plans_and_growing_give_reports_that_check():
    source, target = trained(CNN, 0), trained(CNN, 1)
    assert plan(source, target).apply().check(IMAGES).stages[-2].agreement == pytest.approx(1)
    grown = fna(source, other := trained(CNN, 2))
    assert grown.check(IMAGES).stages[-2].agreement > 0.9 and other is not source


# --- stages -----------------------------------------------------------------------------------------------------------


def test_stages_of_a_convolutional_network_are_those_of_its_resolutions():
    source, target = trained(CNN, 0), trained("efficientnet_lite0", 1)
    found = transfer(source, target).check(IMAGES)
    assert [(stage.stage, stage.source) for stage in found.stages] == [
        ("stem", "stem"),
        ("blocks.0.0", "blocks.0.0"),
        ("blocks.1.0 … blocks.1.1", "blocks.1.0 … blocks.1.1"),
        ("blocks.2.0 … blocks.2.1", "blocks.2.0 … blocks.2.2"),
        ("blocks.3.0 … blocks.4.2", "blocks.3.0 … blocks.4.2"),
        ("blocks.5.0 … blocks.6.0", "blocks.5.0 … blocks.6.0"),
        ("before the classifier", "before the classifier"),
        ("classifier", ""),
    ]


def test_a_transformer_is_compared_block_by_block_at_the_same_depth():
    source, target = vit(2, 0), vit(4, 1)
    found = transfer(source, target).check(IMAGES[..., :32, :32])
    pairs = [(stage.stage, stage.source) for stage in found.stages]
    assert pairs[:5] == [("stem", "stem"), *[(f"blocks.{i}", f"blocks.{i // 2}") for i in (0, 1, 2, 3)]]
    assert [stage.stage for stage in found.stages[5:]] == ["before the classifier", "classifier"]


def test_a_network_without_blocks_is_compared_layer_by_layer():
    source, target = plain(16, 0), plain(24, 1)
    found = transfer(source, target).check(IMAGES)
    assert [(s.stage, s.source) for s in found.stages] == [
        ("0", "0"),
        ("3", "3"),
        ("before the classifier", "before the classifier"),
        ("classifier", ""),
    ]


def test_a_backbone_without_a_classifier_has_its_output():
    source, target = (timm.create_model(CNN, num_classes=0) for _ in range(2))
    found = transfer(source, target).check(IMAGES, torch.arange(12) % 3)
    assert found.stages[-1].stage == "before the classifier"
    assert found.stages[-1].agreement == pytest.approx(1) and found.probes[0] == found.probes[1]


def test_wrapped_networks_are_looked_through():
    source, target = plain(8, 0), plain(8, 1)
    report = transfer(nn.DataParallel(source), wrapped := nn.DataParallel(target))
    found = report.check(IMAGES, source=source, target=wrapped)
    assert found == transfer(source, target).check(IMAGES)


class Sequence(nn.Module):
    """Tokens by name, places first inside, a tuple of outputs: as many libraries do."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.embed = nn.Embedding(11, width)
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.5)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 5)

    def forward(self, ids, scale=1.0):
        found = self.encoder(self.embed(ids).transpose(0, 1) * scale)
        return self.head(found.mean(0)), found


def test_a_mapping_gives_arguments_by_name():
    torch.manual_seed(0)
    source, target = Sequence(), Sequence(24)
    ids = torch.randint(11, (9, 4))
    report = transfer(source, target)
    found = report.check({"ids": ids, "scale": 2.0})
    assert {s.stage for s in found.stages} >= {"encoder.layers.0", "encoder.layers.1"} and found.images == 9
    assert all(np.isfinite(s.agreement) for s in found.stages[:-1])


@torch.no_grad()
def test_outputs_are_means_over_places():
    network = vit(2, 0).eval()
    images = IMAGES[..., :32, :32]
    found = outputs("target", network, stages_of(network), images, len(images))
    features = network.forward_features(images)
    assert torch.allclose(found["before the classifier"], network.fc_norm(features[:, 0]).double(), atol=1e-6)
    stem = network.patch_embed(images).double().mean(1)
    assert torch.allclose(found["stem"], stem, atol=1e-6)
    convolution = trained(CNN, 0)
    found = outputs("source", convolution, stages_of(convolution), IMAGES, len(IMAGES))
    assert found["blocks.0.0"].shape == (12, convolution.blocks[0][0].bn2.num_features)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_network_agrees_with_itself_and_not_with_a_random_one():
    source, target = trained("resnet10t", 0), trained("resnet10t", 1)
    images = torch.rand(48, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    found = transfer(source, target).check(images)
    assert all(stage.agreement == pytest.approx(1) for stage in found.stages[:-1])
    assert found.own == 0
    kept = transfer(source, target, operator=lambda by, to: {})  # nothing
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.normal_()
    left = kept.check(images)
    assert left.own == 1 and left.stages[-2].agreement < 0.8


def test_own_values_are_what_the_report_says_is_left():
    source, target = trained(CNN, 0), trained("mobilenetv2_100", 1)
    report = transfer(source, target)
    found = report.check(IMAGES)
    parameters = dict(target.named_parameters())
    left = {e.target: e.elements - e.filled - e.zeros for e in report.entries if e.target in parameters}
    total = sum(p.numel() for p in parameters.values())
    assert sum(stage.elements for stage in found.stages) == total
    assert found.own == pytest.approx(sum(left.values()) / total) and 0 < found.own < 1
    last = [name for name in parameters if name.startswith(("blocks.5", "blocks.6"))]
    stage = next(s for s in found.stages if s.stage.startswith("blocks.5"))
    assert stage.elements == sum(parameters[name].numel() for name in last)
    assert stage.own == pytest.approx(sum(left[name] for name in last) / stage.elements)


def test_cka_is_that_of_the_definition():
    """Against the sums of the definition, over quadruples of different images."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(6, d, dtype=torch.double, generator=generator) for d in (3, 5))

    def hsic(x, y):
        k, l = x @ x.T, y @ y.T  # noqa: E741
        total, count = 0.0, 0
        for i in range(6):
            for j in range(6):
                for q in range(6):
                    for r in range(6):
                        if len({i, j, q, r}) == 4:
                            total += k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
                            count += 1
        return float(total / count)

    assert cka(a, b) == pytest.approx(hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b)))


def test_cka_forgives_rotation_and_scale_and_has_no_bias():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(30, 8, dtype=torch.double, generator=generator)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.double, generator=generator))[0]
    assert cka(a, 3 * a @ rotation + 7) == pytest.approx(1)
    wide = [torch.randn(30, 500, dtype=torch.double, generator=generator) for _ in range(40)]
    values = [cka(x, y) for x, y in zip(wide[::2], wide[1::2], strict=True)]
    assert abs(np.mean(values)) < 0.02  # the usual estimate is above 0.9
    assert cka(a, torch.ones(30, 4, dtype=torch.double)) == 0


def test_a_probe_reads_what_is_there_from_the_other_half():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 4
    noise = torch.randn(80, 6, dtype=torch.double, generator=generator)
    assert probe(torch.eye(4, dtype=torch.double)[labels] * 9 + noise[:, :4], labels) > 0.95
    assert probe(noise, labels) < 0.5
    assert probe(torch.eye(4, dtype=torch.double)[labels] * 9 + noise[:, :4], labels.sort().values) < 0.5
    for wrong in (torch.zeros(80), torch.arange(80)):
        with pytest.raises(ValueError, match="two classes"):
            probe(noise, wrong)


# --- the value --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checked():
    source, target = trained(CNN, 0), trained("mobilenetv2_100", 1)
    return transfer(source, target).check(IMAGES, [0, 1, 2] * 4)


def test_a_check_prints_as_a_table(checked):
    lines = str(checked).splitlines()
    assert lines[0].split() == ["stage", "compared", "with", "agreement", "own", "values"]
    assert len(lines) == len(checked.stages) + 2 and lines[-1] == checked.summary()
    assert lines[-2].split()[-3:] == ["–", "–", "0%"]  # no agreement of classifiers
    assert "12 images" in lines[-1] and f"{checked.probes[1]:.2f} on the target, chance 0.33" in lines[-1]


def test_a_check_is_plain_data(checked):
    rows = checked.to_dict()["stages"]
    assert checked.to_dataframe().columns.tolist() == list(rows[0]) and len(checked.to_dataframe()) == len(rows)
    assert [row["stage"] for row in rows] == [stage.stage for stage in checked.stages]
    assert checked.to_dict()["probes"] == checked.probes


def test_a_check_draws_a_bar_for_each_number(checked, tmp_path):
    axes = checked.plot(tmp_path / "check.png")
    bars = [patch.get_width() for patch in axes.patches]
    numbers = [s.agreement for s in checked.stages] + [s.own for s in checked.stages]
    assert bars == pytest.approx(np.nan_to_num(numbers).tolist())
    assert [label.get_text() for label in axes.get_yticklabels()] == [s.stage for s in checked.stages]
    assert (tmp_path / "check.png").stat().st_size > 1000
    assert checked.plot(axes=axes) is axes
    with pytest.raises(ValueError, match="cannot save a figure"):
        checked.plot("check.doc")


def test_wrong_batches_are_refused(checked):
    source, target = plain(8, 0), plain(8, 1)
    report = transfer(source, target)
    with pytest.raises(ValueError, match="at least 4 images, got 3"):
        report.check(IMAGES[:3])
    with pytest.raises(ValueError, match="12 images need as many labels, got 3"):
        report.check(IMAGES, [0, 1, 0])
    assert isinstance(report, Report)
