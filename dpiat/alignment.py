"""Which source layer goes to which target layer in default mode: whole blocks from whole blocks, role by role.

Blocks are matched by the recurrence of the paper (Eq. 3), runs of single layers with runs, tower by tower where one of
the networks has several. Inside of two blocks, the layers of each family (dense, depthwise, norms, ...) are matched in
their order, each at most once: families are registered in another order from library to library, and layers of one
family rarely. Layers of different known roles never match. Where two blocks name their layers alike, names count as
well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import groupby, pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np

from dpiat import roles
from dpiat.architecture import Architecture, Block, Layer, Positions
from dpiat.levels import widths
from dpiat.matching import BlockPair, LayerPair, Matching, ordered_scores, trace
from dpiat.recipe import BEST, Recipe
from dpiat.standardization import DEPTHWISE, GROUPED, MATRICES, NORMS, is_matrix

# Where two blocks name their layers alike, a pair of different names is worth a part of its score. Two blocks do so if
# they share most of the smaller block's names, in one order: a "conv1" and a "norm" stand in blocks of any kind.
OTHER_NAME = 0.25
TRUSTED = 0.75
NEARLY = 1 - 2**-20  # decides between equals: a layer of the same role, or name, and one whose name tells nothing
TOWERS = ("encoder", "decoder", "text", "language", "vision", "visual", "image", "audio", "generator", "discriminator")
DENSE = ("Linear", "Conv")
GATES = (roles.REDUCE, roles.EXPAND)
RANK = {role: rank for rank, role in enumerate(roles.ORDER)}
Matched = tuple[int, int, list[tuple[int, int]]]  # blocks of target and source, and the places of their pairs of layers
LARGE = 2**20  # scores of layers that are traced at once: more would not stay in the cache
Place = tuple[int, int]  # the number of a block, and of a layer in it
SIZES = 5  # of a layer: outputs, inputs, and up to three of a kernel
INTO, INSIDE, OUT, NO_WIDTH = range(4)  # what a width of a layer is to its block
NO_WIDTHS = 0, 0, 0
WITH_WIDTHS = (*MATRICES, *NORMS, "BatchNorm")  # beginnings of the kinds of layers that have widths
SKIP = {None: 0, False: -1, True: 1}  # does a block add its input? The product of two is -1 if one alone does
# Similarity compares widths as Eq. 1 does: a source of the target's own widths has more to give than one of half of it.
PLAIN = replace(BEST, relative=False)


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


def family(layer: Layer, gates: bool = BEST.gates, grouped: str = "dense") -> str:
    """Layers of different families never match; with `gates`, a squeeze and excitation has two of its own.

    `grouped` is the family of convolutions with groups.
    """
    found = _family(layer.kind, layer.shape, layer.role, gates)
    return grouped if found == "grouped" else found


@lru_cache(maxsize=2**14)
def _family(kind: str, shape: tuple[int, ...], role: str, gates: bool) -> str:
    if not shape:
        return ""
    if gates and role in GATES:
        return role
    if role == roles.SHORTCUT:
        return f"{role} {'norm' if len(shape) == 1 else 'dense'}"
    if role == roles.POSITION or role == roles.OFFSET or (role.endswith("token") and kind == "Parameter"):
        return role
    if kind.startswith(DEPTHWISE):
        return "depthwise"
    if kind.startswith(GROUPED):
        return "transposed" if "Transpose" in kind else "grouped"
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
    sizes = [size for size in shape if size > 1]
    return f"{kind} {len(sizes)}" if kind != "Parameter" or len(sizes) > 1 else "vector"


@lru_cache(maxsize=2**14)
def sizes_of(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes that Eq. 1 compares, and the number of dimensions of the kernel.

    A linear layer and a 1 × 1 convolution have the same sizes.
    """
    if len(shape) < 2 or not kind.startswith(MATRICES):  # some keep a matrix as a vector
        sizes = [size for size in shape if size > 1] or [1]
        if len(sizes) > SIZES:
            sizes = [*sizes[: SIZES - 1], prod(sizes[SIZES - 1 :])]
        return (*sizes, *[1] * (SIZES - len(sizes)), 0)
    out, into, *kernel = shape
    kernel = kernel[: SIZES - 2]
    return (out, into, *[1] * (SIZES - 2 - len(kernel)), *kernel, len(kernel))


class Padded(NamedTuple):
    """The layers of one family in all different blocks that have such layers, as rectangular tables.

    `blocks` (blocks,) are the numbers of the blocks; `layers` and `names` (blocks, n) the numbers of their layers and
    of the names of these. Fillers, which score 0, follow the last layer of a block.
    """

    blocks: np.ndarray
    layers: np.ndarray
    names: np.ndarray

    def as_rows(self) -> Padded:
        """The same with two more axes, so that each block can be compared with each other one."""
        return Padded(self.blocks, self.layers[:, :, None, None], self.names[:, :, None, None])


class Tables:
    """An architecture as tables for the alignment: different layers and different blocks once.

    A block is told from others by the names, kinds, shapes and roles of its layers, and by being a run. Two layers that
    are equal alone are different here if their widths mean something else: 64 outputs may be the width of one block
    and the inside of another.

    Attributes:
        grouped: The family of convolutions with groups.
        blocks: The blocks that have weights.
        weighted: The layers with weights of each block.
        block_numbers: Which of the different blocks each block is, (blocks,).
        keys: What tells each different block from others.
        members: The numbers of the layers of each different block.
        names: The names of these layers in their block; `name_numbers` are their numbers among `different_names`.
        is_run: Whether each different block is a run of single layers.
        block_widths: The widths of each different block (`levels.widths`); 0 of a run.
        layers: The different layers.
        widths: What the outputs and the inputs of each different layer are to its block, (layers, 2).
        families: The numbers of the different layers of each family.
        roles: The role of each different layer.
        projections: The roles among them that layers of an attention have.
        columns: For each different block, the places of the layers of each family, in the order of their roles.
        matrices: The families of matrices and convolutions; `has_matrix` tells which different blocks have such layers.
        in_all: The names that are in every block.
        count: The number of layers with weights.
        towers: The tower that each block is in ("encoder"), or "".
        stacks: How many towers have blocks of attention.
        stages: The number of the stage that each block is in.
        goes_up: Whether the resolution rises again, as in a decoder.
    """

    def __init__(self, blocks: Sequence[Block], gates: bool = BEST.gates, grouped: str = "dense"):
        self.grouped = grouped
        self.stacks = len({_tower(block.name) for block in blocks if _attends(block)})
        if self.stacks > 1:  # what stands between two towers belongs to one or the other
            blocks = [part for block in blocks for part in (_by_tower(block) if block.run else [block])]
        self.blocks: list[Block] = []
        layers: dict[tuple, int] = {}
        known: dict[tuple, int] = {}
        self.weighted: list[list[Layer]] = []
        self.members: list[tuple[int, ...]] = []
        self.names: list[tuple[str, ...]] = []
        self.is_run: list[bool] = []
        self.block_widths: list[tuple[int, int, int]] = []
        index = []
        for block in blocks:
            weighted, prefix = [layer for layer in block.layers if layer.shape], f"{block.name}."
            if not weighted:
                continue
            self.blocks.append(block)
            self.weighted.append(weighted)
            names = tuple([layer.name.removeprefix(prefix) for layer in weighted])
            key = block.run, names, tuple([layer[1:] for layer in weighted])
            if key not in known:
                known[key] = len(known)
                self.block_widths.append(NO_WIDTHS if block.run else widths(block))
                told = zip(weighted, _widths_of(weighted, self.block_widths[-1], block.run), strict=True)
                members = [layers.setdefault((layer[1:], of_layer), len(layers)) for layer, of_layer in told]
                self.members.append(tuple(members))
                self.names.append(names)
                self.is_run.append(block.run)
            index.append(known[key])
        self.keys = list(known)
        self.block_numbers = np.array(index, dtype=int)
        self.layers = [Layer("", *key) for key, _ in layers]
        self.widths = np.array([of_layer for _, of_layer in layers], dtype=int).reshape(-1, 2)
        of = [family(layer, gates, grouped) for layer in self.layers]
        families: dict[str, list[int]] = {}
        for number, kind in enumerate(of):
            families.setdefault(kind, []).append(number)
        self.families = {kind: np.array(numbers) for kind, numbers in families.items()}
        self.roles = [*(layer.role for layer in self.layers), ""]  # and that of a filler
        self.projections = {role for role in self.roles if role.endswith(roles.PROJECTIONS)}
        number = {name: i for i, name in enumerate(dict.fromkeys(name for names in self.names for name in names))}
        self.different_names = [*number, ""]  # of layers in their blocks, and of a filler
        self.name_numbers = [[number[name] for name in names] for names in self.names]
        self.columns: list[dict[str, list[int]]] = []
        for members in self.members:
            columns: dict[str, list[int]] = {}
            for place, number in enumerate(members):
                columns.setdefault(of[number], []).append(place)
            for kind, places in columns.items():
                if len(places) > 1:
                    ordered = _in_order([(place, self.layers[members[place]]) for place in places])
                    columns[kind] = [place for place, _ in ordered]
            self.columns.append(columns)
        self.matrices = {kind for kind, numbers in families.items() if is_matrix(self.layers[numbers[0]])}
        self.has_matrix = np.array([not self.matrices.isdisjoint(columns) for columns in self.columns], dtype=bool)
        in_blocks = [frozenset(names) for names, run in zip(self.names, self.is_run, strict=True) if not run]
        self.in_all = frozenset.intersection(*in_blocks) if in_blocks else frozenset()
        self.count = sum(map(len, self.weighted))
        self.towers = [_tower(block.name) for block in self.blocks]
        self.stages = _stages(self.blocks)
        levels = [block.level for block in self.blocks if block.level is not None]
        self.goes_up = any(after > before for before, after in pairwise(levels))

    @cached_property
    def padded(self) -> dict[str, Padded]:
        """The layers of each family, block by block."""
        found = {}
        for kind in self.families:
            blocks = [i for i, columns in enumerate(self.columns) if kind in columns]
            width = max([len(self.columns[i][kind]) for i in blocks])
            layers, names = [], []
            for i in blocks:
                places, of_layers, of_names = self.columns[i][kind], self.members[i], self.name_numbers[i]
                more = width - len(places)
                layers.append([of_layers[place] for place in places] + [len(self.layers)] * more)
                names.append([of_names[place] for place in places] + [len(self.different_names) - 1] * more)
            found[kind] = Padded(*map(np.array, (blocks, layers, names)))
        return found

    @cached_property
    def sizes(self) -> dict[str, np.ndarray]:
        """Of each family, (SIZES + 1, layers)."""
        sizes = np.array([sizes_of(layer.kind, layer.shape) for layer in self.layers], dtype=float)
        return {kind: sizes[numbers].T.copy() for kind, numbers in self.families.items()}


def _widths_of(layers: Sequence[Layer], of_block: tuple[int, int, int], run: bool) -> list[tuple[int, int]]:
    """Tell for the outputs and the inputs of each layer which width of the block they have: into, out, or inside."""
    # A target that is twice as wide as the source need not be so inside of its blocks: the expansion of an inverted
    # residual and the hidden units of a transformer have ratios of their own. So each of the three widths is compared
    # relative to its own ratio (`_ratios`).
    if run:
        return [(NO_WIDTH, NO_WIDTH)] * len(layers)
    into, _, out = of_block
    known = {out: OUT, into: INTO, 1: NO_WIDTH}

    def told(layer: Layer) -> tuple[int, int]:
        if not layer.kind.startswith(WITH_WIDTHS):
            return NO_WIDTH, NO_WIDTH
        first, second = (*layer.shape, 1)[:2]
        return known.get(first, INSIDE), known.get(second, INSIDE)

    return list(map(told, layers))


def _widest(side: Tables, by_level: bool) -> dict[int | None, tuple[int, ...]]:
    """The most channels that a block takes, has inside and gives, by level or in all blocks; 0 where no block tells.

    The widest block counts, and not the mean, so that a deeper network is not taken for a wider one. A single layer in
    the place of a block counts for nothing: VGG's first linear layer takes a whole picture.
    """
    found: dict[int | None, tuple[int, ...]] = {}
    for block, number in zip(side.blocks, side.block_numbers.tolist(), strict=True):
        sizes = side.block_widths[number]
        if sizes[1]:  # something lies inside, between the first and the last matrix
            level = block.level if by_level else None
            found[level] = tuple(map(max, found.get(level, sizes), sizes))
    return found


def _ratios(source: Tables, target: Tables, by_level: bool) -> np.ndarray:
    """How much wider the target is than the source: in what blocks take, have inside and give; 1 for all else."""
    # The geometric mean over the levels that both networks have. Networks widen from level to level at different rates.
    # With a ratio for each level, the widest blocks of any two networks would be equal, whatever their rates.
    theirs, ours = _widest(source, by_level), _widest(target, by_level)
    both = [(ours[level], theirs[level]) for level in ours.keys() & theirs.keys()]
    sizes = np.array(both, dtype=float).reshape(-1, 2, 3)
    known = sizes.all(axis=1, keepdims=True)
    logs = np.log(np.where(known, sizes, 1.0))
    means = (logs[:, 0] - logs[:, 1]).sum(0) / np.maximum(known.sum(0), 1)[0]
    return np.exp([*means, 0.0])


def _stages(blocks: Sequence[Block]) -> list[int]:
    """The number of each block's stage: the list that the block is in, and there the blocks of one width.

    A run belongs to the stage before it.
    """
    found, number, before = [], 0, None
    found_in: dict[str, set[int]] = {}
    for block in blocks:
        if not block.run:
            found_in.setdefault(block.stage, set()).add(_width(block))
    for block in blocks:
        if not block.run:
            path = block.stage
            stage = path, _width(block) if len(found_in[path]) > 1 else 0
            number += stage != before
            before = stage
        found.append(number)
    return found


def _levels(target: Sequence[Block], source: Sequence[Block]) -> tuple[np.ndarray, np.ndarray] | None:
    """The levels of the blocks of both networks; None where one of them has only one level, or no block.

    Blocks at a higher resolution than any block of the other network count to the highest level that both have.
    """
    sides = [[block.level for block in side if not block.run] for side in (target, source)]
    most = min(max(side, default=0) for side in sides)
    if most == 0:
        return None
    ours, theirs = (np.array([min(block.level or 0, most) for block in side]) for side in (target, source))
    return ours, theirs


def _width(block: Block) -> int:
    """The outputs of a block's last matrix or convolution."""
    wide = [layer.shape[0] for layer in block.layers if len(layer.shape) > 1 and layer.role != roles.SHORTCUT]
    return wide[-1] if wide else 0


def _by_tower(run: Block) -> list[Block]:
    """The layers of a run that are in one tower each, as runs of their own."""
    layers = [tuple(group) for _, group in groupby(run.layers, key=lambda layer: _tower(layer.name))]
    return [Block(_tower(group[0].name), group, run=True) for group in layers] if len(layers) > 1 else [run]


def _attends(block: Block) -> bool:
    return not block.run and any(layer.role == roles.VALUE for layer in block.layers)


def _tower(name: str) -> str:
    words = name.lower().replace("_", ".").split(".")
    return next((word for word in words if word in TOWERS), "")


class _Alignment:
    """The scores of all different layers, of all different blocks, and of the whole."""

    def __init__(self, source: Architecture, target: Architecture, recipe: Recipe = BEST):
        self.recipe = recipe
        self.source, self.target = (
            _tables(network, other, recipe.gates) for network, other in ((source, target), (target, source))
        )
        s, t = self.source, self.target
        told = recipe.levels and all(b.level is not None for side in (t, s) for b in side.blocks if not b.run)
        self.levels = _levels(t.blocks, s.blocks) if told else None
        ratios = _ratios(s, t, told) if recipe.relative else None
        alike = _of_names(_name_alike, t.names, s.names)  # (different blocks of the target, of the source)
        # Of each family, the scores of the layers of different blocks: (target blocks, n, source blocks, m).
        self.scores = _scores_in_blocks(s, t, ratios, alike)
        self.strange = _of_another_kind(s, t, alike)
        different = self._blocks()
        blocks = (
            different[t.block_numbers[:, None], s.block_numbers]
            if different.size
            else np.zeros((len(t.blocks), len(s.blocks)))
        )
        self.blocks = np.where(self._may_match(), blocks, 0.0)  # (target blocks, source blocks)
        if recipe.skip < 1:
            ours, theirs = (np.array([SKIP[block.skip] for block in side.blocks]) for side in (t, s))
            self.blocks *= np.where(ours[:, None] * theirs == -1, recipe.skip, 1.0)
        self._match_blocks()

    def _match_blocks(self) -> None:
        ways = (
            [_Part(rows, columns, self.blocks[rows[:, None], columns]) for rows, columns in parts]
            for parts in _parts(self.source, self.target)
        )
        self.parts = max(ways, key=lambda parts: sum(part.total for part in parts))
        self.total = sum(part.total for part in self.parts)

    def back(self) -> _Alignment:
        """The alignment of the target with the source: only the matching of blocks differs from this alignment."""
        found = copy(self)
        found.source, found.target, found.blocks = self.target, self.source, self.blocks.T
        found.scores = {kind: scores.transpose(2, 3, 0, 1) for kind, scores in self.scores.items()}
        found.strange = self.strange.T
        found._match_blocks()
        return found

    def score(self) -> float:
        """The score of the matching: where it is perfect, nothing is left over that could add to it."""
        perfect = self.total >= self.target.count
        return self.total if perfect else self.total + len(self._left_over(self._matched()))

    def _blocks(self) -> np.ndarray:
        """The best score of each different target block (rows) against each different source block."""
        t, s = self.target, self.source
        total = np.zeros((len(t.members), len(s.members)))
        of_matrices = np.zeros_like(total)
        for kind, scores in self.scores.items():
            places, found = (t.padded[kind].blocks[:, None], s.padded[kind].blocks), _aligned(scores)
            total[places] += found
            if kind in t.matrices:
                of_matrices[places] += found
        # An attention and a feed-forward network that are blocks of their own share a norm, and have nothing to give.
        nothing = (of_matrices == 0) & t.has_matrix[:, None] & s.has_matrix
        return np.where(nothing | self.strange, 0.0, total)

    def _may_match(self) -> np.ndarray:
        """Which blocks may match: (target blocks, source blocks)."""
        # Runs match runs and blocks match blocks. Stems match stems and heads match heads: the run at either end takes
        # no other. Where both networks have as many stages, stage i matches stage i; where strides tell resolutions,
        # blocks match within one. Encoders match encoders and decoders decoders, if both networks have both.
        t, s = self.target, self.source
        run_t, run_s = (np.array([side.is_run[i] for i in side.block_numbers], dtype=bool) for side in (t, s))
        may = run_t[:, None] == run_s
        # Where one network has several stacks, each has a stem and a head of its own.
        if not (run_t.all() or run_s.all() or _differ_in_stacks(s, t)):
            for end in (0, -1):
                if run_t[end] and run_s[end]:
                    may[end, :] &= np.arange(len(run_s)) == np.arange(len(run_s))[end]
                    may[:, end] &= np.arange(len(run_t)) == np.arange(len(run_t))[end]
        if (stages := t.stages[-1:]) and stages == s.stages[-1:] and stages[0] > 1:
            may &= np.array(t.stages)[:, None] == np.array(s.stages)
        if self.levels is not None:
            may &= (self.levels[0][:, None] == self.levels[1]) | (run_t[:, None] & run_s)
        known_t, known_s = (set(side.towers) - {""} for side in (t, s))
        if len(known_t & known_s) > 1:
            towers_t, towers_s = np.array(t.towers), np.array(s.towers)
            may &= (towers_t[:, None] == towers_s) | (towers_t == "")[:, None] | (towers_s == "")
        return may

    def matching(self) -> Matching:
        """The matching, with its score."""
        ours, theirs = self.target, self.source
        matched = self._matched()
        blocks = [BlockPair(theirs.blocks[j], ours.blocks[i]) for i, j, _ in matched]
        layers = [LayerPair(theirs.weighted[j][b], ours.weighted[i][a]) for i, j, pairs in matched for a, b in pairs]
        more = self._left_over(matched)
        if more:
            place = {id(layer): i for i, layer in enumerate(layer for block in ours.weighted for layer in block)}
            layers = sorted(layers + more, key=lambda pair: place[id(pair.target)])
        return Matching(self.total + len(more), tuple(blocks), tuple(layers))

    def _matched(self) -> list[Matched]:
        ours, theirs = self.target.block_numbers.tolist(), self.source.block_numbers.tolist()
        blocks = sorted(pair for part in self.parts for pair in part.pairs())
        pairs = self._layer_pairs(list(dict.fromkeys((ours[i], theirs[j]) for i, j in blocks)))
        return [(i, j, pairs[ours[i], theirs[j]]) for i, j in blocks]

    def _left_over(self, matched: list[Matched]) -> list[LayerPair]:
        """Pairs of equal layers that the matched blocks do not use, in order."""
        # One network may have in a block what the other has between blocks, such as a norm or a downsampling: no two
        # matched blocks hold both. Only equal layers are paired, as nothing but their shape speaks for such a pair.
        filled = {(i, a) for i, _, pairs in matched for a, _ in pairs}
        used = {(j, b) for _, j, pairs in matched for _, b in pairs}
        ours = self._others(self.target, filled)
        theirs = self._others(self.source, used) if ours else {}
        pairs = []
        for kind in ours.keys() & theirs.keys():
            both = set.intersection(
                *({_compared(each.kind, each.shape) for _, each in side[kind]} for side in (ours, theirs))
            )
            if both:
                rows, columns = (
                    _in_order([(place, each) for place, each in side[kind] if _compared(each.kind, each.shape) in both])
                    for side in (ours, theirs)
                )
                equal = np.array([[_equal(a, b) for _, b in columns] for _, a in rows], dtype=float)
                pairs += [(*rows[i], columns[j][1]) for i, j in next(_traced(equal[None]))]
        return [LayerPair(source, target) for _, target, source in sorted(pairs, key=lambda pair: pair[0])]

    def _others(self, side: Tables, places: set[Place]) -> dict[str, list[tuple[Place, Layer]]]:
        """The layers of each family that do not stand in these places."""
        found: dict[str, list[tuple[Place, Layer]]] = {}
        if len(places) < side.count:
            for i, block in enumerate(side.weighted):
                for a, layer in enumerate(block):
                    if (i, a) not in places:
                        found.setdefault(family(layer, self.recipe.gates, side.grouped), []).append(((i, a), layer))
        return found

    def _layer_pairs(self, blocks: list[tuple[int, int]]) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """The pairs of places of layers in pairs of different blocks of the target and the source."""
        t, s = self.target, self.source
        found: dict[tuple[int, int], list[tuple[int, int]]] = {pair: [] for pair in blocks}
        for kind, scores in self.scores.items():
            rows, columns = ({i: row for row, i in enumerate(side.padded[kind].blocks.tolist())} for side in (t, s))
            both = [(i, j) for i, j in blocks if i in rows and j in columns]
            step = max(1, LARGE // (scores.shape[1] * scores.shape[3]))
            for some in (both[start : start + step] for start in range(0, len(both), step)):
                of_pairs = scores[[rows[i] for i, _ in some], :, [columns[j] for _, j in some]]  # (pairs, n, m)
                for pair, places in zip(some, _traced(of_pairs), strict=True):
                    of_target, of_source = t.columns[pair[0]][kind], s.columns[pair[1]][kind]
                    found[pair] += [(of_target[a], of_source[b]) for a, b in places]
        return {pair: sorted(places) for pair, places in found.items()}


class _Part:
    """The matching of some blocks of the target (`rows`) with some blocks of the source (`columns`)."""

    def __init__(self, rows: np.ndarray, columns: np.ndarray, scores: np.ndarray):
        self.rows, self.columns, self.scores = rows, columns, scores
        self.positions = np.arange(len(rows))
        self.phase_two = ordered_scores(scores[:, :, None, None], Positions(self.positions[:, None]))[:, :, 0, 0]
        self.total = float(self.phase_two[-1, -1])

    def pairs(self) -> Iterator[tuple[int, int]]:
        for i, j in trace(self.phase_two, self.scores, self.positions):
            yield int(self.rows[i]), int(self.columns[j])


def _differ_in_stacks(source: Tables, target: Tables) -> bool:
    """Has one network several stacks of attention, and the other one or none?"""
    return (source.stacks > 1) != (target.stacks > 1)


def _parts(source: Tables, target: Tables) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """The blocks of target and source that are matched with each other; several ways where the best is to be taken."""
    # Mostly all with all. But where the target has several stacks of attention and the source one, as a decoder beside
    # an encoder or a vision tower beside a language model, one order for all would share the source out among them:
    # each is matched with the whole source. Where the source has several, the target is matched with the best one.
    rows, columns = np.arange(len(target.blocks)), np.arange(len(source.blocks))
    if k := _in_common(source, target):
        return [[(rows[:k], columns[:k]), (rows[k:], columns[k:])]]
    if _differ_in_stacks(source, target):
        towers = np.array(source.towers if source.stacks > 1 else target.towers)
        different = list(dict.fromkeys(towers.tolist()))
        if source.stacks > 1:
            return [[(rows, columns[(towers == tower) | (towers == "")])] for tower in different if tower]
        return [[(rows[towers == tower], columns) for tower in different]]
    return [[(rows, columns)]]


def _in_common(source: Tables, target: Tables) -> int:
    """How many blocks a network with a decoder begins with that are all of the other network, but for its head; or 0.

    A decoder has blocks like those of the encoder, and more of them: a detector's neck would take what is its backbone.
    """
    if source.goes_up == target.goes_up:
        return 0
    ours, theirs = ([side.keys[number] for number in side.block_numbers.tolist()] for side in (target, source))
    fewer = min(len(ours), len(theirs))
    k = next((k for k in range(fewer) if ours[k] != theirs[k]), fewer)
    return k if k >= fewer - 1 else 0


def tables_of(network: Architecture, gates: bool = BEST.gates, grouped: str = "dense") -> Tables:
    """The network as tables, made once for each architecture."""
    kept = vars(network)  # where a cached property would be, but architecture.py does not know this file
    key = f"tables {gates} {grouped}"
    if key not in kept:
        kept[key] = Tables(network.blocks, gates, grouped)
    return kept[key]


def _grouped(network: Architecture, other: Architecture) -> str:
    """The family of convolutions with groups: that of the convolutions that the other network has in their place.

    A depthwise convolution is one with groups whose filters are zero but for the input of their own channel.
    """
    ours, theirs = _spatial(network), _spatial(other)
    of_groups = ours["grouped"] > ours["dense"] and not theirs["grouped"]
    return "depthwise" if of_groups and theirs["depthwise"] > theirs["dense"] else "dense"


def _spatial(network: Architecture) -> Counter[str]:
    """How many convolutions of each family see more than one place, in the blocks of a network."""
    kept = vars(network)
    if "spatial" not in kept:
        layers = (layer for block in network.blocks if not block.run for layer in block.layers)
        kept["spatial"] = Counter(family(layer, grouped="grouped") for layer in layers if prod(layer.shape[2:]) > 1)
    return kept["spatial"]


def _tables(network: Architecture, other: Architecture, gates: bool) -> Tables:
    """The network as tables. Where one of the two has no blocks, each single layer is a block, as in the paper."""
    grouped = _grouped(network, other)
    if all(any(not block.run for block in each.blocks) for each in (network, other)):
        return tables_of(network, gates, grouped)
    single = [
        [block] if not block.run else [Block(each.name, (each,)) for each in block.layers] for block in network.blocks
    ]
    return Tables([block for blocks in single for block in blocks], gates, grouped)


def _common(source: Tables, target: Tables) -> list[str]:
    """The families that both have, in one order: another order would round sums otherwise, and break ties otherwise."""
    return sorted(target.families.keys() & source.families.keys() - {""})


def _scores_in_blocks(
    source: Tables, target: Tables, wider: np.ndarray | None, trusted: np.ndarray
) -> dict[str, np.ndarray]:
    """The scores of layers in their blocks, by family: in `trusted` pairs of blocks, other names are worth less."""
    r_t, r_s = _numbered(target.roles, source.roles)
    n_t, n_s = _numbered(target.different_names, source.different_names)
    # Any role may be that of a layer whose name tells none. But a network that names its queries has no nameless ones.
    told_t = np.array([role in source.projections for role in target.roles])
    told_s = np.array([role in target.projections for role in source.roles])
    nameless = ((r_t == 0)[:, None] & ~told_s) | ((r_s == 0) & ~told_t[:, None])
    equal = r_t[:, None] == r_s
    layers = _layer_scores(source, target, equal | nameless, wider)
    layers *= np.where(equal, 1.0, NEARLY)
    r_t = np.where(r_t == 0, -1, r_t)  # as from here on, no role is another role than none
    found = {}
    for kind in _common(source, target):
        ours, theirs = target.padded[kind].as_rows(), source.padded[kind]
        scores = found[kind] = layers.take(ours.layers * layers.shape[1] + theirs.layers)
        told = trusted[ours.blocks[:, None], theirs.blocks][:, None, :, None]
        if told.any():
            same = (n_t[ours.names] == n_s[theirs.names]) | (r_t[ours.layers] == r_s[theirs.layers])
            np.multiply(scores, OTHER_NAME, out=scores, where=told & ~same)
    return found


def _layer_scores(source: Tables, target: Tables, may: np.ndarray, wider: np.ndarray | None) -> np.ndarray:
    """Eq. 1 for all pairs of different layers of one family that `may` match; a row and a column of 0 at the end.

    `wider` is how much wider the target is, by what a width is to its block. The target's widths are divided by these
    ratios, so that a layer as wide for its network as the other for its own scores 1.
    """
    scores = np.zeros((len(target.layers) + 1, len(source.layers) + 1))
    for kind in _common(source, target):
        index = target.families[kind][:, None], source.families[kind]
        t, s = target.sizes[kind][:, :, None], source.sizes[kind][:, None]  # (SIZES + 1, T, 1), (SIZES + 1, 1, S)
        if wider is not None:
            t = t.copy()
            t[:2, :, 0] /= wider[target.widths[target.families[kind]]].T
        n_t, n_s, t, s = t[SIZES], s[SIZES], t[:SIZES], s[:SIZES]
        ratios = np.multiply.reduce(np.minimum(t, s) / np.maximum(t, s), axis=0)
        # A convolution over pictures has nothing to give to one over sequences. But kernels of one place have, whatever
        # their dimensions, and so has a convolution over pictures to one over videos (the rule "time" of `filling`).
        if kind in ("dense", "depthwise", f"{roles.SHORTCUT} dense", *GATES) and (n_t != n_s).any():
            points = (t[2:].prod(axis=0) == 1) & (s[2:].prod(axis=0) == 1)
            inflated = (np.minimum(n_t, n_s) == 2) & (np.maximum(n_t, n_s) == 3)
            ratios = np.where((n_t == n_s) | points | inflated, ratios, 0.0)
        scores[index] = np.where(may[index], ratios, 0.0)
    return scores


def _numbered(ours: list[str], theirs: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The words of both sides as numbers: equal numbers for equal words, 0 for ""."""
    number = {"": 0}
    return tuple(np.array([number.setdefault(word, len(number)) for word in words]) for words in (ours, theirs))


def _of_names(
    test: Callable[[tuple[str, ...], tuple[str, ...]], bool], ours: list[tuple[str, ...]], theirs: list[tuple[str, ...]]
) -> np.ndarray:
    """What a test says of the names in two blocks: (ours, theirs)."""
    rows, columns = ({names: i for i, names in enumerate(dict.fromkeys(side))} for side in (ours, theirs))
    different = np.array([[test(a, b) for b in columns] for a in rows], dtype=bool)
    different = different.reshape(len(rows), len(columns))
    index = np.ix_([rows[names] for names in ours], [columns[names] for names in theirs])
    return different[index] if different.size else np.zeros((len(ours), len(theirs)), dtype=bool)


def _of_another_kind(source: Tables, target: Tables, alike: np.ndarray) -> np.ndarray:
    """Which blocks are of two kinds, where both networks have both: (different blocks of the target, of the source).

    Such as an attention and a feed-forward network in turn. Two blocks of two kinds share no name.
    """
    if target.in_all & source.in_all:
        return np.zeros_like(alike)
    run_t, run_s = (np.array(side.is_run, dtype=bool) for side in (target, source))
    alike = alike & ~run_t[:, None] & ~run_s
    both = alike.any(axis=1)[:, None] & alike.any(axis=0) & ~alike
    return both & _of_names(_share_no_name, target.names, source.names) if both.any() else both


def _share_no_name(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    return set(a).isdisjoint(b)


def _name_alike(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """Do two blocks share most of their names, in the same order?"""
    if a == b:
        return True
    shared = set(a) & set(b)
    if len(shared) < TRUSTED * min(len(a), len(b)):
        return False
    return [name for name in a if name in shared] == [name for name in b if name in shared]


def _aligned(scores: np.ndarray) -> np.ndarray:
    """The best sum of pairs in order, each element in one pair at most: (T, n, S, m) -> (T, S)."""
    n, m = scores.shape[1], scores.shape[3]
    if n == m == 1:  # as of most families
        return scores[:, 0, :, 0]
    best = np.zeros((scores.shape[0], scores.shape[2], m + 1))
    for i in range(n):
        taken = best[..., :-1] + scores[:, i]
        np.maximum(best[..., 1:], taken, out=best[..., 1:])
        np.maximum.accumulate(best, axis=2, out=best)
    return best[..., -1]


def _in_order(layers: list[tuple[Any, Layer]]) -> list[tuple[Any, Layer]]:
    """Layers with their places, where layers of known roles change places to stand in the order of their roles."""
    ranked = [pair for pair in layers if pair[1].role in RANK]
    if len(ranked) < 2:
        return layers
    ordered = iter(sorted(ranked, key=lambda pair: RANK[pair[1].role]))
    return [next(ordered) if pair[1].role in RANK else pair for pair in layers]


@lru_cache(maxsize=2**14)
def _compared(kind: str, shape: tuple[int, ...]) -> tuple:
    """What two layers have in common that score 1, apart from their roles."""
    *sizes, dimensions = sizes_of(kind, shape)
    return (*sizes, dimensions == 1 and sizes[-1] > 1)


def _equal(a: Layer, b: Layer) -> float:
    """Are two layers equal? Where several are, the same last word of a name is worth a little more."""
    if a.role != b.role or _compared(a.kind, a.shape) != _compared(b.kind, b.shape):
        return 0.0
    return 1.0 if a.name.rpartition(".")[2] == b.name.rpartition(".")[2] else NEARLY


def _traced(scores: np.ndarray) -> Iterator[list[tuple[int, int]]]:
    """The pairs (target, source) behind the best sums of `_aligned`, for each of several pairs of blocks: (P, n, m)."""
    pairs_of_blocks, n, m = scores.shape
    if n == m == 1:
        yield from ([(0, 0)] if score > 0 else [] for score in scores[:, 0, 0].tolist())
        return
    best = np.zeros((pairs_of_blocks, n + 1, m + 1))
    for i in range(n):
        taken = best[:, i, :-1] + scores[:, i]
        np.maximum(best[:, i, 1:], taken, out=best[:, i + 1, 1:])
        np.maximum.accumulate(best[:, i + 1], axis=1, out=best[:, i + 1])
    for sums in best.tolist():  # lists, whose numbers are faster to look at one by one
        i, j, pairs = n, m, []
        while i and j:
            if sums[i][j] == sums[i][j - 1]:
                j -= 1
            elif sums[i][j] == sums[i - 1][j]:
                i -= 1
            else:  # more than without this pair
                i, j = i - 1, j - 1
                pairs.append((i, j))
        yield pairs[::-1]
