"""The paper's tables with our results beside the paper's, cell by cell, at each scale that was run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from experiments import grids
from experiments.results import cells, method_effects, paper, verdicts
from experiments.results.cells import NOT_RUN, Records, Table, markdown, mean_and_spread
from experiments.store.records import time_to_accuracy

NEEDS_GHN2 = "not run: needs GHN-2"


def tables(records: Records) -> dict[str, Callable[[], Table]]:
    """Return the functions that build the paper's tables, without Table 11, and the page of verdicts, by name."""
    found: dict[str, Callable[[], Table]] = {"verdicts": partial(verdicts_table, records)}
    found |= {name: partial(matrix, name, records) for name in paper.MATRICES}
    found |= {"table02": partial(table02, records), "table03": partial(table03, records)}
    found |= {name: partial(times, name, records) for name in ("table04", "table05")}
    return dict(sorted((found | {"table12": partial(table12, records), "table13": table13}).items()))


# --- Tables 1 and 6 to 10: a value for each target and source ---------------------------------------------------------


def matrix(table: str, records: Records) -> Table:
    """Build Table 1, or one of Tables 6 to 10.

    A cell is the accuracy of a target within 4 epochs, from a source, over the accuracy from random init or from the
    target's own ImageNet weights.
    """

    def compare(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
        data = beside_paper(table, frame)
        text = data["text"] + "<br>paper " + data["paper"].map("{:.2f}".format) + data["difference"].map(_signed)
        page = data.assign(text=text).pivot(index="target", columns="source", values="text")
        page = page.loc[data["target"].unique(), data["source"].unique()].rename_axis(columns=None)
        divided = "Each accuracy is divided by the accuracy of the same seed from the target's own ImageNet weights."
        rows = ""
        if over_random(table):
            divided = cells.baseline_line(frame)
            rows = ", with the accuracy of random init ± its standard deviation over seeds (number of seeds)"
            random = data.drop_duplicates("target").set_index("target")
            page.insert(0, "random init", [_random_init(random.loc[target]) for target in page.index])
        parts = [
            f"{data['ours'].count()} of {len(data)} cells are run. {divided}",
            markdown(verdict_table(table, data)).rstrip("\n"),
            f"Rows are targets{rows}. Columns are sources. A cell has our value ± its standard deviation over seeds of "
            "the target (number of seeds), and the paper's value:",
            markdown(page.reset_index()),
        ]
        return data, "\n\n".join(parts)

    return _at_each_scale(table, records, compare, rules=verdicts.RULES)


def over_random(table: str) -> bool:
    """Whether a table divides by random init, and not by the target's own ImageNet weights."""
    return paper.MATRICES[table][1] == "random"


def beside_paper(table: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the cells of one of the paper's matrices with ours beside them.

    Args:
        table: A name in paper.MATRICES.
        frame: The rows of `cells.trials`, at one scale.
    """
    printed = paper.matrix(table).rename(columns={"value": "paper"})
    ratios = frame.assign(value=frame["accuracy"] / frame[f"of {paper.MATRICES[table][1]}"])
    data = _beside(printed, ratios[ratios["source"] != ""], ["target", "source"])
    if over_random(table):
        random = frame.drop_duplicates("target").set_index("target")
        for name, column in (("random init", "of random"), ("random sd", "random sd"), ("random n", "random n")):
            data[name] = data["target"].map(random[column])
    return data


def run_cells(table: str, records: Records) -> pd.DataFrame:
    """Return the cells of `beside_paper` that are run, at every scale, which the column `scale` names."""
    frames = cells.frames_by_scale(table, records) or {"": cells.trials([], records)}
    found = [beside_paper(table, frame).assign(scale=scale) for scale, frame in frames.items()]
    return pd.concat(found).dropna(subset="ours")


def first_table(records: Records, table: str = "table01", scale: str = "cpu") -> str:
    """Write the first table of results/README.md: our cells and the paper's, and the verdicts."""
    frame = cells.frames_by_scale(table, records).get(scale)
    if frame is None or (data := beside_paper(table, frame))["ours"].isna().all():
        return _being_run(table, scale)
    labels = {name: label for label, name in paper.LABELS.items()}
    ours = data["ours"].map("**{:.2f}**".format).where(data["ours"].notna(), "–")
    page = data.assign(text=ours + " / " + data["paper"].map("{:.2f}".format))
    page = page.pivot(index="target", columns="source", values="text")
    page = page.loc[[*labels], [*labels]].rename(index=labels, columns=labels)
    page = page.rename_axis(columns=None, index="target").reset_index()
    return "\n\n".join(
        [
            _how_far(frame, data, records, scale),
            "Effectiveness, **ours** / the paper's; rows are targets, columns sources:",
            markdown(page).rstrip("\n"),
            markdown(verdict_table(table, data)),
        ]
    )


SHORT = ["verdict", "cells", "ours", "says", "paper, the same cells", "paper, all cells"]  # the README's columns


def short_table(records: Records, table: str = "table01", scale: str = "cpu") -> str:
    """Write the README's table: how much of the first table is run, and the verdicts on it."""
    frame = cells.frames_by_scale(table, records).get(scale)
    if frame is None or (data := beside_paper(table, frame))["ours"].isna().all():
        return _being_run(table, scale)
    rules, rows = f"[The rules](results/tables/{table}.md).", markdown(verdict_table(table, data)[SHORT])
    return f"{_how_far(frame, data, records, scale)}\n\n{verdicts.READINGS} {rules}\n\n{rows}"


def _how_far(frame: pd.DataFrame, data: pd.DataFrame, records: Records, scale: str) -> str:
    """Say how much of a table is run at a scale, and what its cells divide by."""
    seeds = data["n"].max()
    repeats = f"{seeds} seed{'s' if seeds > 1 else ''} of each target"
    others = "the other trials are sources and random init"
    return (
        f"{cells.scale_line(frame, records, scale)} {data['ours'].count()} of {len(data)} cells, {repeats}; {others}. "
        f"{cells.baseline_line(frame)}"
    )


def _being_run(table: str, scale: str) -> str:
    """Say which trials and commands a table needs that has no cell yet."""
    plan = cells.planned_cells(table, f"scale={scale}")
    trials = {trial.id: trial for cell in plan for trial in (cell.trial, cell.random, cell.trial.source) if trial}
    epochs = sum(trial.recipe.epochs for trial in trials.values())
    commands = " and ".join(f"`{line}`" for line in cells.command_lines(table, f"scale={scale}"))
    return f"Being run, and no record is here yet: {len(trials)} trials, {epochs:,} epochs in all, by {commands}.\n"


def _random_init(row: pd.Series) -> str:
    """The accuracy of a target from random init as text: mean ± standard deviation (number of seeds)."""
    if pd.isna(row["random init"]):
        return NOT_RUN
    spread = f" ± {row['random sd']:.3f}" if row["random n"] > 1 else ""
    return f"{row['random init']:.3f}{spread} ({row['random n']:.0f})"


def verdict_table(table: str, data: pd.DataFrame) -> pd.DataFrame:
    """Return the verdicts on our cells of a table as text, beside the verdicts on the paper's cells."""
    ours, same, whole = _verdicts(table, data)
    return pd.DataFrame(
        {
            "verdict": mine.verdict,
            "cells": mine.cells,
            "ours": _number(mine.value),
            f"{verdicts.LEVEL:.0%} interval": "" if np.isnan(mine.low) else f"{mine.low:.2f} to {mine.high:.2f}",
            "p": "" if np.isnan(mine.p) else f"{mine.p:.4f}",
            "says": mine.reading,
            "paper, the same cells": _number(theirs.value),
            "paper, all cells": _number(all_.value) + ("" if np.isnan(all_.p) else f" (p = {all_.p:.4f})"),
        }
        for mine, theirs, all_ in zip(ours, same, whole, strict=True)
    )


def _verdicts(table: str, data: pd.DataFrame) -> list[list[verdicts.Verdict]]:
    """The verdicts on our cells, on the paper's same cells, and on all of the paper's cells."""
    networks = [name for name in paper.LABELS.values() if name in set(data["target"])]
    ours, whole = (verdicts.as_matrix(data, column, networks) for column in ("ours", "paper"))
    similarity = verdicts.as_matrix(paper.similarity(), "similarity", networks)
    tables = ours, np.where(np.isfinite(ours), whole, np.nan), whole
    found = [verdicts.all_verdicts(values, whole, similarity, over_random(table)) for values in tables]
    for of_paper in found[1:]:  # the last three verdicts are on agreement, and the paper agrees with itself
        of_paper[-3:] = [verdict._replace(value=np.nan, low=np.nan, high=np.nan) for verdict in of_paper[-3:]]
    return found


def verdicts_table(records: Records) -> Table:
    """Build the table of all verdicts: on each table, at each scale that was run, and on the paper's own cells."""
    rows = []
    for table in paper.MATRICES:
        for scale, frame in cells.frames_by_scale(table, records).items():
            ours, same, _ = _verdicts(table, beside_paper(table, frame))
            rows += [_verdict_row(table, scale, *both) for both in zip(ours, same, strict=True)]
        *_, whole = _verdicts(table, beside_paper(table, cells.trials([], records)))
        rows += [_verdict_row(table, "the paper's own", each, each) for each in whole if np.isfinite(each.value)]
    data = pd.DataFrame(rows)
    return Table(data, f"{verdicts.RULES}\n{markdown(data, digits=4)}")


def _verdict_row(table: str, scale: str, ours: verdicts.Verdict, paper: verdicts.Verdict) -> dict[str, object]:
    return {"table": table, "scale": scale, **ours._asdict(), "says": ours.reading, "paper": paper.value}


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2f}"


def summary(data: pd.DataFrame) -> str:
    """Say how our cells agree with the paper's, from columns ours and paper, once three cells are run."""
    run = data.dropna(subset="ours")
    if len(run) < 3:
        return f"{len(run)} of {len(data)} cells are run."
    rank = verdicts.rank_correlation(run["ours"], run["paper"])
    difference = (run["ours"] - run["paper"]).abs().mean()
    return (
        f"{len(run)} of {len(data)} cells are run. Rank correlation with the paper's {rank:.2f}; mean absolute "
        f"difference {difference:.2f}."
    )


# --- Tables 2, 3 and 12: a value for each initialization or method ----------------------------------------------------


def table02(records: Records) -> Table:
    """Build Table 2: the effectiveness of GHN-2, with a row for each checkpoint, and of random init, which is 1."""
    printed = paper.printed("table02_ghn2_effectiveness").rename(columns={"value": "paper"})
    keys = ["target", "initialization"]

    def compare(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
        frame = frame.assign(value=frame["accuracy"] / frame["of random"])
        frame["initialization"] = ("GHN2-" + frame["ghn2"]).where(frame["init"] == "ghn2", "random")
        rows = printed.merge(frame[keys].drop_duplicates(), on=keys, how="outer")  # our own checkpoints get rows too
        data = _beside(rows, frame, keys)
        data.loc[(data["initialization"] != "random") & (data["n"] == 0), "text"] = NEEDS_GHN2
        line, seeds = cells.baseline_line(frame), frame.loc[frame["init"] == "ghn2", "random n"].min()
        if seeds > 0:
            batches = f"batches of the same size, with {seeds} seed{'s' if seeds > 1 else ''}"
            line += f" GHN-2 is divided by random init in {batches}."
        return data, f"{line}\n\n{_listed(data)}"

    return _at_each_scale("table02", records, compare)


def table03(records: Records) -> Table:
    """Build Table 3: the best test accuracy within 100 epochs."""
    printed = paper.printed("table03_cifar100_max_accuracy").rename(columns={"value": "paper"})
    weights = {"ImageNet": "imagenet", "ImageNet-CIFAR100": "imagenet_finetuned"}
    printed = printed.rename(columns={"initialization": "init"}).fillna({"source": ""})
    printed["weights"] = printed.pop("source_weights").map(weights).where(printed["source"] != "", "")
    printed = printed[["target", "init", "source", "weights", "paper"]]

    def compare(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
        frame = frame.assign(value=frame["best"], init=frame["init"].replace("ghn2", "GHN2"))
        data = _beside(printed, frame, ["target", "init", "source", "weights"])
        data.loc[(data["init"] == "GHN2") & (data["n"] == 0), "text"] = NEEDS_GHN2
        random = data[data["init"] == "random"].set_index("target")[["ours", "paper"]]
        others = data[data["init"] != "random"].set_index("target")
        ratios = others[["ours", "paper"]] / random.loc[others.index]
        return data, f"Ratios to random init: {summary(ratios)}\n\n{_listed(data)}"

    return _at_each_scale("table03", records, compare)


def table12(records: Records) -> Table:
    """Build Table 12: the mean effectiveness of each method over 20 pairs ± the standard error over pairs."""
    printed = paper.methods()

    def compare(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
        trials = cells.with_effectiveness(frame)
        pairs = method_effects.pairs(trials)
        means = pairs.dropna(subset="accuracy").rename(columns={"effectiveness": "value"})
        data = _beside(printed, means, ["operator", "matching"])
        data["sd"] /= data["n"].where(data["n"] > 0) ** 0.5
        data = data.rename(columns={"sd": "standard error"})
        if data["n"].sum() == 0:
            return data, _listed(data)
        page = f"{method_effects.means_page(pairs)}\n{method_effects.pairs_page(pairs)}"
        return data, f"{cells.baseline_line(frame)}\n\n{page}"

    return _at_each_scale("table12", records, compare)


MEASURED = paper.RESULTS / "table13_measured.csv"  # scripts/measure_table13.py writes it


def table13() -> Table:
    """Build Table 13: the properties of methods in the paper's words, and what we measured without training."""
    data = paper.printed("table13_method_properties")
    title = "Properties of initialization methods, from the paper"
    if not MEASURED.exists():
        return Table(data, f"{title}.\n\n{markdown(data)}")
    measured = pd.read_csv(MEASURED)
    groups = measured.groupby("method")
    ours = pd.DataFrame(
        {
            "applies to": groups["admissible"].agg(lambda found: f"{found.sum()} of {len(found)} pairs"),
            "milliseconds": groups["milliseconds"].agg(
                lambda found: f"{found.median():.0f}, at most {found.max():.0f}"
            ),
            "same function": groups["same function"].agg(lambda found: f"{found.eq(True).sum()} of {found.count()}"),
        }
    )
    data = data.merge(ours.reset_index(), on="method", how="left").fillna("")
    line = (
        "the last three columns are measured on each pair of the paper's networks, with random weights "
        "(`python scripts/measure_table13.py`): the pairs that a method takes, the median time of a processor, and the "
        "targets that begin with the source's function"
    )
    partly = measured[~measured["method"].map(groups["admissible"].all())]
    partly = partly[partly["admissible"] & (partly["source"] != partly["target"])]
    named = "; ".join(
        f"{method}: {', '.join(f'{row.source} → {row.target}' for row in found.itertuples())}"
        for method, found in partly.groupby("method")
    )
    trained = (
        "Accuracies after a training: [EfficientNet-Lites that grow](imagenette_growing.md), and [networks of the "
        "paper that grow](cifar100_growing.md)"
    )
    return Table(data, f"{title}; {line}.\n\n{markdown(data)}\nBetween different networks, {named}.\n\n{trained}.\n")


# --- Tables 4 and 5: time to accuracy ---------------------------------------------------------------------------------

# The sources that Tables 4 and 5 mean by "similarity 0.8" and "similarity 0.5" to Eff-B0 and Eff-B2.
BY_SIMILARITY = {0.8: ("eff_b2", "eff_b0"), 0.5: ("mix_l", "rex")}
# The tables of times: the paper's file, and the experiment whose trials they show.
TIMES = {
    "table04": ("table04_cifar100_time_to_accuracy_minutes", "table03"),
    "table05": ("table05_imagenet_time_to_accuracy_minutes", "figure06"),
}
TIMES_EXPLAINED = (
    "A speed-up is the time of random init over the time of the transfer. The paper's speed-ups follow from its "
    "minutes, and it gives one number for all sources of about the same similarity. Seconds are compared on the same "
    "hardware only."
)


def times(table: str, records: Records) -> Table:
    """Build Table 4 or 5: how many times as fast as random init a test accuracy is reached, in epochs and in seconds.

    The accuracy is random init's best, rounded down to a multiple of 0.05. The paper's thresholds follow this rule.
    """
    file, experiment = TIMES[table]
    printed = _by_source(paper.printed(file))

    def compare(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
        frame = frame.assign(init=frame["init"].replace("ghn2", "GHN2"))
        data = printed.merge(_reached(frame, records), on=["target", "init", "source", "weights"], how="left")
        data["epochs"] = data["epochs"].astype(object).fillna(NOT_RUN)
        data.loc[(data["init"] == "GHN2") & (data["epochs"] == NOT_RUN), "epochs"] = NEEDS_GHN2
        page = data.astype({"paper's minutes": object}).fillna({"paper's minutes": "not reached"})
        return data, f"{TIMES_EXPLAINED}\n\n{markdown(page, digits=2)}"

    made = _at_each_scale(experiment, records, compare, table)
    if table != "table04":
        return made
    return made._replace(page="\n\n".join([made.page.rstrip("\n"), *_from_scratch(records)]) + "\n")


def _from_scratch(records: Records) -> list[str]:
    """The counterpart of Table 4 for sources trained from scratch, from the trials of Figure 15, as paragraphs."""
    parts = []
    for scale, frame in cells.frames_by_scale("figure15", records).items():
        found = to_final_accuracy(frame[frame["weights"] != "imagenet"], records)
        if len(found):
            parts += [FINAL_EXPLAINED, cells.scale_line(frame, records, scale), markdown(found, digits=2).rstrip("\n")]
    return parts


def curves_said(records: Records, scale: str = "cpu") -> str:
    """Write the part of results/README.md on Figure 15: how much faster transfers are, and the picture."""
    frame = cells.frames_by_scale("figure15", records).get(scale)
    found = to_final_accuracy(frame, records) if frame is not None else pd.DataFrame()
    if found.empty:
        commands = " and ".join(f"`{line}`" for line in cells.command_lines("figure15", f"scale={scale}"))
        return f"Figure 15 is to be run: {commands}.\n"
    ratios = found["ratio"].dropna()
    speed = f", {ratios.min():.1f} to {ratios.max():.1f} times as fast as random init" if len(ratios) else ""
    return (
        f"Figure 15: {len(ratios)} of {len(found)} transfers reach the accuracy that random init has in the end{speed} "
        "([epoch by epoch](tables/table04.md)).\n\n"
        f"![Test accuracy over epochs](figures/figure15_{scale}.png)\n"
    )


FINAL_EXPLAINED = (
    "The counterpart with sources that were trained on the data set itself, as in Figure 15. `epochs` counts the "
    "epochs of a transfer until the test accuracy that random init has after its last epoch. `ratio` is how many times "
    "as many epochs random init needs to reach this accuracy first."
)


def to_final_accuracy(frame: pd.DataFrame, records: Records) -> pd.DataFrame:
    """Return for each transfer that is run with its random init the epochs to random init's final accuracy.

    Args:
        frame: The rows of `cells.trials`.
        records: The records of trials, by id.
    """
    rows = []
    for row in frame[(frame["source"] != "") & frame["id"].isin(records.keys())].itertuples():
        if row.random not in records:
            continue
        final = records[row.random]["epochs"][-1]["test_accuracy"]
        (epochs, _), (random_epochs, _) = (time_to_accuracy(records[name], final) for name in (row.id, row.random))
        key = {"target": row.target, "source": row.source, "source weights": row.weights, "similarity": row.similarity}
        rows.append(
            {
                **key,
                "seed": row.seed,
                "random init's final accuracy": f"{final:.3f}",
                "epochs": epochs or "not reached",
                "random init's epochs": random_epochs,
                "ratio": random_epochs / epochs if epochs else None,
            }
        )
    return pd.DataFrame(rows)


def _by_source(printed: pd.DataFrame) -> pd.DataFrame:
    """The paper's rows of a table of times, one for each source that a row means, with the speed-up."""
    random = printed[printed["initialization"] == "random"].set_index("target")["minutes"]
    rows = []
    for row in printed.itertuples():
        init, _, tuned = row.initialization.partition("-")
        sources = [name for name in BY_SIMILARITY.get(row.similarity, [""]) if name != row.target]
        for source in sources:
            weights = ("imagenet_finetuned" if tuned else "imagenet") if source else ""
            speedup = random[row.target] / row.minutes
            rows.append((row.target, init, source, weights, row.test_accuracy, row.minutes, speedup))
    of_paper = ["paper's accuracy", "paper's minutes", "paper's speed-up"]
    return pd.DataFrame(rows, columns=["target", "init", "source", "weights", *of_paper])


def _reached(frame: pd.DataFrame, records: Records) -> pd.DataFrame:
    """For each trial that is run with its random init: the accuracy, the epochs until then, the speed-ups."""
    rows = []
    for row in frame[frame["id"].isin(records.keys())].itertuples():
        if row.random not in records:
            continue
        best = max(epoch["test_accuracy"] for epoch in records[row.random]["epochs"])
        accuracy = int(best * 20 + 1e-9) / 20
        epochs, seconds = time_to_accuracy(records[row.id], accuracy)
        random_epochs, random_seconds = time_to_accuracy(records[row.random], accuracy)
        alike = cells.hardware(records[row.id]) == cells.hardware(records[row.random])
        ratios = (random_epochs / epochs, random_seconds / seconds if alike else None) if epochs else (None, None)
        key = (row.target, row.init, row.source, row.weights)
        rows.append((*key, accuracy, epochs or "not reached", random_epochs, *ratios))
    ours = ["accuracy", "epochs", "random init's epochs", "speed-up in epochs", "speed-up in seconds"]
    found = pd.DataFrame(rows, columns=["target", "init", "source", "weights", *ours])
    return found.astype({"epochs": object, "random init's epochs": object})  # whole numbers and words


# --- shared -----------------------------------------------------------------------------------------------------------


def _at_each_scale(experiment: str, records: Records, compare: Callable, name: str = "", rules: str = "") -> Table:
    """Build a table that compares with the paper, at each scale that was run, or once with every cell "not run".

    Args:
        experiment: The experiment whose trials are shown.
        records: The records of trials, by id.
        compare: Takes the rows of `cells.trials` at one scale. Returns the cells, and a page.
        name: The name of the table, if it is not the experiment's.
        rules: What stands below the title.
    """
    name = name or experiment
    data, parts = [], [grids.title(name), *([rules.rstrip("\n")] if rules else [])]
    frames = cells.frames_by_scale(experiment, records)
    for scale, frame in frames.items():
        found, page = compare(frame)
        data.append(found.assign(scale=scale))
        parts += [cells.scale_line(frame, records, scale), page.rstrip("\n")]
    if not frames:
        found, page = compare(cells.trials([], records))
        data.append(found.assign(scale=""))
        commands = " and ".join(f"`{line}`" for line in cells.command_lines(name))
        parts += [f"Not run: {commands}.", page.rstrip("\n")]
    return Table(pd.concat(data).drop(columns="text", errors="ignore"), "\n\n".join(parts) + "\n")


def _beside(printed: pd.DataFrame, frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The paper's rows with ours beside them: mean, sd, n, planned n, the difference, and a text of all of it."""
    groups = frame.groupby(keys, sort=False)["value"]
    ours = pd.DataFrame([{**dict(zip(keys, key, strict=True)), **cells.summarize(cell)} for key, cell in groups])
    texts = groups.agg(mean_and_spread).rename("text").reset_index()
    columns = [*keys, "ours", "sd", "n", "planned"]
    data = printed.merge(ours.reindex(columns=columns), on=keys, how="left").merge(texts, on=keys, how="left")
    data[["ours", "sd"]] = data[["ours", "sd"]].astype(float)
    data = data.assign(n=data["n"].fillna(0).astype(int), planned=data["planned"].fillna(0).astype(int))
    return data.assign(difference=data["ours"] - data["paper"], text=data["text"].astype(object).fillna(NOT_RUN))


def _signed(difference: float) -> str:
    return "" if pd.isna(difference) else f", {difference:+.2f}"


def _listed(data: pd.DataFrame) -> str:
    """Markdown with a row for each cell."""
    kept = data.drop(columns=["ours", "sd", "standard error", "n", "planned"], errors="ignore")
    return markdown(kept.rename(columns={"text": "ours"}).drop(columns="scale", errors="ignore"))
