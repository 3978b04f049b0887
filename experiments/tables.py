"""Records -> tables, as CSV and Markdown under results/tables, and the generated parts of the READMEs.

python -m experiments.tables            writes them all
python -m experiments.tables --check    fails if a committed one is not what the records give
python -m experiments.tables table01    prints one
python -m experiments.tables --missing  lists what they still need, the commands, and what they will cost
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from experiments import cells, choosing, claims, grids, methods, missing, paper, reproduction
from experiments.cells import NOT_PLANNED, NOT_RUN, Table, markdown
from experiments.choosing import Results
from experiments.records import RUNS, CannotWrite, atomic_write, best_accuracy, effectiveness, ended, same, time_to
from experiments.settings import UserError, first_line

ROOT = Path(__file__).parent.parent
PAPER_LR = paper.RANDOM_LR
HEADLINE = "imagenet_to_imagenette"  # the experiment of the main table of results/README.md
# Those of its comparisons of methods, by the names of its blocks.
COMPARISONS = {"modes": "imagenette_statistics", "methods": "imagenette_methods"}


def side_by_side(record: dict[str, Any], baseline: dict[str, Any]) -> str:
    """The test accuracy of each epoch, from the initialization under test and from random init, and their ratio.

    It is that of one seed, as a trial knows no more; tables divide by the mean over seeds.
    """
    init = record["trial"]["init"]
    lines = [f"epoch  {init:>10}  random"]
    for ours, theirs in zip(record["epochs"], baseline["epochs"], strict=False):
        lines.append(f"{ours['epoch']:5}  {ours['test_accuracy']:10.3f}  {theirs['test_accuracy']:6.3f}")
    best = f"{best_accuracy(record):.3f} / {best_accuracy(baseline):.3f}"
    return "\n".join([*lines, f"effectiveness within 4 epochs: {effectiveness(record, baseline):.2f} = {best}"])


# --- our own grids: targets by initialization -------------------------------------------------------------------------


def own_table(experiment: str, records: cells.Records) -> Table:
    """Accuracy within 4 epochs, and its ratio to random init, of each target from each initialization."""
    frame = own_trials(experiment, records)
    if methods.several(frame):
        line = f"{cells.scale_line(frame, records)} {cells.baseline_line(frame)}"
        return methods.table(grids.title(experiment), line, methods.pairs(frame))
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
    same_rate = (frame["lr"] == PAPER_LR).all()
    for name, caption in list(RATIOS.items())[: 2 if same_rate else 3]:
        shown = frame if name == "accuracy" else frame[frame["init"] != "random"]
        parts.append(f"{caption}\n\n{wide(shown, name)}".rstrip("\n"))
    parts.append(f"{TIME}\n\n{wide(frame[frame['init'] != 'random'], 'epochs', _epochs)}")
    return Table(data, "\n\n".join(parts))


RATIOS = {
    "accuracy": "Best test accuracy within 4 epochs:",
    "effectiveness": f"Effectiveness, the ratio to random init at the paper's learning rate, {PAPER_LR:g}:",
    cells.SAME_RATE: "The ratio to random init at the same learning rate as the transfer:",
}
TIME = (
    "Epochs until the accuracy of random init within 4 epochs, at the better of its learning rates (means over seeds), "
    "for each seed of the target (the counterpart of Tables 4 and 5):"
)


def headline(experiment: str, records: cells.Records) -> str:
    """The main table of results/README.md: accuracy and effectiveness, means over seeds, of targets that are run."""
    trials = own_trials(experiment, records)
    frame = same_seeds(trials)
    targets = frame.loc[(frame["init"] != "random") & frame["accuracy"].notna(), "target"].unique()
    means = frame.groupby(["target", "column"], sort=False)[["accuracy", "effectiveness"]].mean().reset_index()
    compared = means["effectiveness"].notna() & ~means["column"].str.startswith("random")
    ratio = means["effectiveness"].map(" {:.2f}×".format).where(compared, "")
    means["cell"] = (means["accuracy"].map("{:.3f}".format) + ratio).where(means["accuracy"].notna(), NOT_RUN)
    shown = _in_order(means.pivot(index="target", columns="column", values="cell").loc[targets])
    run = frame.dropna(subset="accuracy").groupby("target")["seed"].nunique()
    shown.insert(1, "seeds", shown["target"].map(run))
    lines = f"{cells.scale_line(trials, records)} {cells.baseline_line(trials)}"
    return f"{lines}\n\n{markdown(shown)}\n{_above_1(frame)} {_after_one_epoch(trials)}\n"


def _above_1(frame: pd.DataFrame) -> str:
    """Of `same_seeds`, how many pairs of different networks gain: at the paper's rate, and at the better of both."""
    run = frame[(frame["init"] == "dpiat") & (frame["source"] != frame["target"])]
    ratios = run.groupby(["target", "source"])[["effectiveness", cells.SAME_RATE]].mean().dropna()
    of_better = ratios.min(axis=1)
    return (
        f"The mean effectiveness of the {len(ratios)} pairs of different networks is "
        f"{ratios['effectiveness'].mean():.2f}; divided by random init at the transfer's own rate, it would be "
        f"{ratios[cells.SAME_RATE].mean():.2f}. At the better of both rates, {(of_better > 1).sum()} of "
        f"{len(ratios)} are above 1."
    )


def _after_one_epoch(trials: pd.DataFrame) -> str:
    """How many pairs of `own_trials` need one epoch for what random init needs four for."""
    run = trials[(trials["source"] != "") & (trials["source"] != trials["target"]) & trials["epochs"].notna()]
    after_one = (run["epochs"] == 1).groupby([run["target"], run["source"]]).all()
    return (
        f"One epoch after a transfer beats or equals four epochs from random init in {after_one.sum()} of "
        f"{len(after_one)} pairs, with each seed of the target and at the better rate of random init."
    )


def similarity_said(experiment: str, records: cells.Records) -> str:
    """What similarity, as the paper computes it, tells of a grid of ours, in words."""
    values = own_cells(own_trials(experiment, records))[["target", "source", "value"]]
    if len(values) < 3:
        return f"{NOT_RUN}\n"
    numbers = choosing.measured([Results(experiment, values)])
    similarity = numbers[numbers["measure"] == "similarity, paper mode"]
    return choosing.said("our own grid", choosing.choice(values.merge(similarity, on=["source", "target"])))


def own_trials(experiment: str, records: cells.Records) -> pd.DataFrame:
    """The trials of a grid of ours with the columns of its table and their ratios to random init's means over seeds."""
    frame = cells.trials(cells.plan(experiment), records)
    frame["column"] = [_column(row) for row in frame.itertuples()]
    frame["epochs"] = _epochs_to_random(frame, records)
    return cells.compared(frame)


def _epochs_to_random(frame: pd.DataFrame, records: cells.Records) -> list[float]:
    """Epochs of each trial until random init's accuracy within 4, at any of its learning rates; infinite if never.

    NaN until the trial, and random init at each of the rates, are run.
    """
    random = frame[frame["init"] == "random"].groupby(["target", "lr"])["of random"].first()
    best = random.groupby("target").agg(lambda rates: rates.max(skipna=False))
    found = []
    for row in frame.itertuples():
        accuracy = best[row.target]
        known = row.id in records and not math.isnan(accuracy)
        found.append(time_to(records[row.id], accuracy)[0] or math.inf if known else math.nan)
    return found


def _epochs(cell: pd.Series) -> str:
    """The epochs of each seed, in their order."""
    found = ["not reached" if math.isinf(epochs) else f"{epochs:.0f}" for epochs in cell.dropna()]
    return ", ".join(found) or NOT_RUN


def same_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Of `own_trials`, those of the seeds that all cells of a target's row have: a row compares like with like."""
    kept = []
    for _, row in frame.groupby("target", sort=False):
        seeds = [set(cell["seed"]) for _, cell in row.dropna(subset="accuracy").groupby("column")]
        shared = set.intersection(*seeds) if seeds else set()
        kept.append(row[row["seed"].isin(shared)] if shared else row)
    return pd.concat(kept)


def _column(row: Any) -> str:
    """The column of a trial, which names all that its grid may vary."""
    if not row.source:
        named = {"random": f"random init, lr {row.lr:g}", "pretrained": "own ImageNet weights"}
        return named.get(row.init, row.init)
    init = "" if row.init == "dpiat" else f", {row.init}"
    mode = "" if row.mode == "paper" else f", {row.mode} mode"
    method = "" if (row.operator, row.matching) == ("clip", "dp") else f", {row.operator} {row.matching}"
    head = "" if row.head == "auto" else f", head {row.head}"
    return f"{row.source}{init}{mode}{method}{head}"


def wide(frame: pd.DataFrame, value: str, text: Callable[[pd.Series], str] = cells.shown) -> str:
    """Markdown: a row for each target, a column for each initialization, and what `text` says of each cell's trials."""
    shown = frame.groupby(["target", "column"], sort=False)[value].agg(text).unstack()
    return markdown(_in_order(shown.loc[frame["target"].unique()]))


def _in_order(shown: pd.DataFrame) -> pd.DataFrame:
    """The columns with random init and own weights first."""
    order = sorted(shown.columns, key=lambda name: (not name.startswith("random"), not name.startswith("own"), name))
    return shown[order].fillna(NOT_PLANNED).rename_axis(columns=None).reset_index()


# --- Table 11: does similarity predict the effect? --------------------------------------------------------------------


def table11(records: cells.Records, own: list[str]) -> Table:
    """Correlation, regret: from the paper's own numbers, and from our grids; no training."""
    not_run = [str(int(table[5:])) for table in paper.TABLE_11 if reproduction.run(table, records).empty]
    return choosing.table11(outcomes(records, own), not_run)


def outcomes(records: cells.Records, own: list[str]) -> list[Results]:
    """What sources gave to targets: in each of the paper's tables, in ours at each scale, and in our own grids."""
    printed = paper.printed("table11_correlation").set_index(["dataset", "source_weights"])["correlation"]
    found = []
    for table, (dataset, weights) in paper.TABLE_11.items():
        name = f"Table {int(table[5:])}: {dataset}, sources from {paper.STARTS[weights]}"
        found.append(Results(name, paper.matrix(table), printed[dataset, weights]))
        for scale, run in reproduction.run(table, records).groupby("scale"):
            values = run[["target", "source", "ours"]].rename(columns={"ours": "value"})
            found.append(Results(f"ours, scale {scale}: {name}", values))
    for experiment in own:
        trials = own_trials(experiment, records)
        values = own_cells(trials)
        if not methods.several(trials) and len(values) > len(values["target"].unique()) > 1:
            name = f"ours: {experiment}, random init at {PAPER_LR:g}"
            found.append(Results(name, values.drop(columns="similarity")))
    return found


def own_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The transfers of `own_trials` that are run: target, source, similarity, value (mean over `same_seeds`)."""
    frame = same_seeds(frame)
    found = frame[(frame["source"] != "") & frame["effectiveness"].notna()]
    means = found.groupby(["target", "source"], sort=False)[["similarity", "effectiveness"]].mean()
    return means.rename(columns={"effectiveness": "value"}).reset_index()


# --- all of them ------------------------------------------------------------------------------------------------------


def own_experiments() -> list[str]:
    """Experiments that are no table or figure of the paper, and whose results count."""
    return [name for name in grids.names() if not name.startswith(("table", "figure", "demo", "smoke"))]


def builders(records: cells.Records, own: list[str]) -> dict[str, Callable[[], Table]]:
    """What builds each of the paper's tables and those of experiments of our own."""
    similarity = paper.similarity()
    found: dict[str, Callable[[], Table]] = {
        "similarity": lambda: Table(similarity, markdown(similarity)),
        "table11": partial(table11, records, own),
        "measures": lambda: choosing.measures(outcomes(records, own)),
        "claims": claims.table,
    }
    found |= reproduction.tables(records)
    return found | {name: partial(own_table, name, records) for name in own}


def provenance_table(records: cells.Records) -> pd.DataFrame:
    """results/README.md: what was run, at which scale, on what, from which commit."""
    rows = []
    for name in (*sorted(paper.DATASETS), *own_experiments()):
        if name in paper.DATASETS:
            scales = {(f"scale={scale}",): frame for scale, frame in cells.frames(name, records).items()}
        else:
            scales = {(): own_trials(name, records)}
        for words, frame in (scales or {(): cells.trials([], records)}).items():
            rows.append(
                {
                    "table": name if name.startswith("figure") else f"[{name}](tables/{name}.md)",
                    "config": f"[{name}.yaml](../configs/experiment/{name}.yaml)",
                    "command": "<br>".join(f"`{line}`" for line in cells.command_lines(name, *words)),
                    **_provenance(frame, records),
                }
            )
    return pd.DataFrame(rows)


def _provenance(frame: pd.DataFrame, records: cells.Records) -> dict[str, str]:
    """Of an experiment's trials, those of its sources among them."""
    trials = {*frame["id"], *frame["source id"]} - {""}
    found = [records[trial] for trial in trials if trial in records]
    seconds = sum(epoch["seconds"] for record in found for epoch in record["epochs"])
    return {
        "scale": ", ".join(sorted({record["scale"] for record in found})),
        "commit": ", ".join(sorted({record["commit"][:10] for record in found})),
        "hardware": ", ".join(sorted({cells.hardware(record) for record in found})),
        "status": f"{len(found)} of {len(trials)} trials, {seconds / 3600:.1f} h" if found else NOT_RUN,
    }


def timm_table() -> pd.DataFrame:
    """results/README.md: what scripts/check_timm.py found."""
    rows = []
    for name, what in (("timm_self", "each architecture to itself"), ("timm_pairs", "random pairs")):
        found = pd.read_csv(paper.RESULTS / f"{name}.csv")
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in found["outcome"].value_counts().items())
        seconds = f"{found['seconds'].median():.2f} s, at most {found['seconds'].max():.1f} s"
        rows.append({"check": f"[{what}]({name}.csv)", "number": len(found), "outcome": outcomes, "median": seconds})
    return pd.DataFrame(rows)


def build(records: cells.Records, own: list[str]) -> dict[str, Table]:
    """Every table by its name."""
    return {name: table() for name, table in builders(records, own).items()}


def write(tables: Mapping[str, Table], folder: Path) -> None:
    _write(texts(tables, folder))


def _write(files: Mapping[Path, str]) -> None:
    for file, text in files.items():
        atomic_write(file, lambda f, text=text: f.write(text.encode()))


def texts(tables: Mapping[str, Table], folder: Path) -> dict[Path, str]:
    """The files of tables in a folder: CSV, and a page of Markdown but for the similarities."""
    files = {}
    for name, table in tables.items():
        files[folder / f"{name}.csv"] = table.data.to_csv(index=False, float_format="%.6f", lineterminator="\n")
        if name != "similarity":
            files[folder / f"{name}.md"] = table.page
    return files


def committed(records: cells.Records) -> dict[Path, str]:
    """Every generated file of the repository and its content."""
    tables = build(records, own_experiments())
    files = texts(tables, paper.RESULTS / "tables")
    blocks = {name: table.page for name, table in tables.items()}
    blocks |= {"provenance": markdown(provenance_table(records)), "headline": headline(HEADLINE, records)}
    blocks |= {"chosen": similarity_said(HEADLINE, records), "first": reproduction.first_table(records)}
    blocks |= {"short": reproduction.short_table(records)}
    blocks |= {"seconds": claims.line(), "curves": reproduction.curves_said(records)}
    for block, experiment in COMPARISONS.items():
        trials = own_trials(experiment, records)
        compared = methods.together(methods.pairs(trials))
        if len(compared):
            lines = cells.scale_line(trials, records), cells.baseline_line(trials), methods.means(compared)
            blocks[block] = "\n\n".join(lines)
    blocks |= {"timm": markdown(timm_table())}
    for file in (ROOT / "README.md", ROOT / "results" / "README.md"):
        files[file] = with_blocks(file, blocks)
    return files


def with_blocks(file: Path, blocks: Mapping[str, str]) -> str:
    """The text of a file with the blocks between `<!-- name -->` and `<!-- /name -->` replaced where it has them.

    Raises UserError for a block that does not begin and end once.
    """
    text = file.read_text()
    for name, block in blocks.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if start in text or end in text:
            if (text.count(start), text.count(end)) != (1, 1) or text.index(end) < text.index(start):
                raise UserError(f"{file}: <!-- {name} --> must stand once, on a line before its <!-- /{name} -->")
            before, rest = text.split(start)
            text = before + start + block + end + rest.split(end)[1]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the tables from the records.")
    parser.add_argument("name", nargs="?", help="print this table only")
    parser.add_argument("words", nargs="*", help="with --missing: what else the command says, such as scale=gpu")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a committed file is out of date")
    parser.add_argument("--missing", action="store_true", help="list the trials that tables still need, and their cost")
    arguments = parser.parse_args()
    if arguments.words and not arguments.missing:
        parser.error(f"{' '.join(arguments.words)}: further words go with --missing")
    if arguments.check and (arguments.name or arguments.missing):
        parser.error("--check is of all files, and goes with nothing else")
    try:
        records = cells.all_evidence()
    except ValueError as error:
        sys.exit(f"error: {error}")
    if arguments.missing:
        run = ended(RUNS)
        for name in [arguments.name] if arguments.name else (*sorted(paper.DATASETS), *own_experiments()):
            if name not in grids.names():
                sys.exit(f"error: no experiment {name!r}: there are {', '.join(grids.names())}")
            try:
                print(missing.report(name, records, *arguments.words, names=bool(arguments.name), run=run))
            except (UserError, HydraException, OmegaConfBaseException, ValueError) as error:
                said = " ".join((f"experiment={name}", *arguments.words))
                if arguments.name:
                    sys.exit(f"error: {said} cannot be planned: {first_line(error)}")
                print(f"{said} cannot be planned: {first_line(error)}")
        return
    if arguments.name:
        known = builders(records, own_experiments())
        if arguments.name not in known:
            sys.exit(f"error: no table {arguments.name!r}: there are {', '.join(known)}")
        print(known[arguments.name]().page, end="")
        return
    try:
        files = committed(records)
        if not arguments.check:
            _write(files)
    except (UserError, CannotWrite) as error:
        sys.exit(f"error: {error}")
    if arguments.check:
        others = {file for file in (paper.RESULTS / "tables").glob("*") if file not in files}
        if others:
            sys.exit(f"error: made by nothing: {', '.join(sorted(str(f.relative_to(ROOT)) for f in others))}")
        stale = [str(f.relative_to(ROOT)) for f, text in files.items() if not same(f, text)]
        if stale:
            sys.exit(f"error: not what the records give: {', '.join(stale)}; run `make tables` and commit")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader such as head may have seen enough
    main()
