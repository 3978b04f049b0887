"""Records -> tables, as CSV and Markdown under results/tables, and the generated parts of the READMEs.

python -m experiments.tables            writes them all
python -m experiments.tables --check    fails if a committed one is not what the records give
python -m experiments.tables table01    prints one
python -m experiments.tables --missing  lists what they still need, the commands, and what they will cost
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pandas as pd
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from experiments import grids
from experiments.results import cells, choosing, claims, methods, missing, ours, outcomes, paper, reproduction, telling
from experiments.results.cells import NOT_RUN, Table, markdown
from experiments.settings import UserError, first_line
from experiments.store.files import CannotWrite, same, write_text
from experiments.store.records import RUNS, ended

ROOT = Path(__file__).parent.parent
HEADLINE = "imagenet_to_imagenette"  # the experiment of the main table of results/README.md
# Those of its comparisons of methods, by the names of its blocks.
COMPARISONS = {"modes": "imagenette_statistics", "methods": "imagenette_methods"}


def builders(records: cells.Records, own: list[str]) -> dict[str, Callable[[], Table]]:
    """What builds each of the paper's tables and those of experiments of our own."""
    similarity = paper.similarity()
    found: dict[str, Callable[[], Table]] = {
        "similarity": lambda: Table(similarity, markdown(similarity)),
        "table11": partial(outcomes.table11, records, own),
        "measures": lambda: choosing.measures(outcomes.outcomes(records, own)),
        "similarity_modes": lambda: telling.table(outcomes.outcomes(records, own)),
        "claims": claims.table,
    }
    found |= reproduction.tables(records)
    return found | {name: partial(ours.table, name, records) for name in own}


def provenance_table(records: cells.Records) -> pd.DataFrame:
    """results/README.md: what was run, at which scale, on what, from which commit."""
    rows = []
    for name in (*sorted(paper.DATASETS), *grids.own()):
        scales: dict[tuple[str, ...], pd.DataFrame] = {}
        if name in paper.DATASETS:
            scales |= {(f"scale={scale}",): frame for scale, frame in cells.frames(name, records).items()}
        else:
            scales[()] = ours.trials(name, records)
        for words, frame in (scales or {(): cells.trials([], records)}).items():
            rows.append(
                {
                    "table": name if grids.kind(name) == "figure of the paper" else f"[{name}](tables/{name}.md)",
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
        write_text(file, text)


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
    tables = build(records, grids.own())
    files = texts(tables, paper.RESULTS / "tables")
    blocks = {name: table.page for name, table in tables.items()}
    blocks |= {"provenance": markdown(provenance_table(records)), "headline": ours.headline(HEADLINE, records)}
    blocks |= {"chosen": outcomes.similarity_said(HEADLINE, records), "first": reproduction.first_table(records)}
    blocks |= {"short": reproduction.short_table(records)}
    blocks |= {"seconds": claims.line(), "curves": reproduction.curves_said(records)}
    for block, experiment in COMPARISONS.items():
        trials = ours.trials(experiment, records)
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
        for name in [arguments.name] if arguments.name else (*sorted(paper.DATASETS), *grids.own()):
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
        known = builders(records, grids.own())
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
