"""What gives a trial's target its first weights: Net2Net, FNA and the default mode."""

import hashlib

import pytest
import timm
import torch
from functions import differ, randomized

import dpiat
from experiments import models
from experiments.initialization import Start, initialize
from experiments.planning import target_trial
from experiments.settings import DatasetSettings, InitSettings, Settings, UserError


@pytest.mark.slow
@pytest.mark.parametrize("init", ["net2net", "fna"])
def test_a_trial_starts_from_it(init):
    source = randomized(timm.create_model("mobilenetv2_050", num_classes=10))
    start = Start("mobilenetv2_100", 10, seed=0, source_model="mobilenetv2_050", source=lambda: source)
    network, facts = initialize(init, start)
    assert facts["filled"] > 0.2 and facts["source weights"] == models.weights_digest(source)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    assert init != "net2net" or differ(source, network.eval(), images) < 0.5  # with its noise


def test_a_digest_tells_weights_and_statistics_apart():
    first, second = (models.build("mnas", 10) for _ in range(2))
    assert models.weights_digest(first) != models.weights_digest(second)
    second.load_state_dict(first.state_dict())
    assert models.weights_digest(first) == models.weights_digest(second)
    second.bn1.running_mean[0] += 1e-6
    assert models.weights_digest(first) != models.weights_digest(second)
    half = [models.weights_digest(network.bfloat16()) for network in (first, second)]
    assert half[0] != models.weights_digest(second) and len(half[0]) == 10
    other = torch.nn.Linear(2, 2)
    before = models.weights_digest(other)
    other.get_extra_state = lambda: {"of": "a class of the user's"}
    assert models.weights_digest(other) == before


def test_a_trial_that_is_not_admissible_is_told_before_anything_is_trained():
    settings = Settings(DatasetSettings(name="digits"), InitSettings(name="net2net"), source="eff_b2", target="eff_b0")
    with pytest.raises(UserError, match=r"eff_b0 cannot grow from eff_b2: .* fewer than"):
        target_trial(settings)


# Digests of the plans of version 5 of the default mode, by source and target.
PLANS = {
    ("eff_b0", "eff_b1"): "0103eea71e",
    ("rex", "eff_b1"): "38e406f419",
    ("mix_m", "mnas"): "71a2f55bf8",
    ("mnas", "mix_l"): "f50c3469c4",
    ("semnas", "rex_150"): "095f6496b1",
    ("eff_b2", "rex"): "5ba9239cd7",
    ("eff_lite0", "mix_m"): "ae9d0ebc81",
    ("eff_lite2", "rex_150"): "9e93c41db8",
}


@pytest.mark.slow
@pytest.mark.parametrize(("source", "target"), PLANS)
def test_plans_are_those_of_the_version_that_records_name(source, target):
    with torch.device("meta"):
        entries = dpiat.plan(models.build(source, 100), models.build(target, 100)).report.entries
    words = "\n".join(" ".join(map(str, (e.target, e.action, e.source, e.rule, e.filled))) for e in entries)
    assert hashlib.sha256(words.encode()).hexdigest()[:10] == PLANS[source, target], "raise SAME_SINCE"
