"""Records -> figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def comparison(record: dict[str, Any], baseline: dict[str, Any], folder: Path) -> Path:
    """Test accuracy over epochs from both initializations, saved as a PNG named after the trial."""
    trial = record["trial"]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    label = f"{trial['init']} from {trial['source']['model']}" if trial["source"] else trial["init"]
    for rows, name, style in ((record["epochs"], label, "C2o-"), (baseline["epochs"], "random init", "ko-")):
        axes.plot([row["epoch"] for row in rows], [row["test_accuracy"] for row in rows], style, label=name)
    axes.set(xlabel="epoch", ylabel="test accuracy", title=f"{trial['model']} on {trial['dataset']}", ylim=(0, 1))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{record['id']}.png"
    figure.savefig(file, dpi=150)
    plt.close(figure)
    return file
