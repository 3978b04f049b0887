"""The matchings of Table 12, against brute force."""

from itertools import permutations

import pytest
import torch
from networks import on_meta, trained
from torch import nn

from dpiat import Architecture, Block, Layer, LayerPair, Matching, match, standardize, transfer
from dpiat.assignment import MATCHINGS, RandomMatching, bipartite, nbipartite
from dpiat.scoring import score


def lone(shapes) -> Block:
    return Block("block", tuple(Layer(f"{i}", "Conv2d", shape) for i, shape in enumerate(shapes)))


def best(target, source, worth) -> float:
    """The greatest total weight of any one-to-one assignment."""
    n, m = len(target), len(source)
    weight = [[worth(t, s) * (1 - (i / n - j / m) ** 2) for j, s in enumerate(source)] for i, t in enumerate(target)]
    if n > m:
        weight, n, m = [list(column) for column in zip(*weight, strict=True)], m, n
    return max(sum(weight[i][j] for i, j in enumerate(order)) for order in permutations(range(m), n))


@pytest.mark.parametrize("seed", range(20))
def test_bipartite_is_the_best_assignment(seed):
    generator = torch.Generator().manual_seed(seed)
    target, source = (
        lone([tuple(torch.randint(1, 9, (2,), generator=generator).tolist()) for _ in range(n)]) for n in (4, 5)
    )
    found = bipartite(Architecture("s", (source,)), Architecture("t", (target,)))
    assert found.score == pytest.approx(best(target.layers, source.layers, score))
    assert len({pair.source for pair in found.layers}) == len({pair.target for pair in found.layers}) == 4
    nested = nbipartite(Architecture("s", (source,)), Architecture("t", (target,)))
    assert nested.layers == found.layers


def test_nested_bipartite_assigns_blocks_too():
    source, target = standardize(on_meta("mixnet_s")), standardize(on_meta("mnasnet_100"))
    found = nbipartite(source, target)
    for network in zip(*found.blocks, strict=True):
        assert len({block.layers for block in network}) == len(found.blocks) >= 18
    ordered = nbipartite(target, target)
    assert [pair.source for pair in ordered.blocks] == [pair.target for pair in ordered.blocks]
    inside = {layer for pair in found.blocks for layer in pair.target.layers}
    assert {pair.target for pair in found.layers} <= inside


def test_random_matching_pairs_layers_of_a_kind():
    source, target = standardize(on_meta("mixnet_s")), standardize(on_meta("mnasnet_100"))
    found = RandomMatching(1)(source, target)
    assert all(pair.source.kind == pair.target.kind for pair in found.layers)
    for kind in {layer.kind for layer in target.layers if layer.shape}:
        both = [sum(layer.kind == kind for layer in network.layers if layer.shape) for network in (source, target)]
        assert sum(pair.target.kind == kind for pair in found.layers) == min(both)
    assert found == RandomMatching(1)(source, target) != RandomMatching(2)(source, target)


@pytest.mark.parametrize("name", MATCHINGS)
def test_each_matching_transfers(name):
    source, target = trained("mixnet_s", 0), trained("mnasnet_100", 1)
    report = transfer(source, target, matching=name)
    pairs = MATCHINGS[name](standardize(source), standardize(target)).layers
    partner = {pair.target.name: pair.source.name for pair in pairs}
    for entry in report.entries:
        if entry.action != "left":
            assert entry.source.rpartition(".")[0] == partner[entry.target.rpartition(".")[0]]


def test_a_matching_of_the_users_own():
    def last(source: Architecture, target: Architecture) -> Matching:
        return Matching(1.0, (), (LayerPair(source.layers[-1], target.layers[0]),))

    source, target = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 3)), nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    transfer(source, target, matching=last)
    assert torch.equal(target[0].weight, source[1].weight)
    assert match(standardize(source), standardize(target)).layers


def test_what_a_matching_must_not_return_is_named():
    source, target = (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)) for _ in range(2))
    (first, last), before = standardize(target).layers, target[0].weight.clone()
    unknown = Layer("fc", "Linear", (4, 4))
    for pairs, error, message in (
        ([(first, last)], TypeError, r"the layers of a matching must be dpiat\.LayerPair of two dpiat\.Layer, got \("),
        ([LayerPair("0", "2")], TypeError, "the layers of a matching must be .*, got LayerPair"),
        ([LayerPair(unknown, last)], ValueError, "the matching pairs 'fc', and the source has no such layer"),
        ([LayerPair(last, unknown)], ValueError, "the matching pairs 'fc', and the target has no such layer"),
        ([LayerPair(first, last)] * 2, ValueError, "the matching fills '2' of the target more than once"),
    ):
        with pytest.raises(error, match=message):
            transfer(source, target, matching=lambda *networks, pairs=pairs: Matching(1.0, (), tuple(pairs)))
    assert torch.equal(target[0].weight, before)
    pairs = LayerPair(first, last), LayerPair(first, first)
    transfer(source, target, matching=lambda *networks: Matching(1.0, (), pairs))
