"""Which source layer goes to which target layer in default mode: whole blocks from whole blocks, role by role.

Blocks are matched by the recurrence of the paper (Eq. 3), runs of single layers with runs. Inside of two blocks, the
layers of each family (dense, depthwise, norms, ...) are matched in their order, each at most once: families are
registered in another order from library to library, and layers of one family rarely. Layers of different known roles
never match. Where two blocks name their layers alike, names count as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from math import prod

import numpy as np

from dpiat import roles
from dpiat.architecture import Architecture, Block, Layer, Places
from dpiat.levels import ends, is_main
from dpiat.matching import BlockPair, LayerPair, Matching, ordered_scores, trace
from dpiat.recipe import BEST, Recipe

OTHER_NAME = 0.25  # what a pair of other names is worth where two blocks name their layers alike
TRUSTED = 0.75  # the part of the smaller block's names that such blocks share
TOWERS = ("encoder", "decoder", "text", "vision", "visual", "image", "audio", "generator", "discriminator")
NORMS = ("LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm", "Norm")
DENSE = ("Linear", "Conv")
GATES = (roles.REDUCE, roles.EXPAND)
RANK = {role: rank for rank, role in enumerate(roles.ORDER)}
SIZES = 5  # of a layer: outputs, inputs, and up to three of a kernel
INTO, INSIDE, OUT, NO_WIDTH = range(4)  # what a width of a layer is to its block


def align(source: Architecture, target: Architecture, recipe: Recipe = BEST) -> Matching:
    """The matching of two networks in default mode, with its score; see the module's docstring."""
    return _Alignment(source, target, recipe).matching()


def align_score(source: Architecture, target: Architecture) -> float:
    """The score of `align(source, target)` by the widths as they are, without its pairs."""
    return _Alignment(source, target, PLAIN).score()


def align_both(source: Architecture, target: Architecture) -> tuple[Matching, float]:
    """`align(source, target)` by the widths as they are, and the score of `align(target, source)`."""
    there = _Alignment(source, target, PLAIN)
    return there.matching(), there.back().score()


def align_scores(source: Architecture, target: Architecture) -> tuple[float, float]:
    """The scores of `align(source, target)` and of `align(target, source)`, by the widths as they are."""
    there = _Alignment(source, target, PLAIN)
    return there.score(), there.back().score()


# Similarity compares widths as Eq. 1 does: a source of the target's own widths has more to give than one of half of it.
PLAIN = replace(BEST, relative=False)


def family(layer: Layer, gates: bool = BEST.gates) -> str:
    """Layers of different families never match; with `gates`, a squeeze and excitation has two of its own."""
    kind, role = layer.kind, layer.role
    if not layer.shape:
        return ""
    if gates and role in GATES:
        return role
    if role == roles.SHORTCUT:
        return f"{role} {'norm' if len(layer.shape) == 1 else 'dense'}"
    if role == roles.POSITION or role == roles.OFFSET or (role.endswith("token") and kind == "Parameter"):
        return role
    if kind.startswith("Depthwise"):
        return "depthwise"
    if "Transpose" in kind:
        return "transposed"
    if kind.startswith(DENSE):
        return "dense"
    if kind.startswith("BatchNorm"):
        return "BatchNorm"
    if kind.startswith(NORMS):
        return "Norm"
    if kind.startswith("Embedding"):
        return "Embedding"
    sizes = [size for size in layer.shape if size > 1]
    return f"{kind} {len(sizes)}" if kind != "Parameter" or len(sizes) > 1 else "vector"


def sizes_of(layer: Layer) -> tuple[int, ...]:
    """What Eq. 1 compares, the same for a linear layer and a 1 × 1 convolution, and the dimensions of the kernel."""
    if len(layer.shape) < 2 or not layer.kind.startswith((*DENSE, "Depthwise")):  # some keep a matrix as a vector
        sizes = [size for size in layer.shape if size > 1] or [1]
        if len(sizes) > SIZES:
            sizes = [*sizes[: SIZES - 1], prod(sizes[SIZES - 1 :])]
        return (*sizes, *[1] * (SIZES - len(sizes)), 0)
    out, into, *kernel = layer.shape
    kernel = kernel[: SIZES - 2]
    return (out, into, *[1] * (SIZES - 2 - len(kernel)), *kernel, len(kernel))


class Outline:
    """An architecture as tables for the alignment: different layers and different blocks once."""

    def __init__(self, blocks: Sequence[Block], gates: bool = BEST.gates):
        self.blocks = [block for block in blocks if any(layer.shape for layer in block.layers)]
        layers: dict[tuple, int] = {}
        known: dict[tuple, int] = {}
        self.weighted: list[list[Layer]] = []
        self.members: list[tuple[int, ...]] = []  # of each different block
        self.kinds: list[bool] = []  # is it a run?
        self.names: list[tuple[str, ...]] = []
        index = []
        for block in self.blocks:
            weighted = [layer for layer in block.layers if layer.shape]
            self.weighted.append(weighted)
            names = tuple(layer.name.removeprefix(f"{block.name}.") for layer in weighted)
            keys = [
                (layer.kind, layer.shape, layer.role, name, widths)
                for layer, name, widths in zip(weighted, names, _widths_of(block, weighted), strict=True)
            ]
            members = tuple(layers.setdefault(key, len(layers)) for key in keys)
            key = block.run, members
            if key not in known:
                known[key] = len(known)
                self.members.append(members)
                self.kinds.append(block.run)
                self.names.append(names)
            index.append(known[key])
        self.index = np.array(index, dtype=int)
        self.layers = [Layer("", kind, shape, role) for kind, shape, role, *_ in layers]
        self.own_names = [name for *_, name, _ in layers]
        self.widths = np.array([widths for *_, widths in layers], dtype=int).reshape(-1, 2)  # of outputs and inputs
        self.families: dict[str, list[int]] = {}
        of = [family(layer, gates) for layer in self.layers]
        for number, kind in enumerate(of):
            self.families.setdefault(kind, []).append(number)
        # Of each different block, the layers of each family in their order.
        self.columns: list[dict[str, list[int]]] = []
        for members in self.members:
            columns: dict[str, list[int]] = {}
            for place, number in enumerate(members):
                columns.setdefault(of[number], []).append(place)
            self.columns.append({kind: self._in_order(places, members) for kind, places in columns.items()})
        self.towers = [_tower(block.name) for block in self.blocks]
        self.stages = _stages(self.blocks)

    def _in_order(self, places: list[int], members: tuple[int, ...]) -> list[int]:
        """The places with those of known roles in the order of these, among themselves."""
        rank = {place: RANK[role] for place in places if (role := self.layers[members[place]].role) in RANK}
        if len(rank) < 2:
            return places
        ordered = iter(sorted(rank, key=rank.get))
        return [next(ordered) if place in rank else place for place in places]

    @cached_property
    def sizes(self) -> np.ndarray:
        """(layers, SIZES + 1)"""
        return np.array([sizes_of(layer) for layer in self.layers], dtype=float).reshape(-1, SIZES + 1)


def _widths_of(block: Block, layers: Sequence[Layer]) -> list[tuple[int, int]]:
    """Of each layer, what its outputs and its inputs are to the block: what it takes, what it gives, or in between."""
    if block.run:
        return [(NO_WIDTH, NO_WIDTH)] * len(layers)
    into, out = ends(block)
    known = {out: OUT, into: INTO, 1: NO_WIDTH}

    def told(layer: Layer) -> tuple[int, int]:
        if not layer.kind.startswith((*DENSE, *NORMS, "Depthwise", "BatchNorm")):
            return NO_WIDTH, NO_WIDTH
        first, second = (*layer.shape, 1)[:2]
        return known.get(first, INSIDE), known.get(second, INSIDE)

    return list(map(told, layers))


def _widest(blocks: Sequence[Block]) -> dict[int | None, np.ndarray]:
    """By level, the logarithms of the most that a block takes, has inside and gives; NaN where none tells.

    Of the widest, and not of the mean, so that a deeper network is not taken for another width.
    """
    found: dict[int | None, np.ndarray] = {}
    for block in blocks:
        if block.run or not (main := [layer for layer in block.layers if is_main(layer)]):
            continue
        inside = max((layer.shape[0] for layer in main[:-1]), default=0)
        sizes = np.array([np.log(size) if size else np.nan for size in (ends(block)[0], inside, ends(block)[1])])
        found[block.level] = np.fmax(found.get(block.level, sizes), sizes)
    return found


def _ratios(source: Sequence[Block], target: Sequence[Block]) -> np.ndarray:
    """How much wider the target is than the source: in what blocks take, have inside and give; 1 of all else."""
    theirs, ours = _widest(source), _widest(target)
    rows = np.array([ours[level] - theirs[level] for level in ours.keys() & theirs.keys()]).reshape(-1, 3)
    known = ~np.isnan(rows)
    means = np.where(known, rows, 0).sum(0) / np.maximum(known.sum(0), 1)
    return np.exp([*means, 0.0])


def _stages(blocks: Sequence[Block]) -> list[int]:
    """The number of each block's stage: of the list that it is in, or of the blocks in a list that are as wide.

    A run is of the stage before it.
    """
    found, number, before = [], 0, None
    widths: dict[str, set[int]] = {}
    for block in blocks:
        if not block.run:
            widths.setdefault(block.name.rpartition(".")[0], set()).add(_width(block))
    for block in blocks:
        if not block.run:
            path = block.name.rpartition(".")[0]
            stage = path, _width(block) if len(widths[path]) > 1 else 0
            number += stage != before
            before = stage
        found.append(number)
    return found


def _levels(target: Sequence[Block], source: Sequence[Block]) -> tuple[np.ndarray, np.ndarray] | None:
    """The levels of the blocks of both, as far as both have them; None where one has no more than one.

    What works at a higher resolution than all blocks of the other network is of the highest level that both have.
    """
    sides = [[block.level for block in side if not block.run] for side in (target, source)]
    if any(not side or None in side for side in sides):
        return None
    most = min(map(max, sides))
    if most == 0:
        return None
    ours, theirs = (np.array([min(block.level or 0, most) for block in side]) for side in (target, source))
    return ours, theirs


def _width(block: Block) -> int:
    """The outputs of its last matrix or convolution."""
    wide = [layer.shape[0] for layer in block.layers if len(layer.shape) > 1 and layer.role != roles.SHORTCUT]
    return wide[-1] if wide else 0


def _tower(name: str) -> str:
    words = re.split(r"[._]", name.lower())
    return next((tower for word in words for tower in TOWERS if word == tower), "")


_SKIP = {None: 0, False: -1, True: 1}


class _Alignment:
    """The scores of all different layers, of all different blocks, and of the whole."""

    def __init__(self, source: Architecture, target: Architecture, recipe: Recipe = BEST):
        self.recipe = recipe
        self.source, self.target = (
            _outline(network, other, recipe.gates) for network, other in ((source, target), (target, source))
        )
        s, t = self.source, self.target
        ratios = _ratios(s.blocks, t.blocks) if recipe.relative else None
        self.plain = _layer_scores(s, t, ratios)  # (target layers + 1, source layers + 1), the last row and column 0
        self.named = self.plain * np.where(_same_names(s, t), 1.0, OTHER_NAME)
        self.trusted = np.array(
            [[_name_alike(ours, theirs) for theirs in s.names] for ours in t.names], dtype=bool
        ).reshape(len(t.members), len(s.members))
        different = self._blocks()
        blocks = different[t.index[:, None], s.index] if different.size else np.zeros((len(t.blocks), len(s.blocks)))
        self.blocks = np.where(self._may_match(), blocks, 0.0)  # (target blocks, source blocks)
        if recipe.skip < 1:
            ours, theirs = (np.array([_SKIP[block.skip] for block in side.blocks]) for side in (t, s))
            self.blocks *= np.where(ours[:, None] * theirs == -1, recipe.skip, 1.0)
        self._match_blocks()

    def _match_blocks(self) -> None:
        self.places = np.arange(len(self.target.blocks))
        self.phase_two = ordered_scores(self.blocks[:, :, None, None], Places(self.places[:, None]))[:, :, 0, 0]
        self.total = float(self.phase_two[-1, -1])

    def back(self) -> _Alignment:
        """The alignment of the target with the source: all but the ranges of blocks is the same from there."""
        found = copy(self)
        found.source, found.target = self.target, self.source
        for name in ("plain", "named", "trusted", "blocks"):
            setattr(found, name, getattr(self, name).T)
        found._match_blocks()
        return found

    def score(self) -> float:
        """The score of the matching: where it is perfect, nothing is left over that could add to it."""
        perfect = self.total >= sum(map(len, self.target.weighted))
        return self.total if perfect else self.matching().score

    def _blocks(self) -> np.ndarray:
        """The best score of each different target block (rows) against each different source block."""
        t, s = self.target, self.source
        total = np.zeros((len(t.members), len(s.members)))
        for kind in t.families.keys() & s.families.keys() - {""}:
            rows, ours = _padded(t, kind)  # blocks, (blocks, n) numbers of layers
            columns, theirs = _padded(s, kind)
            plain = self.plain[ours[:, :, None, None], theirs]  # (T, n, S, m)
            if self.trusted[np.ix_(rows, columns)].any():
                named = self.named[ours[:, :, None, None], theirs]
                plain = np.where(self.trusted[np.ix_(rows, columns)][:, None, :, None], named, plain)
            total[np.ix_(rows, columns)] += _aligned(plain)
        return total

    def _may_match(self) -> np.ndarray:
        """Runs match runs, the first one and the last one their like, and towers of the same name."""
        t, s = self.target, self.source
        run_t, run_s = (np.array([side.kinds[i] for i in side.index], dtype=bool) for side in (t, s))
        may = run_t[:, None] == run_s
        if not (run_t.all() or run_s.all()):
            for end in (0, -1):
                if run_t[end] and run_s[end]:
                    may[end, :] &= np.arange(len(run_s)) == np.arange(len(run_s))[end]
                    may[:, end] &= np.arange(len(run_t)) == np.arange(len(run_t))[end]
        if (stages := t.stages[-1:]) and stages == s.stages[-1:] and stages[0] > 1:
            may &= np.array(t.stages)[:, None] == np.array(s.stages)
        if self.recipe.levels and (levels := _levels(t.blocks, s.blocks)):
            may &= (levels[0][:, None] == levels[1]) | (run_t[:, None] & run_s)
        known_t, known_s = (set(side.towers) - {""} for side in (t, s))
        if len(known_t & known_s) > 1:
            towers_t, towers_s = np.array(t.towers), np.array(s.towers)
            may &= (towers_t[:, None] == towers_s) | (towers_t == "")[:, None] | (towers_s == "")
        return may

    def matching(self) -> Matching:
        blocks, layers = [], []
        found: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for i, j in trace(self.phase_two, self.blocks, self.places):
            key = int(self.target.index[i]), int(self.source.index[j])
            if key not in found:
                found[key] = self._layer_pairs(*key)
            blocks.append(BlockPair(self.source.blocks[j], self.target.blocks[i]))
            ours, theirs = self.target.weighted[i], self.source.weighted[j]
            layers += [LayerPair(theirs[b], ours[a]) for a, b in found[key]]
        more = self._left_over(layers)
        if more:
            place = {layer: i for i, layer in enumerate(layer for block in self.target.weighted for layer in block)}
            layers = sorted(layers + more, key=lambda pair: place[pair.target])
        return Matching(self.total + len(more), tuple(blocks), tuple(layers))

    def _left_over(self, layers: list[LayerPair]) -> list[LayerPair]:
        """Pairs of equal layers that nothing else uses, in order: of a block in one network, and not in the other."""
        used, filled = {pair.source for pair in layers}, {pair.target for pair in layers}
        ours = [layer for block in self.target.weighted for layer in block if layer not in filled]
        theirs = [layer for block in self.source.weighted for layer in block if layer not in used] if ours else []
        if not ours or not theirs:
            return []
        gates = self.recipe.gates
        sides = [Outline([Block("", tuple(side), run=True)], gates) for side in (theirs, ours)]
        scores = _layer_scores(*sides)
        members = [sides[1].members[0], sides[0].members[0]]
        pairs = []
        for kind, places in sides[1].columns[0].items():
            others = sides[0].columns[0].get(kind, [])
            chosen = scores[np.ix_([members[0][a] for a in places], [members[1][b] for b in others])]
            pairs += [(places[a], others[b]) for a, b in _traced(np.where(chosen == 1, 1.0, 0.0)) if chosen[a, b] == 1]
        return [LayerPair(theirs[b], ours[a]) for a, b in sorted(pairs)]

    def _layer_pairs(self, i: int, j: int) -> list[tuple[int, int]]:
        """The pairs of places in the different blocks i of the target and j of the source."""
        t, s = self.target, self.source
        scores = self.named if self.trusted[i, j] else self.plain
        pairs = []
        for kind, ours in t.columns[i].items():
            theirs = s.columns[j].get(kind, [])
            if theirs:
                chosen = scores[np.ix_([t.members[i][a] for a in ours], [s.members[j][b] for b in theirs])]
                pairs += [(ours[a], theirs[b]) for a, b in _traced(chosen)]
        return sorted(pairs)


def outline_of(network: Architecture, gates: bool = BEST.gates) -> Outline:
    """The network as tables, made once."""
    kept = vars(network)  # as a cached property is kept, which architectures cannot have of what comes after them
    key = f"outline {gates}"
    if key not in kept:
        kept[key] = Outline(network.blocks, gates)
    return kept[key]


def _outline(network: Architecture, other: Architecture, gates: bool) -> Outline:
    """The network as tables. Where one of both has no blocks, runs fall apart into single layers, as in the paper."""
    if all(any(not block.run for block in each.blocks) for each in (network, other)):
        return outline_of(network, gates)
    single = [
        [block] if not block.run else [Block(each.name, (each,)) for each in block.layers] for block in network.blocks
    ]
    return Outline([block for blocks in single for block in blocks], gates)


def _layer_scores(source: Outline, target: Outline, wider: np.ndarray | None = None) -> np.ndarray:
    """Eq. 1 for all pairs of different layers of one family that may match; a row and a column of 0 at the end.

    `wider` is how much wider the target is, by what a width is to its block: its widths are divided by that.
    """
    scores = np.zeros((len(target.layers) + 1, len(source.layers) + 1))
    for kind in target.families.keys() & source.families.keys() - {""}:
        i, j = target.families[kind], source.families[kind]
        t, s = target.sizes[i][:, None], source.sizes[j][None]
        if wider is not None:
            t = t.copy()
            t[:, 0, :2] /= wider[target.widths[i]]
        ratios = (np.minimum(t, s)[..., :SIZES] / np.maximum(t, s)[..., :SIZES]).prod(axis=2)
        if kind in ("dense", "depthwise", f"{roles.SHORTCUT} dense", *GATES):
            n_t, n_s = t[..., SIZES], s[..., SIZES]
            points = (t[..., 2:SIZES].prod(axis=2) == 1) & (s[..., 2:SIZES].prod(axis=2) == 1)
            inflated = (np.minimum(n_t, n_s) == 2) & (np.maximum(n_t, n_s) == 3)
            ratios = np.where((n_t == n_s) | points | inflated, ratios, 0.0)
        number = {"": 0}
        r_t, r_s = (
            np.array([number.setdefault(each.layers[n].role, len(number)) for n in numbers])
            for each, numbers in ((target, i), (source, j))
        )
        may = (r_t[:, None] == r_s) | (r_t == 0)[:, None] | (r_s == 0)
        scores[np.ix_(i, j)] = np.where(may, ratios, 0.0)
    return scores


def _same_names(source: Outline, target: Outline) -> np.ndarray:
    """Do two layers have one name in their blocks, or one known role? As the scores, with a row and column more."""
    same = np.zeros((len(target.layers) + 1, len(source.layers) + 1), dtype=bool)
    number: dict[str, int] = {}
    a, b = (
        np.array([number.setdefault(name, len(number)) for name in each.own_names], dtype=int)
        for each in (target, source)
    )
    number = {"": -1}
    r, q = (
        np.array([number.setdefault(layer.role, len(number)) for layer in each.layers], dtype=int)
        for each in (target, source)
    )
    same[:-1, :-1] = (a[:, None] == b) | ((r[:, None] == q) & (r >= 0)[:, None])
    return same


def _name_alike(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """Do two blocks share most of their names, in the same order?"""
    if a == b:
        return True
    shared = set(a) & set(b)
    if len(shared) < TRUSTED * min(len(a), len(b)):
        return False
    return [name for name in a if name in shared] == [name for name in b if name in shared]


def _padded(side: Outline, kind: str) -> tuple[list[int], np.ndarray]:
    """The different blocks that have layers of a family, and the numbers of these, (blocks, n), with fillers."""
    rows = [i for i, columns in enumerate(side.columns) if kind in columns]
    width = max(len(side.columns[i][kind]) for i in rows)
    numbers = np.full((len(rows), width), len(side.layers))
    for row, i in enumerate(rows):
        places = side.columns[i][kind]
        numbers[row, : len(places)] = [side.members[i][place] for place in places]
    return rows, numbers


def _aligned(scores: np.ndarray) -> np.ndarray:
    """The best sum of pairs in order, each element in one at most: (T, n, S, m) -> (T, S)."""
    n, m = scores.shape[1], scores.shape[3]
    best = np.zeros((scores.shape[0], scores.shape[2], m + 1))
    for i in range(n):
        taken = best[..., :-1] + scores[:, i]
        np.maximum(best[..., 1:], taken, out=best[..., 1:])
        np.maximum.accumulate(best, axis=2, out=best)
    return best[..., -1]


def _traced(scores: np.ndarray) -> list[tuple[int, int]]:
    """The pairs (target, source) behind the best sum of one pair of blocks: (n, m)."""
    n, m = scores.shape
    if n == m and (scores.diagonal() == 1).all():
        return [(i, i) for i in range(n)]
    best = np.zeros((n + 1, m + 1))
    for i in range(n):
        best[i + 1, 1:] = np.maximum(best[i, 1:], best[i, :-1] + scores[i])
        np.maximum.accumulate(best[i + 1], out=best[i + 1])
    i, j, pairs = n, m, []
    while i and j:
        if best[i, j] == best[i, j - 1]:
            j -= 1
        elif best[i, j] == best[i - 1, j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            if scores[i, j] > 0:
                pairs.append((i, j))
    return pairs[::-1]
