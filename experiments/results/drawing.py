"""What a figure shows: curves, dots, scatters and the paper's diagrams, as figures of matplotlib."""

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
from experiments.results import cells, method_effects, ours, paper, reproduction, source_choice
from experiments.store.files import atomic_write

# One colour for each source, from a palette that the colour-blind can tell apart; random init is black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def comparison(record: dict[str, Any], baseline: dict[str, Any], folder: Path) -> Path:
    """Test accuracy over epochs from both initializations, saved as a PNG named after the trial."""
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
    """A figure (sides in inches) with a title that says what one sees; the settings are a caption below.

    Returns it and the part of it that is to be drawn in.
    """
    lines = wrapped(caption, int(15 * width))
    below = 0.155 * len(lines) + 0.1
    figure = Figure(figsize=(width, height + below), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(height, below))
    top.suptitle("\n".join(wrapped(title, int(12 * width))), fontsize=11)
    bottom.text(0.01, 1, "\n".join(lines), va="top", fontsize=8, color="0.3")
    return figure, top


def wrapped(text: str, width: int) -> list[str]:
    """Lines of about one length, as few as fit in a width of so many letters: no word stands alone on the last."""
    lines = textwrap.wrap(text, width)
    while width > 1 and len(closer := textwrap.wrap(text, width - 1, break_long_words=False)) == len(lines):
        lines, width = closer, width - 1
    return lines


def curves(frame: pd.DataFrame, records: cells.Records, metric: str = "test_accuracy", scale: str = "") -> Figure:
    """A metric over epochs, a panel for each target: the mean over seeds, and their range.

    Black is random init, broad and yellow the target's own ImageNet weights; a source has its colour. Where sources
    come with several weights, lines are dashed for ImageNet weights and dotted for those trained from scratch. The
    legend gives the number of seeds.
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
    handles, counts = {}, {}
    for axes, target in zip(panels, targets, strict=False):
        for key, cell in run[run["target"] == target].groupby(["init", "source", "weights", "lr"], sort=False):
            init, source, weights, lr = key
            name, style = _line(init, source, weights, lr, sources, plain)
            by_epoch = _by_epoch(cell, records, metric)
            marker = "o" if len(by_epoch) < 20 else ""
            (handles[name],) = axes.plot(by_epoch.mean(), **{"marker": marker, "markersize": 3, **style})
            axes.fill_between(
                by_epoch.min().index, by_epoch.min(), by_epoch.max(), color=style["color"], alpha=0.2, linewidth=0
            )
            counts.setdefault(name, []).append(cell["seed"].nunique())
        axes.set_title(paper.label(target), fontsize=9)
    for number, axes in enumerate(top.axes):
        axes.set_visible(number < len(targets))
        _finish(axes, metric)
        axes.tick_params(labelbottom=True)
    order = sorted(handles, key=lambda name: (not name.startswith("random"), not name.startswith("own"), name))
    labels = [f"{name} (n = {_range(counts[name])})" for name in order]
    top.legend(
        [handles[name] for name in order],
        labels,
        loc="outside lower center",
        ncols=2 if columns < 3 else 3,
        fontsize=8,
        handlelength=3,
        title="means over n seeds; bands: their range" if max(map(max, counts.values())) > 1 else None,
        title_fontsize=8,
    )
    return figure


def _by_epoch(cell: pd.DataFrame, records: cells.Records, metric: str) -> Any:
    """The values of a metric of a cell's trials, by epoch."""
    return pd.DataFrame([row for trial in cell["id"] for row in records[trial]["epochs"]]).groupby("epoch")[metric]


def _seen(run: pd.DataFrame, records: cells.Records, metric: str) -> str:
    """In how many panels' lines a transfer ends better than random init, at the better of its rates."""
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
    """The name of a cell's line, and its look."""
    if init == "random":
        return f"random init, lr {lr:g}", {
            "color": "black",
            "linestyle": "--" if plain and lr == paper.RANDOM_LR else "-",
        }
    if init == "pretrained":
        beneath = {"color": "#f0e442", "linewidth": 5, "zorder": 1, "marker": ""}  # the same as from itself
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
    """Our counterpart of Figure 16: effectiveness over similarity, a colour for each source, a line for each target."""
    trials = ours.trials(experiment, records)
    found = ours.transfers(trials)
    told = source_choice.prediction_quality(found)
    title = f"Effectiveness over similarity: r = {told['correlation']:.2f} over {len(found)} cells"
    if pd.notna(told["within a row"]):
        title += f", {told['within a row']:.2f} within a target's"
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
    axes.set(xlabel="similarity (Eq. 5)", ylabel="effectiveness within 4 epochs")
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.grid(alpha=0.3)
    axes.margins(0.12)
    top.legend(loc="outside lower center", ncols=5, fontsize=8)
    _label_once(axes, found.assign(target=found["target"].map(paper.label)))
    return figure


def _label_once(axes: Axes, found: pd.DataFrame) -> None:
    """Each target's name beside one of its points, where it covers the least of points, lines and names."""
    size, unit = 7, axes.get_figure(root=True).dpi / 72  # points; pixels of a point
    found = found.sort_values(["target", "similarity"], ignore_index=True)
    dots = axes.transData.transform(found[["similarity", "value"]])
    next_one = found["target"].eq(found["target"].shift(-1)).to_numpy()[:-1]
    lines = np.linspace(dots[:-1][next_one], dots[1:][next_one], 20).reshape(-1, 2)
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
        style["path_effects"] = [withStroke(linewidth=2, foreground="white")]  # where a line runs through it
        axes.annotate(target, axes.transData.inverted().transform(at), offset, textcoords="offset points", **style)


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def figure02(architectures: Mapping[str, Architecture]) -> Figure:
    """The paper's Figure 2: ReXNet (x1.0) matched with EfficientNet-B2."""
    names = ("ReX", "Eff-B2")
    source, target = (architectures[name] for name in names)
    return plot_matching(source, target, names=names).figure


def figure05(architectures: Mapping[str, Architecture]) -> Figure:
    """The paper's Figure 5: similarities of its networks."""
    return plot_similarity(architectures).figure


def figure16(similarity: pd.DataFrame) -> Figure:
    """The paper's Figure 16: the values of its Tables 1 and 6 to 10 over similarity, a panel for each table."""
    title = "In the paper's tables, effectiveness grows with similarity"
    caption = "The values that the paper prints, over the similarities that we compute; r is Pearson's correlation."
    figure, top = captioned_figure(11, 6.8, title, caption)
    panels = top.subplots(2, 3).flat
    for axes, table in zip(panels, paper.TABLE_11, strict=True):
        _over_similarity(axes, table, paper.matrix(table).merge(similarity, on=["source", "target"]))
    axes.legend(fontsize=8)
    return figure


def figure16_panel(table: str, similarity: pd.DataFrame, run: pd.DataFrame, caption: str) -> Figure:
    """A panel of Figure 16 from our cells of a table, with columns ours and paper, beside the paper's same cells."""
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
    """A panel of Figure 16, from columns source, target, similarity and value."""
    itself = found["source"] == found["target"]
    parts = ((~itself, COLOURS[0], "other networks"), (itself, COLOURS[1], "the same network"))
    for chosen, colour, label in parts:
        axes.plot(found.loc[chosen, "similarity"], found.loc[chosen, "value"], "o", ms=4, color=colour, label=label)
    dataset, weights = paper.TABLE_11[table]
    start, r = paper.STARTS[weights], _r(found["similarity"], found["value"])
    axes.set_title(name or f"Table {int(table[5:])}: {dataset}, r = {r}\nsources from {start}", fontsize=9)
    axes.set_xlabel("similarity (Eq. 5)", fontsize=9)
    axes.set_ylabel(f"accuracy / that from {start}", fontsize=9)
    axes.set_xlim(0.35, 1.05)
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.grid(alpha=0.3)


def _r(a: pd.Series, b: pd.Series) -> str:
    return f"{a.corr(b):.2f}" if len(a) > 2 else "?"


def figures16(similarity: pd.DataFrame, records: cells.Records) -> dict[str, Figure]:
    """Figure 16 from the paper's own tables, and a panel of each of ours at each scale that was run."""
    found = {"figure16": figure16(similarity)}
    for table in paper.TABLE_11:
        for scale, frame in cells.frames_by_scale(table, records).items():
            run = reproduction.beside_paper(table, frame).dropna(subset="ours")
            caption = f"{cells.scale_line(frame, records, scale)} {cells.baseline_line(frame)}"
            if len(run):
                found[f"figure16_{table}_{scale}"] = figure16_panel(table, similarity, run, caption)
    return found


def method_differences(data: pd.DataFrame, caption: str) -> Figure:
    """The accuracy of each method less that of the first one: a row a pair, by similarity, a colour a method.

    Bars are standard errors over seeds, where there are several; dotted lines are means over the pairs that all have.
    """
    data = data.assign(
        similarity=method_effects.value_of_first(data, "similarity"), difference=method_effects.differences(data)
    )
    error = data["sd"] / data["n"] ** 0.5
    data["error"] = np.hypot(error, method_effects.value_of_first(data.assign(error=error), "error"))
    first, *others = data["method"].unique()
    together = method_effects.with_every_method(data)
    data = data[(data["method"] != first) & data["difference"].notna()]
    rows = data.drop_duplicates(["target", "source"]).sort_values("similarity", ascending=False)
    pairs = list(zip(rows["target"], rows["source"], strict=True))
    means = together.groupby("method")["difference"].mean().reindex(others)
    count = len(together.drop_duplicates(["target", "source"]))
    title = f"Test accuracy less that of {first}"
    if means.notna().any():
        far = means.abs().idxmax()
        title = f"{far}: {means[far]:+.3f} in test accuracy, on average, to {first}"
        if len(means) > 1:
            title += f"; the others at most {means.drop(far).abs().max():.3f} off"
    figure, top = captioned_figure(9, max(0.28, 0.07 * len(others)) * len(pairs) + 1.8, title, caption)
    axes = top.add_subplot(xlabel="difference in test accuracy, the best within 4 epochs")
    axes.axvline(0, color="black", linewidth=1)
    for number, method in enumerate(others):
        found, colour = data[data["method"] == method], COLOURS[number % len(COLOURS)]
        shift = 0.6 * ((number + 0.5) / len(others) - 0.5)  # equal ones side by side
        places = [pairs.index(pair) + shift for pair in zip(found["target"], found["source"], strict=True)]
        label = f"{method}: {means[method]:+.3f}" if count else method
        axes.errorbar(
            *(found["difference"], places), xerr=found["error"], fmt="o", color=colour, ms=5, alpha=0.8, label=label
        )
        axes.axvline(means[method], color=colour, linewidth=1, linestyle=":")
    names = [f"{paper.label(target)} from {paper.label(source)}" for target, source in pairs]
    axes.set_yticks(
        range(len(pairs)), [f"{name}, {value:.2f}" for name, value in zip(names, rows["similarity"], strict=True)]
    )
    axes.set_ylabel("pair and its similarity (Eq. 5)")
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.grid(alpha=0.3)
    legend = f"mean over the {count} pairs that are run with each" if count else None
    top.legend(loc="outside lower center", ncols=2, fontsize=8, title=legend, title_fontsize=8)
    return figure


def differences_over_similarity(data: pd.DataFrame, caption: str) -> Figure:
    """The accuracy of each method less that of the first one on the same pair, over the pair's similarity.

    A band is twice the standard deviation of pairs that begin with the same weights: what is inside may be noise.
    """
    first, *others = data["method"].unique()
    data = data.assign(
        similarity=method_effects.value_of_first(data, "similarity"), difference=method_effects.differences(data)
    )
    data = data[data["method"] != first].dropna(subset="difference")
    noise = 2 * (data.loc[data["same"], "difference"] ** 2).mean() ** 0.5
    ranks = {
        method: found["difference"].rank().corr(found["similarity"].rank())
        for method, found in data[~data["same"]].groupby("method", sort=False)
        if len(found) >= method_effects.ENOUGH and found["difference"].max() > 0  # what never gains, depends on nothing
    }
    title = f"Test accuracy less that of {first}, over similarity"
    if ranks:
        most = max(ranks, key=lambda method: abs(ranks[method]))
        title = f"{most} depends most on similarity (rank correlation {ranks[most]:.2f})"
    height = 2.9 * -(-len(others) // 3) + 1
    figure, top = captioned_figure(11, height, title, caption)
    top.subplots(-(-len(others) // 3), 3, sharex=True)
    for axes, method in zip(top.axes, others, strict=False):
        found = data[data["method"] == method]
        if noise > 0:
            axes.axhspan(
                -noise, noise, color="0.9", zorder=0, label="noise: twice the deviation where the start is the same"
            )
        for alike, style in ((False, {"color": COLOURS[0]}), (True, {"mec": "0.5", "mfc": "none"})):
            chosen = found[found["same"] == alike]
            label = "the same start" if alike else "another start"
            axes.plot(chosen["similarity"], chosen["difference"], "o", ms=5, label=label, **style)
        axes.set_title(method, fontsize=9)
        if axes.get_subplotspec().is_last_row():
            axes.set_xlabel("similarity (Eq. 5)", fontsize=9)
        axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.3)
    for axes in top.axes[len(others) :]:
        axes.set_visible(False)
    top.legend(*top.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    top.supylabel(f"test accuracy less that of\n{first}", fontsize=9)
    return figure


def _finish(axes: Axes, metric: str = "test_accuracy") -> None:
    axes.set(xlabel="epoch", ylabel=metric.replace("_", " "))
    axes.label_outer()
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
