"""The paper's tables with our results beside its own, cell by cell, at each scale that was run."""

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
    """What builds each of the paper's tables but Table 11, and the page of verdicts on them."""
    found: dict[str, Callable[[], Table]] = {"verdicts": partial(verdicts_table, records)}
    found |= {name: partial(matrix, name, records) for name in paper.MATRICES}
    found |= {"table02": partial(table02, records), "table03": partial(table03, records)}
    found |= {name: partial(times, name, records) for name in ("table04", "table05")}
    return dict(sorted((found | {"table12": partial(table12, records), "table13": table13}).items()))


# --- Tables 1 and 6 to 10: a value for each target and source ---------------------------------------------------------


def matrix(table: str, records: Records) -> Table:
    """Accuracy within 4 epochs of each target from each source, over random init's or its own ImageNet weights'."""

    def compare(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
        data = beside_paper(table, frame)
        text = data["text"] + "<br>paper " + data["paper"].map("{:.2f}".format) + data["difference"].map(_signed)
        page = data.assign(text=text).pivot(index="target", columns="source", values="text")
        page = page.loc[data["target"].unique(), data["source"].unique()].rename_axis(columns=None)
        divided, rows = "Each trial is divided by that of the same seed from the target's own ImageNet weights.", ""
        if over_random(table):
            divided = cells.baseline_line(frame)
            rows = ", with random init's accuracy ± its standard deviation over seeds (how many)"
            random = data.drop_duplicates("target").set_index("target")
            page.insert(0, "random init", [_random_init(random.loc[target]) for target in page.index])
        parts = [
            f"{data['ours'].count()} of {len(data)} cells are run. {divided}",
            markdown(verdict_table(table, data)).rstrip("\n"),
            f"Rows are targets{rows}; columns are sources; in a cell, ours ± its standard deviation over seeds of the "
            "target (how many), and the paper's:",
            markdown(page.reset_index()),
        ]
        return data, "\n\n".join(parts)

    return _at_each_scale(table, records, compare, rules=verdicts.RULES)


def over_random(table: str) -> bool:
    """Whether a table divides by random init, and not by the target's own ImageNet weights."""
    return paper.MATRICES[table][1] == "random"


def beside_paper(table: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The cells of one of the paper's matrices with ours, from `cells.trials` of one scale, beside its own."""
    printed = paper.matrix(table).rename(columns={"value": "paper"})
    ratios = frame.assign(value=frame["accuracy"] / frame[f"of {paper.MATRICES[table][1]}"])
    data = _beside(printed, ratios[ratios["source"] != ""], ["target", "source"])
    if over_random(table):
        random = frame.drop_duplicates("target").set_index("target")
        for name, column in (("random init", "of random"), ("random sd", "random sd"), ("random n", "random n")):
            data[name] = data["target"].map(random[column])
    return data


def run_cells(table: str, records: Records) -> pd.DataFrame:
    """Of `compared` at each scale, named in `scale`, the cells that are run."""
    found = [
        beside_paper(table, frame).assign(scale=scale) for scale, frame in cells.frames_by_scale(table, records).items()
    ]
    return pd.concat(found or [beside_paper(table, cells.trials([], records)).assign(scale="")]).dropna(subset="ours")


def first_table(records: Records, table: str = "table01", scale: str = "cpu") -> str:
    """The first table of results/README.md: ours over the paper's, and the verdicts; or what is run for it."""
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


SHORT = ["verdict", "cells", "ours", "says", "paper, the same cells", "paper, all cells"]


def short_table(records: Records, table: str = "table01", scale: str = "cpu") -> str:
    """The README's table: how far the first table is, and the verdicts on it; or what is run for it."""
    frame = cells.frames_by_scale(table, records).get(scale)
    if frame is None or (data := beside_paper(table, frame))["ours"].isna().all():
        return _being_run(table, scale)
    return f"{_how_far(frame, data, records, scale)}\n\n{markdown(verdict_table(table, data)[SHORT])}"


def _how_far(frame: pd.DataFrame, data: pd.DataFrame, records: Records, scale: str) -> str:
    """What was run of a table at a scale, and what its cells divide by."""
    seeds = data["n"].max()
    repeats = f"{seeds} seed{'s' if seeds > 1 else ''} of each target"
    return (
        f"{cells.scale_line(frame, records, scale)} {data['ours'].count()} of {len(data)} cells, {repeats}. "
        f"{cells.baseline_line(frame)}"
    )


def _being_run(table: str, scale: str) -> str:
    """What is run for a table that has no cell yet."""
    plan = cells.planned_cells(table, f"scale={scale}")
    trials = {trial.id: trial for cell in plan for trial in (cell.trial, cell.random, cell.trial.source) if trial}
    epochs = sum(trial.recipe.epochs for trial in trials.values())
    commands = " and ".join(f"`{line}`" for line in cells.command_lines(table, f"scale={scale}"))
    return f"Being run, and no record is here yet: {len(trials)} trials, {epochs:,} epochs in all, by {commands}.\n"


def _random_init(row: pd.Series) -> str:
    if pd.isna(row["random init"]):
        return NOT_RUN
    spread = f" ± {row['random sd']:.3f}" if row["random n"] > 1 else ""
    return f"{row['random init']:.3f}{spread} ({row['random n']:.0f})"


def verdict_table(table: str, data: pd.DataFrame) -> pd.DataFrame:
    """The verdicts on the cells of a table, as text, beside what the paper's own cells say."""
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
    """Those on our cells, on the paper's where we have one, and on all of the paper's."""
    networks = [name for name in paper.LABELS.values() if name in set(data["target"])]
    ours, whole = (verdicts.as_matrix(data, column, networks) for column in ("ours", "paper"))
    similarity = verdicts.as_matrix(paper.similarity(), "similarity", networks)
    tables = ours, np.where(np.isfinite(ours), whole, np.nan), whole
    found = [verdicts.all_verdicts(values, whole, similarity, over_random(table)) for values in tables]
    for of_paper in found[1:]:  # which agrees with itself
        of_paper[-3:] = [verdict._replace(value=np.nan, low=np.nan, high=np.nan) for verdict in of_paper[-3:]]
    return found


def verdicts_table(records: Records) -> Table:
    """The verdicts on each table at each scale that was run, and on the paper's own, as numbers."""
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
    """How our cells agree with the paper's, from columns ours and paper; nothing where fewer than three are run."""
    run = data.dropna(subset="ours")
    if len(run) < 3:
        return f"{len(run)} of {len(data)} cells are run."
    rank = run["ours"].rank().corr(run["paper"].rank())
    difference = (run["ours"] - run["paper"]).abs().mean()
    return (
        f"{len(run)} of {len(data)} cells are run. Rank correlation with the paper's {rank:.2f}; mean absolute "
        f"difference {difference:.2f}."
    )


# --- Tables 2, 3 and 12: a value for each initialization or method ----------------------------------------------------


def table02(records: Records) -> Table:
    """Effectiveness of GHN-2, a row for each checkpoint, and of random init, which is 1 by definition."""
    printed = paper.printed("table02_ghn2_effectiveness").rename(columns={"value": "paper"})
    keys = ["target", "initialization"]

    def compare(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
        frame = frame.assign(value=frame["accuracy"] / frame["of random"])
        frame["initialization"] = ("GHN2-" + frame["ghn2"]).where(frame["init"] == "ghn2", "random")
        rows = printed.merge(frame[keys].drop_duplicates(), on=keys, how="outer")  # of checkpoints of ours, too
        data = _beside(rows, frame, keys)
        data.loc[(data["initialization"] != "random") & (data["n"] == 0), "text"] = NEEDS_GHN2
        return data, f"{cells.baseline_line(frame)}\n\n{_listed(data)}"

    return _at_each_scale("table02", records, compare)


def table03(records: Records) -> Table:
    """Best test accuracy within 100 epochs."""
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
        return data, f"Of the ratios to random init: {summary(ratios)}\n\n{_listed(data)}"

    return _at_each_scale("table03", records, compare)


def table12(records: Records) -> Table:
    """Mean effectiveness over 20 pairs ± the standard error over them, as in the paper, by the cells of its Table 1."""
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
        return (
            data,
            f"{cells.baseline_line(frame)}\n\n{method_effects.means_page(pairs)}\n{method_effects.pairs_page(pairs)}",
        )

    return _at_each_scale("table12", records, compare)


MEASURED = paper.RESULTS / "table13_measured.csv"  # by scripts/measure_table13.py


def table13() -> Table:
    """The methods' properties: the paper's words, and beside them what is measured without training."""
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
    return Table(data, f"{title}; {line}.\n\n{markdown(data)}\nBetween different networks, {named}.\n")


# --- Tables 4 and 5: time to accuracy ---------------------------------------------------------------------------------

# Which sources the paper calls similar to Eff-B0 and Eff-B2, at about 0.8, and which not, at about 0.5.
BY_SIMILARITY = {0.8: ("eff_b2", "eff_b0"), 0.5: ("mix_l", "rex")}
TIMES = {
    "table04": ("table04_cifar100_time_to_accuracy_minutes", "table03"),
    "table05": ("table05_imagenet_time_to_accuracy_minutes", "figure06"),
}
TIMES_EXPLAINED = (
    "Speed-ups are ratios to random init's time; the paper's follow from its minutes, of which it gives one for all "
    "sources of about the same similarity. Seconds are compared on the same hardware only."
)


def times(table: str, records: Records) -> Table:
    """How many times as fast as random init a test accuracy is reached, in epochs and in seconds of the hardware.

    The accuracy is random init's best, rounded down to a multiple of 0.05, which gives the paper its thresholds.
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
    return (
        made._replace(page="\n\n".join([made.page.rstrip("\n"), *_from_scratch(records)]) + "\n")
        if table == "table04"
        else made
    )


def _from_scratch(records: Records) -> list[str]:
    """What Table 4 would say of sources that are trained from scratch, from the trials of Figure 15."""
    parts = []
    for scale, frame in cells.frames_by_scale("figure15", records).items():
        found = to_final_accuracy(frame[frame["weights"] != "imagenet"], records)
        if len(found):
            parts += [FINAL_EXPLAINED, cells.scale_line(frame, records, scale), markdown(found, digits=2).rstrip("\n")]
    return parts


def curves_said(records: Records, scale: str = "cpu") -> str:
    """results/README.md on Figure 15 and on Table 4's counterpart: how much faster, and the picture."""
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
    "The counterpart with sources that were trained on the data set itself, as in Figure 15: epochs until the test "
    "accuracy that random init has after its last epoch, and how many times as many random init itself needs to reach "
    "it first."
)


def to_final_accuracy(frame: pd.DataFrame, records: Records) -> pd.DataFrame:
    """For each transfer of `cells.trials` that is run with its random init: epochs to the latter's final accuracy."""
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
    """The paper's rows, one for each source that it can mean, with its speed-up over random init."""
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
    """For each trial that is run with its random init: the accuracy, the epochs to it, the ratios to random init."""
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
    return found.astype({"epochs": object, "random init's epochs": object})  # whole numbers, beside words


# --- shared -----------------------------------------------------------------------------------------------------------


def _at_each_scale(experiment: str, records: Records, compare: Callable, name: str = "", rules: str = "") -> Table:
    """The comparison for each scale that was run, or for none, where every cell says so, below the rules."""
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
    """The paper's rows with ours: mean, standard deviation, n, planned n, difference, and all of it as text."""
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
    """Markdown: a row a cell, ours as text."""
    kept = data.drop(columns=["ours", "sd", "standard error", "n", "planned"], errors="ignore")
    return markdown(kept.rename(columns={"text": "ours"}).drop(columns="scale", errors="ignore"))
