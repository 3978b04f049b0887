"""Methods of transfer on the same pairs of networks: which method helps more?"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd

from experiments.results import paper, verdicts
from experiments.results.cells import NOT_RUN, Table, markdown

DISAGREE = (
    "We disagree on a method where the two ratios to the first method, ours and the paper's, differ by more than the "
    f"errors of both, at {verdicts.LEVEL:.0%} and each method by itself."
)
METHOD = ["init", "mode", "operator", "matching", "head", "version"]
PAIR = ["target", "source"]
DPIAT = "dpiat"  # the value of init whose methods differ in more than the name
RATES = ["lr", "random lr"]
WITH_SIMILARITY = "with similarity"  # the name of a column
ENOUGH = 10  # the least number of pairs for a number in this column
# What was looked at where we disagree with the paper on an operator or a matching.
CHECKED = {
    "clip_normalized": (
        "What was checked: the rule is the one in the authors' code, and `tests/dpiat/test_operators.py` compares the "
        "spread of every weight with the rule. What was not checked: the networks that the authors trained."
    ),
}


def varies_method(frame: pd.DataFrame) -> bool:
    """Whether the trials of `cells.with_effectiveness` differ in the method of transfer, and not in networks alone."""
    return len(frame.loc[frame["source"] != "", METHOD].drop_duplicates()) > 1


def pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each pair and method of `cells.with_effectiveness`, with means over seeds.

    The column `method` names those of METHOD that vary. Rows keep their order.
    """
    frame = frame[frame["source"] != ""]
    varied = [key for key in METHOD if frame[key].nunique() > 1]
    if frame.groupby("mode")["version"].nunique().max() == 1 and "version" in varied:
        varied.remove("version")  # each mode has one version, so that the mode says enough
    frame["method"] = [_named(row, varied) for _, row in frame.iterrows()]
    means = ["similarity", "random init", "accuracy", "effectiveness"]
    groups = frame.groupby([*PAIR, *METHOD, "method"], sort=False)
    counts = groups["accuracy"].agg(sd="std", n="count", planned="size")
    return groups[means].mean().astype(float).join(groups[RATES].first()).join(counts).reset_index()


def _named(row: pd.Series, varied: list[str]) -> str:
    """The name of a row's method: of DPIAT's, what the methods vary; another method says all by its name."""
    if row["init"] != DPIAT:
        return row["init"]
    varied = [key for key in varied if key != "init"]
    return ", ".join(f"version {row[key]}" if key == "version" else f"{row[key]} {key}" for key in varied)


def table(title: str, line: str, data: pd.DataFrame) -> Table:
    """Build the table of an experiment that compares methods.

    Args:
        title: The first line of the page.
        line: What to say of the trials' scale.
        data: The rows of `pairs`.
    """
    return Table(data, f"{title}\n\n{line}\n\n{means_page(data)}\n{pairs_page(data)}")


def pairs_page(data: pd.DataFrame) -> str:
    """Write Markdown with the accuracy and the effectiveness of each pair with each method."""
    cell = data["accuracy"].map("{:.3f}".format) + data["effectiveness"].map(" {:.2f}×".format)
    shown = data.assign(cell=cell.where(data["accuracy"].notna(), NOT_RUN))
    wide = shown.pivot(index=PAIR, columns="method", values="cell")[data["method"].unique()]
    random = data.groupby(PAIR)["random init"].first().map("{:.3f}".format).replace("nan", NOT_RUN)
    wide = wide.loc[list(dict.fromkeys(zip(data["target"], data["source"], strict=True)))]
    wide.insert(0, "random init", random)
    return markdown(wide.reset_index())


def means_page(data: pd.DataFrame) -> str:
    """Write Markdown with the means of each method over pairs, and the differences to the first method."""
    data = data.assign(same=same_start(data))
    found, more = summary(data), noise_line(data)
    first = data["method"].iloc[0]
    lr, random_lr = (", ".join(f"{value:g}" for value in data[rate].unique()) for rate in RATES)
    explained = [
        f"Accuracy is the best within 4 epochs, at a learning rate of {lr}; random init has {random_lr}.",
        "± is the standard error over pairs.",
        f"`same start` counts the pairs to which a method gives the same weights as `{first}`; the differences leave "
        "these pairs out.",
        f"`ratio` is the geometric mean over pairs of the accuracy over the accuracy of `{first}`, with its "
        "interval at 95%.",
        f"`p` is the p-value of the mean difference to `{first}`, by flipping signs pair by pair, after Holm's "
        "correction.",
    ]
    if of_table12(data):
        of_paper = papers_means(data)
        said = of_paper["paper"].map("{:.2f}".format) + of_paper["paper's ±"].map(" ± {:.2f}".format)
        found.insert(3, "paper's effectiveness", list(said))
        explained.append("The paper's effectiveness is from its Table 12.")
        more = [*agreement_lines(data), *more]
    if WITH_SIMILARITY in found:
        explained.append(
            f"`{WITH_SIMILARITY}` is the rank correlation of the difference with the similarity of the pair."
        )
    return "\n\n".join([" ".join(explained), markdown(found).rstrip("\n"), *more]) + "\n"


def of_table12(data: pd.DataFrame) -> bool:
    """Whether operators and matchings vary, as in the paper's Table 12."""
    return data["operator"].nunique() > 1 and data["matching"].nunique() > 1


def papers_means(data: pd.DataFrame) -> pd.DataFrame:
    """Return the paper's mean and error for each method of `pairs`: method, operator, matching, paper, paper's ±."""
    return data.drop_duplicates("method")[["method", "operator", "matching"]].merge(paper.methods(), how="left")


def agreement_lines(data: pd.DataFrame) -> list[str]:
    """Say how the methods compare with one another, here and in the paper.

    The order of methods is compared over the pairs that are run with every method. Each method is compared with the
    first over the pairs that these two have.
    """
    same, rows = with_every_method(data), papers_means(data).set_index("method")
    said = ["No pair is run with every method yet, so that nothing is said of the methods' order."]
    if pairs := len(same.drop_duplicates(PAIR)):
        means = same.groupby("method")["effectiveness"].mean()
        rank = verdicts.rank_correlation(means, rows["paper"].reindex(means.index))
        said = [f"Rank correlation of the methods with the paper's, over {pairs} pairs: {rank:.2f}. {DISAGREE}"]
    run = data.dropna(subset="accuracy")
    values = {method: found.set_index(PAIR)["effectiveness"].sort_index() for method, found in run.groupby("method")}
    none = pd.Series(dtype=float)
    first, *others = rows.index
    agree = []
    for name in others:
        both = pd.concat([values.get(name, none), values.get(first, none)], axis=1).dropna()
        if len(both) < 2:
            continue
        ratio, error = verdicts.ratio_of_means(*both.to_numpy().T)
        printed, printed_error = _printed(rows, name, first)
        if abs(np.log(ratio / printed)) <= verdicts.NORMAL * np.hypot(error, printed_error) + 1e-9:
            agree.append(f"`{name}`")
            continue
        ours = f"{ratio:.2f} ± {ratio * error:.2f} here"
        theirs = f"{printed:.2f} ± {printed * printed_error:.2f} in the paper"
        choice = rows.loc[name, ["operator", "matching"]]
        checked = " ".join(CHECKED[key] for key in choice if key in CHECKED)
        ratios = f"its effectiveness over the effectiveness of `{first}` is {ours} and {theirs}"
        said.append(f"We disagree on `{name}`: {ratios}. {checked}".rstrip())
    if agree:
        said.append(f"Within the errors of both, we agree on the ratios of {', '.join(agree)}.")
    return said


def _printed(rows: pd.DataFrame, name: str, first: str) -> tuple[float, float]:
    """The paper's ratio of two methods' means, and the error of its logarithm.

    The paper prints no pairs, so that the two means are taken for independent: the error is too large rather than too
    small.
    """
    relative = rows["paper's ±"] / rows["paper"]
    return rows.loc[name, "paper"] / rows.loc[first, "paper"], float(np.hypot(relative[name], relative[first]))


def with_every_method(data: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of `pairs` whose pair is run with every method, so that means of methods can be compared."""
    run = data.dropna(subset="accuracy")
    return run[run.groupby(PAIR)["method"].transform("nunique") == data["method"].nunique()]


def summary(data: pd.DataFrame) -> pd.DataFrame:
    """Return a row of text for each method: means over pairs, and the difference to the first method.

    Args:
        data: The rows of `pairs`, with `same_start` in the column `same`.
    """
    difference, similarity = differences(data), value_of_first(data, "similarity")
    groups = dict(list(data.groupby("method", sort=False)))
    others = {method: difference.loc[found.index[~found["same"]]].dropna() for method, found in groups.items()}
    ratio = data["accuracy"] / value_of_first(data, "accuracy")
    first, *rest = groups
    ps = dict(zip(rest, verdicts.holm([verdicts.sign_flip_p(others[method]) for method in rest]), strict=True))
    rows = []
    for method, found in groups.items():
        other, compared = others[method], method != first and len(others[method]) > 0
        told = compared and len(other) >= ENOUGH
        rank = verdicts.rank_correlation(other, similarity.loc[other.index]) if told else np.nan
        rows.append(
            {
                "method": method,
                "pairs": f"{found['accuracy'].count()} of {len(found)}",
                "effectiveness": _mean(found["effectiveness"]),
                "accuracy": _mean(found["accuracy"]),
                "same start": "" if method == first else found["same"].sum(),
                "difference in accuracy": _mean(other, "+") if compared else "",
                "ratio": verdicts.geometric_mean(ratio.loc[other.index]) if compared else "",
                "least ratio": f"{ratio.loc[other.index].min():.2f}" if compared else "",
                "p": f"{ps[method]:.4f}" if compared else "",
                "better in": f"{(other > 0).sum()} of {len(other)}" if compared else "",
                "over": _over(data.loc[other.index]) if compared else "",
                WITH_SIMILARITY: "" if np.isnan(rank) else f"{rank:.2f}",
            }
        )
    found = pd.DataFrame(rows)
    return found if found[WITH_SIMILARITY].any() else found.drop(columns=WITH_SIMILARITY)


def _over(rows: pd.DataFrame) -> str:
    """The numbers of targets and of seeds in rows of `pairs`, as text."""
    targets, (few, many) = rows["target"].nunique(), (rows["n"].min(), rows["n"].max())
    seeds = f"{few}" if few == many else f"{few} to {many}"
    return f"{targets} target{'s' if targets > 1 else ''}, {seeds} seed{'s' if many > 1 else ''}"


def differences(data: pd.DataFrame) -> pd.Series:
    """Return the accuracy of each row of `pairs` less the accuracy of the first method on the same pair."""
    return data["accuracy"] - value_of_first(data, "accuracy")


def value_of_first(data: pd.DataFrame, column: str) -> pd.Series:
    """Return for each row of `pairs` the value that the first method has in a column, on the same pair."""
    first = data[data["method"] == data["method"].iloc[0]].set_index(PAIR)[column]
    return pd.Series(data.set_index(PAIR).index.map(first), data.index)


def modes_in_words(data: pd.DataFrame) -> str:
    """Write the part of README.md on the default mode: its accuracy over the paper's mode, on our own grid.

    Args:
        data: The rows of `pairs` of an experiment whose trials differ in the mode alone.
    """
    both = with_every_method(data)
    if both.empty:
        return "Both modes are to be compared on a whole grid: `python run.py -m experiment=imagenette_modes`.\n"
    before = value_of_first(both, "accuracy")[both["mode"] == "default"]
    ratio, best = both["accuracy"][before.index] / before, both["accuracy"].max()
    most = np.exp(np.log(best / before).mean())  # accuracies have a ceiling, which similar sources reach in both modes
    pairs_run, seeds = f"{len(ratio)} of {len(data.drop_duplicates(PAIR))} pairs", both["n"].max()
    return (
        f"After 4 epochs on all images of Imagenette, in {pairs_run} of our grid, with {seeds} "
        f"seed{'s' if seeds > 1 else ''}: {verdicts.geometric_mean(ratio)} times the paper's mode, at least "
        f"{ratio.min():.2f}. If each target were as accurate as the best of all ({best:.3f}), the ratio would be "
        f"{most:.2f}. [Pair by pair](results/tables/imagenette_modes.md).\n"
    )


def noise_line(data: pd.DataFrame) -> list[str]:
    """Say how far accuracies are apart where two methods begin with the same parameters; nothing if none do."""
    # Such a difference is noise, which tells a reader how much of the other differences may be noise. Methods that
    # begin alike train alike, so that the methods of a pair are not independent: the mean is over pairs.
    again = data["same"] & (data["method"] != data["method"].iloc[0])
    found = differences(data)[again].dropna()
    if found.empty:
        return []
    by_pair = found.groupby([data[key] for key in PAIR]).mean()
    pairs_found = f"{len(by_pair)} pair{'s' if len(by_pair) > 1 else ''}"
    return [
        f"Where the start is the same, the difference is {_mean(by_pair, '+')} over {pairs_found}, at most "
        f"{found.abs().max():.3f}. This is not an effect of a method: buffers differ, and another commit or processor "
        "rounds differently."
    ]


def same_start(data: pd.DataFrame) -> list[bool]:
    """Return for each row of `pairs` whether its target begins with the same parameters as with the first method.

    False for a row that is not run.
    """
    first = data[METHOD].iloc[0]
    rows = zip(*(data[key] for key in PAIR), data[METHOD].itertuples(index=False), data["n"], strict=True)
    return [n > 0 and _start(*pair, *method) == _start(*pair, *first) for *pair, method, n in rows]


@cache
def _start(
    target: str, source: str, init: str, mode: str, operator: str, matching: str, head: str, version: int
) -> str:
    """Return a digest of the parameters that a target begins with."""
    # Older rules of the default mode are no longer in the code, so that their digests cannot be computed. Such a start
    # counts as different, and stays in the differences between methods. So does the start of another method, which
    # would draw noise, or ask for weights that a random network does not have.
    if init != DPIAT:
        return init
    from torch.nn.utils import parameters_to_vector, vector_to_parameters  # here: other tables do not need torch

    from dpiat import transfer
    from experiments.initialization import SAME_SINCE, Method

    if mode == "default" and version < SAME_SINCE:
        return "another"

    (network, before), (giver, _) = _network(target, seed=0), _network(source, seed=1)
    transfer(giver, network, **Method(mode, matching, operator, head, version).arguments(seed=0))
    after = parameters_to_vector(network.parameters())
    vector_to_parameters(before.clone(), network.parameters())  # the network takes parts of this vector for its own
    return sha256(after.numpy()).hexdigest()


@cache
def _network(name: str, seed: int) -> tuple[Any, Any]:
    """A network with all parameters drawn at random, also those that new networks have at 0 or 1, and these values."""
    import torch
    from torch.nn.utils import parameters_to_vector

    from experiments import models

    torch.manual_seed(seed)
    with torch.device("meta"):
        network = models.build(name, 10)
    network = network.to_empty(device="cpu").requires_grad_(False)
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.normal_() if tensor.is_floating_point() else tensor.zero_()
    return network, parameters_to_vector(network.parameters())


def _mean(values: pd.Series, sign: str = "") -> str:
    """Return "mean ± standard error" of the values that are there, or "not run"."""
    found = values.dropna()
    if found.empty:
        return NOT_RUN
    return f"{found.mean():{sign}.3f}" + (f" ± {found.sem():.3f}" if len(found) > 1 else "")
