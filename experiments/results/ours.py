"""Tables of our own grids: a row for each target, a column for each initialization."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from experiments import grids
from experiments.results import cells, method_effects, paper
from experiments.results.cells import NOT_PLANNED, NOT_RUN, Table, markdown
from experiments.store.records import time_to_accuracy


def table(experiment: str, records: cells.Records) -> Table:
    """Build the table of one of our own experiments: accuracies within 4 epochs, and ratios to random init."""
    frame = trials(experiment, records)
    if method_effects.varies_method(frame):
        line = f"{cells.scale_line(frame, records)} {cells.baseline_line(frame)}"
        return method_effects.table(grids.title(experiment), line, method_effects.pairs(frame))
    keys = ["target", "column", "lr"]
    data = pd.DataFrame(
        {
            **dict(zip(keys, key, strict=True)),
            "similarity": cell["similarity"].mean(),
            **{f"{name} {what}": value for name in RATIOS for what, value in cells.summarize(cell[name]).items()},
            "epochs to random init's best": _epochs(cell["epochs"]),
        }
        for key, cell in frame.groupby(keys, sort=False)
    )
    parts = [grids.title(experiment), cells.scale_line(frame, records), cells.baseline_line(frame)]
    same_rate = (frame["lr"] == paper.RANDOM_LR).all()
    for name, caption in list(RATIOS.items())[: 2 if same_rate else 3]:
        shown = frame if name == "accuracy" else frame[frame["init"] != "random"]
        parts.append(f"{caption}\n\n{wide(shown, name)}".rstrip("\n"))
    parts.append(f"{TIME}\n\n{wide(frame[frame['init'] != 'random'], 'epochs', _epochs)}")
    return Table(data, "\n\n".join(parts))


RATIOS = {
    "accuracy": "Best test accuracy within 4 epochs:",
    "effectiveness": f"Effectiveness, the ratio to random init at the paper's learning rate, {paper.RANDOM_LR:g}:",
    cells.SAME_RATE: "The ratio to random init at the same learning rate as the transfer:",
}
TIME = (
    "The epoch in which each seed of a target reaches the accuracy that random init has within 4 epochs, at the better "
    "of its learning rates (means over seeds). This is the counterpart of Tables 4 and 5:"
)


def headline(experiment: str, records: cells.Records) -> str:
    """Write the main table of results/README.md: accuracy and effectiveness of each pair that is run."""
    every = trials(experiment, records)
    frame = same_seeds(every)
    targets = frame.loc[(frame["init"] != "random") & frame["accuracy"].notna(), "target"].unique()
    means = frame.groupby(["target", "column"], sort=False)[["accuracy", "effectiveness"]].mean().reset_index()
    compared = means["effectiveness"].notna() & ~means["column"].str.startswith("random")
    ratio = means["effectiveness"].map(" {:.2f}×".format).where(compared, "")
    means["cell"] = (means["accuracy"].map("{:.3f}".format) + ratio).where(means["accuracy"].notna(), NOT_RUN)
    shown = _in_order(means.pivot(index="target", columns="column", values="cell").loc[targets])
    run = frame.dropna(subset="accuracy").groupby("target")["seed"].nunique()
    shown.insert(1, "seeds", shown["target"].map(run))
    lines = f"{cells.scale_line(every, records)} {cells.baseline_line(every)}"
    return f"{lines}\n\n{markdown(shown)}\n{_above_1(frame)} {_after_one_epoch(every)}\n"


def _above_1(frame: pd.DataFrame) -> str:
    """Say how many pairs of different networks gain: over random init at the paper's rate, and at the better rate."""
    run = frame[(frame["source"] != "") & (frame["source"] != frame["target"])]
    ratios = run.groupby(["target", "source"])[["effectiveness", cells.SAME_RATE]].mean().dropna()
    of_better = ratios.min(axis=1)
    return (
        f"The mean effectiveness of the {len(ratios)} pairs of different networks is "
        f"{ratios['effectiveness'].mean():.2f}. Divided by random init at the transfer's own learning rate, the mean "
        f"would be {ratios[cells.SAME_RATE].mean():.2f}. Divided by random init at the better of both rates, "
        f"{(of_better > 1).sum()} of {len(ratios)} pairs are above 1."
    )


def _after_one_epoch(frame: pd.DataFrame) -> str:
    """Say how many pairs need one epoch for what random init needs four epochs for."""
    run = frame[(frame["source"] != "") & (frame["source"] != frame["target"]) & frame["epochs"].notna()]
    after_one = (run["epochs"] == 1).groupby([run["target"], run["source"]]).all()
    return (
        f"One epoch after a transfer beats or equals four epochs from random init in {after_one.sum()} of "
        f"{len(after_one)} pairs, with each seed of the target and at the better rate of random init."
    )


def trials(experiment: str, records: cells.Records) -> pd.DataFrame:
    """Return `cells.with_effectiveness` of one of our own experiments, with two more columns.

    `column` names the trial's column of the table, and `epochs` is the epoch in which the trial reaches random init's
    accuracy.
    """
    frame = cells.trials(cells.planned_cells(experiment), records)
    versions = frame.loc[frame["mode"] == "default", "version"].nunique() > 1
    frame["column"] = [_column(row, versions) for row in frame.itertuples()]
    frame["epochs"] = _epochs_to_random(frame, records)
    return cells.with_effectiveness(frame)


def _epochs_to_random(frame: pd.DataFrame, records: cells.Records) -> list[float]:
    """The epoch in which each trial reaches the accuracy of random init within 4 epochs, at its best learning rate.

    Infinite if the trial never does. NaN unless the trial and random init at each of its rates are run.
    """
    random = frame[frame["init"] == "random"].groupby(["target", "lr"])["of random"].first()
    best = random.groupby("target").agg(lambda rates: rates.max(skipna=False))
    found = []
    for row in frame.itertuples():
        accuracy = best[row.target]
        known = row.id in records and not math.isnan(accuracy)
        found.append(time_to_accuracy(records[row.id], accuracy)[0] or math.inf if known else math.nan)
    return found


def _epochs(cell: pd.Series) -> str:
    """The epochs of the seeds of a cell, in their order, as text."""
    found = ["not reached" if math.isinf(epochs) else f"{epochs:.0f}" for epochs in cell.dropna()]
    return ", ".join(found) or NOT_RUN


def same_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep for each target the seeds that all cells of its row have; all seeds if the cells share none."""
    # A grid fills seed by seed. If one cell of a row had three seeds and another had one, the difference between the
    # two means would be partly a difference between seeds. A row of the main table is read from left to right, as a
    # comparison, so all its cells take the same seeds. Random init is the exception: its mean takes all seeds it has
    # (`cells.trials`), as it divides the whole row.
    kept = []
    for _, row in frame.groupby("target", sort=False):
        seeds = [set(cell["seed"]) for _, cell in row.dropna(subset="accuracy").groupby("column")]
        shared = set.intersection(*seeds) if seeds else set()
        kept.append(row[row["seed"].isin(shared)] if shared else row)
    return pd.concat(kept)


def _column(row: Any, versions: bool) -> str:
    """The name of a trial's column: all that its grid may vary, and the default mode's version if there are several."""
    if not row.source:
        named = {"random": f"random init, lr {row.lr:g}", "pretrained": "own ImageNet weights"}
        return named.get(row.init, row.init)
    init = "" if row.init == "dpiat" else f", {row.init}"
    mode = "" if row.mode == "paper" else f", {row.mode} mode" + (f", version {row.version}" if versions else "")
    method = "" if (row.operator, row.matching) == ("clip", "dp") else f", {row.operator} {row.matching}"
    head = "" if row.head == "auto" else f", head {row.head}"
    return f"{row.source}{init}{mode}{method}{head}"


def wide(frame: pd.DataFrame, value: str, text: Callable[[pd.Series], str] = cells.mean_and_spread) -> str:
    """Write Markdown with a row for each target and a column for each initialization.

    Args:
        frame: The rows of `trials`.
        value: The column of `frame` that cells show.
        text: Turns the values of a cell's trials into the cell's text.
    """
    shown = frame.groupby(["target", "column"], sort=False)[value].agg(text).unstack()
    return markdown(_in_order(shown.loc[frame["target"].unique()]))


def _in_order(shown: pd.DataFrame) -> pd.DataFrame:
    """The columns in their order: random init, own ImageNet weights, then the sources."""
    order = sorted(shown.columns, key=lambda name: (not name.startswith("random"), not name.startswith("own"), name))
    return shown[order].fillna(NOT_PLANNED).rename_axis(columns=None).reset_index()


def transfers(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the transfers that are run: target, source, similarity, and value, the mean over `same_seeds`."""
    frame = same_seeds(frame)
    found = frame[(frame["source"] != "") & frame["effectiveness"].notna()]
    means = found.groupby(["target", "source"], sort=False)[["similarity", "effectiveness"]].mean()
    return means.rename(columns={"effectiveness": "value"}).reset_index()
