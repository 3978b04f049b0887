"""Batch-norm statistics from images: what they become, and what stays as it is."""

import pytest
import torch
from networks import small
from torch import nn

from dpiat import calibrate

IMAGES = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    found = small(10)
    found.insert(3, nn.Dropout(0.5))
    with torch.no_grad():
        for name, buffer in found.named_buffers():
            buffer.fill_(7 if "num" in name else 0.3)
    return found


def test_statistics_are_the_mean_over_batches():
    target = network()
    calibrate(target, IMAGES.split(8))
    means, variances = [], []
    for batch in IMAGES.split(8):
        given = target[0](batch)
        means.append(given.mean((0, 2, 3)))
        variances.append(given.var((0, 2, 3)))
    assert torch.allclose(target[1].running_mean, torch.stack(means).mean(0), atol=1e-6)
    assert torch.allclose(target[1].running_var, torch.stack(variances).mean(0), atol=1e-6)
    assert int(target[1].num_batches_tracked) == 3


@torch.no_grad()
def test_eval_mode_then_computes_what_the_batch_would():
    target, images = network().double().eval(), IMAGES.double()
    given = target(images)
    calibrate(target, images)
    now = target(images)
    for norm in (target[1], target[5]):
        norm.training, norm.track_running_stats = True, False
    assert torch.allclose(now, target(images), atol=1e-3)  # but for n / (n - 1) of each variance
    assert not torch.allclose(given, now, atol=1e-1)


def test_dropout_is_off_and_all_but_the_statistics_stays():
    target = network().train()
    target[1].momentum = 0.3
    target[3].eval()
    flags, weights = [m.training for m in target.modules()], [p.clone() for p in target.parameters()]
    random = torch.get_rng_state()
    calibrate(target, [(batch, torch.zeros(8)) for batch in IMAGES.split(8)])
    assert torch.equal(random, torch.get_rng_state())  # which dropout would draw from
    assert [m.training for m in target.modules()] == flags and target[1].momentum == 0.3
    assert all(torch.equal(a, b) for a, b in zip(weights, target.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in target.parameters())
    other = network()
    calibrate(other, IMAGES.split(8))
    assert torch.equal(target[5].running_var, other[5].running_var)


@pytest.mark.parametrize("batches", [[IMAGES, IMAGES[:, :2]], []])
def test_after_an_error_all_is_as_it_was(batches):
    target = network().train()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises((RuntimeError, ValueError), match="channels" if batches else "no batch of images"):
        calibrate(target, batches)
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())
    assert target[1].momentum == 0.1 and all(module.training for module in target.modules())


@pytest.mark.parametrize(
    "target", [nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), nn.BatchNorm1d(4, track_running_stats=False)]
)
def test_a_network_without_statistics_is_refused(target):
    with pytest.raises(ValueError, match="no batch norm that keeps statistics"):
        calibrate(target, torch.rand(8, 4))


def test_a_mapping_gives_arguments_by_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, values, shift):
            return self.norm(values + shift)

    target = Named()
    calibrate(target, {"values": torch.zeros(6, 4), "shift": 5.0})
    assert torch.equal(target.norm.running_mean, torch.full((4,), 5.0))
