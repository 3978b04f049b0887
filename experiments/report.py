"""What is said at the end of a trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments import figures, tables
from experiments.store.records import EFFECTIVENESS_EPOCHS, best_accuracy, divergence


def report(record: dict[str, Any], baseline: dict[str, Any] | None, plots: Path) -> str:
    """A table of the epochs, what was transferred, the seconds, and the path of a plot; or how a training diverged."""
    trained = [each for each in (record, baseline) if each]
    if any(each["status"] == "diverged" for each in trained):
        return "\n".join(f"{each['id']} {divergence(each)}" for each in trained if each["status"] == "diverged")
    seconds = " and ".join(f"{each['seconds']:.0f} s ({each['trial']['init']})" for each in trained)
    lines = [tables.side_by_side(record, baseline) if baseline else _alone(record)]
    facts = record["initialization"]
    if "similarity" in facts:
        lines += [f"similarity {facts['similarity']:.2f}, {facts['filled']:.0%} of the target's elements filled"]
    lines += [f"trained in {seconds}"]
    if baseline:
        lines += [f"plot: {figures.comparison(record, baseline, plots)}"]
    return "\n".join(lines)


def _alone(record: dict[str, Any]) -> str:
    init = record["trial"]["init"]
    lines = [f"epoch  {init:>10}", *(f"{row['epoch']:5}  {row['test_accuracy']:10.3f}" for row in record["epochs"])]
    return "\n".join([*lines, f"best within {EFFECTIVENESS_EPOCHS} epochs: {best_accuracy(record):.3f}"])
