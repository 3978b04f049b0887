"""Pictures of a matching (figure 2) and of the similarities between networks (figure 5). They need matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from dpiat.architecture import Architecture, Block, Layer
from dpiat.assignment import best
from dpiat.files import replacing
from dpiat.matching import Matching
from dpiat.similarity import as_architectures, coverage, similarity
from dpiat.standardization import CONVOLVES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What a file may be, and the metadata that leaves out the time, so that equal pictures are equal files.
FORMATS = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}

# Colours that the colour-blind can tell apart.
COLOURS = {
    "convolution": "#0072b2",
    "batch norm": "#e69f00",
    "linear": "#009e73",
    "other with weights": "#cc79a7",
    "without weights": "#c8c8c8",
}
BAND, FRAME, INK, PALE = "#5a6b85", "#4a4a4a", "#000000", "#8a8a8a"

# Widths in units of one layer with weights.
THIN, PADDING, GAP, NARROWEST = 0.4, 0.3, 0.6, 2.4
# Lengths in inches.
UNIT, WIDEST_UNIT, READABLE_UNIT = 0.046, 0.2, 0.03
FIGURE_WIDTHS = (8.0, 40.0)
ROW, BETWEEN, LEGEND, TITLE, SPACE = 0.34, 1.9, 0.4, 0.6, 0.08
# Font sizes in points.
SMALL, NORMAL, LARGE = 7.5, 9.0, 11.0


def plot_matching(
    source: nn.Module | Architecture,
    target: nn.Module | Architecture,
    file: str | Path | None = None,
    *,
    names: tuple[str, str] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Draw which blocks and layers of the source go to which of the target (figure 2). Needs matplotlib.

    The source is the upper row, and the target is the lower row. A block is a frame with a cell for each of its layers.
    A thin grey cell is a layer without weights. A band joins two matched blocks. The higher their score is, relative to
    the target block's score with itself (Eq. 4), the darker is the band. Its gid is "match-i-j" for source block i and
    target block j. Lines in the bands join the matched layers. The label of a block without a match is grey. Where
    labels would overlap, some are left out.

    Args:
        source: A network, its architecture, or what else `similarity` takes.
        target: Likewise.
        file: Where the picture is saved: .png, .svg or .pdf.
        names: The names of source and target in the picture, in the place of the architectures' names.
        axes: Where the matching is drawn, if not in a figure of its own. In axes of less than about 8 × 5 inches
            everything is smaller.

    Returns:
        The axes.

    Raises:
        TypeError: If a network is not a thing that `similarity` takes.
        ValueError: For another suffix.
        ModuleNotFoundError: Without matplotlib.

    Examples:
        >>> plot_matching(timm.create_model("rexnet_100"), timm.create_model("tf_efficientnet_b2"), "matching.svg")
    """
    _require_matplotlib()
    _check_suffix(file)
    source, target = map(_told_apart, as_architectures({"source": source, "target": target}))
    names = names or (source.name, target.name)
    matching = best(source, target)
    axes = axes or _matching_axes((source, target), names)
    upper, lower = _place((source, target), names, axes)
    pairs = _block_numbers(source, target, matching)
    _draw_bands(axes, upper, lower, pairs)
    _draw_layer_lines(axes, upper, lower, matching)
    _draw_row(axes, upper, names[0], "source", {i for i, _ in pairs})
    _draw_row(axes, lower, names[1], "target", {j for _, j in pairs})
    _draw_legend(axes, (*source.layers, *target.layers), upper.scale)
    matched = f"{len(matching.layers)} of {target.max_score} target layers with weights are matched"
    title = f"{names[0]} → {names[1]}\nsimilarity (Eq. 5) {similarity(source, target):.2f}; {matched}"
    axes.set_title(title, fontsize=LARGE * upper.scale, parse_math=False)
    _save(axes, file)
    return axes


def _told_apart(network: Architecture) -> Architecture:
    """The network with an object of its own for each block and each layer: an index shares equal objects."""
    blocks = (replace(block, layers=tuple(Layer(*layer) for layer in block.layers)) for block in network.blocks)
    return replace(network, blocks=tuple(blocks))


def plot_similarity(
    networks: Mapping[str, nn.Module | Architecture] | np.ndarray,
    file: str | Path | None = None,
    *,
    labels: Sequence[str] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Draw the similarities of all pairs of networks (Eq. 5) as a heat map (figure 5). Needs matplotlib.

    Args:
        networks: Networks by name, or a square array of similarities, in which NaN is an empty cell.
        file: Where the picture is saved: .png, .svg or .pdf.
        labels: A label for each row of the array, in the place of numbers.
        axes: Where the heat map is drawn, if not in a figure of its own.

    Returns:
        The axes.

    Raises:
        TypeError: If a network is not a thing that `similarity` takes.
        ValueError: For an array that is not square or has another number of labels, for nothing to draw, and for
            another suffix.
        ModuleNotFoundError: Without matplotlib.

    Examples:
        >>> plot_similarity({name: timm.create_model(name) for name in ("resnet18", "resnet34")}, "similarity.png")
    """
    _require_matplotlib()
    _check_suffix(file)
    values = _similarities(networks) if isinstance(networks, Mapping) else np.asarray(networks, dtype=float)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or not values.size:
        raise ValueError(f"similarities must be a square array with at least one row, got shape {values.shape}")
    if labels is None:
        labels = networks if isinstance(networks, Mapping) else range(len(values))
    labels = list(map(str, labels))
    if len(labels) != len(values):
        raise ValueError(f"{len(values)} networks need as many labels, got {len(labels)}")
    axes = axes or _heat_map_axes(labels)
    _draw_heat_map(axes, values, labels)
    _save(axes, file)
    return axes


def plot_bars(
    rows: Sequence[str],
    values: Mapping[str, Sequence[float]],
    title: str,
    file: str | Path | None = None,
    *,
    axes: Axes | None = None,
) -> Axes:
    """Draw bars from 0 to 1, one for each of `values` in every row, and return the axes. NaN leaves its bar out."""
    _require_matplotlib()
    _check_suffix(file)
    if axes is None:
        from matplotlib.figure import Figure

        axes = Figure(figsize=(7.0, 1.3 + 0.42 * len(rows)), layout="constrained").add_subplot()
    thick = 0.8 / len(values)
    for number, ((name, lengths), colour) in enumerate(zip(values.items(), COLOURS.values(), strict=False)):
        places = np.arange(len(rows)) + (number - (len(values) - 1) / 2) * thick
        axes.barh(places, np.nan_to_num(lengths), 0.9 * thick, color=colour, label=name)
        for place, length in zip(places, lengths, strict=True):
            if np.isfinite(length):
                axes.text(max(length, 0) + 0.01, place, f"{length:.2f}", va="center", fontsize=SMALL)
    axes.set(xlim=(min(0, *map(np.nanmin, values.values())), 1.1), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_yticks(range(len(rows)), rows, fontsize=NORMAL, parse_math=False)
    axes.tick_params(axis="x", labelsize=NORMAL)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=NORMAL, loc="left", parse_math=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(values), fontsize=NORMAL, frameon=False)
    _save(axes, file)
    return axes


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plots need matplotlib: pip install matplotlib", name="matplotlib") from error


def _check_suffix(file: str | Path | None) -> None:
    if file is not None and Path(file).suffix.lower() not in FORMATS:
        known = ", ".join(FORMATS)
        raise ValueError(
            f"{file}: cannot save a figure as {Path(file).suffix or 'a file without suffix'!r}, use {known}"
        )


def _save(axes: Axes, file: str | Path | None) -> None:
    if file is None:
        return
    from matplotlib import rc_context

    suffix = Path(file).suffix.lower()
    with rc_context({"svg.hashsalt": "dpiat"}), replacing(Path(file)) as written:
        axes.get_figure(root=True).savefig(
            written, format=suffix[1:], dpi=150, metadata=FORMATS[suffix], bbox_inches="tight", pad_inches=0.1
        )


@dataclass(frozen=True)
class _Row:
    """A network from left to right: the edges (left, right) of its blocks and of its layers, and its lower edge.

    `unit` is the width of one layer with weights. `scale` shrinks the texts as the axes shrink the row.
    """

    architecture: Architecture
    blocks: tuple[tuple[float, float], ...]
    layers: Mapping[int, tuple[float, float]]  # by id(layer)
    unit: float = 1.0
    y: float = 0.0
    scale: float = 1.0

    @property
    def width(self) -> float:
        return self.blocks[-1][1] if self.blocks else 0.0

    def placed(self, left: float, unit: float, y: float, scale: float) -> _Row:
        def edges(pair: tuple[float, float]) -> tuple[float, float]:
            return left + unit * pair[0], left + unit * pair[1]

        layers = {key: edges(pair) for key, pair in self.layers.items()}
        return _Row(self.architecture, tuple(map(edges, self.blocks)), layers, unit, y, scale)


def _row(architecture: Architecture) -> _Row:
    """The row of a network in units of one layer with weights, from 0."""
    blocks, layers, x = [], {}, 0.0
    for block in architecture.blocks:
        content = sum(1 if layer.shape else THIN for layer in block.layers)
        width = max(content + 2 * PADDING, NARROWEST)
        blocks.append((x, x + width))
        at = x + (width - content) / 2
        for layer in block.layers:
            layers[id(layer)] = (at, at + (1 if layer.shape else THIN))
            at = layers[id(layer)][1]
        x += width + GAP
    return _Row(architecture, tuple(blocks), layers)


def _matching_axes(networks: Sequence[Architecture], names: Sequence[str]) -> Axes:
    """The axes of a new figure that is large enough for two networks."""
    from matplotlib.figure import Figure

    margins = _left_margin(names) + SPACE
    width = float(np.clip(UNIT * max(_row(network).width for network in networks) + margins, *FIGURE_WIDTHS))
    height = _height(networks)
    return Figure(figsize=(width, height + TITLE)).add_axes((0, 0, 1, height / (height + TITLE)))


def _height(networks: Sequence[Architecture]) -> float:
    return LEGEND + BETWEEN + 2 * ROW + sum(map(_label_length, networks))


def _place(networks: Sequence[Architecture], names: Sequence[str], axes: Axes) -> tuple[_Row, _Row]:
    """The two rows in the coordinates of the axes, which become inches / scale. The shorter row is stretched."""
    dpi = axes.get_figure(root=True).dpi
    width, height = axes.bbox.width / dpi, axes.bbox.height / dpi
    scale = min(1.0, width / FIGURE_WIDTHS[0], height / _height(networks))
    width, height = width / scale, height / scale
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    left = _left_margin(names)
    room = max(width - left - SPACE, width / 2)
    above, below = map(_label_length, networks)
    rows = []
    for network, y in zip(networks, (height - above - ROW, LEGEND + below), strict=True):
        row = _row(network)
        unit = min(room / row.width, WIDEST_UNIT) if row.width else UNIT
        rows.append(row.placed(left + (room - unit * row.width) / 2, unit, y, scale))
    return rows[0], rows[1]


def _left_margin(names: Sequence[str]) -> float:
    return max(_text_length(name, NORMAL, "bold") for name in names) + 3 * SPACE


def _label_length(network: Architecture) -> float:
    """The room that the labels of the blocks need: the length of the label with the most letters."""
    return _text_length(max(map(_label, network.blocks), key=len, default=""), SMALL) + 2 * SPACE


def _text_length(text: str, size: float, weight: str = "normal") -> float:
    """How long a text is, in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    if not text:
        return 0.0
    plain = text.replace("$", r"\$")  # no mathematics
    return TextPath((0, 0), plain, prop=FontProperties(size=size, weight=weight)).get_extents().width / 72


def _label(block: Block) -> str:
    """The name of a block, or the last parts of a long name."""
    parts = (block.name or " ".join(layer.kind for layer in block.layers[:1])).split(".")
    while len(parts) > 2 and len(".".join(parts)) > 20:
        del parts[0]
    name = ".".join(parts)
    return name if len(name) <= 28 else f"…{name[-27:]}"


def _block_numbers(source: Architecture, target: Architecture, matching: Matching) -> list[tuple[int, int]]:
    """The matched blocks as numbers (source, target)."""
    numbers = [
        {id(layer): i for i, block in enumerate(network.blocks) for layer in block.layers}
        for network in (source, target)
    ]  # by their layers, since a run may be matched layer by layer
    pairs = (
        tuple(of[id(block.layers[0])] for of, block in zip(numbers, pair, strict=True)) for pair in matching.blocks
    )
    return list(dict.fromkeys(pairs))


def _draw_bands(axes: Axes, upper: _Row, lower: _Row, pairs: Sequence[tuple[int, int]]) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    codes = [Curve.MOVETO, *[Curve.CURVE4] * 3, Curve.LINETO, *[Curve.CURVE4] * 3, Curve.CLOSEPOLY]
    top, bottom = upper.y, lower.y + ROW
    for i, j in pairs:
        left, right = ([upper.blocks[i][side], lower.blocks[j][side]] for side in (0, 1))
        points = [*_bend(left[0], top, left[1], bottom), *_bend(right[1], bottom, right[0], top), (left[0], top)]
        blocks = (
            replace(row.architecture, blocks=(row.architecture.blocks[b],)) for row, b in ((upper, i), (lower, j))
        )
        band = PathPatch(Curve(points, codes), facecolor=BAND, alpha=_opacity(coverage(*blocks)), linewidth=0, zorder=1)
        band.set_gid(f"match-{i}-{j}")
        axes.add_patch(band)


def _opacity(score: float) -> float:
    return 0.08 + 0.52 * score


def _bend(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    """The four points of a curve that leaves and arrives vertically."""
    middle = (y0 + y1) / 2
    return [(x0, y0), (x0, middle), (x1, middle), (x1, y1)]


def _draw_layer_lines(axes: Axes, upper: _Row, lower: _Row, matching: Matching) -> None:
    """Join the matched layers, unless they are too narrow to tell the lines apart."""
    from matplotlib.collections import PathCollection
    from matplotlib.path import Path as Curve

    if min(upper.unit, lower.unit) * upper.scale < READABLE_UNIT or not matching.layers:
        return
    codes = [Curve.MOVETO, *[Curve.CURVE4] * 3]
    curves = []
    for pair in matching.layers:
        start, end = (sum(row.layers[id(layer)]) / 2 for row, layer in ((upper, pair.source), (lower, pair.target)))
        curves.append(Curve(_bend(start, upper.y, end, lower.y + ROW), codes))
    colours = [COLOURS[_kind(pair.target)] for pair in matching.layers]
    lines = PathCollection(curves, facecolors="none", edgecolors=colours, linewidths=0.7 * upper.scale, zorder=2)
    lines.set_gid("layers")
    axes.add_collection(lines, autolim=False)


def _draw_row(axes: Axes, row: _Row, name: str, role: str, matched: set[int]) -> None:
    """One network: its name on the left, the frames of its blocks, the cells of its layers, the labels."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    frames = [Rectangle((left, row.y), right - left, ROW) for left, right in row.blocks]
    axes.add_collection(
        PatchCollection(frames, facecolor="white", edgecolor=FRAME, linewidth=0.7 * row.scale, zorder=3), False
    )
    layers = row.architecture.layers
    edges = [row.layers[id(layer)] for layer in layers]
    cells = [Rectangle((left, row.y + 0.15 * ROW), right - left, 0.7 * ROW) for left, right in edges]
    colours = [COLOURS[_kind(layer)] for layer in layers]
    line = min(0.5, 10 * row.unit * row.scale)
    axes.add_collection(PatchCollection(cells, facecolors=colours, edgecolor="white", linewidth=line, zorder=4), False)
    start = min((left for left, _ in row.blocks), default=axes.get_xlim()[1] / 2)
    style = {"ha": "right", "parse_math": False}
    axes.text(start - SPACE, row.y + ROW / 2, name, va="bottom", fontsize=NORMAL * row.scale, weight="bold", **style)
    axes.text(start - SPACE, row.y + ROW / 2 - 0.03, role, va="top", fontsize=SMALL * row.scale, color=FRAME, **style)
    _draw_labels(axes, row, matched, above=role == "source")


def _draw_labels(axes: Axes, row: _Row, matched: set[int], above: bool) -> None:
    """The names of the blocks, upright, as many as fit beside each other."""
    y, align = (row.y + ROW + SPACE, "bottom") if above else (row.y - SPACE, "top")
    free = -np.inf
    for number, (block, (left, right)) in enumerate(zip(row.architecture.blocks, row.blocks, strict=True)):
        x = (left + right) / 2
        if x < free:
            continue
        free = x + 1.15 * SMALL / 72
        style = {"color": INK if number in matched else PALE, "fontsize": SMALL * row.scale, "parse_math": False}
        axes.text(x, y, _label(block), rotation=90, ha="center", va=align, **style)


def _kind(layer: Layer) -> str:
    """The key of COLOURS that a layer belongs to."""
    if not layer.shape:
        return "without weights"
    families = {**dict.fromkeys(CONVOLVES, "convolution"), "BatchNorm": "batch norm", "Linear": "linear"}
    return next((kind for family, kind in families.items() if layer.kind.startswith(family)), "other with weights")


def _draw_legend(axes: Axes, layers: Sequence[Layer], scale: float) -> None:
    from matplotlib.patches import Patch

    present = {_kind(layer) for layer in layers}
    handles = [Patch(color=colour, label=kind) for kind, colour in COLOURS.items() if kind in present]
    for score, label in ((0.2, "blocks matched, score 0.2"), (1.0, "score 1")):
        handles.append(Patch(color=BAND, alpha=_opacity(score), label=label, linewidth=0))
    axes.legend(
        handles=handles,
        loc="lower center",
        ncols=len(handles),
        fontsize=SMALL * scale,
        frameon=False,
        borderaxespad=0.5,
        handlelength=1.2,
        columnspacing=1.4,
    )


def _similarities(networks: Mapping[str, nn.Module | Architecture]) -> np.ndarray:
    architectures = as_architectures(networks)
    values = np.zeros((len(architectures),) * 2)
    for i, a in enumerate(architectures):
        for j, b in enumerate(architectures[: i + 1]):
            values[i, j] = values[j, i] = similarity(a, b)
    return values


def _heat_map_axes(labels: Sequence[str]) -> Axes:
    """The axes of a new figure that is large enough for one cell each pair of labels."""
    from matplotlib.figure import Figure

    side = 0.45 * len(labels) + max(_text_length(label, NORMAL) for label in labels) + 0.6
    return Figure(figsize=(side + 1.0, side + 0.3), layout="constrained").add_subplot()


def _draw_heat_map(axes: Axes, values: np.ndarray, labels: Sequence[str]) -> None:
    n = len(values)
    edges = np.arange(n + 1) - 0.5
    mesh = axes.pcolormesh(edges, edges, np.ma.masked_invalid(values), cmap="viridis", vmin=0, vmax=1)
    axes.set(aspect="equal", xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5))
    axes.set_xticks(
        range(n), labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=NORMAL, parse_math=False
    )
    axes.set_yticks(range(n), labels, fontsize=NORMAL, parse_math=False)
    axes.tick_params(length=0)
    for i, j in zip(*np.nonzero(np.isfinite(values)), strict=True):
        red, green, blue, _ = mesh.cmap(mesh.norm(values[i, j]))
        bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
        colour = "black" if bright else "white"
        axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=NORMAL, color=colour)
    bar = axes.figure.colorbar(mesh, ax=axes, fraction=0.05, pad=0.03)
    bar.set_label("similarity (Eq. 5)", fontsize=NORMAL)
    bar.ax.tick_params(labelsize=NORMAL)
