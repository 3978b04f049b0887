"""Records -> figures, as PNG and SVG under results/figures.

python -m experiments.figures          writes the figures whose records have changed
python -m experiments.figures --check  fails if a committed file is not what the records give
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Mapping
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from experiments import grids
from experiments.results import cells, drawing, method_effects, ours, paper
from experiments.store.files import CannotWrite, atomic_write, write_text

UNSEEN = 0.01  # a difference of coordinates that nobody sees, in points
DIGEST = re.compile(r"(?<=[\"#])[a-zA-Z]\w*[0-9a-f]{10}(?=[\")])")  # the name of a part of a drawing

# The paper's curves: which metric, and the experiments whose trials are drawn. Figures 9 to 11 show the trials of Table
# 3. At a scale where Table 3 is not run, they show the trials of Figure 15, whose sources are trained from scratch.
CURVES = {
    "figure04": ("test_accuracy", "table03"),
    "figure06": ("test_accuracy", "figure06"),
    "figure09": ("train_loss", "table03", "figure15"),
    "figure10": ("test_loss", "table03", "figure15"),
    "figure11": ("train_accuracy", "table03", "figure15"),
    "figure12": ("train_loss", "figure06"),
    "figure13": ("test_loss", "figure06"),
    "figure14": ("train_accuracy", "figure06"),
    "figure15": ("test_accuracy", "figure15"),
}


def all_figures(records: cells.Records, own: list[str]) -> dict[str, Figure]:
    """Draw every figure, by the name of its files.

    Args:
        records: The records of all trials, by id.
        own: The names of our own experiments that get figures.
    """
    networks = paper.architectures()
    by_label = {label: networks[name] for label, name in paper.LABELS.items()}
    figures = {
        "figure02": drawing.figure02(by_label),
        "figure05": drawing.figure05(by_label),
        **drawing.figures16(paper.similarity(), records),
    }
    for name, (metric, *experiments) in CURVES.items():
        drawn = {}
        for experiment in experiments:
            for scale, frame in cells.frames_by_scale(experiment, records).items():
                drawn.setdefault(scale, frame)
        figures |= {f"{name}_{scale}": drawing.curves(frame, records, metric, scale) for scale, frame in drawn.items()}
    for scale, frame in cells.frames_by_scale("table12", records).items():
        figures |= _of_methods(
            f"table12_{scale}", cells.with_effectiveness(frame), cells.scale_line(frame, records, scale)
        )
    for experiment in own:
        trials = ours.trials(experiment, records)
        if method_effects.varies_method(trials):
            figures |= _of_methods(experiment, trials, cells.scale_line(trials, records))
        elif trials["accuracy"].notna().any():
            figures[experiment] = drawing.curves(trials, records)
            if len(ours.transfers(trials)) > 2:
                figures[f"{experiment}_similarity"] = drawing.scatter(experiment, records)
    return figures


def _of_methods(name: str, trials: pd.DataFrame, caption: str) -> dict[str, Figure]:
    """The figures of several methods of transfer on the same pairs; none until two methods are run."""
    planned = method_effects.pairs(trials)
    first = planned["method"].iloc[0]
    if method_effects.differences(planned)[planned["method"] != first].isna().all():
        return {}
    run = planned.dropna(subset="accuracy").sort_values("method", key=lambda method: method != first, kind="stable")
    figures = {name: drawing.method_differences(run, caption)}
    if method_effects.of_table12(planned):
        figures[f"{name}_similarity"] = drawing.differences_over_similarity(
            run.assign(same=method_effects.same_start(run)), caption
        )
    return figures


@cache
def svg(figure: Figure) -> str:
    """Return the SVG of a figure, the same text on every machine: letters as paths, no date, no random ids."""
    # Cached because a second drawing may differ: a constrained layout starts from where the first drawing left it.
    file = io.StringIO()
    with rc_context({"svg.hashsalt": "dpiat", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def write(figures: Mapping[str, Figure], folder: Path) -> None:
    """Write the PNG and the SVG of each figure whose files are out of date. Raises CannotWrite if the disk refuses."""
    for file, text in outdated(figures, folder).items():
        picture, words = file.with_suffix(".png"), {"Comment": _digest(text)}
        draw = partial(figures[file.stem].savefig, format="png", dpi=150, metadata=words)
        atomic_write(picture, draw)
        write_text(file, text)  # last: an SVG on disk says that its PNG is there too
        print(picture)


def outdated(figures: Mapping[str, Figure], folder: Path) -> dict[Path, str]:
    """Return the SVG files that are missing, differ, or have no PNG of their own, with what they should contain."""
    # PNGs differ from machine to machine, by fonts and rendering, so that their bytes cannot be compared. Each PNG
    # carries the digest of the SVG that it was drawn with, and this digest is compared.
    texts = {folder / f"{name}.svg": svg(figure) for name, figure in figures.items()}
    there = {file: file.read_text("utf-8") if file.is_file() else "" for file in texts}
    return {
        file: text for file, text in texts.items() if not (alike(there[file], text) and _pictured(file, there[file]))
    }


def alike(one: str, other: str) -> bool:
    """Whether two SVGs show the same: equal but for the last digits of numbers, and for the names of their parts."""
    # Processors round differently. The last digit of a coordinate follows, and so does a part's name, a digest.
    (words, numbers), (other_words, other_numbers) = map(_words_and_numbers, (one, other))
    return words == other_words and np.allclose(numbers, other_numbers, rtol=0, atol=UNSEEN)


def _words_and_numbers(text: str) -> tuple[list[str], np.ndarray]:
    """Part a text at its numbers, and name the parts of the drawing by their order."""
    names: dict[str, str] = {}
    text = DIGEST.sub(lambda found: names.setdefault(found[0], f"part{len(names)}"), text)
    words = re.split(r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)", text)
    return words[::2], np.array(words[1::2], dtype=float)


def _pictured(file: Path, text: str) -> bool:
    """Whether an SVG file has a PNG that was drawn with this text."""
    picture = file.with_suffix(".png")
    return picture.is_file() and _digest(text).encode() in picture.read_bytes()


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _others(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """The files of figures that are missing, and files that belong to no figure."""
    known = {folder / f"{name}{suffix}" for name in figures for suffix in (".png", ".svg")}
    return sorted(known ^ {*folder.glob("*")})


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the figures from the records.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a committed file is out of date")
    arguments = parser.parse_args()
    folder = paper.RESULTS / "figures"
    try:
        records = cells.all_evidence()
    except ValueError as error:
        sys.exit(f"error: {error}")
    figures = all_figures(records, grids.our_experiments())
    if not arguments.check:
        try:
            write(figures, folder)
        except CannotWrite as error:
            sys.exit(f"error: {error}")
    elif others := _others(figures, folder):
        sys.exit(f"error: missing, or made by nothing: {', '.join(file.name for file in others)}")
    elif stale := outdated(figures, folder):
        names = ", ".join(file.name for file in stale)
        sys.exit(f"error: not what the records give: {names}; run `make figures` and commit")


if __name__ == "__main__":
    main()
