"""Eq. 4 and 5, and the acceptance test of the algorithm: the paper's Table 11 from the paper's own tables."""

import pytest
from networks import PAPER, on_meta, trained
from torch import nn

from dpiat import coverage, load, rank, similarity, standardize
from experiments import paper

# What the settled rules give with timm 1.0.31; the paper prints .77 .68 .55 .88 .92 .83.
TABLE_11 = {6: 0.765, 1: 0.676, 7: 0.546, 8: 0.879, 9: 0.917, 10: 0.832}


@pytest.fixture(scope="module")
def architectures():
    return {label: standardize(on_meta(name), "paper") for label, name in PAPER.items()}


def test_table_11():
    computed = paper.similarities(paper.architectures())
    for table, expected in TABLE_11.items():
        cells = paper.matrix(f"table{table:02}").merge(computed, on=["source", "target"])
        assert cells["value"].corr(cells["similarity"]) == pytest.approx(expected, abs=0.0005)


def test_efficientnets_b2_and_b0(architectures):
    assert similarity(architectures["Eff-B2"], architectures["Eff-B0"]) == pytest.approx(0.804, abs=0.0005)


def test_modes(architectures):
    """Both agree where strides do; the stride of ReXNet's blocks stands at other places than MixNet's."""
    mixnet, rexnet, large, small = (on_meta(PAPER[label]) for label in ("Mix-L", "ReX", "Eff-B2", "Eff-B0"))
    assert similarity(mixnet, rexnet, "paper") == similarity(architectures["Mix-L"], architectures["ReX"])
    assert similarity(mixnet, rexnet) < similarity(mixnet, rexnet, "paper")
    assert similarity(large, small) == similarity(large, small, "paper")


def test_similarity_is_symmetric_and_coverage_is_not(architectures):
    small, large = architectures["Eff-B0"], architectures["Eff-B1"]
    assert similarity(small, large) == similarity(large, small)
    assert coverage(large, small) > coverage(small, large)
    assert similarity(small, small) == coverage(small, small) == 1


def test_networks_without_weights_are_similar_to_nothing():
    assert similarity(nn.ReLU(), nn.ReLU()) == similarity(nn.ReLU(), nn.Linear(2, 2)) == 0


def test_what_is_not_a_network_is_refused():
    with pytest.raises(TypeError, match=r"target must be a torch\.nn\.Module or an Architecture, got str"):
        similarity(nn.Linear(2, 2), "efficientnet_b0")


def test_state_dicts_are_compared_by_shapes_alone():
    networks = {name: trained(name, 0) for name in ("mnasnet_100", "resnet18")}
    stored = {f"{name}.pt": load(network.state_dict()) for name, network in networks.items()}
    assert similarity(stored["resnet18.pt"], networks["resnet18"]) == 1
    ranked = rank(networks["mnasnet_100"], stored | networks)
    assert [candidate.source for candidate in ranked[:2]] == ["mnasnet_100.pt", "mnasnet_100"]
    assert ranked[0].similarity == ranked[1].similarity == ranked[1].filled == 1 > ranked[2].similarity
    with pytest.raises(TypeError, match=r"source must be a torch\.nn\.Module, since target is a state dict"):
        similarity(standardize(networks["resnet18"]), stored["resnet18.pt"])
