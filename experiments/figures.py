"""Records -> figures, as PNG and SVG under results/figures.

python -m experiments.figures          writes those whose records have changed
python -m experiments.figures --check  fails if a committed one is not what the records give
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from dpiat import Architecture
from dpiat.plotting import plot_matching, plot_similarity
from experiments import cells, choosing, methods, paper, reproduction, tables
from experiments.records import CannotWrite, atomic_write, same

# One colour for each source, from a palette that the colour-blind can tell apart; random init is black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

# The paper's curves: whose trials, and what over epochs.
CURVES = {
    "figure04": ("table03", "test_accuracy"),
    "figure06": ("figure06", "test_accuracy"),
    "figure09": ("table03", "train_loss"),
    "figure10": ("table03", "test_loss"),
    "figure11": ("table03", "train_accuracy"),
    "figure12": ("figure06", "train_loss"),
    "figure13": ("figure06", "test_loss"),
    "figure14": ("figure06", "train_accuracy"),
    "figure15": ("figure15", "test_accuracy"),
}


def comparison(record: dict[str, Any], baseline: dict[str, Any], folder: Path) -> Path:
    """Test accuracy over epochs from both initializations, saved as a PNG named after the trial."""
    trial = record["trial"]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(title=f"{trial['model']} on {trial['dataset']}")
    label = f"{trial['init']} from {trial['source']['model']}" if trial["source"] else trial["init"]
    for rows, name, colour in ((record["epochs"], label, COLOURS[0]), (baseline["epochs"], "random init", "black")):
        axes.plot(
            [row["epoch"] for row in rows], [row["test_accuracy"] for row in rows], "o-", color=colour, label=name
        )
    _finish(axes)
    axes.legend()
    file = folder / f"{record['id']}.png"
    atomic_write(file, lambda f: figure.savefig(f, format="png", dpi=150))
    return file


def curves(frame: pd.DataFrame, records: cells.Records, metric: str = "test_accuracy") -> Figure:
    """A metric over epochs, a panel for each target: the mean over seeds, and their range.

    Black is random init, broad and yellow the target's own ImageNet weights; a source has its colour. Where sources
    come with several weights, lines are dashed for ImageNet weights and dotted for those trained from scratch. The
    legend gives the number of seeds.
    """
    run = frame[frame["id"].isin(records.keys())]
    targets = [target for target in frame["target"].unique() if (run["target"] == target).any()]
    columns = min(len(targets), 4)
    height = -(-len(targets) // columns)
    figure = Figure(figsize=(max(3.2 * columns, 9), 2.8 * height + 1.6), layout="constrained")
    panels = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False).flat
    sources = sorted(set(run["source"]) - {""})
    plain = run.loc[run["source"] != "", "weights"].nunique() < 2
    handles, counts = {}, {}
    for axes, target in zip(panels, targets, strict=False):
        for key, cell in run[run["target"] == target].groupby(["init", "source", "weights", "lr"], sort=False):
            name, style = _line(*key, sources, plain)
            epochs = pd.DataFrame([row for trial in cell["id"] for row in records[trial]["epochs"]])
            by_epoch = epochs.groupby("epoch")[metric]
            marker = "o" if len(by_epoch) < 20 else ""
            (handles[name],) = axes.plot(by_epoch.mean(), **{"marker": marker, "markersize": 3, **style})
            axes.fill_between(
                by_epoch.min().index, by_epoch.min(), by_epoch.max(), color=style["color"], alpha=0.2, linewidth=0
            )
            counts.setdefault(name, []).append(cell["seed"].nunique())
        axes.set_title(target, fontsize=9)
    for number, axes in enumerate(figure.axes):
        axes.set_visible(number < len(targets))
        _finish(axes, metric)
        axes.tick_params(labelbottom=True)
    order = sorted(handles, key=lambda name: (not name.startswith("random"), not name.startswith("own"), name))
    labels = [f"{name} (n = {_range(counts[name])})" for name in order]
    figure.legend(
        [handles[name] for name in order],
        labels,
        loc="outside lower center",
        ncols=2 if columns < 3 else 3,
        fontsize=8,
        handlelength=3,
        title="means over n seeds; bands: their range" if max(map(max, counts.values())) > 1 else None,
        title_fontsize=8,
    )
    figure.suptitle(_wrapped(cells.scale_line(frame, records), 150 if columns > 2 else 110), fontsize=8)
    return figure


def _line(
    init: str, source: str, weights: str, lr: float, sources: list[str], plain: bool
) -> tuple[str, dict[str, Any]]:
    """The name of a cell's line, and its look."""
    if init == "random":
        return f"random init, lr {lr:g}", {
            "color": "black",
            "linestyle": "--" if plain and lr == tables.PAPER_LR else "-",
        }
    if init == "pretrained":
        beneath = {"color": "#f0e442", "linewidth": 5, "zorder": 1, "marker": ""}  # the same as from itself
        return f"own ImageNet weights, lr {lr:g}", beneath
    if init == "ghn2":
        return f"GHN-2, lr {lr:g}", {"color": "#b8860b", "linestyle": "-."}
    dashes = "-" if plain else {"imagenet": "--", "scratch": ":"}.get(weights, "-")
    colour = COLOURS[sources.index(source) % len(COLOURS)]
    return f"{source}, {cells.SOURCES[weights]}, lr {lr:g}", {"color": colour, "linestyle": dashes}


def _range(counts: list[int]) -> str:
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def scatter(experiment: str, records: cells.Records) -> Figure:
    """Our counterpart of Figure 16: effectiveness over similarity, a colour for each source, a line for each target."""
    trials = tables.own_trials(experiment, records)
    found = tables.own_cells(trials)
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    axes = figure.add_subplot()
    for colour, (source, points) in zip(cycle(COLOURS), found.groupby("source"), strict=False):
        axes.plot(points["similarity"], points["value"], "o", ms=5, color=colour, label=f"from {source}")
    same = found[found["source"] == found["target"]]
    axes.plot(same["similarity"], same["value"], "o", ms=10, mfc="none", mec="0.4", label="from itself")
    for number, (_, points) in enumerate(found.sort_values("similarity").groupby("target")):
        label = "to one target" if number == 0 else None
        axes.plot(points["similarity"], points["value"], color="0.7", linewidth=0.8, zorder=0, label=label)
    correlation = choosing.choice(found)["correlation"]
    axes.set_title(f"{experiment}: {len(found)} cells, r = {correlation:.2f}", fontsize=10)
    axes.set(xlabel="similarity (Eq. 5)", ylabel="effectiveness within 4 epochs")
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.grid(alpha=0.3)
    axes.margins(0.12)
    figure.suptitle(_wrapped(cells.scale_line(trials, records), 110), fontsize=8)
    _label_once(axes, found)
    figure.legend(loc="outside lower center", ncols=5, fontsize=8)
    return figure


def _label_once(axes: Axes, found: pd.DataFrame) -> None:
    """Each target's name beside one of its points, where it covers the least of points, lines and names."""
    size, unit = 7, axes.figure.dpi / 72  # points; pixels of a point
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
        style = {"fontsize": size, "ha": "left" if offset[0] > 0 else "right", "va": "bottom"}
        style["path_effects"] = [withStroke(linewidth=2, foreground="white")]  # where a line runs through it
        axes.annotate(target, axes.transData.inverted().transform(at), offset, textcoords="offset points", **style)


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def figure02(architectures: Mapping[str, Architecture]) -> Figure:
    """The paper's Figure 2: ReXNet (x1.0) matched with EfficientNet-B2."""
    names = ("ReX", "Eff-B2")
    return plot_matching(*(architectures[name] for name in names), names=names).figure


def figure05(architectures: Mapping[str, Architecture]) -> Figure:
    """The paper's Figure 5: similarities of its networks."""
    return plot_similarity(architectures).figure


def figure16(similarity: pd.DataFrame, values: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """The paper's Figure 16: the values of Tables 1 and 6 to 10 over similarity, a panel for each table.

    `values` has columns target, source and value, the paper's or ours, for those tables that are there.
    """
    figure = Figure(figsize=(11, 6.8), layout="constrained")
    panels = figure.subplots(2, 3).flat
    for axes, (table, (dataset, weights)) in zip(panels, paper.TABLE_11.items(), strict=True):
        found = values.get(table, paper.matrix(table)[:0]).merge(similarity, on=["source", "target"])
        itself = found["source"] == found["target"]
        for chosen, colour, label in (
            (~itself, COLOURS[0], "other networks"),
            (itself, COLOURS[1], "the same network"),
        ):
            axes.plot(found.loc[chosen, "similarity"], found.loc[chosen, "value"], "o", ms=4, color=colour, label=label)
        start, correlation = paper.STARTS[weights], found["similarity"].corr(found["value"])
        said = f"r = {correlation:.2f}" if len(found) > 2 else cells.NOT_RUN
        axes.set_title(f"Table {int(table[5:])}: {dataset}, {said}\nsources from {start}", fontsize=9)
        axes.set_xlabel("similarity (Eq. 5)", fontsize=9)
        axes.set_ylabel(f"accuracy / that from {start}", fontsize=9)
        axes.set_xlim(0.35, 1.05)
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure


def figures16(similarity: pd.DataFrame, records: cells.Records) -> dict[str, Figure]:
    """Figure 16 from the paper's own tables, and from ours at each scale that was run."""
    printed = {table: paper.matrix(table) for table in paper.TABLE_11}
    found = {"figure16": figure16(similarity, printed, "The values that the paper prints, over similarity")}
    ours = pd.concat(reproduction.run(table, records).assign(table=table) for table in paper.TABLE_11)
    for scale, run in ours.groupby("scale"):
        values = {table: cell.assign(value=cell["ours"]) for table, cell in run.groupby("table")}
        found[f"figure16_{scale}"] = figure16(similarity, values, f"Our values at scale {scale}, over similarity")
    return found


def dots(data: pd.DataFrame, title: str) -> Figure:
    """Effectiveness of several methods on the same pairs: a row a pair that has more than one, a dot a method.

    Dotted lines are their means over the pairs that all of them have.
    """
    data = data[data.groupby(["target", "source"])["method"].transform("nunique") > 1]
    pairs = list(dict.fromkeys(zip(data["target"], data["source"], strict=True)))
    together = methods.together(data)
    height = max(0.28, 0.07 * data["method"].nunique()) * len(pairs)
    figure = Figure(figsize=(9, height + 2.2), layout="constrained")
    axes = figure.add_subplot(xlabel="effectiveness")
    axes.axvline(1, color="0.6", linewidth=1)
    count = data["method"].nunique()
    for number, (method, found) in enumerate(data.groupby("method", sort=False)):
        colour = ("black", *COLOURS)[number % (len(COLOURS) + 1)]
        shift = 0.6 * ((number + 0.5) / count - 0.5)  # equal ones side by side
        places = [pairs.index(pair) + shift for pair in zip(found["target"], found["source"], strict=True)]
        mean = together.loc[together["method"] == method, "effectiveness"].mean()
        label = f"{method}: {mean:.2f}"
        axes.plot(found["effectiveness"], places, "o", color=colour, markersize=5, alpha=0.8, label=label)
        axes.axvline(mean, color=colour, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(pairs)), [f"{target} from {source}" for target, source in pairs])
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    count = len(together.drop_duplicates(["target", "source"]))
    legend = f"mean over the {count} pairs that are run with each"
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, title=legend, title_fontsize=8)
    figure.suptitle(_wrapped(title, 110), fontsize=8)
    return figure


def by_similarity(data: pd.DataFrame, title: str) -> Figure:
    """The accuracy of each method less that of the first one on the same pair, over the pair's similarity."""
    first, *others = data["method"].unique()
    data = data.assign(similarity=methods.of_first(data, "similarity"), difference=methods.differences(data))
    figure = Figure(figsize=(11, 2.9 * -(-len(others) // 3) + 1), layout="constrained")
    figure.subplots(-(-len(others) // 3), 3, sharex=True)
    for axes, method in zip(figure.axes, others, strict=False):
        found = data[data["method"] == method]
        for alike, style in ((False, {"color": COLOURS[0]}), (True, {"mec": "0.5", "mfc": "none"})):
            chosen = found[found["same"] == alike]
            label = "the same start" if alike else "another start"
            axes.plot(chosen["similarity"], chosen["difference"], "o", ms=5, label=label, **style)
        axes.set_title(method, fontsize=9)
        if axes.get_subplotspec().is_last_row():
            axes.set_xlabel("similarity (Eq. 5)", fontsize=9)
        axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.3)
    for axes in figure.axes[len(others) :]:
        axes.set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.supylabel(f"accuracy less that of\n{first}", fontsize=9)
    figure.suptitle(_wrapped(title, 140), fontsize=8)
    return figure


def _wrapped(text: str, width: int) -> str:
    """Each sentence on lines of its own."""
    return "\n".join(textwrap.fill(sentence, width) for sentence in re.split(r"(?<=\.) ", text))


def _finish(axes: Axes, metric: str = "test_accuracy") -> None:
    axes.set(xlabel="epoch", ylabel=metric.replace("_", " "))
    axes.label_outer()
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)


def build(records: cells.Records, own: list[str]) -> dict[str, Figure]:
    """Every figure, of the paper and of experiments of our own, by the name of its files."""
    networks = paper.architectures()
    by_label = {label: networks[name] for label, name in paper.LABELS.items()}
    figures = {
        "figure02": figure02(by_label),
        "figure05": figure05(by_label),
        **figures16(paper.similarities(networks), records),
    }
    for name, (experiment, metric) in CURVES.items():
        for scale, frame in cells.frames(experiment, records).items():
            figures[f"{name}_{scale}"] = curves(frame, records, metric)
    for experiment in own:
        trials = tables.own_trials(experiment, records)
        if methods.several(trials):
            planned, line = methods.pairs(trials), cells.scale_line(trials, records)
            found = planned.dropna(subset="effectiveness")
            if found["method"].nunique() > 1:
                figures[experiment] = dots(found, line)
                if methods.of_table12(planned):
                    alike = found.assign(same=methods.same_start(found))
                    figures[f"{experiment}_similarity"] = by_similarity(alike, line)
        elif trials["accuracy"].notna().any():
            figures[experiment] = curves(trials, records)
            if len(tables.own_cells(trials)) > 2:
                figures[f"{experiment}_similarity"] = scatter(experiment, records)
    return figures


def svg(figure: Figure) -> str:
    """The same text for the same figure: letters as paths, no date, no random ids."""
    file = io.StringIO()
    with rc_context({"svg.hashsalt": "dpiat", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def write(figures: Mapping[str, Figure], folder: Path) -> None:
    """PNG and SVG of those figures that are not there as they are."""
    for file, text in outdated(figures, folder).items():
        picture, words = file.with_suffix(".png"), {"Comment": _digest(text)}
        draw = partial(figures[file.stem].savefig, format="png", dpi=150, metadata=words)
        atomic_write(picture, draw)
        atomic_write(file, lambda f, text=text: f.write(text.encode()))  # last: it says that both are as they should be
        print(picture)


def outdated(figures: Mapping[str, Figure], folder: Path) -> dict[Path, str]:
    """The SVG files, with what they should be, that are not so, not there, or without a PNG that is of them.

    PNGs differ from machine to machine: each says of which SVG it is the picture.
    Each figure is drawn once here: drawn again, a constrained layout may move a little.
    """
    texts = {folder / f"{name}.svg": svg(figure) for name, figure in figures.items()}
    return {file: text for file, text in texts.items() if not (same(file, text) and _pictured(file, text))}


def _pictured(file: Path, text: str) -> bool:
    picture = file.with_suffix(".png")
    return picture.is_file() and _digest(text).encode() in picture.read_bytes()


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _others(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Pictures that are missing, and files that are none of these figures."""
    known = {folder / f"{name}{suffix}" for name in figures for suffix in (".png", ".svg")}
    return sorted(known ^ {*folder.glob("*")})


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the figures from the records.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a committed file is out of date")
    arguments = parser.parse_args()
    folder = paper.RESULTS / "figures"
    try:
        records = cells.all_evidence()
    except ValueError as error:
        sys.exit(f"error: {error}")
    figures = build(records, tables.own_experiments())
    if not arguments.check:
        try:
            write(figures, folder)
        except CannotWrite as error:
            sys.exit(f"error: {error}")
    elif others := _others(figures, folder):
        sys.exit(f"error: missing, or made by nothing: {', '.join(file.name for file in others)}")
    elif stale := outdated(figures, folder):
        names = ", ".join(file.name for file in stale)
        sys.exit(f"error: not what the records give: {names}; run `make figures` and commit")


if __name__ == "__main__":
    main()
