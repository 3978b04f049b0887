"""GHN-2 predicts what its authors' code predicts, for every parameter of the paper's networks, and starts a trial."""

import argparse
import importlib
import json
import math
import random
from dataclasses import replace
from pathlib import Path

import networks
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from experiments import ghn2, ghn2_graph, models, planning, trial
from experiments.data import loading
from experiments.results.paper import RESULTS
from experiments.settings import DatasetSettings, InitSettings, Settings, UserError

# From `checkpoint()`: for each parameter its mean, the mean of its absolute values, and four of its values, as the code
# of facebookresearch/ppuda (commit 4673a42) predicts them; for timm's network with the corrections for its layers.
FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "ghn2.json").read_text())
NETWORKS = {
    "operations": lambda: networks.Operations(100),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=1000),
    "resnet50": lambda: torchvision.models.resnet50(num_classes=1000),
    "eff_b0": lambda: models.build("eff_b0", 100),
}
SMALL = {"largest": (8, 8, 11, 11), "hidden": 16}


def by_rule(ghn: ghn2.GHN2) -> ghn2.GHN2:
    """Fill weights by a rule of whole numbers, the same on every machine, as large as PyTorch would draw them."""
    for number, tensor in enumerate(ghn.state_dict().values()):
        mixed = (torch.arange(tensor.numel()) + 7919 * number) * 1103515245 % 2**32
        mixed = (mixed ^ (mixed >> 15)) * 1103515245 % 2**32
        values = (mixed ^ (mixed >> 13)).double() / 2**31 - 1
        fan_in = tensor[0].numel() if tensor.dim() > 1 else 1
        tensor.copy_((values * (1 if tensor.dim() < 2 else 2 / fan_in**0.5)).view(tensor.shape))
    return ghn.eval()


def checkpoint() -> dict:
    return ghn2.to_checkpoint(by_rule(ghn2.GHN2(10, (64, 64, 11, 11))), "nothing")


def summary(tensor: Tensor) -> list[float]:
    flat = tensor.detach().double().flatten()
    places = [len(flat) * part // 4 for part in range(4)]
    return [float(f"{value:.7g}") for value in (flat.mean(), flat.abs().mean(), *flat[places])]


@pytest.fixture(scope="module")
def ghn() -> ghn2.GHN2:
    return by_rule(ghn2.GHN2(10, (64, 64, 11, 11)))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_published_code_predicts_the_same(name, ghn):
    network = NETWORKS[name]()
    ghn2.fill(network, ghn, 32 if name == "operations" else 224)
    found = {key: summary(parameter) for key, parameter in network.named_parameters()}
    assert found.keys() == FIXTURE[name].keys()
    for key, expected in FIXTURE[name].items():
        assert found[key] == pytest.approx(expected, abs=1e-5), key


def test_what_the_fixture_would_notice(ghn, monkeypatch):
    """The comparison of numbers notices faults in each part of the prediction."""

    def worst() -> float:
        network = networks.Operations(100)
        ghn2.fill(network, ghn, 32)
        found = ((summary(parameter), FIXTURE["operations"][key]) for key, parameter in network.named_parameters())
        return max(abs(a - b) for ours, theirs in found for a, b in zip(ours, theirs, strict=True))

    assert worst() < 1e-5
    for module, name, fault in (
        (ghn2_graph, "LONGEST", 1),  # no virtual edges
        (ghn2_graph, "_pooled", lambda function: None),
        (ghn2, "_nearest", lambda values, wanted: 0),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, fault)
            assert worst() > 1e-3, name


def test_the_checkpoint_in_the_repository_is_small_and_starts_a_network():
    file = RESULTS / "ghn2" / "ghn2_cifar100.pt"
    found, network = ghn2.read(file), models.build("mnas", 100)
    before = parameters_to_vector(network.parameters()).clone()
    ghn2.fill(network, found.ghn, 32)
    after = parameters_to_vector(network.parameters())
    assert file.stat().st_size < 4e6 and found.learned.startswith("cifar100 at 32 px")
    assert after.isfinite().all() and (after != before).float().mean() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("name", models.SHORT_NAMES)
def test_every_parameter_of_the_papers_networks_is_predicted(name, ghn):
    network = models.build(name, 100)
    for parameter in network.parameters():
        parameter.data.fill_(torch.nan)
    before = {key: buffer.clone() for key, buffer in network.named_buffers()}
    ghn2.fill(network, ghn, 64)
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    assert network.training and all(torch.equal(before[key], buffer) for key, buffer in network.named_buffers())


def test_kinds_of_operations():
    graph = ghn2_graph.trace(networks.Operations(100), 32)
    kinds = [node.kind for node in graph.nodes]
    absent = {"msa", "pos_enc"}
    assert set(kinds) == set(ghn2_graph.KINDS) - absent and kinds.count("input") == 1
    by_name = {node.name: node for node in graph.nodes if node.name}
    assert (by_name["dilated.weight"].kind, by_name["separable.weight"].kind) == ("dil_conv", "sep_conv")
    assert by_name["stem_norm.weight"].bias == "stem_norm.bias" and "stem_norm.bias" not in by_name
    assert graph.classifier == ("classifier.weight", "classifier.bias")
    pools = {node.kind: node.shape for node in graph.nodes if "pool" in node.kind}
    assert pools == {"max_pool": (1, 1, 3, 3), "avg_pool": (1, 1, 3, 3)}


def test_distances_are_lengths_of_shortest_paths():
    nodes = [ghn2_graph.Node("input", ())]
    nodes += [ghn2_graph.Node("conv", (number,)) for number in range(60)]
    nodes.append(ghn2_graph.Node("sum", (60, 0)))
    distances = ghn2_graph.Graph(tuple(nodes)).distances()
    assert distances[:51, 0].tolist() == list(range(51)) and not distances[51:61, 0].any()
    assert distances[61, 0] == 1 and distances[61, 60] == 1 and distances[61, 59] == 2 and distances[61, 1] == 0
    assert not distances.triu().any()


def test_a_network_keeps_its_mode_gradients_and_weights_when_it_is_traced():
    network = networks.small(10).train()
    network[0].weight.requires_grad_(False)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    graph = ghn2_graph.trace(network, 16)
    assert network[0].weight.requires_grad is False and network.training
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())
    assert {"0.weight", "0.bias", "1.weight", "3.weight", "8.bias"} <= {node.name for node in graph.nodes}


def test_a_prediction_has_gradients():
    ghn = ghn2.GHN2(10, **SMALL)
    network = networks.small(10)
    predicted = ghn(ghn2_graph.trace(network, 16))
    output = torch.func.functional_call(network, predicted, torch.rand(4, 3, 16, 16))
    output.square().mean().backward()
    assert all(parameter.grad is not None for parameter in ghn.parameters())


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)), "cannot predict 1.weight, a parameter of GroupNorm"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU()), "cannot predict 1.weight, a parameter of PReLU"),
        (nn.Sequential(nn.Conv2d(3, 8, 16, padding=8)), "cannot predict 0.weight: its kernel is 16×16, at most 11×11"),
        (nn.Sequential(nn.Conv2d(5, 8, 3)), "cannot follow the network on 32 px: Given groups=1"),
        (nn.Flatten(), "nothing to predict"),
        (nn.ModuleList([nn.Conv2d(3, 8, 3)]), "cannot follow the network on 32 px: "),
        (networks.Idle(), r"cannot predict idle\.weight: the network's output does not depend on it"),
    ],
)
def test_networks_that_it_cannot_predict_are_named(network, message, ghn):
    with pytest.raises(UserError, match=message) as raised:
        ghn2.fill(network, ghn, 32)
    assert "\n" not in str(raised.value)


def settings(folder: Path, **changes) -> Settings:
    changes = {
        "dataset": DatasetSettings(name="digits", image_size=16, train_subset=512),
        "init": InitSettings(name="ghn2", checkpoint=str(folder / "ghn2.pt")),
        "target": "networks:small",
        "target_epochs": 1,
        "batch_size": 64,
        "device": "cpu",
        "threads": 1,
        "output_dir": str(folder),
    } | changes
    return Settings(**changes)


@pytest.fixture
def folder(tmp_path) -> Path:
    content = ghn2.to_checkpoint(by_rule(ghn2.GHN2(10, **SMALL)), "a rule")
    torch.save(content, tmp_path / "ghn2.pt")
    return tmp_path


@pytest.mark.training
def test_a_trial_starts_from_a_prediction(folder):
    outcome = trial.run(settings(folder))
    record = outcome.record
    assert record["trial"]["init"] == "ghn2" and len(record["trial"]["checkpoint"]) == 64
    assert record["initialization"] == {"ghn2": "a rule"} and record["trial"]["source"] is None
    assert record["trial"]["recipe"]["lr"] == 4e-3 and outcome.baseline["trial"]["recipe"]["batch_size"] == 64
    assert math.isfinite(record["epochs"][-1]["test_loss"])
    again = trial.run(settings(folder))
    assert again.record == record


def test_another_checkpoint_is_another_trial(folder):
    first = planning.target_trial(settings(folder))
    ghn = ghn2.read(folder / "ghn2.pt").ghn
    ghn.embed.weight.data[0] += 1
    torch.save(ghn2.to_checkpoint(ghn, "a rule"), folder / "ghn2.pt")
    assert planning.target_trial(settings(folder)).id != first.id
    random = planning.target_trial(
        settings(folder, init=InitSettings(name="random", checkpoint=str(folder / "ghn2.pt")))
    )
    assert random.checkpoint == ""


def test_mistakes_are_named_before_anything_is_trained(folder):
    def said(content=None, target="networks:small", **changes) -> str:
        if content is not None:
            torch.save(content, folder / "other.pt")
            changes = {"checkpoint": str(folder / "other.pt")}
        wanted = settings(folder, target=target)
        with pytest.raises(UserError) as raised:
            planning.target_trial(replace(wanted, init=replace(wanted.init, **changes)))
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 400
        return str(raised.value)

    good = torch.load(folder / "ghn2.pt", weights_only=True)
    assert said(checkpoint=None) == "init=ghn2 needs a trained checkpoint: init.checkpoint=FILE"
    assert "does not exist" in said(checkpoint=str(folder / "nowhere.pt"))
    assert "is not a file" in said(checkpoint=str(folder))
    (folder / "text.pt").write_text("no tensors")
    assert "text.pt is not a checkpoint of GHN-2: torch.load" in said(checkpoint=str(folder / "text.pt"))
    (folder / "half.pt").write_bytes((folder / "ghn2.pt").read_bytes()[:5000])
    assert "half.pt is not a checkpoint of GHN-2: torch.load" in said(checkpoint=str(folder / "half.pt"))
    assert "other.pt is not a checkpoint of GHN-2: torch.load" in said({"code": ghn2.Checkpoint})  # is not run
    assert "it needs config and state_dict" in said(networks.small(10).state_dict())
    assert "its ve is False, not True" in said(good | {"config": good["config"] | {"ve": False}})
    assert "is not of GHN-2's format: " in said(good | {"config": good["config"] | {"num_classes": 7}})
    assert "is not of GHN-2's format: " in said(good | {"config": good["config"] | {"max_shape": None}})
    bad = good["state_dict"] | {"ln.bias": torch.full((16,), torch.nan)}
    assert "holds values that are not finite" in said(good | {"state_dict": bad})
    assert "a parameter of GroupNorm" in said(target="resnet50_gn")


def test_what_a_checkpoint_learned():
    for classes, name in ((10, "CIFAR10"), (1000, "ImageNet"), (100, "100 classes")):
        assert ghn2._learned({"num_classes": classes}) == name


@pytest.fixture
def training(monkeypatch):
    """scripts/train_ghn2.py"""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    module = importlib.import_module("train_ghn2")
    monkeypatch.setattr(module, "LARGEST", (8, 8, 11, 11))
    return module


def test_networks_that_ghn2_learns_from(training):
    seen = set()
    for seed in range(12):
        network = training.network(random.Random(seed), 10, 16)
        seen |= {node.kind for node in ghn2_graph.trace(network, 16).nodes}
        assert all(parameter.is_meta for parameter in network.parameters())
    assert seen == {"input", "conv", "sep_conv", "bias", "bn", "sum", "glob_avg"}


@pytest.mark.training
def test_a_training_that_was_stopped_goes_on(training, tmp_path, monkeypatch):
    found = loading.load(DatasetSettings(name="digits"), str(tmp_path))

    def arguments(name: str, **changes) -> argparse.Namespace:
        settings = {"dataset": "digits", "size": 16, "steps": 4, "batch": 16, "networks": 1, "hidden": 16, "lr": 1e-3}
        return argparse.Namespace(**settings | {"seed": 0, "every": 2, "out": tmp_path / name} | changes)

    whole = training.train(arguments("whole.pt"), found)
    kept, steps = training.step, []

    def stop(*inputs):
        steps.append(inputs)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return kept(*inputs)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "step", stop)
        training.train(arguments("stopped.pt"), found)
    stopped = training.train(arguments("stopped.pt"), found)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, stopped.state_dict()[key]), key
    read = ghn2.read(tmp_path / "stopped.pt")
    assert read.learned == "digits at 16 px, 4 steps"
    assert all(torch.equal(tensor, read.ghn.state_dict()[key]) for key, tensor in whole.state_dict().items())
    assert not torch.equal(whole.embed.weight, ghn2.GHN2(10, **SMALL).embed.weight)
    accuracies = training.unseen(read.ghn, found, arguments("stopped.pt"), networks=2)
    assert accuracies.shape == (2,) and accuracies.min() >= 0 and accuracies.max() <= 1
    with pytest.raises(UserError, match="is of other settings"):
        training.train(arguments("stopped.pt", lr=1e-2), found)


def test_a_trained_checkpoint_stays_below_four_megabytes():
    ghn = ghn2.GHN2(100, (32, 32, 11, 11))
    assert sum(tensor.numel() * 4 for tensor in ghn.state_dict().values()) < 3.9e6
