"""Records -> figures, as PNG and SVG under results/figures.

python -m experiments.figures          writes those whose records have changed
python -m experiments.figures --check  fails if a committed one is not what the records give
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from experiments import grids
from experiments.results import cells, drawing, method_effects, ours, paper
from experiments.store.files import CannotWrite, atomic_write, holds, write_text

# The paper's curves: what over epochs, and whose trials. Where those of Table 3 are not run, its details are drawn of
# sources that were trained from scratch.
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
    """Every figure, of the paper and of experiments of our own, by the name of its files."""
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
    """The figures of several methods on the same pairs, if more than one is run."""
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
    """The same text for the same figure, which is drawn once: letters as paths, no date, no random ids."""
    file = io.StringIO()
    with rc_context({"svg.hashsalt": "dpiat", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def write(figures: Mapping[str, Figure], folder: Path) -> None:
    """PNG and SVG of those figures that are not there as they are."""
    for file, text in outdated(figures, folder).items():
        picture, words = file.with_suffix(".png"), {"Comment": _digest(text)}
        draw = partial(figures[file.stem].savefig, format="png", dpi=150, metadata=words)
        atomic_write(picture, draw)
        write_text(file, text)  # last: it says that both are as they should be
        print(picture)


def outdated(figures: Mapping[str, Figure], folder: Path) -> dict[Path, str]:
    """The SVG files, with what they should be, that are not so, not there, or without a PNG that is of them.

    PNGs differ from machine to machine: each says of which SVG it is the picture.
    Each figure is drawn once here: drawn again, a constrained layout may move a little.
    """
    texts = {folder / f"{name}.svg": svg(figure) for name, figure in figures.items()}
    return {file: text for file, text in texts.items() if not (holds(file, text) and _pictured(file, text))}


def _pictured(file: Path, text: str) -> bool:
    picture = file.with_suffix(".png")
    return picture.is_file() and _digest(text).encode() in picture.read_bytes()


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _others(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Pictures that are missing, and files that are none of these figures."""
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
