"""Draw the matching and write the report that the documentation shows: docs/matching.svg and docs/report.html.

python scripts/draw_docs.py [FOLDER]
"""

import sys
from pathlib import Path

import timm
import torch

from dpiat import plan
from dpiat.plotting import plot_matching

PAIR = "resnet18", "seresnet34"


def draw(folder: Path) -> None:
    """Write both files into a folder."""
    with torch.device("meta"):  # a drawing needs shapes and no weights
        source, target = (timm.create_model(name) for name in PAIR)
    plot_matching(source, target, folder / "matching.svg", names=PAIR)
    (folder / "report.html").write_text(plan(source, target).to_html(PAIR), encoding="utf-8")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "docs")
