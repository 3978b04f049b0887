"""Similarity and coverage (Eq. 4 and 5)."""

import pytest
import timm
import torch
from networks import PAPER, on_meta, trained
from safetensors.torch import save_file
from torch import nn

from dpiat import coverage, load, rank, similarity, standardize


@pytest.fixture(scope="module")
def architectures():
    return {label: standardize(on_meta(name), "paper") for label, name in PAPER.items()}


def test_efficientnets_b2_and_b0(architectures):
    assert similarity(architectures["Eff-B2"], architectures["Eff-B0"]) == pytest.approx(0.804, abs=0.0005)


def test_modes(architectures):
    """MixNet's convolutions side by side are one layer in default mode, and so more like ReXNet's."""
    mixnet, rexnet = (on_meta(PAPER[label]) for label in ("Mix-L", "ReX"))
    assert similarity(mixnet, rexnet, "paper") == similarity(architectures["Mix-L"], architectures["ReX"])
    assert similarity(mixnet, rexnet) > similarity(mixnet, rexnet, "paper")


def test_similarity_is_symmetric_and_coverage_is_not(architectures):
    small, large = architectures["Eff-B0"], architectures["Eff-B1"]
    assert similarity(small, large) == similarity(large, small)
    assert coverage(large, small) > coverage(small, large)
    assert similarity(small, small) == coverage(small, small) == 1


def test_networks_without_weights_are_similar_to_nothing():
    assert similarity(nn.ReLU(), nn.ReLU()) == similarity(nn.ReLU(), nn.Linear(2, 2)) == 0


def test_what_is_not_a_network_is_refused():
    with pytest.raises(TypeError, match=r"target must be a name, .* torch\.nn\.Module or an Architecture, got int"):
        similarity(nn.Linear(2, 2), 3)
    with pytest.raises(ValueError, match="unknown network 'resnet81'"):
        similarity(nn.Linear(2, 2), "resnet81")
    with pytest.raises(TypeError, match=r"fc\.bias must be a name, .* or an Architecture, got Tensor"):
        rank("resnet10t", {"fc.bias": torch.zeros(2)})


@pytest.fixture
def no_weights(monkeypatch):
    """No name may be loaded with its pretrained weights."""
    build = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **k: pretrained or build(name, **k))


def test_whatever_load_takes_is_compared(tmp_path, no_weights):
    network, other = timm.create_model("resnet10t"), on_meta("resnet18")
    torch.save(network.state_dict(), tmp_path / "a.pt")
    save_file(network.state_dict(), tmp_path / "b.safetensors")
    assert similarity("resnet10t", "resnet18") == similarity(network, other)
    assert coverage("resnet10t", other) == coverage(network, other)
    by_shapes = similarity(load(network.state_dict()), other)
    for source in (network.state_dict(), tmp_path / "a.pt", str(tmp_path / "a.pt")):
        assert similarity(source, "resnet18") == similarity("resnet18", source) == by_shapes
    assert similarity(tmp_path / "b.safetensors", network) == similarity(network, tmp_path / "b.safetensors") == 1


@pytest.mark.slow
def test_whatever_load_takes_is_ranked(tmp_path, caplog, no_weights):
    target = on_meta("resnet18")
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "a.pt")
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "b.safetensors")
    a, b = map(str, sorted(tmp_path.iterdir()))
    names = [candidate.source for candidate in rank(target, [tmp_path, "resnet1?t", "resnet18.a1_in1k"])]
    assert names[:2] == [b, "resnet18.a1_in1k"] and sorted(names[2:]) == [a, "resnet10t", "resnet14t"]
    assert rank(target, str(tmp_path)) == rank(target, tmp_path) == rank("resnet18", [a, b])
    assert [(c.source, c.pretrained) for c in rank(a, ["resnet10t", a])] == [("resnet10t", True), (a, None)]
    state = torch.load(a)
    given = rank("resnet18", {"name": "resnet10t", "path": a, "state": state, "module": on_meta("resnet10t")})
    values = {candidate.source: candidate[1:] for candidate in given}
    assert values["name"] == values["module"] and values["path"] == values["state"]
    assert rank("resnet18", [a], architecture="resnet10t")[0][1:] == values["name"]
    (tmp_path / "c.pt").write_bytes(b"123")
    assert len(rank(target, tmp_path)) == 2 and "c.pt left out: " in caplog.text
    with pytest.raises(ValueError, match=r"c\.pt holds more than tensors"):
        rank(target, [tmp_path / "c.pt"])
    with pytest.raises(ValueError, match="the target is a state dict: name its architecture, or name the sources"):
        rank(state)


def test_state_dicts_are_compared_by_shapes_alone():
    networks = {name: trained(name, 0) for name in ("mnasnet_100", "resnet18")}
    stored = {f"{name}.pt": load(network.state_dict()) for name, network in networks.items()}
    assert similarity(stored["resnet18.pt"], networks["resnet18"]) == 1
    ranked = rank(networks["mnasnet_100"], stored | networks)
    assert [candidate.source for candidate in ranked[:2]] == ["mnasnet_100.pt", "mnasnet_100"]
    assert ranked[0].similarity == ranked[1].similarity == ranked[1].filled == 1 > ranked[2].similarity
    with pytest.raises(TypeError, match=r"source must be a torch\.nn\.Module, since target is a state dict"):
        similarity(standardize(networks["resnet18"]), stored["resnet18.pt"])
