"""The text that a trial ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.results import drawing
from experiments.store.records import EFFECTIVENESS_EPOCHS, best_accuracy, divergence_text, effectiveness


def report(record: dict[str, Any], baseline: dict[str, Any] | None, plots: Path) -> str:
    """Describe a trial that has ended.

    Args:
        record: The record of the target.
        baseline: The record of its random-init baseline; None if the target has random init itself.
        plots: The folder for a plot of both.

    Returns:
        The accuracies of each epoch, what was transferred, the seconds and the path of the plot; or how a training
        diverged.
    """
    trained = [each for each in (record, baseline) if each]
    if any(each["status"] == "diverged" for each in trained):
        return "\n".join(f"{each['id']} {divergence_text(each)}" for each in trained if each["status"] == "diverged")
    seconds = " and ".join(f"{each['seconds']:.0f} s ({each['trial']['init']})" for each in trained)
    lines = [side_by_side(record, baseline) if baseline else _alone(record)]
    facts = record["initialization"]
    if "similarity" in facts:
        lines += [f"similarity {facts['similarity']:.2f}, {facts['filled']:.0%} of the target's elements filled"]
    lines += [f"trained in {seconds}"]
    if baseline:
        lines += [f"plot: {drawing.comparison(record, baseline, plots)}"]
    return "\n".join(lines)


def side_by_side(record: dict[str, Any], baseline: dict[str, Any]) -> str:
    """Return the test accuracy of each epoch from both starts, and the effectiveness.

    The effectiveness divides by this baseline, which is one seed; tables divide by the mean over seeds.
    """
    init = record["trial"]["init"]
    lines = [f"epoch  {init:>10}  random"]
    for row, random in zip(record["epochs"], baseline["epochs"], strict=False):
        lines.append(f"{row['epoch']:5}  {row['test_accuracy']:10.3f}  {random['test_accuracy']:6.3f}")
    best = f"{best_accuracy(record):.3f} / {best_accuracy(baseline):.3f}"
    ratio = effectiveness(record, baseline)
    return "\n".join([*lines, f"effectiveness within {_epochs(record)}: {ratio:.2f} = {best}"])


def _alone(record: dict[str, Any]) -> str:
    init = record["trial"]["init"]
    lines = [f"epoch  {init:>10}", *(f"{row['epoch']:5}  {row['test_accuracy']:10.3f}" for row in record["epochs"])]
    return "\n".join([*lines, f"best within {_epochs(record)}: {best_accuracy(record):.3f}"])


def _epochs(record: dict[str, Any]) -> str:
    """How many epochs `best_accuracy` looks at: a short trial has fewer epochs than the paper's measure asks for."""
    count = min(EFFECTIVENESS_EPOCHS, len(record["epochs"]))
    return "1 epoch" if count == 1 else f"{count} epochs"
