"""How well do numbers that need no training predict which source is the best (Table 11)?"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import pandas as pd

from experiments.results import paper
from experiments.results.cells import NOT_PLANNED, Table, markdown

# The numbers of `dpiat.rank`, by their names in the table: the mode that networks are standardized in, and the number.
MEASURES = {
    "similarity": ("default", "similarity"),
    "similarity, paper mode": ("paper", "similarity"),
    "to_target": ("default", "to_target"),
    "to_source": ("default", "to_source"),
    "filled": ("default", "filled"),
}


# The bands of similarity in the library guide. The last band begins with the least similar pair.
BANDS = (0.8, 1.0), (0.7, 0.8), (0.6, 0.7), (0.5, 0.6), (0.0, 0.5)


class SourceEffects(NamedTuple):
    """How much each source of a table helped each target."""

    name: str
    values: pd.DataFrame  # columns target, source, value
    printed: float | None = None  # the correlation in the paper's Table 11


def prediction_quality(cells: pd.DataFrame) -> dict[str, float]:
    """Measure how well similarity predicts the value of a source.

    Args:
        cells: Columns target, source, similarity and value.

    Returns:
        cells: The number of cells.
        correlation: Pearson's correlation over all cells, as in Table 11.
        within a row: The correlation after the mean of its row is taken off each value and each similarity.
        regret: The share of the row's best value that is lost by taking the most similar source.
        regret of chance: The same for taking any source.
        best chosen: The number of targets whose most similar source is the best.
        targets: The number of targets with a choice.
        by chance: How many targets would get their best source by chance.
        between rows: The share of the variance of values that lies between targets.
    """
    # Table 11 correlates over all cells of a table. Most of the variance is between targets: some networks gain more
    # from any source than others do. But whoever chooses a source has one target, so that this variance is no help. All
    # numbers but the first two look at one target at a time, and leave out the network itself as a source, whose
    # similarity is 1.
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
    """Put into words what `prediction_quality` found for the results that `name` names."""
    return (
        f"In {name}, {found['between rows']:.0%} of the variance of effectiveness lies between targets, where there is "
        f"nothing to choose. Within a row, the correlation of effectiveness with similarity is "
        f"{found['within a row']:.2f}; over all {found['cells']} cells it is {found['correlation']:.2f}. The most "
        f"similar source is the best source for {found['best chosen']} of {found['targets']} targets, where chance "
        f"gives {found['by chance']:.0f}. To take the most similar source costs {found['regret']:.1%} of the best "
        f"effectiveness on average; to take any source costs {found['regret of chance']:.1%}.\n"
    )


@cache
def measures_of_pairs(*names: str) -> pd.DataFrame:
    """Compute MEASURES for every pair of networks: columns measure, target, source, similarity (the number)."""
    from dpiat import rank  # imports torch, as the networks do

    networks = {mode: paper.architectures(names, mode) for mode in ("default", "paper")}
    rows = []
    for target in names:
        ranked = {mode: rank(found[target], found) for mode, found in networks.items()}
        for measure, (mode, number) in MEASURES.items():
            rows += [(measure, target, source.source, getattr(source, number)) for source in ranked[mode]]
    return pd.DataFrame(rows, columns=["measure", "target", "source", "similarity"])


def measures_of_results(results: Iterable[SourceEffects]) -> pd.DataFrame:
    """Compute MEASURES for every pair of the networks that occur in results."""
    pairs = pd.concat(found.values[["target", "source"]] for found in results)
    return measures_of_pairs(*sorted(set(pairs.to_numpy().ravel())))


def scale(results: list[SourceEffects]) -> pd.DataFrame:
    """Say what a similarity, as the default mode computes it, is worth.

    Returns:
        A row for each band of similarity: a pair, and for each of the results the mean effect of the pairs of different
        networks in the band.
    """
    from experiments.models import SHORT_NAMES  # imports torch

    found = measures_of_results(results)
    similarity = found[found["measure"] == "similarity"]
    rows = []
    pairs = [values[values["source"] != values["target"]].merge(similarity) for _, values, _ in results]
    for low, high in BANDS:
        inside = [each[each["similarity"].between(low, high, inclusive="left")] for each in pairs]
        every = pd.concat(inside).sort_values("similarity")
        if every.empty:
            continue
        pair = every.iloc[len(every) // 2]
        source, target = (SHORT_NAMES[pair[role]] for role in ("source", "target"))
        row = {"similarity": f"{low or every['similarity'].min():.2g} to {high:g}"}
        row["a pair"] = f"{source} → {target}, {pair['similarity']:.2f}"
        for (name, _, _), each in zip(results, inside, strict=True):
            row[name] = f"{each['value'].mean():.2f} ({len(each)})" if len(each) else NOT_PLANNED
        rows.append(row)
    return pd.DataFrame(rows)


def table11(results: list[SourceEffects], not_run: Iterable[str]) -> Table:
    """Build Table 11: does similarity, as the paper computes it, predict the effect of a source?

    Args:
        results: The paper's results and ours.
        not_run: The numbers of our own tables that are not run.
    """
    found = measures_of_results(results)
    similarity = found[found["measure"] == "similarity, paper mode"]
    data = pd.DataFrame(
        {"results": name, "printed": printed, **prediction_quality(values.merge(similarity, on=["source", "target"]))}
        for name, values, printed in results
    )
    page = data.drop(columns=["targets", "by chance", "between rows"])
    page["best chosen"] = [f"{row['best chosen']} of {row['targets']}" for _, row in data.iterrows()]
    text = (
        "`printed` is the number in the paper's Table 11; `correlation` is Pearson's over the same cells, computed "
        "here. The columns after it leave out the network itself as a source and look at one target at a time. `within "
        "a row` is the correlation after the mean of its row is taken off each value. `regret` is the share of a row's "
        "best value that is lost by taking the most similar source, and `regret of chance` by taking any source. `best "
        "chosen` counts the targets whose most similar source is the best. Our own results divide by the mean of "
        "random init over all its seeds."
    )
    if not_run := ", ".join(not_run):
        text += f" Our own tables that are not run yet: {not_run}."
    return Table(data, f"{text}\n\n{markdown(page)}")


def measures_table(results: list[SourceEffects]) -> Table:
    """Build the table that compares the numbers of `dpiat.rank`: which number should a user choose a source by?"""
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
        "By which number of `dpiat rank` should one choose a source? `to_target` is Eq. 4 for the transfer and "
        "`to_source` for the transfer back; `similarity` is their geometric mean (Eq. 5). `filled` is the share of the "
        "target's weights that the source fills. The numbers are compared with the effect of the sources, in the "
        "paper's tables and in ours. As in [Table 11](table11.md), this is done for one target at a time, without the "
        "network itself as a source.\n"
    )
    chance = data.groupby("results")["regret of chance"].first()
    parts = [
        text,
        f"Correlation within a row:\n\n{page(wide('within a row'))}",
        "Regret, the share of a row's best value that is lost by taking the source with the largest number, or any "
        "source:\n\n" + page(wide("regret").assign(any=chance)),
    ]
    return Table(data, "\n".join(parts))
