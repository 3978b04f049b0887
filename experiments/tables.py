"""Records -> tables."""

from __future__ import annotations

from typing import Any

from experiments.records import best_accuracy, effectiveness


def side_by_side(record: dict[str, Any], baseline: dict[str, Any]) -> str:
    """The test accuracy of each epoch, from the initialization under test and from random init, and their ratio."""
    init = record["trial"]["init"]
    lines = [f"epoch  {init:>10}  random"]
    for ours, theirs in zip(record["epochs"], baseline["epochs"], strict=False):
        lines.append(f"{ours['epoch']:5}  {ours['test_accuracy']:10.3f}  {theirs['test_accuracy']:6.3f}")
    best = f"{best_accuracy(record):.3f} / {best_accuracy(baseline):.3f}"
    return "\n".join([*lines, f"effectiveness within 4 epochs: {effectiveness(record, baseline):.2f} = {best}"])
