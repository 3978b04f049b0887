"""Several methods of transfer on the same pairs of networks: which one helps more?"""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from hashlib import sha256
from typing import Any

import pandas as pd

from experiments import paper
from experiments.cells import NOT_RUN, Table, markdown

METHOD = ["mode", "operator", "matching", "head"]
PAIR = ["target", "source"]
RATES = ["lr", "random init's lr"]
WITH_SIMILARITY, ENOUGH = "with similarity", 10  # a column; over fewer pairs it says nothing


def several(frame: pd.DataFrame) -> bool:
    """Whether an experiment, by its `tables.own_trials`, varies how weights move, and not just where."""
    return len(frame.loc[frame["source"] != "", METHOD].drop_duplicates()) > 1


def pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each pair and method of `tables.own_trials`, in their order, with means over seeds.

    `method` names what varies of it.
    """
    frame = frame.assign(**{RATES[1]: frame["random"].map(frame.set_index("id")["lr"])})
    frame = frame[frame["source"] != ""].rename(columns={"of random": "random init"})
    varied = [key for key in METHOD if frame[key].nunique() > 1]
    frame["method"] = [", ".join(f"{row[key]} {key}" for key in varied) for _, row in frame.iterrows()]
    means = ["similarity", "random init", "accuracy", "effectiveness"]
    groups = frame.groupby([*PAIR, *METHOD, "method"], sort=False)
    counts = groups["accuracy"].agg(n="count", planned="size")
    return groups[means].mean().astype(float).join(groups[RATES].first()).join(counts).reset_index()


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
    data = data.assign(same=same_start(data))
    found, more = summary(data), noise(data)
    if of_table12(data):
        found.insert(3, "paper's effectiveness", _of_paper(data))
        more = [agreement(data), *more]
    trend = f", and `{WITH_SIMILARITY}` its rank correlation with their similarity" if WITH_SIMILARITY in found else ""
    ours, random = (", ".join(map("{:g}".format, data[rate].unique())) for rate in RATES)
    parts = [
        line,
        "Effectiveness and accuracy (the best within 4 epochs, on the test images) are means over pairs ± the standard "
        f"error over them; transfers are trained at a learning rate of {ours}, random init at {random}. `same start` "
        "counts the pairs whose target begins with the same parameters as with "
        f"`{data['method'].iloc[0]}`; the difference in accuracy to that is over the other pairs that both "
        f"have{trend}.",
        markdown(found).rstrip("\n"),
    ]
    return "\n\n".join([*parts, *more]) + "\n"


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
    """A row for each method, from `pairs` with `same`: means over pairs, and the difference to the first method."""
    difference, similarity = differences(data), of_first(data, "similarity")
    rows = []
    for method, found in data.groupby("method", sort=False):
        other = difference.loc[found.index[~found["same"]]].dropna()
        rank = other.rank().corr(similarity.loc[other.index].rank()) if len(other) >= ENOUGH else ""
        rows.append(
            {
                "method": method,
                "pairs": f"{found['accuracy'].count()} of {len(found)}",
                "effectiveness": _mean(found["effectiveness"]),
                "accuracy": _mean(found["accuracy"]),
                "same start": found["same"].sum() if rows else "",
                "difference in accuracy": _mean(other, "+") if rows and len(other) else "",
                "better in": f"{(other > 0).sum()} of {len(other)}" if rows and len(other) else "",
                WITH_SIMILARITY: f"{rank:.2f}" if rows and rank != "" else "",
            }
        )
    found = pd.DataFrame(rows)
    return found if found[WITH_SIMILARITY].any() else found.drop(columns=WITH_SIMILARITY)


def differences(data: pd.DataFrame) -> pd.Series:
    """The accuracy of each row of `pairs`, less that of the first method on the same pair."""
    return data["accuracy"] - of_first(data, "accuracy")


def of_first(data: pd.DataFrame, column: str) -> pd.Series:
    """For each row of `pairs`, what the first method on the same pair has in a column."""
    first = data[data["method"] == data["method"].iloc[0]].set_index(PAIR)[column]
    return pd.Series(data.set_index(PAIR).index.map(first), data.index)


def noise(data: pd.DataFrame) -> list[str]:
    """How far accuracies are apart that began with the same parameters.

    Methods that begin alike mostly train alike, so that it is pairs that count, and not each of their methods.
    """
    again = data["same"] & (data["method"] != data["method"].iloc[0])
    found = differences(data)[again].dropna()
    if found.empty:
        return []
    by_pair = found.groupby([data[key] for key in PAIR]).mean()
    return [
        f"Where the start is the same, the difference is {_mean(by_pair, '+')} over {len(by_pair)} pairs, at most "
        f"{found.abs().max():.3f}. That is no effect of a method: buffers, and the rounding of another commit or "
        "processor, do it."
    ]


def same_start(data: pd.DataFrame) -> list[bool]:
    """For each row of `pairs`, whether its target begins with the same parameters as with the first method.

    What is not run begins nowhere.
    """
    first = data[METHOD].iloc[0]
    rows = zip(*(data[key] for key in PAIR), data[METHOD].itertuples(index=False), data["n"], strict=True)
    return [n > 0 and _start(*pair, *method) == _start(*pair, *first) for *pair, method, n in rows]


@cache
def _start(target: str, source: str, mode: str, operator: str, matching: str, head: str) -> str:
    """A digest of the parameters that a target begins with."""
    import torch  # not for the other tables

    from dpiat import transfer
    from experiments.initialization import Method

    network = _network(target, seed=0)
    before = deepcopy(network.state_dict())
    transfer(_network(source, seed=1), network, **Method(mode, matching, operator, head).arguments(seed=0))
    tensors = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    network.load_state_dict(before)
    return sha256(tensors.numpy()).hexdigest()


@cache
def _network(name: str, seed: int) -> Any:
    """A network with all its parameters drawn at random, those too that begin at 0 or 1."""
    import torch

    from experiments import models

    torch.manual_seed(seed)
    network = models.build(name, 10)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    return network


def _mean(values: pd.Series, sign: str = "") -> str:
    """Mean ± standard error of the values that are there."""
    found = values.dropna()
    if found.empty:
        return NOT_RUN
    return f"{found.mean():{sign}.3f}" + (f" ± {found.sem():.3f}" if len(found) > 1 else "")
