"""Drawing the figures with matplotlib: curves, dots, scatters and the paper's diagrams."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patheffects import withStroke

from dpiat import Architecture
from dpiat.plotting import plot_matching, plot_similarity
from experiments.results import cells, method_effects, ours, paper, reproduction, source_choice, verdicts
from experiments.store.files import atomic_write

# One colour for each source, from a palette that the colour-blind can tell apart. Random init is black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
SIMILARITY = "similarity (Eq. 5)"  # the label of an axis


def comparison(record: dict[str, Any], baseline: dict[str, Any], folder: Path) -> Path:
    """Draw the test accuracy over epochs of a target and its baseline. Returns the PNG, named after the trial.

    Raises CannotWrite if the disk refuses.
    """
    trial = record["trial"]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(title=f"{paper.label(trial['model'])} on {trial['dataset']}")
    label = f"{trial['init']} from {paper.label(trial['source']['model'])}" if trial["source"] else trial["init"]
    for rows, name, colour in ((record["epochs"], label, COLOURS[0]), (baseline["epochs"], "random init", "black")):
        axes.plot(
            [row["epoch"] for row in rows], [row["test_accuracy"] for row in rows], "o-", color=colour, label=name
        )
    _finish(axes)
    axes.legend()
    file = folder / f"{record['id']}.png"
    atomic_write(file, lambda f: figure.savefig(f, format="png", dpi=150))
    return file


def captioned_figure(width: float, height: float, title: str, caption: str) -> tuple[Figure, SubFigure]:
    """Make a figure with a title above and a caption below.

    Args:
        width: In inches.
        height: In inches, without the caption.
        title: What one sees in the figure.
        caption: The settings behind it.

    Returns:
        The figure, and the subfigure to draw in.
    """
    lines = wrapped(caption, int(15 * width))
    below = 0.155 * len(lines) + 0.1
    figure = Figure(figsize=(width, height + below), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(height, below))
    top.suptitle("\n".join(wrapped(title, int(12 * width))), fontsize=11)
    bottom.text(0.01, 1, "\n".join(lines), va="top", fontsize=8, color="0.3")
    return figure, top


def wrapped(text: str, width: int) -> list[str]:
    """Wrap a text into as few lines as fit `width` letters, of about the same length, so that no word stands alone."""
    lines = textwrap.wrap(text, width)
    while width > 1 and len(closer := textwrap.wrap(text, width - 1, break_long_words=False)) == len(lines):
        lines, width = closer, width - 1
    return lines


def curves(frame: pd.DataFrame, records: cells.Records, metric: str = "test_accuracy", scale: str = "") -> Figure:
    """Draw a metric over epochs, with a panel for each target: means over seeds, and bands for their range.

    Random init is black, the target's own ImageNet weights are a broad yellow line, and each source has a colour. Where
    sources come with several weights, a dashed line means ImageNet weights and a dotted line training from scratch.

    Args:
        frame: The rows of `cells.trials`.
        records: The records of trials, by id.
        metric: A key of a record's epochs.
        scale: The name of the scale, for the caption.
    """
    run = frame[frame["id"].isin(records.keys())]
    targets = paper.in_order(run["target"])
    columns = min(len(targets), 4)
    height = -(-len(targets) // columns)
    caption = cells.scale_line(frame, records, scale)
    figure, top = captioned_figure(max(3.2 * columns, 9), 2.8 * height + 1.2, _seen(run, records, metric), caption)
    panels = top.subplots(height, columns, sharex=True, sharey=True, squeeze=False).flat
    sources = paper.in_order(run.loc[run["source"] != "", "source"])
    plain = run.loc[run["source"] != "", "weights"].nunique() < 2
    handles: dict[str, Any] = {}  # the line of each name in the legend
    counts: dict[str, list[int]] = {}  # the numbers of seeds behind it, one for each panel
    for axes, target in zip(panels, targets, strict=False):
        for key, cell in run[run["target"] == target].groupby(["init", "source", "weights", "lr"], sort=False):
            init, source, weights, lr = key
            name, style = _line(init, source, weights, lr, sources, plain)
            by_epoch = _by_epoch(cell, records, metric)
            low, high = by_epoch.min(), by_epoch.max()
            marker = "o" if len(by_epoch) < 20 else ""
            (handles[name],) = axes.plot(by_epoch.mean(), **{"marker": marker, "markersize": 3, **style})
            axes.fill_between(low.index, low, high, color=style["color"], alpha=0.2, linewidth=0)
            counts.setdefault(name, []).append(cell["seed"].nunique())
        axes.set_title(paper.label(target), fontsize=9)
    for number, axes in enumerate(top.axes):
        axes.set_visible(number < len(targets))
        _finish(axes, metric)
        axes.tick_params(labelbottom=True)
    _legend_of_curves(top, handles, counts, ncols=2 if columns < 3 else 3)
    return figure


def _legend_of_curves(top: SubFigure, handles: Mapping[str, Any], counts: Mapping[str, list[int]], ncols: int) -> None:
    """A legend with the number of seeds of each line: random init, own weights, then the sources."""
    order = sorted(handles, key=lambda name: (not name.startswith("random"), not name.startswith("own"), name))
    labels = [f"{name} (n = {_range(counts[name])})" for name in order]
    top.legend(
        [handles[name] for name in order],
        labels,
        loc="outside lower center",
        ncols=ncols,
        fontsize=8,
        handlelength=3,
        title="means over n seeds; bands: their range" if max(map(max, counts.values())) > 1 else None,
        title_fontsize=8,
    )


def _by_epoch(cell: pd.DataFrame, records: cells.Records, metric: str) -> Any:
    """The values of a metric in the trials of a cell, grouped by epoch."""
    return pd.DataFrame([row for trial in cell["id"] for row in records[trial]["epochs"]]).groupby("epoch")[metric]


def _seen(run: pd.DataFrame, records: cells.Records, metric: str) -> str:
    """A title that counts the transfers that end better than random init at the better of its learning rates."""
    better, side = (min, "below") if metric.endswith("loss") else (max, "above")
    ends = {
        key: _by_epoch(cell, records, metric).mean().iloc[-1]
        for key, cell in run.groupby(["target", "init", "source", "weights", "lr"], sort=False)
    }
    random: dict[str, float] = {}
    for (target, init, *_), value in ends.items():
        if init == "random":
            random[target] = better(random.get(target, value), value)
    found = [
        value != random[target] and better(value, random[target]) == value
        for (target, init, source, *_), value in ends.items()
        if source and source != target and target in random
    ]
    name = metric.replace("_", " ").capitalize()
    if not found:
        return f"{name} over epochs"
    return f"{name}: {sum(found)} of {len(found)} transfers to another network end {side} random init"


def _line(
    init: str, source: str, weights: str, lr: float, sources: list[str], plain: bool
) -> tuple[str, dict[str, Any]]:
    """The name of a cell's line in the legend, and the style of the line."""
    if init == "random":
        return f"random init, lr {lr:g}", {
            "color": "black",
            "linestyle": "--" if plain and lr == paper.RANDOM_LR else "-",
        }
    if init == "pretrained":
        # Broad and below the others: a transfer of a network to itself is about the same line, and would hide it.
        beneath = {"color": "#f0e442", "linewidth": 5, "zorder": 1, "marker": ""}
        return f"own ImageNet weights, lr {lr:g}", beneath
    if init == "ghn2":
        return f"GHN-2, lr {lr:g}", {"color": "#b8860b", "linestyle": "-."}
    dashes = "-" if plain else {"imagenet": "--", "scratch": ":"}.get(weights, "-")
    colour = COLOURS[sources.index(source) % len(COLOURS)]
    return f"{paper.label(source)}, {cells.WEIGHTS_IN_WORDS[weights]}, lr {lr:g}", {
        "color": colour,
        "linestyle": dashes,
    }


def _range(counts: list[int]) -> str:
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def scatter(experiment: str, records: cells.Records) -> Figure:
    """Draw effectiveness over similarity in one of our own experiments, our counterpart of Figure 16.

    Each source has a colour, and a line joins the points of a target.
    """
    trials = ours.trials(experiment, records)
    found = ours.transfers(trials)
    told = source_choice.prediction_quality(found)
    title = f"Effectiveness over similarity: r = {told['correlation']:.2f} over {len(found)} cells"
    if pd.notna(told["within a row"]):
        title += f", {told['within a row']:.2f} within one target"
    caption = f"{cells.scale_line(trials, records)} {cells.baseline_line(trials)}"
    figure, top = captioned_figure(7.5, 6, title, caption)
    axes = top.add_subplot()
    sources = paper.in_order(found["source"])
    for colour, source in zip(cycle(COLOURS), sources, strict=False):
        points = found[found["source"] == source]
        label = f"from {paper.label(source)}"
        axes.plot(points["similarity"], points["value"], "o", ms=5, color=colour, label=label)
    same = found[found["source"] == found["target"]]
    axes.plot(same["similarity"], same["value"], "o", ms=10, mfc="none", mec="0.4", label="from itself")
    for number, (_, points) in enumerate(found.sort_values("similarity").groupby("target")):
        once = "to one target" if number == 0 else None
        axes.plot(points["similarity"], points["value"], color="0.7", linewidth=0.8, zorder=0, label=once)
    axes.set(xlabel=SIMILARITY, ylabel="effectiveness within 4 epochs")
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.grid(alpha=0.3)
    axes.margins(0.12)
    top.legend(loc="outside lower center", ncols=5, fontsize=8)
    _label_once(axes, found.assign(target=found["target"].map(paper.label)))
    return figure


def _label_once(axes: Axes, found: pd.DataFrame) -> None:
    """Write each target's name beside one of its points, where it covers the fewest points, lines and names."""
    # Matplotlib does not place labels. Six places beside every point of the target are tried, and for each the number
    # of boxes that the label would cover is counted: points, twenty pieces of each line, and labels that are placed
    # already. All of it in pixels, as labels have a size in points and points of the figure have a place in data.
    size, unit = 7, axes.get_figure(root=True).dpi / 72  # points; pixels of a point
    found = found.sort_values(["target", "similarity"], ignore_index=True)
    dots = axes.transData.transform(found[["similarity", "value"]])
    joined = found["target"].eq(found["target"].shift(-1)).to_numpy()[:-1]  # with the next point, by a line
    lines = np.linspace(dots[:-1][joined], dots[1:][joined], 20).reshape(-1, 2)
    taken = [  # left, bottom, right, top
        (x - radius, y - radius, x + radius, y + radius)
        for places, radius in ((dots, 3 * unit), (lines, unit))
        for x, y in places
    ]
    for target, rows in found.groupby("target"):
        width, places = 0.6 * size * len(target) * unit, []
        for (x, y), (dx, dy) in product(dots[rows.index], product((5, -5), (3, -9, -2))):
            left = x + dx * unit - (width if dx < 0 else 0)
            box = left, y + dy * unit, left + width, y + (dy + size) * unit
            places.append((sum(_overlap(box, other) for other in taken), (x, y), (dx, dy), box))
        _, at, offset, box = min(places, key=lambda place: place[0])
        taken.append(box)
        style: dict[str, Any] = {"fontsize": size, "ha": "left" if offset[0] > 0 else "right", "va": "bottom"}
        style["path_effects"] = [withStroke(linewidth=2, foreground="white")]  # readable where a line runs through
        axes.annotate(target, axes.transData.inverted().transform(at), offset, textcoords="offset points", **style)


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def figure02(architectures: Mapping[str, Architecture]) -> Figure:
    """Draw the paper's Figure 2: ReXNet (x1.0) matched with EfficientNet-B2."""
    names = ("ReX", "Eff-B2")
    source, target = (architectures[name] for name in names)
    return plot_matching(source, target, names=names).figure


def figure05(architectures: Mapping[str, Architecture]) -> Figure:
    """Draw the paper's Figure 5: the similarities of its networks."""
    return plot_similarity(architectures).figure


def figure16(similarity: pd.DataFrame) -> Figure:
    """Draw the paper's Figure 16: the values of its Tables 1 and 6 to 10 over similarity, a panel for each table."""
    title = "In the paper's tables, effectiveness grows with similarity"
    caption = "The values that the paper prints, over the similarities that we compute; r is Pearson's correlation."
    figure, top = captioned_figure(11, 6.8, title, caption)
    panels = top.subplots(2, 3).flat
    for axes, table in zip(panels, paper.TABLE_11, strict=True):
        _over_similarity(axes, table, paper.matrix(table).merge(similarity, on=["source", "target"]))
    axes.legend(fontsize=8)
    return figure


def figure16_panel(table: str, similarity: pd.DataFrame, run: pd.DataFrame, caption: str) -> Figure:
    """Draw a panel of Figure 16 from our cells of a table, beside the paper's same cells.

    Args:
        table: A name in paper.TABLE_11.
        similarity: Columns source, target, similarity.
        run: Our cells that are run: columns source, target, ours, paper.
        caption: The settings.
    """
    found = run.merge(similarity, on=["source", "target"])
    both = {"ours": "ours", "the paper's, the same cells": "paper"}
    rs = [f"r = {_r(found['similarity'], found[column])} {name}" for name, column in both.items()]
    figure, top = captioned_figure(9, 4.2, f"Table {int(table[5:])} over similarity: {', '.join(rs)}", caption)
    for axes, (name, column) in zip(top.subplots(1, 2, sharex=True, sharey=True), both.items(), strict=True):
        _over_similarity(axes, table, found.assign(value=found[column]), name)
        axes.label_outer()
    axes.legend(fontsize=8)
    return figure


def _over_similarity(axes: Axes, table: str, found: pd.DataFrame, name: str = "") -> None:
    """Draw a panel of Figure 16 from columns source, target, similarity and value."""
    itself = found["source"] == found["target"]
    parts = ((~itself, COLOURS[0], "other networks"), (itself, COLOURS[1], "the same network"))
    for chosen, colour, label in parts:
        axes.plot(found.loc[chosen, "similarity"], found.loc[chosen, "value"], "o", ms=4, color=colour, label=label)
    dataset, weights = paper.TABLE_11[table]
    start, r = paper.STARTS[weights], _r(found["similarity"], found["value"])
    axes.set_title(name or f"Table {int(table[5:])}: {dataset}, r = {r}\nsources from {start}", fontsize=9)
    axes.set_xlabel(SIMILARITY, fontsize=9)
    axes.set_ylabel(f"accuracy / that from {start}", fontsize=9)
    axes.set_xlim(0.35, 1.05)
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.grid(alpha=0.3)


def _r(a: pd.Series, b: pd.Series) -> str:
    return f"{a.corr(b):.2f}" if len(a) > 2 else "?"


def figures16(similarity: pd.DataFrame, records: cells.Records) -> dict[str, Figure]:
    """Draw Figure 16 from the paper's own tables, and a panel for each of our tables at each scale that was run."""
    found = {"figure16": figure16(similarity)}
    for table in paper.TABLE_11:
        for scale, frame in cells.frames_by_scale(table, records).items():
            run = reproduction.beside_paper(table, frame).dropna(subset="ours")
            caption = f"{cells.scale_line(frame, records, scale)} {cells.baseline_line(frame)}"
            if len(run):
                found[f"figure16_{table}_{scale}"] = figure16_panel(table, similarity, run, caption)
    return found


def method_differences(data: pd.DataFrame, caption: str) -> Figure:
    """Draw the accuracy of each method less the accuracy of the first method, pair by pair.

    A row is a pair, sorted by similarity, and a colour is a method. Bars are standard errors over seeds, where there
    are several. Dotted lines are means over the pairs that are run with every method.

    Args:
        data: The rows of `method_effects.pairs` that are run.
        caption: The settings.
    """
    data = _with_differences(data)
    error = data["sd"] / data["n"] ** 0.5
    data["error"] = np.hypot(error, method_effects.value_of_first(data.assign(error=error), "error"))
    first, *others = data["method"].unique()
    together = method_effects.with_every_method(data)
    data = data[(data["method"] != first) & data["difference"].notna()]
    rows = data.drop_duplicates(["target", "source"]).sort_values("similarity", ascending=False)
    pairs = list(zip(rows["target"], rows["source"], strict=True))
    means = together.groupby("method")["difference"].mean().reindex(others)
    count = len(together.drop_duplicates(["target", "source"]))
    height = max(0.28, 0.07 * len(others)) * max(len(pairs), 7) + 1.8  # of fewer rows, the axis would cut its label
    figure, top = captioned_figure(9, height, _largest_difference(means, first), caption)
    axes = top.add_subplot(xlabel="difference in test accuracy, the best within 4 epochs")
    axes.axvline(0, color="black", linewidth=1)
    for number, method in enumerate(others):
        found, colour = data[data["method"] == method], COLOURS[number % len(COLOURS)]
        shift = 0.6 * ((number + 0.5) / len(others) - 0.5)  # so that equal values lie side by side
        places = [pairs.index(pair) + shift for pair in zip(found["target"], found["source"], strict=True)]
        label = f"{method}: {means[method]:+.3f}" if count else method
        style: dict[str, Any] = {"fmt": "o", "ms": 5, "alpha": 0.8, "color": colour}
        axes.errorbar(found["difference"], places, xerr=found["error"], label=label, **style)
        axes.axvline(means[method], color=colour, linewidth=1, linestyle=":")
    names = [
        f"{paper.label(row.target)} from {paper.label(row.source)}, {row.similarity:.2f}" for row in rows.itertuples()
    ]
    axes.set_yticks(range(len(pairs)), names)
    axes.set_ylabel(f"pair and its {SIMILARITY}")
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.grid(alpha=0.3)
    legend = f"mean over the {count} pair{'s that are' if count > 1 else ' that is'} run with each" if count else None
    top.legend(loc="outside lower center", ncols=2, fontsize=8, title=legend, title_fontsize=8)
    return figure


def _with_differences(data: pd.DataFrame) -> pd.DataFrame:
    """The rows of `method_effects.pairs` with the pair's similarity, and the difference to the first method."""
    similarity = method_effects.value_of_first(data, "similarity")
    return data.assign(similarity=similarity, difference=method_effects.differences(data))


def _largest_difference(means: pd.Series, first: str) -> str:
    """A title that names the method whose mean differs most from the first method's."""
    if means.isna().all():
        return f"Test accuracy less that of {first}"
    far = means.abs().idxmax()
    title = f"{far}: {means[far]:+.3f} in test accuracy, on average, to {first}"
    return f"{title}; the others at most {means.drop(far).abs().max():.3f} off" if len(means) > 1 else title


def differences_over_similarity(data: pd.DataFrame, caption: str) -> Figure:
    """Draw the accuracy of each method less the accuracy of the first method, over the pair's similarity.

    A panel is a method. The band is twice the standard deviation of pairs that begin with the same weights: what is
    inside the band may be noise.

    Args:
        data: The rows of `method_effects.pairs` that are run, with `method_effects.same_start` in the column `same`.
        caption: The settings.
    """
    first, *others = data["method"].unique()
    data = _with_differences(data)
    data = data[data["method"] != first].dropna(subset="difference")
    noise = 2 * (data.loc[data["same"], "difference"] ** 2).mean() ** 0.5
    height = 2.9 * -(-len(others) // 3) + 1
    figure, top = captioned_figure(11, height, _most_dependent(data, first), caption)
    top.subplots(-(-len(others) // 3), 3, sharex=True)
    for axes, method in zip(top.axes, others, strict=False):
        found = data[data["method"] == method]
        if noise > 0:
            label = "noise: twice the deviation where the start is the same"
            axes.axhspan(-noise, noise, color="0.9", zorder=0, label=label)
        for alike, style in ((False, {"color": COLOURS[0]}), (True, {"mec": "0.5", "mfc": "none"})):
            chosen = found[found["same"] == alike]
            label = "the same start" if alike else "another start"
            axes.plot(chosen["similarity"], chosen["difference"], "o", ms=5, label=label, **style)
        axes.set_title(method, fontsize=9)
        if axes.get_subplotspec().is_last_row():
            axes.set_xlabel(SIMILARITY, fontsize=9)
        axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.3)
    for axes in top.axes[len(others) :]:
        axes.set_visible(False)
    top.legend(*top.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    top.supylabel(f"test accuracy less that of\n{first}", fontsize=9)
    return figure


def _most_dependent(data: pd.DataFrame, first: str) -> str:
    """A title that names the method whose difference depends most on similarity, if enough pairs are run."""
    ranks = {}
    for method, found in data[~data["same"]].groupby("method", sort=False):
        gains = found["difference"].max() > 0  # a method that never gains has nothing that could depend on similarity
        if len(found) >= method_effects.ENOUGH and gains:
            ranks[method] = verdicts.rank_correlation(found["difference"], found["similarity"])
    if not ranks:
        return f"Test accuracy less that of {first}, over similarity"
    most = max(ranks, key=lambda method: abs(ranks[method]))
    return f"{most} depends most on similarity (rank correlation {ranks[most]:.2f})"


def _finish(axes: Axes, metric: str = "test_accuracy") -> None:
    """Label the axes of a metric over epochs."""
    axes.set(xlabel="epoch", ylabel=metric.replace("_", " "))
    axes.label_outer()
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
