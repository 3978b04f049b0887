"""What makes training fast does not change values or gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from experiments import models
from experiments.train.convolution import convolving
from experiments.train.training import prepare

CPU = torch.device("cpu")


class Operators(TorchDispatchMode):
    """Collects the names of the operators that are computed."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def both(inputs, **convolution):
    """The output and gradients of torch's conv2d and of ours, for one random gradient, and the operators of ours."""
    inputs = [None if t is None else t.requires_grad_() for t in inputs]
    leaves = [t for t in inputs if t is not None]
    expected = F.conv2d(*inputs, **convolution)
    grad = torch.randn_like(expected)
    with Operators() as operators:
        with convolving(CPU):
            found = F.conv2d(*inputs, **convolution)
        gradients = torch.autograd.grad(found, leaves, grad)
    return (expected, *torch.autograd.grad(expected, leaves, grad)), (found, *gradients), operators.names


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize(
    ("kernel", "size"),
    [(3, (1, 1)), (3, (2, 2)), (5, (1, 1)), (5, (2, 3)), ((5, 3), (8, 7)), (7, (15, 9)), (11, (6, 6))],
)
def test_depthwise(kernel, size, stride, bias):
    torch.manual_seed(0)
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    x = torch.randn(3, 6, *size, dtype=torch.double)
    weight = torch.randn(6, 1, *kernel, dtype=torch.double)
    inputs = x, weight, torch.randn(6, dtype=torch.double) if bias else None
    padding = (kernel[0] // 2, kernel[1] // 2)
    expected, found, operators = both(inputs, stride=stride, padding=padding, groups=6)
    torch.testing.assert_close(found, expected)
    assert "bmm" in operators


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_pointwise(size, bias):
    torch.manual_seed(0)
    inputs = torch.randn(3, 6, *size).double(), torch.randn(4, 6, 1, 1).double(), torch.randn(4).double()
    expected, found, operators = both(inputs if bias else (*inputs[:2], None))
    torch.testing.assert_close(found, expected)
    assert "convolution" not in operators


@pytest.mark.parametrize(
    ("x", "weight", "convolution"),
    [
        ((2, 6, 8, 8), (6, 1, 3, 3), {"groups": 6, "padding": 1}),  # oneDNN is fast
        ((2, 6, 12, 12), (6, 1, 5, 5), {"groups": 6}),
        ((2, 6, 5, 5), (4, 6, 1, 1), {}),
        ((2, 6, 2, 2), (6, 1, 3, 3), {"groups": 6, "padding": "same"}),  # not made for these
        ((2, 6, 7, 7), (6, 1, 3, 3), {"groups": 6, "dilation": 3}),
        ((2, 6, 2, 2), (12, 1, 3, 3), {"groups": 6, "padding": 1}),
        ((2, 6, 2, 2), (6, 3, 1, 1), {"groups": 2}),
        ((2, 6, 2, 2), (4, 6, 1, 1), {"stride": 2}),
        ((2, 6, 2, 2), (4, 6, 1, 1), {"padding": 1}),
        ((6, 1, 1), (4, 6, 1, 1), {}),
    ],
)
def test_others_are_torchs(x, weight, convolution):
    expected, found, operators = both((torch.randn(x), torch.randn(weight)), **convolution)
    assert all(map(torch.equal, found, expected))
    assert "convolution" in operators and "bmm" not in operators


def test_input_needs_no_gradient():
    x, weight = torch.randn(2, 6, 1, 1), torch.randn(6, 1, 5, 5, requires_grad=True)
    with convolving(CPU):
        F.conv2d(x, weight, None, 1, 2, 1, 6).sum().backward()
    torch.testing.assert_close(weight.grad[:, 0, 2, 2], x.sum((0, 2, 3)))
    assert weight.grad.sum() == pytest.approx(weight.grad[:, 0, 2, 2].sum().item(), abs=1e-6)


def test_frozen_weight_gets_no_gradient():
    x, weight = torch.randn(2, 6, 1, 1, requires_grad=True), torch.randn(6, 1, 5, 5)
    with convolving(CPU), Operators() as operators:
        F.conv2d(x, weight, None, 1, 2, 1, 6).sum().backward()
    assert "bmm" not in operators.names and x.grad is not None


@pytest.mark.slow
@pytest.mark.parametrize("model", ["eff_b0", "mix_m", "rex"])
def test_networks(model):
    """A whole network at 32 px, in double precision, differs by rounding alone."""
    gradients = []
    for way in (nn.Module.__call__, lambda network, x: _convolving(network, x)):
        torch.manual_seed(0)
        network = models.build(model, 10).double().train().to(memory_format=torch.channels_last)
        way(network, torch.randn(4, 3, 32, 32).double()).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


def _convolving(network, x):
    with convolving(CPU):
        return network(x)


def test_no_activation_makes_autograd_copy_its_input():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.SiLU(inplace=True), nn.Hardswish(inplace=True), nn.ReLU(inplace=True)
    ).to(memory_format=torch.channels_last)  # as prepare does: other layouts may round otherwise, by the processor
    x = torch.randn(2, 3, 9, 9)
    with Operators() as before:
        expected = network(x)
    prepare(network, CPU)
    with Operators() as after:
        found = network(x)
    assert torch.equal(found, expected)
    assert "clone" in before.names and "clone" not in after.names


def test_arguments_go_by_torchs_names():
    x, weight = torch.randn(2, 6, 1, 1), torch.randn(4, 6, 1, 1)
    with convolving(CPU):
        found = F.conv2d(input=x, weight=weight)
    torch.testing.assert_close(found, F.conv2d(x, weight))
