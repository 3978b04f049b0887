"""Mixtures of experts: from a dense network, from another mixture, stacked in tensors and as a list of modules."""

import pytest
import torch
import transformers
from functions import differ, randomized
from torch import nn

from dpiat import Plan, plan, similarity, transfer

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 40, "rms_norm_eps": 1e-5}
SIZES |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}  # the two classes have other defaults
WORDS = torch.arange(12).reshape(2, 6)
pytestmark = pytest.mark.slow
as_given = pytest.mark.parametrize("stored", [False, True], ids=["module", "state dict"])


def dense() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))


def mixture(experts: int = 4, **changed) -> nn.Module:
    sizes = SIZES | changed
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, num_local_experts=experts))


class Listed(nn.Module):
    """A feed-forward network of experts that are modules of their own; every expert counts alike."""

    def __init__(self, experts: int):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)) for _ in range(experts)
        )

    def forward(self, x):
        return x + sum(expert(self.norm(x)) for expert in self.experts) / len(self.experts)


def listed(experts: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 16), *[Listed(experts) for _ in range(3)], nn.Linear(16, 5))


@as_given
def test_every_expert_begins_as_the_dense_network(stored):
    source, target = randomized(dense()), randomized(mixture(), 1)
    router = target.model.layers[1].mlp.gate.weight.detach().clone()
    report = transfer(source.state_dict() if stored else source, target)
    left = [entry.target for entry in report.entries if entry.filled < entry.elements]
    assert left == [f"model.layers.{place}.mlp.gate.weight" for place in (0, 1)]
    assert torch.equal(target.model.layers[1].mlp.gate.weight, router)
    assert differ(source, target, WORDS) < 1e-5  # the weights of the experts that are asked add up to 1


def test_more_experts_take_the_given_ones_in_turn():
    source, target = randomized(mixture(2)), randomized(mixture(5), 1)
    transfer(source, target)
    ours, theirs = (network.model.layers[1].mlp.experts for network in (target, source))
    for place in range(5):
        assert torch.equal(ours.gate_up_proj[place], theirs.gate_up_proj[place % 2])
        assert torch.equal(ours.down_proj[place], theirs.down_proj[place % 2])


def test_a_wider_expert_keeps_gates_with_their_hidden_units():
    source, target = randomized(mixture(2)), randomized(mixture(2, intermediate_size=32), 1)
    transfer(source, target)
    ours, theirs = (network.model.layers[0].mlp.experts.gate_up_proj for network in (target, source))
    assert torch.equal(ours[1, :24], theirs[1, :24]) and torch.equal(ours[1, 32 : 32 + 24], theirs[1, 24:])


def test_a_dense_network_takes_an_expert():
    source, target = randomized(mixture()), randomized(dense(), 1)
    transfer(source, target)
    experts = source.model.layers[0].mlp.experts
    down = target.model.layers[0].mlp.down_proj.weight
    (place,) = (place for place in range(4) if torch.equal(down, experts.down_proj[place]))
    assert torch.equal(target.model.layers[0].mlp.gate_proj.weight, experts.gate_up_proj[place, :24])


@as_given
@pytest.mark.parametrize("given", [1, 2])
def test_experts_in_a_list_begin_as_those_of_the_source(given, stored):
    source, target = randomized(listed(given)), randomized(listed(4), 1)
    transfer(source.state_dict() if stored else source, target)
    assert differ(source, target, torch.randn(2, 3)) < 1e-5


def test_a_plan_of_experts_is_kept_as_text():
    source, target, again = randomized(dense()), randomized(mixture(), 1), randomized(mixture(), 1)
    planned = plan(source, target)
    planned.apply()
    Plan.from_json(planned.to_json(), source, again).apply()
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), again.parameters(), strict=True))


def test_tensors_of_experts_in_another_form_stay_whole():
    source, target = mixture(), mixture()
    for network in (source, target):
        experts = network.model.layers[0].mlp.experts
        experts.gate_up_proj = nn.Parameter(torch.randn(4, 2 * 24 + 1, 16))  # which no gate and hidden units share
    entries = plan(source, target).report.entries
    assert [e for e in entries if e.target.startswith("model.layers.0.mlp.experts") and e.parts] == []


def test_a_mixture_is_similar_to_itself_alone():
    assert similarity(mixture(), mixture()) == pytest.approx(1)
    assert similarity(dense(), mixture()) < 1
