"""Records -> tables, as CSV and Markdown under results/tables, and the generated parts of the READMEs.

python -m experiments.tables          writes them all
python -m experiments.tables --check  fails if a committed one is not what the records give
python -m experiments.tables table11  prints one
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from experiments.records import best_accuracy, effectiveness, evidence

if TYPE_CHECKING:
    from dpiat import Architecture

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"

PAPER_LR = 4e-3  # for random init

# The paper's tables of results behind each correlation in its Table 11.
TABLE_11 = {
    6: ("CIFAR10", "random", "table06_cifar10_effectiveness"),
    1: ("CIFAR100", "random", "table01_cifar100_effectiveness"),
    7: ("FOOD101", "random", "table07_food101_effectiveness"),
    8: ("CIFAR10", "ImageNet", "table08_cifar10_vs_imagenet_pretrained"),
    9: ("CIFAR100", "ImageNet", "table09_cifar100_vs_imagenet_pretrained"),
    10: ("FOOD101", "ImageNet", "table10_food101_vs_imagenet_pretrained"),
}
PAPER_LABELS = {
    "Eff-B0": "eff_b0",
    "Eff-B1": "eff_b1",
    "Eff-B2": "eff_b2",
    "Mix-L": "mix_l",
    "Mix-M": "mix_m",
    "ReX1.5": "rex_150",
    "ReX": "rex",
    "Mnas": "mnas",
    "SeMnas": "semnas",
}


def side_by_side(record: dict[str, Any], baseline: dict[str, Any]) -> str:
    """The test accuracy of each epoch, from the initialization under test and from random init, and their ratio."""
    init = record["trial"]["init"]
    lines = [f"epoch  {init:>10}  random"]
    for ours, theirs in zip(record["epochs"], baseline["epochs"], strict=False):
        lines.append(f"{ours['epoch']:5}  {ours['test_accuracy']:10.3f}  {theirs['test_accuracy']:6.3f}")
    best = f"{best_accuracy(record):.3f} / {best_accuracy(baseline):.3f}"
    return "\n".join([*lines, f"effectiveness within 4 epochs: {effectiveness(record, baseline):.2f} = {best}"])


def paper_architectures() -> dict[str, Architecture]:
    """The paper's nine networks, standardized as in the paper, by its labels. Needs no memory for weights."""
    import torch

    from dpiat import standardize
    from experiments import models

    with torch.device("meta"):
        return {label: standardize(models.build(name, 1000), "paper") for label, name in PAPER_LABELS.items()}


def similarities(architectures: Mapping[str, Architecture]) -> pd.DataFrame:
    """Eq. 5 for every pair (Figure 5): columns source, target, similarity."""
    from dpiat import similarity

    pairs = product(architectures, repeat=2)
    rows = [(s, t, similarity(architectures[s], architectures[t])) for s, t in pairs]
    return pd.DataFrame(rows, columns=["source", "target", "similarity"])


def table11(similarity: pd.DataFrame) -> pd.DataFrame:
    """Pearson's correlation of Eq. 5 with the paper's own results, all cells of its tables; no training."""
    printed = pd.read_csv(RESULTS / "paper" / "table11_correlation.csv").set_index(["dataset", "source_weights"])
    rows = []
    for table, (dataset, weights, _) in TABLE_11.items():
        cells = paper_cells(table, similarity)
        ours = cells["value"].corr(cells["similarity"])
        rows.append((table, dataset, weights, len(cells), printed.loc[(dataset, weights), "correlation"], ours))
    return pd.DataFrame(rows, columns=["table", "dataset", "source_weights", "cells", "paper", "ours"])


def paper_cells(table: int, similarity: pd.DataFrame) -> pd.DataFrame:
    """The cells of one of the paper's tables of results with their similarities."""
    cells = pd.read_csv(RESULTS / "paper" / f"{TABLE_11[table][2]}.csv")
    return cells.merge(similarity, on=["source", "target"])


def experiment_evidence(experiment: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The committed trials and epochs of an experiment; `source` is "" where there is none."""
    trials, epochs = evidence(RESULTS / "trials" / experiment)
    trials = trials.rename(columns=lambda name: name.removeprefix("trial.").removeprefix("recipe."))
    trials["source"] = trials["source.model"].fillna("")
    return trials, epochs


def transfer_table(experiment: str) -> pd.DataFrame:
    """An experiment's targets by initialization: accuracy within 4 epochs and effectiveness, mean ± sd (n) over seeds.

    The effectiveness divides by the random-init trial of the same seed, where there is one: once at the same learning
    rate, so that only the first weights differ, once at the paper's rate for random init.
    """
    trials, _ = experiment_evidence(experiment)
    random = trials[trials["init"] == "random"].set_index(["model", "epochs", "lr", "seed"])["best_accuracy"]
    rows = []
    for (model, init, source, epochs, lr), cell in trials.groupby(["model", "init", "source", "epochs", "lr"]):
        accuracy = cell.set_index("seed")["best_accuracy"]
        row = {
            "network": model,
            "initialization": f"{init} from {source}" if source else init,
            "epochs": epochs,
            "learning rate": f"{lr:g}",
            "similarity": f"{cell['initialization.similarity'].iloc[0]:.2f}" if source else "",
            "accuracy within 4 epochs": _mean(accuracy),
        }
        for name, rate in (("effectiveness", lr), (f"effectiveness, random at {PAPER_LR:g}", PAPER_LR)):
            keys = {seed: (model, epochs, rate, seed) for seed in accuracy.index}
            baseline = pd.Series({seed: random[key] for seed, key in keys.items() if key in random.index}, dtype=float)
            row[name] = _mean((accuracy / baseline).dropna()) if len(baseline) else "not run"
        rows.append(row)
    return pd.DataFrame(rows)


def _mean(values: pd.Series) -> str:
    """Mean ± standard deviation (n)."""
    spread = f" ± {values.std():.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread} ({len(values)})"


def experiments_run() -> list[str]:
    return sorted(folder.name for folder in (RESULTS / "trials").iterdir() if (folder / "trials.csv").is_file())


def provenance_table() -> pd.DataFrame:
    """results/README.md: what was run, at which scale, on what, from which commit."""
    rows = []
    for name in experiments_run():
        trials, _ = evidence(RESULTS / "trials" / name)
        rows.append(
            {
                "table": f"[{name}](tables/{name}.md)",
                "config": f"configs/experiment/{name}.yaml",
                "command": f"`python run.py -m experiment={name}`",
                "scale": _all(trials["scale"]),
                "commit": _all(trials["commit"].str[:10]),
                "hardware": _all(trials["device"].where(trials["device"] != "cpu", trials["cpu"])),
                "status": f"{len(trials)} trials, {trials['seconds'].sum() / 3600:.1f} h of training",
            }
        )
    return pd.DataFrame(rows)


def _all(values: pd.Series) -> str:
    return ", ".join(sorted(values.unique()))


def scale_line(experiment: str) -> str:
    """What a reader of an experiment's table must know about its scale, from its records."""
    t, _ = experiment_evidence(experiment)
    return (
        f"Scale {_all(t['scale'])}: {_all(t['dataset'])}, {_all(t['train_images'].map('{:,}'.format))} training images "
        f"at {_all(t['image_size'].astype(str))} px, {_all(t['test_images'].map('{:,}'.format))} test images, "
        f"{_all(t['device'])}."
    )


def markdown(table: pd.DataFrame, digits: int = 3) -> str:
    """A table as Markdown, floats rounded."""
    cells = [
        [f"{v:.{digits}f}" if isinstance(v, float) else str(v) for v in row] for row in table.itertuples(index=False)
    ]
    rows = [list(table.columns), ["---"] * len(table.columns), *cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def build() -> dict[Path, str]:
    """Every generated file and its content."""
    computed = similarities(paper_architectures()).round(6)
    tables = {"similarity": computed, "table11": table11(computed)}
    tables |= {name: transfer_table(name) for name in experiments_run()}
    files = {}
    for name, table in tables.items():
        files[RESULTS / "tables" / f"{name}.csv"] = table.to_csv(index=False, float_format="%.6f", lineterminator="\n")
        if name != "similarity":
            head = f"{scale_line(name)}\n\n" if name in experiments_run() else ""
            files[RESULTS / "tables" / f"{name}.md"] = head + markdown(table)
    files[RESULTS / "README.md"] = with_blocks(RESULTS / "README.md", {"provenance": markdown(provenance_table())})
    blocks = {name: files[RESULTS / "tables" / f"{name}.md"] for name in tables if name != "similarity"}
    files[ROOT / "README.md"] = with_blocks(ROOT / "README.md", blocks)
    return files


def with_blocks(file: Path, blocks: Mapping[str, str]) -> str:
    """The text of a file with the blocks between `<!-- name -->` and `<!-- /name -->` replaced where it has them."""
    text = file.read_text()
    for name, block in blocks.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if start in text:
            before, rest = text.split(start, 1)
            text = before + start + block + end + rest.split(end, 1)[1]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the tables from the records.")
    parser.add_argument("name", nargs="?", help="print this table only: table11, similarity, or an experiment's name")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a committed file is out of date")
    arguments = parser.parse_args()
    if arguments.name:
        if arguments.name not in ("table11", "similarity", *experiments_run()):
            sys.exit(
                f"error: no table {arguments.name!r}: there are table11, similarity, {', '.join(experiments_run())}"
            )
        if arguments.name in experiments_run():
            print(scale_line(arguments.name) + "\n\n" + markdown(transfer_table(arguments.name)), end="")
            return
        computed = similarities(paper_architectures())
        print(markdown(table11(computed) if arguments.name == "table11" else computed), end="")
        return
    files = build()
    if arguments.check:
        stale = [str(f.relative_to(ROOT)) for f, text in files.items() if not f.is_file() or f.read_text() != text]
        if stale:
            sys.exit(f"error: not what the records give: {', '.join(stale)}; run `make tables` and commit")
        return
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


if __name__ == "__main__":
    main()
