"""Records -> tables, as CSV and Markdown under results/tables, and the generated parts of the READMEs and of the guide.

python -m experiments.tables            writes all of them
python -m experiments.tables --check    fails if a committed file is not what the records give
python -m experiments.tables table01    prints one table
python -m experiments.tables --missing  lists the trials that tables still need, their commands and their cost
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

import pandas as pd
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from experiments import grids
from experiments.results import (
    cells,
    claims,
    method_effects,
    missing,
    ours,
    paper,
    reproduction,
    similarity_modes,
    source_choice,
    source_effects,
)
from experiments.results.cells import NOT_RUN, Table, markdown
from experiments.settings import UserError, first_line
from experiments.store.files import CannotWrite, holds, write_text
from experiments.store.records import RUNS, read_ended

ROOT = Path(__file__).parent.parent
HEADLINE = "imagenet_to_imagenette"  # the experiment of the main table of results/README.md
# The experiments that compare methods of transfer, by the names of their blocks in results/README.md.
COMPARISONS = {
    "modes": "imagenette_modes",
    "modes_from_scratch": "cifar100_modes",
    "methods": "imagenette_methods",
    "growing": "imagenette_growing",
    "growing_from_scratch": "cifar100_growing",
}


def builders(records: cells.Records, own: list[str]) -> dict[str, Callable[[], Table]]:
    """Return for each table's name the function that builds the table.

    Args:
        records: The records of all trials, by id.
        own: The names of our own experiments that get a table.
    """
    similarity, effects = paper.similarity(), cache(partial(source_effects.all_effects, records, own))
    found: dict[str, Callable[[], Table]] = {
        "similarity": lambda: Table(similarity, markdown(similarity)),
        "table11": partial(source_effects.table11, records, own),
        "measures": lambda: source_choice.measures_table(effects()),
        "similarity_modes": lambda: similarity_modes.table(effects()),
        "claims": claims.table,
    }
    found |= reproduction.tables(records)
    return found | {name: partial(ours.table, name, records) for name in own}


def provenance_table(records: cells.Records) -> pd.DataFrame:
    """Return the table of results/README.md that says what was run: scale, hardware, commit, hours."""
    rows = []
    for name in (*sorted(paper.DATASETS), *grids.our_experiments()):
        scales: dict[tuple[str, ...], pd.DataFrame] = {}
        if name in paper.DATASETS:
            scales |= {(f"scale={scale}",): frame for scale, frame in cells.frames_by_scale(name, records).items()}
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
    """The scale, commit, hardware and hours of an experiment's trials and of their sources."""
    trials = cells.with_sources(frame)
    found = [records[trial] for trial in trials if trial in records]
    seconds = sum(epoch["seconds"] for record in found for epoch in record["epochs"])
    return {
        "scale": ", ".join(sorted({record["scale"] for record in found})),
        "commit": ", ".join(sorted({record["commit"][:10] for record in found})),
        "hardware": ", ".join(sorted({cells.hardware(record) for record in found})),
        "status": f"{len(found)} of {len(trials)} trials, {seconds / 3600:.1f} h" if found else NOT_RUN,
    }


def timm_table() -> pd.DataFrame:
    """Return the table of results/README.md that says what scripts/check_timm.py found."""
    rows = []
    for name, what in (("timm_self", "each architecture to itself"), ("timm_pairs", "random pairs")):
        found = pd.read_csv(paper.RESULTS / f"{name}.csv")
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in found["outcome"].value_counts().items())
        seconds = f"{found['seconds'].median():.2f} s, at most {found['seconds'].max():.1f} s"
        rows.append({"check": f"[{what}]({name}.csv)", "number": len(found), "outcome": outcomes, "median": seconds})
    return pd.DataFrame(rows)


def all_tables(records: cells.Records, own: list[str]) -> dict[str, Table]:
    """Build every table, by its name. See `builders` for the arguments."""
    return {name: table() for name, table in builders(records, own).items()}


def write(tables: Mapping[str, Table], folder: Path) -> None:
    """Write the files of tables into a folder. Raises CannotWrite if the disk refuses."""
    _write(texts(tables, folder))


def _write(files: Mapping[Path, str]) -> None:
    for file, text in files.items():
        write_text(file, text)


def texts(tables: Mapping[str, Table], folder: Path) -> dict[Path, str]:
    """Return the content of the files of tables in a folder: a CSV each, and a page for all but the similarities."""
    files = {}
    for name, table in tables.items():
        files[folder / f"{name}.csv"] = table.data.to_csv(index=False, float_format="%.6f", lineterminator="\n")
        if name != "similarity":
            files[folder / f"{name}.md"] = table.page
    return files


def generated_files(records: cells.Records) -> dict[Path, str]:
    """Return the content of every generated file of the repository."""
    tables = all_tables(records, grids.our_experiments())
    files = texts(tables, paper.RESULTS / "tables")
    blocks = _blocks(tables, records)
    for file in (ROOT / "README.md", ROOT / "results" / "README.md", ROOT / "docs" / "library.md"):
        files[file] = with_blocks(file, blocks)
    return files


def _blocks(tables: Mapping[str, Table], records: cells.Records) -> dict[str, str]:
    """The generated parts of the READMEs and of the guide, by the names in their comments."""
    blocks = {name: table.page for name, table in tables.items()}
    blocks |= {
        "short": reproduction.short_table(records),
        "first": reproduction.first_table(records),
        "headline": ours.headline(HEADLINE, records),
        "scale": source_effects.scale_of_similarity(HEADLINE, records),
        "chosen": source_effects.similarity_in_words(HEADLINE, records),
        "curves": reproduction.curves_said(records),
        "grid": method_effects.modes_in_words(method_effects.pairs(ours.trials(COMPARISONS["modes"], records))),
        "seconds": claims.seconds_line(),
        "timm": markdown(timm_table()),
        "provenance": markdown(provenance_table(records)),
    }
    for block, experiment in COMPARISONS.items():
        trials = ours.trials(experiment, records)
        compared = method_effects.with_every_method(method_effects.pairs(trials))
        if len(compared):
            lines = (
                cells.scale_line(trials, records),
                cells.baseline_line(trials),
                method_effects.means_page(compared),
            )
            blocks[block] = "\n\n".join(lines)
    return blocks


def with_blocks(file: Path, blocks: Mapping[str, str]) -> str:
    """Return the text of a file with the parts between `<!-- name -->` and `<!-- /name -->` replaced.

    Args:
        file: A Markdown file.
        blocks: The new parts, by their names. Parts that the file does not have are left out.

    Raises:
        UserError: A part does not begin and end once.
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
        _print_missing(records, arguments.name, arguments.words)
        return
    if arguments.name:
        known = builders(records, grids.our_experiments())
        if arguments.name not in known:
            sys.exit(f"error: no table {arguments.name!r}: there are {', '.join(known)}")
        print(known[arguments.name]().page, end="")
        return
    try:
        files = generated_files(records)
        if not arguments.check:
            _write(files)
    except (UserError, CannotWrite) as error:
        sys.exit(f"error: {error}")
    if arguments.check:
        _check(files)


def _print_missing(records: cells.Records, only: str | None, words: list[str]) -> None:
    """Print what experiments still need. Exits with an error if the one experiment that is asked for is unknown."""
    run = read_ended(RUNS)
    for name in [only] if only else (*sorted(paper.DATASETS), *grids.our_experiments()):
        if name not in grids.names():
            sys.exit(f"error: no experiment {name!r}: there are {', '.join(grids.names())}")
        try:
            print(missing.report(name, records, *words, names=bool(only), run=run))
        except (UserError, HydraException, OmegaConfBaseException, ValueError) as error:
            said = " ".join((f"experiment={name}", *words))
            if only:
                sys.exit(f"error: {said} cannot be planned: {first_line(error)}")
            print(f"{said} cannot be planned: {first_line(error)}")


def _check(files: Mapping[Path, str]) -> None:
    """Exit with an error if a committed file differs, or if nothing makes a file of results/tables."""
    others = {file for file in (paper.RESULTS / "tables").glob("*") if file not in files}
    if others:
        sys.exit(f"error: made by nothing: {', '.join(sorted(str(f.relative_to(ROOT)) for f in others))}")
    stale = [str(f.relative_to(ROOT)) for f, text in files.items() if not holds(f, text)]
    if stale:
        sys.exit(f"error: not what the records give: {', '.join(stale)}; run `make tables` and commit")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly when a reader such as head has seen enough
    main()
