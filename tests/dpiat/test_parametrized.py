"""Weights that are computed from others: read without a trace, written through what they are computed from."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm

from dpiat import plan, similarity, standardize, transfer


def network(wrap, width: int = 6, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(wrap(nn.Linear(width, width)), nn.ReLU(), nn.Linear(width, 3)).eval()


class Scaled(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, weight):
        return weight * self.factor

    def right_inverse(self, weight):
        return weight / self.factor


def scaled(factor: float):
    return lambda layer: parametrize.register_parametrization(layer, "weight", Scaled(factor)) or layer


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, parametrizations.orthogonal])
def test_buffers_beside_the_originals_move_too(wrap):
    source, target = network(wrap), network(wrap, seed=1)
    transfer(source, target)
    inputs = torch.randn(4, 6)
    assert torch.equal(source(inputs), target(inputs))


def pruned(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.5)


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, spectral_norm])
@pytest.mark.parametrize("width", [40, 60])
def test_spectral_norm_knows_the_norm_of_what_was_written(wrap, width):
    """Its vectors were those of the weight before: what they took for the norm of another is far too small."""
    source, target = network(lambda layer: layer, width), network(wrap, 40, seed=1)
    transfer(source, target)
    target(torch.randn(1, 40))
    assert float(torch.linalg.matrix_norm(target[0].weight.detach(), 2)) == pytest.approx(1, abs=0.1)
    wanted = network(lambda layer: layer, 40)
    transfer(source, wanted)
    like = nn.functional.cosine_similarity(target[0].weight.detach().flatten(), wanted[0].weight.flatten(), dim=0)
    assert like.item() == pytest.approx(1)


@pytest.mark.parametrize("wrap", [spectral_norm, pruned])
def test_what_a_hook_computes_is_read_and_written(wrap):
    source, target, plain = network(wrap), network(wrap, seed=1), network(lambda layer: layer, seed=2)
    inputs = torch.randn(4, 6)
    assert {e.target for e in transfer(source, target).entries} == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert torch.equal(source(inputs), target(inputs))
    assert transfer(source, plain).share == 1 and torch.equal(source(inputs), plain(inputs))


def test_what_is_pruned_stays_pruned():
    source, target = network(lambda layer: layer), network(pruned, seed=1)
    kept = target[0].weight_mask.bool()
    transfer(source, target)
    assert torch.equal(target[0].weight[kept], source[0].weight[kept]) and not target[0].weight[~kept].any()
    from_file = network(lambda layer: layer, seed=2)
    transfer(target.state_dict(), from_file)
    assert torch.equal(from_file[0].weight, target[0].weight)


class Named(nn.Module):
    """Has a child that is called as torch calls its own."""

    def __init__(self, child: nn.Module):
        super().__init__()
        self.parametrizations = child


def test_a_scripted_part_has_no_parametrizations():
    source, target = (nn.Sequential(torch.jit.script(nn.Linear(4, 4)), nn.Linear(4, 3)) for _ in range(2))
    assert transfer(source, target).share == 1 and torch.equal(source[0].weight, target[0].weight)


@pytest.mark.parametrize("wrap", [nn.Sequential, lambda child: nn.ModuleDict({"one": child})])
def test_a_child_of_the_users_may_be_called_parametrizations(wrap):
    source, *targets = (nn.Sequential(Named(wrap(nn.Linear(4, 4))), nn.Linear(4, 3)) for _ in range(3))
    assert len(standardize(source).layers) == 2
    for given, target in zip((source, source.state_dict()), targets, strict=True):
        assert transfer(given, target).share == 1
        assert all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in source.state_dict().items())


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, spectral_norm])
@pytest.mark.parametrize(
    "layer", [lambda: nn.Linear(6, 4), lambda: nn.Conv2d(4, 4, 3), lambda: nn.ConvTranspose2d(4, 4, 3)]
)
def test_a_state_dict_of_spectral_norm_has_weights(wrap, layer):
    torch.manual_seed(0)
    source, target = nn.Sequential(wrap(layer()), nn.ReLU()), nn.Sequential(layer(), nn.ReLU())
    for _ in range(20):  # as in training, where the singular vectors settle
        source(torch.rand(1, 4, 6, 6))
    source.eval()(torch.rand(1, 4, 6, 6))
    assert transfer(source.state_dict(), target, head="copy").share == 1
    torch.testing.assert_close(target[0].weight, source[0].weight)
    on_meta = {name: tensor.to("meta") for name, tensor in source.state_dict().items()}
    assert plan(on_meta, target, head="copy").report.share == 1


def test_a_weight_that_a_state_dict_cannot_compute_is_left():
    source, target = (network(parametrizations.orthogonal, seed=seed) for seed in (0, 1))
    before = target[0].weight.clone()
    notes = {entry.target: entry.note for entry in transfer(source.state_dict(), target).entries}
    assert notes == {"0.weight": "0 has no weight", "0.bias": "", "2.weight": "", "2.bias": ""}
    assert torch.equal(target[0].weight, before) and torch.equal(target[2].weight, source[2].weight)
    assert 0 < similarity(source.state_dict(), target) <= 1


def test_looking_changes_no_buffer():
    source = network(parametrizations.spectral_norm).train()
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    standardize(source)
    transfer(source, network(lambda layer: layer))
    assert all(torch.equal(before[name], tensor) for name, tensor in source.state_dict().items())
    assert all(module.training for module in source.modules())


def test_other_parametrizations_of_the_same_shapes_compute_the_same_weight():
    source, target = network(scaled(2.0)), network(scaled(4.0), seed=1)
    transfer(source, target)
    assert torch.equal(target[0].weight, source[0].weight)


def test_what_a_plan_says_of_a_computed_weight_is_so():
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), parametrizations.weight_norm(nn.Linear(4, 3)))

    source, target = make(0), make(1)
    before = target[2].weight.detach().clone()
    transfer(source, target, head={0: 2})
    torch.testing.assert_close(target[2].weight[0], source[2].weight[2])
    torch.testing.assert_close(target[2].weight[1:], before[1:])
    spread = network(parametrizations.weight_norm, 40)
    transfer(network(lambda layer: layer, 40, seed=1), spread, operator="clip_normalized")
    assert float(spread[0].weight.detach().std()) == pytest.approx(1 / (3 * 40) ** 0.5, rel=1e-3)


def test_a_row_of_zeros_has_no_direction():
    source, target = nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 4))
    with torch.no_grad():
        source.weight[0] = 0
    transfer(source, target)
    torch.testing.assert_close(target.weight, source.weight)


class OneWay(nn.Module):
    def forward(self, weight):
        return weight.abs()


class NoWayBack(OneWay):
    def right_inverse(self, weight):
        raise NotImplementedError


@pytest.mark.parametrize("step", [OneWay, NoWayBack])
def test_nothing_is_written_if_a_weight_cannot_be(step):
    target = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    parametrize.register_parametrization(target[2], "weight", step())
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    source = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=f"{step.__name__} of weight has no right_inverse"):
        transfer(source, target)
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())
    plan(source, target).drop("2").apply()
    assert torch.equal(target[0].weight, source[0].weight)


@pytest.mark.parametrize("shape", [(6, 6), (8, 5), (5, 8)])
@pytest.mark.parametrize("trivial", [True, False])
def test_an_orthogonal_weight_is_the_nearest_one(shape, trivial):
    """By the polar decomposition; how the matrix is completed to a square one does not move the random state."""
    torch.manual_seed(0)
    source, target = (nn.Linear(*shape, bias=False) for _ in range(2))
    parametrizations.orthogonal(
        target, orthogonal_map="matrix_exp" if trivial else "householder", use_trivialization=trivial
    )
    before, tensors = torch.get_rng_state(), list(target.state_dict(keep_vars=True).values())
    planned = plan(source, target, head="copy")
    planned.apply()
    u, _, v = torch.linalg.svd(source.weight.detach(), full_matrices=False)
    torch.testing.assert_close(target.weight, u @ v)
    assert torch.equal(before, torch.get_rng_state())
    assert all(a is b for a, b in zip(tensors, target.state_dict(keep_vars=True).values(), strict=True))


def test_an_orthogonal_weight_of_no_numbers_is_refused():
    source, target = nn.Linear(4, 4), parametrizations.orthogonal(nn.Linear(4, 4))
    before = target.weight.clone()
    nn.init.constant_(source.weight, float("nan"))
    with pytest.raises(ValueError, match="weight cannot be orthogonal: the values for it are not all finite"):
        transfer(source, target, head="copy")
    assert torch.equal(target.weight, before)


def test_a_spectral_norm_in_half_precision_has_a_weight():
    source, target = network(spectral_norm), network(lambda layer: layer, seed=1)
    source(torch.rand(1, 6))
    state = {key: t.half() if key.endswith("orig") else t for key, t in source.state_dict().items()}
    transfer(state, target)
    torch.testing.assert_close(target[0].weight, source[0].weight, atol=1e-2, rtol=1e-2)
