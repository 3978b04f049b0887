"""The matching against brute force and against the literal transcription of Eq. 2 and 3."""

import random
from itertools import pairwise

import numpy as np
import oracle
import pytest
from networks import PAPER, on_meta

from dpiat import matching as matching_module
from dpiat.architecture import Architecture, Block, Layer, Positions
from dpiat.matching import match, match_score, ordered_scores, trace
from dpiat.reading import standardize
from dpiat.scoring import score


def random_scores(rng: random.Random) -> list[list[float]]:
    """Up to 6 × 6, with many zeros and ties."""
    values = rng.choice([[0, 0.25, 0.5, 1], [0, 0, 1], [rng.random() for _ in range(9)]])
    return [
        [rng.choice(values) for _ in range(width)] for width in [rng.randint(1, 6)] for _ in range(rng.randint(1, 6))
    ]


def random_architecture(rng: random.Random, name: str) -> Architecture:
    kinds = [("Conv2d", (rng.choice([4, 8]), rng.choice([2, 4]), 3, 3)), ("BatchNorm2d", (8,)), ("BatchNorm2d", (4,))]
    kinds += [("ReLU", ()), ("Linear", (5, 8))]
    blocks = []
    for b in range(rng.randint(1, 4)):
        layers = [Layer(f"{name}{b}.{i}", *rng.choice(kinds)) for i in range(rng.randint(1, 4))]
        blocks.append(Block(f"{name}{b}", tuple(layers)))
    return Architecture(name, tuple(blocks))


def ranges(pairs: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Pairs (target, source) as a matching: (source, its first target, its last target)."""
    found = {}
    for target, source in pairs:
        found[source] = found.get(source, (target,))[0], target
    return [(source, first, last) for source, (first, last) in found.items()]


def one_dp(scores: np.ndarray) -> np.ndarray:
    return ordered_scores(scores[:, :, None, None], Positions(np.arange(len(scores))[:, None]))[:, :, 0, 0]


@pytest.mark.parametrize("seed", range(300))
def test_one_phase_equals_brute_force_and_its_pairs_add_up(seed):
    scores = random_scores(random.Random(seed))
    matrix = np.array(scores, dtype=float)
    dp = one_dp(matrix)
    assert dp[-1, -1] == pytest.approx(oracle.brute_force(scores), abs=1e-12)
    matching = ranges(trace(dp, matrix, np.arange(len(matrix))))
    assert oracle.value(matching, scores) == pytest.approx(dp[-1, -1], abs=1e-12)
    assert matching == sorted(matching) and all(a[2] < b[1] for a, b in pairwise(matching))


@pytest.mark.parametrize("seed", range(40))
def test_all_ways_to_compute_a_batch_give_the_same_bits(monkeypatch, seed):
    rng = np.random.default_rng(seed)
    n, m, t, s = rng.integers(1, 14, 4)
    scores = rng.random((n, m, t, s)) * (rng.random((n, m, t, s)) < 0.5)
    places = Positions(np.sort(rng.permuted(np.arange(3 * n)[:, None].repeat(t, 1), axis=0)[:n], axis=0))
    found = []
    for small, large, wide in ((2**30, 0, 0), (0, 2**30, 1), (0, 2**30, 2**30), (0, 0, 0)):
        for name, value in (("SMALL", small), ("LARGE", large), ("WIDE", wide)):
            monkeypatch.setattr(matching_module, name, value)
        found.append(ordered_scores(scores, places))
    assert all(np.array_equal(dp, found[0]) for dp in found)


@pytest.mark.parametrize("seed", range(12))
def test_long_sequences_equal_the_transcription(seed):
    """Longer than what is summed up at once: ranges that are passed over could not have won."""
    rng = np.random.default_rng(seed)
    n, m = [(90, 90), (150, 20), (200, 3), (70, 120)][seed % 4]
    scores = rng.random((n, m)) * (rng.random((n, m)) < [1.0, 0.3, 0.02][seed % 3])
    scores[:, 0] = [1.0, 0.0][seed % 2]  # a source that could fill everything
    total, pairs = oracle.ordered_matching(n, m, lambda i, j: float(scores[i, j]))
    dp = one_dp(scores)
    assert dp[-1, -1] == total and trace(dp, scores, np.arange(n)) == pairs


@pytest.mark.parametrize("seed", range(200))
def test_both_phases_equal_brute_force_and_the_transcription(seed):
    rng = random.Random(seed)
    source, target = random_architecture(rng, "s"), random_architecture(rng, "t")
    by_block = [
        [oracle.brute_force([[oracle.score(a, b) for b in s.layers] for a in t.layers]) for s in source.blocks]
        for t in target.blocks
    ]
    found = match(source, target)
    assert found.score == pytest.approx(oracle.brute_force(by_block), abs=1e-12)
    pairs = [(target.blocks.index(pair.target), source.blocks.index(pair.source)) for pair in found.blocks]
    assert oracle.value(ranges(pairs), by_block) == pytest.approx(found.score, abs=1e-12)
    for (t, s), pair in zip(pairs, found.blocks, strict=True):
        places = [
            (pair.target.layers.index(layer.target), pair.source.layers.index(layer.source))
            for layer in found.layers
            if layer.target in pair.target.layers
        ]
        scores = [[oracle.score(a, b) for b in pair.source.layers] for a in pair.target.layers]
        assert oracle.value(ranges(places), scores) == pytest.approx(by_block[t][s], abs=1e-12)
    total, pairs = oracle.match(source, target)
    assert found.score == total == match_score(source, target)
    assert [(pair.source.name, pair.target.name) for pair in found.layers] == pairs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "target"),
    [("Eff-B2", "Eff-B0"), ("Mix-M", "ReX"), ("Mnas", "SeMnas"), ("ReX1.5", "Mix-M"), ("SeMnas", "Eff-B1")],
)
def test_real_networks_equal_the_transcription(source, target):
    source, target = standardize(on_meta(PAPER[source])), standardize(on_meta(PAPER[target]))
    found = match(source, target)
    total, pairs = oracle.match(source, target)
    assert found.score == total  # to the last bit
    assert [(pair.source.name, pair.target.name) for pair in found.layers] == pairs


def test_an_architecture_matches_itself_layer_by_layer():
    for name in ("tf_efficientnet_b0", "mixnet_m", "densenet121", "vit_tiny_patch16_224"):
        architecture = standardize(on_meta(name))
        found = match(architecture, architecture)
        assert found.score == architecture.max_score
        assert [pair.target for pair in found.layers] == [layer for layer in architecture.layers if layer.shape]
        assert all(pair.source is pair.target for pair in found.layers)


def test_scores_are_equation_one():
    conv = Layer("a", "Conv2d", (32, 16, 3, 3))
    assert score(conv, Layer("b", "Conv2d", (16, 32, 3, 5))) == 0.5 * 0.5 * (3 / 5)
    assert score(conv, Layer("b", "ConvTranspose2d", (32, 16, 3, 3))) == 0
    assert score(conv, Layer("b", "Conv2d", (32, 16, 3))) == 0
    assert score(Layer("a", "ReLU"), Layer("b", "ReLU")) == 0
    rng = random.Random(0)
    for _ in range(20):
        t, s = random_architecture(rng, "t").layers, random_architecture(rng, "s").layers
        assert [[score(a, b) for b in s] for a in t] == [[oracle.score(a, b) for b in s] for a in t]


def test_networks_without_weights_match_nothing():
    empty, flat = Architecture("none", ()), Architecture("flat", (Block("act", (Layer("act", "ReLU"),)),))
    real = random_architecture(random.Random(1), "r")
    for source, target in [(empty, real), (real, empty), (flat, real), (real, flat), (empty, empty)]:
        assert match(source, target).score == 0 and match(source, target).layers == ()
