"""Committed records of an experiment's trials: results/trials/<experiment>/records.jsonl.

python -m experiments.evidence collect table01  adds what was run, from runs/records
python -m experiments.evidence restore table01  writes the committed records back, so that the grid goes on from there
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import MappingProxyType

from experiments import grids
from experiments.results import cells, paper
from experiments.store import records
from experiments.store.files import CannotWrite, write_text


def planned_ids(experiment: str, run: cells.Records = MappingProxyType({})) -> set[str]:
    """Return the ids of an experiment's trials: targets, baselines, sources, at every scale for the paper's tables.

    Args:
        experiment: The name of the experiment.
        run: Records, among which trials that started from GHN-2 are looked for.
    """
    scales = [(f"scale={name}",) for name in grids.names("scale")] if grids.is_of_paper(experiment) else [()]
    found = [cell for scale in scales for cell in cells.planned_cells(experiment, *scale)]
    found += cells.ghn2_cells(experiment, found, run)
    return {trial.id for cell in found for trial in (cell.trial, cell.random, cell.trial.source) if trial}


def collect(experiment: str, folder: Path) -> str:
    """Add the records of an experiment's trials to its evidence.

    A trial that is evidence already, of this experiment or another, stays as it is.

    Args:
        experiment: The name of the experiment.
        folder: A folder of records. Records of other trials are left out.

    Returns:
        What was done, as a line.

    Raises:
        ValueError: There are no records, or a new record does not count as evidence. Nothing is written.
    """
    found = records.read_ended(folder)
    if not found:
        raise ValueError(f"no records in {folder}: run an experiment first")
    known = cells.all_evidence()
    wanted = planned_ids(experiment, {**known, **found})
    new = {name: record for name, record in found.items() if name in wanted and name not in known}
    for name, record in new.items():
        try:
            records.check_evidence(record)
        except ValueError as error:
            raise ValueError(f"{name} does not count, {error}: commit, run it again, then collect") from error
    if new:
        evidence = paper.RESULTS / "trials" / experiment
        kept = new | {record["id"]: record for record in records.read_evidence(evidence)}
        lines = "".join(records.evidence_line(kept[name]) for name in sorted(kept))
        write_text(evidence / "records.jsonl", lines)
        cells.all_evidence.cache_clear()
    others = len(found.keys() - wanted)
    left_out = f", {others} of other settings left out" if others else ""
    return f"{experiment}: {len(new)} records added, {len(found) - len(new) - others} there before{left_out}"


def restore(experiment: str, folder: Path) -> str:
    """Write the evidence of an experiment's trials to a folder of records, so that no trial is run again.

    A trial that several experiments share is found wherever its record is kept. No whole record is overwritten.

    Args:
        experiment: The name of the experiment.
        folder: A folder of records.

    Returns:
        What was done, as a line.

    Raises:
        ValueError: There is no evidence.
    """
    wanted = planned_ids(experiment, cells.all_evidence())
    found = [record for name, record in cells.all_evidence().items() if name in wanted]
    if not found:
        raise ValueError(f"no trial of {experiment} is in {paper.RESULTS / 'trials'}: there is nothing to bring back")
    missing = [record for record in found if not records.read(folder / f"{record['id']}.json")]
    for record in missing:
        records.save(record, folder / f"{record['id']}.json")
    return f"{experiment}: {len(missing)} records written to {folder}, {len(found) - len(missing)} there before"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("collect", "restore"))
    parser.add_argument("experiment", help="a file of configs/experiment, without its ending")
    parser.add_argument("--records", type=Path, default=records.RUNS, help="folder of records (%(default)s)")
    arguments = parser.parse_args()
    if arguments.experiment not in grids.names():
        sys.exit(f"error: no experiment {arguments.experiment!r}: there are {', '.join(grids.names())}")
    try:
        print({"collect": collect, "restore": restore}[arguments.action](arguments.experiment, arguments.records))
    except (ValueError, CannotWrite) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
