# The ablation of default mode: what each option of `dpiat.recipe.Recipe` is worth, on pairs of networks that differ.
#
# command     python -m experiments.recipe --root FOLDER; python -m experiments.recipe --table
# protocol    1,500 training images of Imagenette at 64 px, 3 epochs of Adam at 1e-3, batches of 50; accuracy on 1,000
#             test images, batch norms with the statistics of the batch, so that no row gains by copied ones
# hardware    one CPU core, one to two minutes a run
# expected    rough trials, tuned on the same pairs, gave .28 to .58 for version 2 of the default mode and .38 to .70
#             for the best of each pair
"""Rows of the ablation on development pairs, one run of a few minutes at a time, and their table."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dpiat
from dpiat.new import New
from dpiat.observing import unchanged
from dpiat.reading import Mode
from dpiat.recipe import BEFORE, BEST, Recipe
from experiments import models
from experiments.data import loading
from experiments.data.loading import Data, Split
from experiments.results import verdicts
from experiments.results.cells import markdown
from experiments.settings import DatasetSettings, UserError
from experiments.store import checkpoints, records
from experiments.store.files import CannotWrite, write_text
from experiments.tables import with_blocks
from experiments.train.convolution import convolving
from experiments.train.malloc import keep_large_blocks
from experiments.train.training import Schedule, adam, prepare

FOLDER, README = Path("results/recipe"), Path("README.md")
TRAIN_IMAGES, TEST_IMAGES, SIZE, EPOCHS, BATCH, RATE = 1500, 1000, 64, 3, 50, 1e-3

# Recipes are chosen on these alone; `CONFIRM` is looked at once, when the choice is made.
DEVELOPMENT = [
    ("eff_lite0", "rex_150"),
    ("eff_lite0", "rex"),
    ("eff_lite0", "mix_m"),
    ("eff_lite0", "semnas"),
    ("eff_lite0", "mnas"),
    ("eff_lite0", "eff_b0"),
    ("eff_lite2", "rex_150"),
    ("eff_lite2", "mix_l"),
    ("eff_lite0", "eff_lite1"),
    ("eff_lite0", "eff_lite2"),
    ("eff_lite0", "ghostnet_100"),
    ("eff_lite0", "regnetx_004"),
    ("eff_lite1", "mobilenetv4_conv_small"),
]
CONFIRM = [
    ("eff_lite1", "mobilenetv3_large_100"),
    ("eff_lite0", "mobilenetv2_110d"),
    ("eff_lite1", "fbnetc_100"),
    ("eff_lite2", "spnasnet_100"),
    ("eff_lite0", "efficientnet_es"),
    ("eff_lite1", "hardcorenas_a"),
    ("eff_lite2", "tinynet_a"),
    ("eff_lite1", "regnety_004"),
    ("eff_lite2", "resnext26ts"),
    ("eff_lite0", "tf_efficientnetv2_b0"),
]
# Families beyond those of mobile networks. No weights are at hand: their sources are trained here.
FAMILIES = [
    ("resnet18", "resnet34"),
    ("resnet18", "regnetx_004"),
    ("mobilenetv3_small_100", "mobilenetv3_large_100"),
    ("convnext_atto", "convnext_femto"),
    ("convnext_atto", "convnext_pico"),
    ("experiments.families:vit", "experiments.families:vit_wide"),
    ("experiments.families:vit", "experiments.families:vit_deep"),
    ("densenet121", "densenet169"),
]
SOURCE_EPOCHS = 5
GROUPS = {
    "Development pairs": DEVELOPMENT,
    "Pairs that no recipe was chosen by": CONFIRM,
    "Other families, by which no recipe was chosen either": FAMILIES,
}


@dataclass(frozen=True)
class Row:
    """One way to start: an argument `mode` of `dpiat.transfer` and what new blocks start as; None without a source.

    `silent`: the classifier's weights become zero afterwards, which default mode does by itself. As a control, it tells
    how much of a gain comes from the classifier alone.
    """

    mode: Mode | Recipe | None
    new: New = "random"
    silent: bool = False


STEPS = BEFORE  # version 2 of the default mode
LEADING = replace(STEPS, leading=True)
FOUR = replace(LEADING, merge=True, gates=True, zeros=True)
PLACED = replace(FOUR, levels=True, relative=True)
ROWS = {
    "random": Row(None),
    "random, silent": Row(None, silent=True),
    "paper": Row("paper"),
    "paper, silent": Row("paper", silent=True),
    "version 2": Row(STEPS),
    "leading": Row(LEADING),
    "four": Row(FOUR),
    "four, levels": Row(replace(FOUR, levels=True)),
    "four, relative": Row(replace(FOUR, relative=True)),
    "four, levels, relative": Row(PLACED),
    "four, levels, relative, new": Row(PLACED, "identity"),
    "all": Row(replace(PLACED, skip=0.6)),
    "all, new": Row(replace(BEST, head=False), "identity"),
    "all, new, head": Row(BEST, "identity"),
    "all but leading": Row(replace(BEST, leading=False), "identity"),
    "all but zeros": Row(replace(BEST, zeros=False), "identity"),
    "all but gates": Row(replace(BEST, gates=False), "identity"),
    "all but merge": Row(replace(BEST, merge=False), "identity"),
    "all but levels": Row(replace(BEST, levels=False), "identity"),
    "all but relative": Row(replace(BEST, relative=False), "identity"),
    "all but skip": Row(replace(BEST, skip=1.0), "identity"),
}
FIELDS = (
    *("row", "source", "target", "seed", "accuracy", "test_loss", "accuracies", "filled", "seconds", "settings"),
    *("commit", "dirty", "cpu", "torch", "timm", "finished"),
)


@dataclass(frozen=True)
class Run:
    row: str
    source: str
    target: str
    seed: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.row, "" if ROWS[self.row].mode is None else self.source, self.target, self.seed


# --- one run ----------------------------------------------------------------------------------------------------------


def images(root: str, cache: str) -> tuple[Data, Data]:
    """The images of the protocol, with the classes in the data set's own proportions; and all others, for sources."""
    whole = loading.load(DatasetSettings(name="imagenette", root=root, stored_size=128), cache)
    train, test = loading.stratified(whole.train, TRAIN_IMAGES), loading.stratified(whole.test, TEST_IMAGES)
    mixed = torch.randperm(TEST_IMAGES, generator=torch.Generator().manual_seed(0))  # a batch shows all classes
    labels = whole.train.labels
    others = torch.ones(len(labels), dtype=torch.bool)
    places = loading.stratified(Split(torch.arange(len(labels)), labels), TRAIN_IMAGES)
    assert isinstance(places, Split)  # of which the images are what `train` was taken from
    others[places.images] = False
    rest = whole.train.subset(others.nonzero().squeeze(1))
    return Data(train, test.subset(mixed), whole.classes), Data(rest, test.subset(mixed), whole.classes)


def source_of(name: str, others: Data, cache: str) -> nn.Module:
    """A source with ImageNet weights; or, where none are at hand, one that the other images have trained."""
    if models.SHORT_NAMES.get(name, "").startswith("tf_efficientnet_lite"):
        return models.build(name, 1000, imagenet=True)
    torch.manual_seed(0)
    network = models.build(name, len(others.classes))
    file = Path(cache).expanduser() / f"recipe-{name.replace(':', '-')}-{SOURCE_EPOCHS}.pt"
    if (kept := checkpoints.read(file)) is not None:
        network.load_state_dict(kept)
        return network
    for epoch, (accuracy, _) in enumerate(trained(network, others, seed=0, epochs=SOURCE_EPOCHS)):
        print(f"source {name}: epoch {epoch + 1} of {SOURCE_EPOCHS}, accuracy {accuracy:.3f}", flush=True)
    checkpoints.write(network.state_dict(), file)
    return network


def started(run: Run, others: Data, cache: str) -> tuple[nn.Module, float]:
    """The network of a run with its first weights, and the part of them that the source has filled."""
    row, filled = ROWS[run.row], 0.0
    source = source_of(run.source, others, cache) if row.mode is not None else None
    torch.manual_seed(run.seed)
    target = models.build(run.target, len(others.classes))
    if source is not None:
        filled = dpiat.transfer(source, target, mode=row.mode, new=row.new).share
    if row.silent:
        nn.init.zeros_(target.get_classifier().weight)
    return target, filled


def alike(one: nn.Module, other: nn.Module) -> bool:
    """Do two networks of one architecture have the same parameters?"""
    return all(map(torch.equal, one.parameters(), other.parameters()))


def trained(network: nn.Module, data: Data, seed: int, epochs: int = EPOCHS) -> Iterator[tuple[float, float]]:
    """Train in place; accuracy and loss on the test images after each epoch."""
    cpu = torch.device("cpu")
    order = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    prepare(network, cpu)
    optimizer = adam(network, RATE, cpu)
    schedule = Schedule(epochs, RATE, epochs, BATCH, SIZE, seed)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(epoch)
        network.train()
        for draw in data.train.train_draws(BATCH, SIZE, order):
            inputs, labels = data.train.train_batch(SIZE, *draw)
            optimizer.zero_grad(set_to_none=True)
            with convolving(cpu):
                loss = cross_entropy(network(inputs), labels)
            loss.backward()
            optimizer.step()
        yield tested(network, data)


@torch.no_grad()
def tested(network: nn.Module, data: Data) -> tuple[float, float]:
    """Accuracy and mean loss, batch norms with the statistics of the batch and everything else as in eval mode."""
    correct, total = 0, 0.0
    with unchanged(network):
        for drawn in data.test.test_draws(BATCH, SIZE):
            inputs, labels = data.test.test_batch(SIZE, *drawn)
            outputs = network(inputs)
            total += float(cross_entropy(outputs, labels, reduction="sum"))
            correct += int((outputs.argmax(1) == labels).sum())
    return correct / len(data.test.labels), total / len(data.test.labels)


def settings_of(name: str) -> str:
    row = ROWS[name]
    mode = asdict(row.mode) if isinstance(row.mode, Recipe) else row.mode
    return json.dumps({"mode": mode, "new": row.new} | ({"silent": True} if row.silent else {}), sort_keys=True)


def record(run: Run, data: Data, start: tuple[nn.Module, float], provenance: dict[str, Any]) -> dict[str, Any]:
    begun = time.perf_counter()
    network, filled = start
    found = list(trained(network, data, run.seed))
    accuracy, loss = found[-1]
    versions = provenance["versions"]
    return {
        **dict(zip(FIELDS, run.key, strict=False)),
        "accuracy": round(accuracy, 4),
        "test_loss": round(loss, 4),
        "accuracies": " ".join(f"{each:.3f}" for each, _ in found),
        "filled": round(filled, 4),
        "seconds": round(time.perf_counter() - begun, 1),
        "settings": settings_of(run.row),
        **{key: provenance[key] for key in ("commit", "dirty", "cpu")},
        **{key: versions[key] for key in ("torch", "timm")},
        "finished": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }


# --- records ----------------------------------------------------------------------------------------------------------


def read(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with open(file, newline="") as f:
        return list(csv.DictReader(f))


def add(file: Path, row: dict[str, Any]) -> None:
    """A line more; the file is there whole, whenever the process dies."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*read(file), row])
    write_text(file, text.getvalue())


def known(found: Sequence[dict[str, str]]) -> set[tuple]:
    """What has been run with the settings that its row has today."""
    return {
        (row["row"], row["source"], row["target"], int(row["seed"]))
        for row in found
        if row["row"] in ROWS and row["settings"] == settings_of(row["row"])
    }


def run_all(runs: Sequence[Run], images: tuple[Data, Data], file: Path, cache: str) -> None:
    """Those runs that have no record, one after the other; each leaves its line as soon as it is done.

    A row that leaves out a rule is not run where the target begins with the weights of the default mode all the same.
    """
    provenance, (data, others) = records.provenance(), images
    for run in runs:
        if run.key in known(read(file)):
            continue
        start = started(run, others, cache)
        if run.row.startswith(WITHOUT) and alike(start[0], started(replace(run, row=DEFAULT), others, cache)[0]):
            print(f"{run.row:24} {run.source:10} {run.target:24} the rule changes nothing", flush=True)
            continue
        row = record(run, data, start, provenance)
        add(file, row)
        print(f"{run.row:24} {run.source:10} {run.target:24} {row['accuracies']}  {row['seconds']} s", flush=True)


# --- the page ---------------------------------------------------------------------------------------------------------

MEANING = {
    "random": "random init",
    "random, silent": "random init, the classifier's weights zero",
    "paper": "the paper's mode",
    "paper, silent": "the paper's mode, the classifier's weights zero",
    "version 2": "the default mode before, version 2",
    "leading": "version 2 with leading channels",
    "four": "leading channels, zeros, convolutions side by side as one, gates by their like or constant",
    "four, levels": "the same, blocks within one resolution",
    "four, relative": "`four`, relative widths",
    "four, levels, relative": "`four`, blocks within one resolution, relative widths",
    "four, levels, relative, new": "the same, new blocks as the identity",
    "all": "`four, levels, relative`, and a pair of blocks of which one alone has a shortcut counts 0.6",
    "all, new": "`all`, and new blocks as the identity",
    "all, new, head": "the same, and the weights of a classifier of other classes are zero: the default mode",
    **{f"all but {name}": f"the default mode without `{name}` of `dpiat.recipe.Recipe`" for name in asdict(BEST)},
}


Found = dict[tuple[str, str, str], dict[int, float]]  # row, source, target -> seed -> accuracy


def by_cell(runs: Sequence[dict[str, str]]) -> Found:
    """The accuracies of the runs whose row still has the same settings."""
    found: Found = {}
    for run in runs:
        if run["row"] in ROWS and run["settings"] == settings_of(run["row"]):
            cell = found.setdefault((run["row"], run["source"], run["target"]), {})
            cell[int(run["seed"])] = float(run["accuracy"])
    return found


def cell_of(found: Found, row: str, source: str, target: str) -> dict[int, float]:
    return found.get((row, "" if ROWS[row].mode is None else source, target), {})


def ratios(found: Found, row: str, base: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """The accuracy of a row over the accuracy of another row: a ratio for each pair, over the seeds of both."""
    values = []
    for pair in pairs:
        ours, theirs = cell_of(found, row, *pair), cell_of(found, base, *pair)
        if both := ours.keys() & theirs.keys():
            values.append(sum(ours[seed] for seed in both) / sum(theirs[seed] for seed in both))
    return values


def page(runs: Sequence[dict[str, str]]) -> str:
    """The table of the rows that have been run with today's settings, and their means over pairs."""
    found = by_cell(runs)
    run = [name for name in ROWS if any(key[0] == name for key in found)]
    rows, without = ([name for name in run if name.startswith(WITHOUT) == chosen] for chosen in (False, True))
    lines = [HEAD]
    for title, pairs in GROUPS.items():
        there = [pair for pair in pairs if any(cell_of(found, name, *pair) for name in rows)]
        if there:
            lines += [
                f"\n## {title}\n",
                markdown(_cells(found, rows, there)),
                markdown(_means(found, rows, BASES, there))[:-1],
            ]
    if without:
        there = [pair for pair in DEVELOPMENT if any(cell_of(found, name, *pair) for name in without)]
        lines += [
            LEFT_OUT,
            markdown(_cells(found, [DEFAULT, *without], there)),
            markdown(_means(found, without, [DEFAULT], there))[:-1],
        ]
    lines += ["", "## Rows", ""] + [f"- `{name}`: {MEANING[name]}" for name in run if name in MEANING]
    return "\n".join(lines) + "\n"


def _cells(found: Found, rows: Sequence[str], pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """A line for each pair, with the mean over the seeds of each row that any pair has."""
    lines = []
    for pair in pairs:
        source, target = (name.rpartition(":")[2] for name in pair)
        cells = {name: cell_of(found, name, *pair).values() for name in rows}
        means = {name: sum(cell) / len(cell) if cell else float("nan") for name, cell in cells.items()}
        lines.append({"source": source, "target": target} | means)
    return pd.DataFrame(lines).dropna(axis="columns", how="all")


def _means(found: Found, rows: Sequence[str], bases: Sequence[str], pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """A line for each row and what it is compared with: the mean of the ratio over pairs, the least, the greatest."""
    lines = []
    for base in bases:
        for name in rows:
            values = ratios(found, name, base, pairs)
            if name not in bases and len(values) >= FEWEST:
                line = {"row": name, "over": base, "pairs": len(values), RATIO: verdicts.geometric_mean(values, 3)}
                lines.append(line | {"least": f"{min(values):.2f}", "greatest": f"{max(values):.2f}"})
    return pd.DataFrame(lines, columns=["row", "over", "pairs", RATIO, "least", "greatest"])


def sentence(runs: Sequence[dict[str, str]]) -> str:
    """What README says of the default mode, from the pairs that no recipe was chosen by."""
    found = by_cell(runs)
    mobile, others = (ratios(found, DEFAULT, "paper", pairs) for pairs in (CONFIRM, FAMILIES))

    def told(values: Sequence[float]) -> str:
        mean, _, reach = verdicts.geometric_mean(values).partition(" ")
        return f"{mean} times the paper's mode {reach}, at least {min(values):.2f}"

    return (
        f"Measured by the accuracy after {EPOCHS} epochs on {TRAIN_IMAGES:,} images, as geometric means:\n\n"
        f"- from EfficientNet-Lites to {len(mobile)} networks of other kinds: {told(mobile)};\n"
        f"- in {len(others)} pairs of other families, of which most are of one family: {told(others)}.\n\n"
        "No rule was chosen by these pairs, though two of the other families were looked at. [Pair by pair, rule by\n"
        "rule](results/recipe/README.md), with what the classifier alone is worth.\n"
    )


HEAD = f"""# The recipe of default mode, row by row

Accuracy after {EPOCHS} epochs on {TRAIN_IMAGES:,} images of Imagenette at {SIZE} px (Adam at {RATE:g}, batches of
{BATCH}), on {TEST_IMAGES:,} test images, with the statistics of batches in the batch norms. The EfficientNet-Lites
have ImageNet weights, and thus other classes. The sources of other families were trained for {SOURCE_EPOCHS} epochs on
the other training images of Imagenette, and have the same classes. A cell is the mean over the seeds that were run. The
standard error of one accuracy of one half is {math.sqrt(0.25 / TEST_IMAGES):.3f}. Recipes were chosen on the
development pairs; two pairs of other families were looked at when new layers became the identity (resnet18 to
regnetx_004, which lost a little, and mobilenetv3_small_100 to mobilenetv3_large_100, which gained).
`runs.csv` has a line for each run;
`python -m experiments.recipe --table` makes this page."""
WITHOUT = "all but "  # the beginning of the rows that leave out one rule
LEFT_OUT = """
## Default mode without one of its rules

On development pairs where the rule changes the weights that a target begins with; a cell is empty where it does not. A
ratio below 1 says that the rule helps. A rule may matter on few pairs.
"""
FEWEST = 3  # pairs, for a mean to be shown
BASES, DEFAULT = ("paper", "version 2"), "all, new, head"
RATIO = "geometric mean of the ratio (95% of t over pairs)"


def pair(words: str) -> tuple[str, str]:
    source, colon, target = words.partition(":")
    if not (source and colon and target):
        raise argparse.ArgumentTypeError(f"a pair is source:target, got {words!r}")
    return source, target


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.recipe", description=__doc__)
    parser.add_argument("--root", default="data", help="folder of Imagenette")
    parser.add_argument("--table", action="store_true", help="write the page of what has been run, and train nothing")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="all if none is named")
    parser.add_argument("--pairs", nargs="+", type=pair, help="source:target; the development pairs if none is named")
    parser.add_argument("--confirm", action="store_true", help="the pairs that no recipe was chosen by")
    parser.add_argument("--families", action="store_true", help="the pairs of other families")
    parser.add_argument("--cache", default="~/.cache/dpiat", help="folder of sources that were trained for this")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--file", type=Path, default=FOLDER / "runs.csv")
    options = parser.parse_args(arguments)
    if options.table:
        found = read(options.file)
        write_text(options.file.with_name("README.md"), page(found))
        write_text(README, with_blocks(README, {"recipe": sentence(found)}))
        return
    pairs = options.pairs or (CONFIRM if options.confirm else FAMILIES if options.families else DEVELOPMENT)
    runs = [Run(row, one, other, seed) for seed in options.seeds for one, other in pairs for row in options.rows]
    try:
        for name in {name for both in pairs for name in both}:
            models.check(name)
        torch.set_num_threads(1)
        keep_large_blocks()
        run_all(runs, images(options.root, options.cache), options.file, options.cache)
    except (UserError, CannotWrite) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
