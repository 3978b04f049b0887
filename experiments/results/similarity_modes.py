"""Does similarity tell the best source in each mode? The default mode has a matching and similarities of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from experiments.results import source_choice, verdicts
from experiments.results.cells import Table, markdown
from experiments.results.source_choice import SourceEffects
from experiments.results.verdicts import Matrix

# The modes by their names on the page, each with the measure of `source_choice` that is its similarity.
MODES = {"paper": "similarity, paper mode", "default": "similarity"}
DIFFERENCE = "default less paper"
RULE = f"""\
Does similarity (Eq. 5) tell which source is best for a target? In paper mode it is the paper's number; the default
mode matches layers otherwise, and its similarity is the score of that matching.

A number is Pearson's correlation of similarity with the natural logarithm of effectiveness; a network as its own source
is left out. `within rows`: the mean of its row (one target) is taken off each of both, as one chooses a source for a
given target. So random init, by which a row is divided, drops out. `all cells`: as in the paper's Table 11, whose
printed number (`paper prints`) has the networks themselves as sources, and no logarithm. `n`: cells, of how many
targets. In brackets, {verdicts.LEVEL:.0%} intervals by a bootstrap of {verdicts.DRAWS:,} draws over targets and
sources; of few sources they are rough. `{DIFFERENCE}` is of the same draws. `best chosen`: for how many targets the
most similar source is the best.

All of these trials, the paper's and ours, transfer in paper mode. So the page says which number predicts what paper
mode gives, not what the default mode gives.
"""


def table(results: Sequence[SourceEffects]) -> Table:
    """Similarity of both modes beside each other, on the paper's tables and on ours, with n and intervals."""
    measured = source_choice.measures_of_results(results).pivot(
        index=["target", "source"], columns="measure", values="similarity"
    )
    similar = measured[list(MODES.values())].rename(columns={measure: mode for mode, measure in MODES.items()})
    data = pd.DataFrame(
        row
        for name, values, printed in results
        for row in _rows(name, values.join(similar, ["target", "source"]), printed)
    )
    return Table(data, f"{RULE}\n{markdown(_page(data))}\n{_said(data)}")


def _rows(name: str, cells: pd.DataFrame, printed: float | None) -> list[dict[str, object]]:
    """A row for each mode and one for their difference, of cells (target, source, value, default, paper)."""
    logs, default, paper = (
        _matrix(cells.assign(log=np.log(cells["value"])), column) for column in ("log", "default", "paper")
    )
    similar = {"paper": (paper,), "default": (default,), DIFFERENCE: (paper, default)}
    rows: list[dict[str, object]] = []
    for mode, matrices in similar.items():
        row: dict[str, object] = {"results": name, "paper prints": printed, "mode": mode}
        row |= {"targets": int((np.isfinite(logs).sum(1) > 1).sum()), "cells in rows": verdicts.in_rows(logs)}
        row |= _told("within rows", verdicts.within_rows, logs, *matrices)
        row["cells"] = int(np.isfinite(logs).sum())
        row |= _told("all cells", verdicts.correlation, logs, *matrices)
        if mode in MODES:
            row["best chosen"] = source_choice.prediction_quality(cells.rename(columns={mode: "similarity"}))[
                "best chosen"
            ]
        rows.append(row)
    return rows


def _matrix(cells: pd.DataFrame, column: str) -> Matrix:
    """(targets, sources), NaN where nothing is run and where a network is its own source."""
    others = cells[cells["source"] != cells["target"]]
    return others.pivot(index="target", columns="source", values=column).to_numpy(dtype=float)


def _told(name: str, statistic: Callable[..., Matrix], logs: Matrix, *similar: Matrix) -> dict[str, float]:
    """A correlation with its interval; of two similarities, the second's less the first's."""

    def number(logs: Matrix, *similar: Matrix) -> Matrix:
        found = [statistic(logs, each) for each in similar]
        return found[-1] - found[0] if len(found) > 1 else found[0]

    low, high = verdicts.interval(number, logs, *similar)
    return {name: float(number(logs, *similar)), f"{name}, low": low, f"{name}, high": high}


def _page(data: pd.DataFrame) -> pd.DataFrame:
    """A line for each result, with both modes side by side."""
    lines = []
    for name, rows in data.groupby("results", sort=False):
        modes = rows.set_index("mode")
        first = rows.iloc[0]
        line = {"results": name, "paper prints": first["paper prints"]}
        for kind, count in (("within rows", "cells in rows"), ("all cells", "cells")):
            line[f"n, {kind}"] = f"{first[count]} of {first['targets']}" if kind == "within rows" else first[count]
            line |= {f"{kind}, {mode}": _number(modes.loc[mode], kind) for mode in modes.index}
        chosen = [f"{modes.loc[mode, 'best chosen']:.0f}" for mode in MODES]
        line["best chosen, paper and default"] = f"{' and '.join(chosen)} of {first['targets']}"
        lines.append(line)
    return pd.DataFrame(lines)


def _number(row: pd.Series, kind: str) -> str:
    low, high = row[f"{kind}, low"], row[f"{kind}, high"]
    if pd.isna(row[kind]):
        return ""
    return f"{row[kind]:.2f}" + ("" if pd.isna(low) else f" [{low:.2f}, {high:.2f}]")


def _said(data: pd.DataFrame) -> str:
    """In words, what the differences within rows say, and which results say nothing."""
    differences = data[data["mode"] == DIFFERENCE].set_index("results")
    told = differences.dropna(subset="within rows")
    better, worse = told["within rows, low"] > 0, told["within rows, high"] < 0
    text = f"Within rows, the default mode's similarity tells more in {better.sum()} of {len(told)} results, less in "
    text += f"{worse.sum()}, and in {len(told) - better.sum() - worse.sum()} the interval of the difference holds 0."
    if silent := [name for name in differences.index if name not in told.index]:
        text += f" Nothing can be told within rows, as there are too few sources: {'; '.join(silent)}."
    return f"{text}\n"
