"""The notebooks run, show what they showed when they were committed, and define nothing."""

import ast
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook) -> list[str]:
    """What each of its cells prints and shows, but for pictures. The kernel may send what is printed in parts."""
    cells = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(o.get("text") or o.get("data", {}).get("text/markdown", "") for o in outputs) for outputs in cells]


@pytest.mark.training
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_shows_what_was_committed(file, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress")  # no widgets needed
    committed = nbformat.read(file, as_version=4)
    run = nbclient.NotebookClient(nbformat.read(file, as_version=4), timeout=300).execute()
    assert texts(run) == texts(committed)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_shows_no_warning(file):  # which would tell the folders of the machine that ran the notebook
    cells = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    assert not [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_defines_nothing(file):
    for source in code(nbformat.read(file, as_version=4)):
        lines = [line for line in source.splitlines() if not line.startswith("%")]
        tree = ast.parse("\n".join(lines))
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)]
