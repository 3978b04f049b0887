"""Records -> figures, as PNG and SVG under results/figures: python -m experiments.figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpiat import Architecture
from dpiat.plotting import plot_matching, plot_similarity
from experiments import tables
from experiments.records import atomic_write

# One colour for each source, from a palette that the colour-blind can tell apart; random init is black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


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


def curves(experiment: str) -> Figure:
    """Test accuracy over epochs of an experiment, a panel for each target: the mean over seeds, and their range.

    The legend gives the learning rate and the number of seeds.
    """
    trials, epochs = tables.experiment_evidence(experiment)
    rows = epochs.merge(trials, on="id", suffixes=("_of_epoch", ""))
    targets = trials.loc[trials["init"] != "random", "model"].unique()
    figure = Figure(figsize=(max(4.5 * len(targets), 7), 4.5), layout="constrained")
    panels = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
    sources = sorted(trials["source"].unique())  # "" is random init
    for axes, target in zip(panels, targets, strict=True):
        cells = rows[rows["model"] == target].groupby(["source", "init", "lr"])
        for (source, init, lr), cell in cells:
            label = f"{init} from {source}" if source else f"{init} init"
            by_epoch = cell.groupby("epoch")["test_accuracy"]
            mean, low, high = by_epoch.mean(), by_epoch.min(), by_epoch.max()
            colour = COLOURS[sources.index(source) - 1] if source else "black"
            style = "o--" if not source and lr == tables.PAPER_LR else "o-"
            axes.plot(mean.index, mean, style, color=colour, label=f"{label}, lr {lr:g} (n = {cell['seed'].nunique()})")
            axes.fill_between(mean.index, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_title(target)
        _finish(axes)
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, fontsize=8, handlelength=3)
    figure.suptitle(tables.scale_line(experiment), fontsize=9)
    return figure


def figure02(architectures: Mapping[str, Architecture]) -> Figure:
    """The paper's Figure 2: ReXNet (x1.0) matched with EfficientNet-B2."""
    names = ("ReX", "Eff-B2")
    return plot_matching(*(architectures[name] for name in names), names=names).figure


def figure05(architectures: Mapping[str, Architecture]) -> Figure:
    """The paper's Figure 5: similarities of its networks."""
    return plot_similarity(architectures).figure


def figure16(similarity: pd.DataFrame) -> Figure:
    """The paper's Figure 16: what its tables print over similarity, a panel for each table; no training of ours."""
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    panels = figure.subplots(2, 3).flat
    for axes, (table, (dataset, weights, _)) in zip(panels, tables.TABLE_11.items(), strict=True):
        cells = tables.paper_cells(table, similarity)
        same = cells["source"] == cells["target"]
        for chosen, colour, label in ((~same, COLOURS[0], "other networks"), (same, COLOURS[1], "the same network")):
            axes.plot(cells.loc[chosen, "similarity"], cells.loc[chosen, "value"], "o", ms=4, color=colour, label=label)
        correlation = cells["similarity"].corr(cells["value"])
        axes.set_title(f"Table {table}: {dataset}, {weights} weights, r = {correlation:.2f}", fontsize=9)
        divisor = "random init" if weights == "random" else "ImageNet weights"
        axes.set_xlabel("similarity (Eq. 5)", fontsize=9)
        axes.set_ylabel(f"accuracy / that from {divisor}", fontsize=9)
        axes.set_xlim(0.35, 1.05)
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _finish(axes: Axes) -> None:
    axes.set(xlabel="epoch", ylabel="test accuracy")
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)


def main() -> None:
    folder = tables.RESULTS / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    architectures = tables.paper_architectures()
    figures = {
        "figure02": figure02(architectures),
        "figure05": figure05(architectures),
        "figure16": figure16(tables.similarities(architectures)),
    }
    figures |= {experiment: curves(experiment) for experiment in tables.experiments_run()}
    for name, figure in figures.items():
        with rc_context({"svg.hashsalt": "dpiat"}):  # equal records, equal files
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png", dpi=150)
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
