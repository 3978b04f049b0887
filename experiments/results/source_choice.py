"""Which source should one take? What the numbers that need no training tell of what sources gave (Table 11)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import pandas as pd

from experiments.results import paper
from experiments.results.cells import Table, markdown

# The numbers of `dpiat.rank` by their names in the table, with the mode in which networks are standardized.
MEASURES = {
    "similarity": ("default", "similarity"),
    "similarity, paper mode": ("paper", "similarity"),
    "to_target": ("default", "to_target"),
    "to_source": ("default", "to_source"),
    "filled": ("default", "filled"),
}


class SourceEffects(NamedTuple):
    """What sources gave to targets: columns target, source, value; and the correlation in the paper's Table 11."""

    name: str
    values: pd.DataFrame
    printed: float | None = None


def prediction_quality(cells: pd.DataFrame) -> dict[str, float]:
    """How well similarity predicts what a source gives, from columns target, source, similarity and value.

    `correlation` is Pearson's over all cells, as in Table 11. The others leave out the network itself as a source and
    look at one target at a time, as one who chooses a source does: `within a row` is the correlation after the mean of
    its row is taken from each value and each similarity; `regret` is the share of the row's best value that is lost by
    taking the most similar source, `regret of chance` by taking any, both as means over the targets with a choice;
    `best chosen` counts the `targets` whose most similar source is the best one, `by chance` how many any would be;
    `between rows` is the share of the variance of values that is between targets, where there is nothing to choose.
    """
    others = cells[cells["source"] != cells["target"]]
    others = others[others.groupby("target")["source"].transform("count") > 1]
    rows = others.groupby("target")
    centred = others[["similarity", "value"]] - rows[["similarity", "value"]].transform("mean")
    chosen = others.loc[rows["similarity"].idxmax()].set_index("target")["value"]
    total, inside = others["value"] - others["value"].mean(), centred["value"]
    return {
        "cells": len(cells),
        "correlation": cells["similarity"].corr(cells["value"]),
        "within a row": centred["similarity"].corr(centred["value"]),
        "regret": (1 - chosen / rows["value"].max()).mean(),
        "regret of chance": (1 - rows["value"].mean() / rows["value"].max()).mean(),
        "best chosen": int((chosen == rows["value"].max()).sum()),
        "targets": len(chosen),
        "by chance": (1 / rows.size()).sum(),
        "between rows": 1 - (inside**2).sum() / (total**2).sum() if len(others) else float("nan"),
    }


def in_words(name: str, found: dict[str, float]) -> str:
    """In words, what `choice` found of our own results."""
    return (
        f"In {name}, {found['between rows']:.0%} of the variance of effectiveness is between targets, where there is "
        f"nothing to choose; within a row, its correlation with similarity is {found['within a row']:.2f} (over all "
        f"{found['cells']} cells {found['correlation']:.2f}). Of the sources offered, the most similar is the best for "
        f"{found['best chosen']} of {found['targets']} targets, where chance gives {found['by chance']:.0f}; taking it "
        f"loses {found['regret']:.1%} of the best effectiveness, taking any {found['regret of chance']:.1%}.\n"
    )


@cache
def measures_of_pairs(*names: str) -> pd.DataFrame:
    """MEASURES of every pair of networks: columns measure, target, source, similarity."""
    from dpiat import rank  # imports torch, as the networks do

    networks = {mode: paper.architectures(names, mode) for mode in ("default", "paper")}
    rows = []
    for target in names:
        ranked = {mode: rank(found[target], found) for mode, found in networks.items()}
        for measure, (mode, number) in MEASURES.items():
            rows += [(measure, target, source.source, getattr(source, number)) for source in ranked[mode]]
    return pd.DataFrame(rows, columns=["measure", "target", "source", "similarity"])


def measures_of_results(results: Iterable[SourceEffects]) -> pd.DataFrame:
    """The numbers of the networks that occur in results."""
    pairs = pd.concat(found.values[["target", "source"]] for found in results)
    return measures_of_pairs(*pd.unique(pairs.to_numpy().ravel()))


def table11(results: list[SourceEffects], not_run: Iterable[str]) -> Table:
    """Does similarity, as the paper computes it, predict the effect? `not_run` names tables of ours."""
    found = measures_of_results(results)
    similarity = found[found["measure"] == "similarity, paper mode"]
    data = pd.DataFrame(
        {"results": name, "printed": printed, **prediction_quality(values.merge(similarity, on=["source", "target"]))}
        for name, values, printed in results
    )
    page = data.drop(columns=["targets", "by chance", "between rows"])
    page["best chosen"] = [f"{row['best chosen']} of {row['targets']}" for _, row in data.iterrows()]
    text = (
        "`printed` is the paper's Table 11, `correlation` is Pearson's over the same cells, computed here. The columns "
        "after it leave out the network itself as a source and look at one target at a time: `within a row`, the "
        "correlation after the means of its row are taken off; `regret`, the share of a row's best value that is lost "
        "by taking the most similar source; `regret of chance`, by taking any; `best chosen`, for how many targets the "
        "most similar source is the best. Ours divide by random init's mean over all its seeds."
    )
    if not_run := ", ".join(not_run):
        text += f" Of our own tables, not run: {not_run}."
    return Table(data, f"{text}\n\n{markdown(page)}")


def measures_table(results: list[SourceEffects]) -> Table:
    """The same question for each number that `dpiat.rank` gives: by which of them should one choose?"""
    by_measure = measures_of_results(results).groupby("measure", sort=False)
    data = pd.DataFrame(
        {"results": name, "measure": measure, **prediction_quality(values.merge(found, on=["source", "target"]))}
        for name, values, _ in results
        for measure, found in by_measure
    )

    def wide(value: str) -> pd.DataFrame:
        return data.pivot(index="results", columns="measure", values=value).loc[data["results"].unique(), [*MEASURES]]

    def page(found: pd.DataFrame) -> str:
        means = found.mean().to_frame("mean").T.rename_axis("results")
        return markdown(pd.concat([found, means]).reset_index())

    text = (
        "By which of the numbers that `dpiat rank` gives should one choose a source? `similarity` is Eq. 5; "
        "`to_target` is Eq. 4 of the transfer and `to_source` of the transfer back, of which Eq. 5 is the geometric "
        "mean; `filled` is the part of the target's weights that the source fills. Compared with what sources gave, in "
        "the paper's tables and in ours, one target at a time and without the network itself as a source, as in "
        "[Table 11](table11.md).\n"
    )
    chance = data.groupby("results")["regret of chance"].first()
    parts = [
        text,
        f"Correlation within a row:\n\n{page(wide('within a row'))}",
        "Regret, the share of a row's best value that is lost by taking the source with the largest number, or any:\n\n"
        + page(wide("regret").assign(any=chance)),
    ]
    return Table(data, "\n".join(parts))
