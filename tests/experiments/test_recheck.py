"""scripts/recheck_table01.py, which shares no code with the tables, comes to the same verdicts."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from trials import record

from experiments import grids, tables
from experiments.results import paper, reproduction
from experiments.store.records import evidence_line

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "scripts" / "recheck_table01.py"


def made(folder: Path, *words: str) -> Path:
    """Make a folder of results: cells of Table 1 at scale=cpu, and trials of other settings, which do not count."""
    rng, found = np.random.default_rng(0), {}
    grid = [
        *grids.grid("table01", "scale=cpu", "seed=0", *words),
        *grids.grid("table01", "scale=cpu", "init=random", "source=eff_b0", "seed=0,1,2,3,4"),
        *grids.grid("table01", "scale=gpu", "seed=0", "source=mnas", "target=mnas"),
        *grids.grid("table01", "scale=cpu", "seed=1", "source=mnas", "target=rex"),
        *grids.grid("table12", "scale=cpu", "seed=0", "together.method={operator:full,matching:dp}"),
    ]
    printed = paper.matrix("table01").set_index(["target", "source"])["value"]
    for cell in grid:
        for trial in filter(None, (cell.trial, cell.random, cell.trial.source)):
            gain = printed[trial.model, trial.source.model] ** 0.8 if trial.source else 1
            accuracy = 0.08 * gain * np.exp(rng.normal(0, 0.15))
            found.setdefault(trial.id, record(trial, [accuracy / 2, accuracy], scale="cpu"))
    (folder / "trials" / "table01").mkdir(parents=True)
    (folder / "trials" / "table01" / "records.jsonl").write_text("".join(map(evidence_line, found.values())))
    shutil.copytree(paper.RESULTS / "paper", folder / "paper")
    similarity = tables.Table(paper.similarity(), "")
    tables.write({"similarity": similarity, "verdicts": reproduction.verdicts_table(found)}, folder / "tables")
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("results"), "source=mnas,semnas,mix_l")


def recheck(folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, "--results", folder], capture_output=True, text=True)


def test_both_agree_on_the_committed_records():
    done = recheck(paper.RESULTS)
    assert done.returncode == 0, done.stderr


def test_both_agree(results):
    done = recheck(results)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.startswith("27 of 81 cells; seeds of random init: 5\n") and "similarity: within rows" in done.stdout
    )


def test_both_agree_on_a_column_that_has_begun(tmp_path):
    done = recheck(made(tmp_path, "source=mnas", "target=mnas,semnas,eff_b0,mix_m"))
    assert done.returncode == 0 and done.stdout.startswith("4 of 81 cells"), done.stderr


@pytest.mark.parametrize(
    ("column", "verdict"),
    [
        ("value", "direction: mean log"),
        *(("low", "direction: mean log"), ("high", "direction: mean log")),
        ("p", "similarity: within rows"),
    ],
)
def test_a_fault_is_found(results, tmp_path, column, verdict):
    shutil.copytree(results, tmp_path / "results")
    file = tmp_path / "results" / "tables" / "verdicts.csv"
    rows = list(csv.DictReader(file.open(newline="")))
    for row in rows:
        if row["scale"] == "cpu" and row["verdict"] == verdict:
            row[column] = str(float(row[column]) + 0.2)
    with file.open("w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    done = recheck(tmp_path / "results")
    assert done.returncode == 1 and f"says otherwise: {verdict}" in done.stderr


def test_the_script_imports_nothing_of_ours():
    imports = [line for line in SCRIPT.read_text().splitlines() if line.startswith(("import", "from"))]
    assert not [line for line in imports if "experiments" in line or "dpiat" in line]
