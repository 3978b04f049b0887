"""Several methods of transfer on the same pairs of networks: which one helps more?"""

from __future__ import annotations

from functools import cache

import pandas as pd

from experiments import paper
from experiments.cells import NOT_RUN, Table, markdown

METHOD = ["mode", "operator", "matching", "head"]
PAIR = ["target", "source"]


def several(frame: pd.DataFrame) -> bool:
    """Whether an experiment, by its `tables.own_trials`, varies how weights move, and not just where."""
    return len(frame.loc[frame["init"] == "dpiat", METHOD].drop_duplicates()) > 1


def pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each pair and method of `tables.own_trials`, in their order, with means over seeds.

    `method` names what varies of it.
    """
    frame = frame[frame["init"] == "dpiat"].rename(columns={"of random": "random init"})
    varied = [key for key in METHOD if frame[key].nunique() > 1]
    frame["method"] = [", ".join(f"{row[key]} {key}" for key in varied) for _, row in frame.iterrows()]
    means = ["similarity", "random init", "accuracy", "effectiveness"]
    groups = frame.groupby([*PAIR, *METHOD, "method"], sort=False)
    counts = groups["accuracy"].agg(n="count", planned="size")
    return groups[means].mean().astype(float).join(counts).reset_index()


def table(title: str, line: str, data: pd.DataFrame) -> Table:
    """The means over pairs of each method, against the first one on the same pairs; then pair by pair."""
    cell = data["accuracy"].map("{:.3f}".format) + data["effectiveness"].map(" {:.2f}×".format)
    shown = data.assign(cell=cell.where(data["accuracy"].notna(), NOT_RUN))
    wide = shown.pivot(index=PAIR, columns="method", values="cell")[data["method"].unique()]
    random = data.groupby(PAIR)["random init"].first().map("{:.3f}".format).replace("nan", NOT_RUN)
    wide = wide.loc[list(dict.fromkeys(zip(data["target"], data["source"], strict=True)))]
    wide.insert(0, "random init", random)
    return Table(data, f"{title}\n\n{means(line, data)}\n{markdown(wide.reset_index())}")


def means(line: str, data: pd.DataFrame) -> str:
    """The means over pairs of each method, as Markdown, below the line that says what was run."""
    found = summary(data)
    if of_table12(data):
        found.insert(3, "paper's effectiveness", _of_paper(data))
    parts = [
        line,
        "Effectiveness and accuracy (the best within 4 epochs, on the test images) are means over pairs ± the standard "
        f"error over them. The difference in accuracy is to `{data['method'].iloc[0]}`, over the pairs that both have.",
        markdown(found).rstrip("\n"),
    ]
    if of_table12(data):
        parts.append(agreement(data))
    if data["mode"].nunique() > 1:
        alike = alike_but_for_buffers(data)
        same, other = "the same parameters, and differ in buffers alone", "other parameters too"
        for which, what in ((alike, same), (~alike, other)):
            count = len(data[which].drop_duplicates(PAIR))
            parts.append(f"In {count} of the pairs the modes write {what}. Over these:")
            parts.append(markdown(summary(data[which])).rstrip("\n"))
    return "\n\n".join(parts) + "\n"


def of_table12(data: pd.DataFrame) -> bool:
    """Whether what varies is what varies in the paper's Table 12."""
    return data["operator"].nunique() > 1 and data["matching"].nunique() > 1


def _of_paper(data: pd.DataFrame) -> pd.Series:
    """The paper's effectiveness of each method of `pairs`, in their order."""
    return data.drop_duplicates("method")[["operator", "matching"]].merge(paper.methods(), how="left")["paper"]


def agreement(data: pd.DataFrame) -> str:
    """How the methods compare with one another, here and in the paper."""
    same = together(data)
    pairs = len(same.drop_duplicates(PAIR))
    text = "The paper's effectiveness is that of Table 12, on CIFAR-100 and pairs of its own"
    if not pairs:
        return f"{text}."
    ours = same.groupby(["operator", "matching"], as_index=False)["effectiveness"].mean().merge(paper.methods())
    rank = ours["effectiveness"].rank().corr(ours["paper"].rank())
    return (
        f"{text}. Rank correlation of the methods with it, over the {pairs} pairs that are run with each: {rank:.2f}."
    )


def together(data: pd.DataFrame) -> pd.DataFrame:
    """Of `pairs`, those that are run with every method: over others, the means of methods are not comparable."""
    run = data.dropna(subset="accuracy")
    return run[run.groupby(PAIR)["method"].transform("nunique") == data["method"].nunique()]


def summary(data: pd.DataFrame) -> pd.DataFrame:
    """A row for each method, from `pairs`: means over pairs, and the difference to the first method."""
    accuracy = data.pivot(index=PAIR, columns="method", values="accuracy")
    reference = accuracy[data["method"].iloc[0]]
    rows = []
    for method, found in data.groupby("method", sort=False):
        difference = (accuracy[method] - reference).dropna()
        against = method != reference.name and len(difference) > 0
        rows.append(
            {
                "method": method,
                "pairs": f"{found['accuracy'].count()} of {len(found)}",
                "effectiveness": _mean(found["effectiveness"]),
                "accuracy": _mean(found["accuracy"]),
                "difference in accuracy": _mean(difference, "+") if against else "",
                "better in": f"{(difference > 0).sum()} of {len(difference)}" if against else "",
            }
        )
    return pd.DataFrame(rows)


def alike_but_for_buffers(data: pd.DataFrame) -> pd.Series:
    """For each row of `pairs`, whether its pair's parameters receive the same in all modes."""
    modes = data["mode"].unique()
    same = {
        pair: len({_written(*pair, mode) for mode in modes}) == 1
        for pair in set(zip(data["target"], data["source"], strict=True))
    }
    return pd.Series([same[pair] for pair in zip(data["target"], data["source"], strict=True)], index=data.index)


@cache
def _written(target: str, source: str, mode: str) -> tuple[tuple[str, str, int], ...]:
    """Which parameters of the target are filled, from which tensor of the source, and how much of each."""
    import torch  # not for the other tables

    from dpiat import plan
    from experiments import models

    with torch.device("meta"):
        networks = models.build(source, 10), models.build(target, 10)
    parameters = dict(networks[1].named_parameters())
    entries = plan(*networks, mode=mode).report.entries
    return tuple((entry.target, entry.source, entry.filled) for entry in entries if entry.target in parameters)


def _mean(values: pd.Series, sign: str = "") -> str:
    """Mean ± standard error of the values that are there."""
    found = values.dropna()
    if found.empty:
        return NOT_RUN
    return f"{found.mean():{sign}.3f}" + (f" ± {found.sem():.3f}" if len(found) > 1 else "")
