"""Who may import whom (the order of the layers), and what `import dpiat` may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each module may import from this repository. Nothing goes back.
ALLOWED = {
    "dpiat.architecture": set(),
    "dpiat.files": set(),
    "dpiat.parametrized": set(),
    "dpiat.report": set(),
    "dpiat.webpage": {"architecture", "report"},
    "dpiat.stored": {"parametrized"},
    "dpiat.checkpoints": set(),
    "dpiat.huggingface": {"checkpoints", "stored"},
    "dpiat.sources": {"checkpoints", "huggingface", "stored"},
    "dpiat.operators": set(),
    "dpiat.positions": set(),
    "dpiat.roles": set(),
    "dpiat.standardization": {"architecture", "parametrized"},
    "dpiat.layers": {"architecture", "parametrized", "roles", "standardization", "stored"},
    "dpiat.structure": {"architecture", "layers", "parametrized", "roles", "standardization"},
    "dpiat.reading": {"architecture", "standardization", "stored", "structure"},
    "dpiat.scoring": {"architecture"},
    "dpiat.matching": {"architecture", "scoring"},
    "dpiat.alignment": {"architecture", "matching", "roles"},
    "dpiat.assignment": {"alignment", "architecture", "matching", "scoring"},
    "dpiat.heads": {"architecture", "roles", "standardization"},
    "dpiat.pairing": {"alignment", "architecture", "layers", "matching", "standardization"},
    "dpiat.writing": {"operators", "parametrized", "standardization"},
    "dpiat.filling": {"layers", "operators", "positions", "report", "roles", "sources", "standardization"},
    "dpiat.plan": {
        *("filling", "heads", "layers", "operators", "parametrized", "reading", "report", "roles", "sources"),
        *("standardization", "stored", "webpage", "writing"),
    },
    "dpiat.transfer": {
        *("assignment", "filling", "heads", "operators", "pairing", "plan", "reading", "report", "sources", "writing"),
    },
    "dpiat.channels": {"standardization"},
    "dpiat.stages": {"architecture", "roles", "standardization"},
    "dpiat.growing": {"channels", "layers", "reading", "report", "roles", "stages", "standardization", "writing"},
    "dpiat.index": {"architecture", "files", "layers", "parametrized", "reading", "roles", "sources", "standardization"}
    | {"structure"},
    "dpiat.similarity": {"alignment", "architecture", "index", "matching", "reading", "sources", "stored"},
    "dpiat.plotting": {"architecture", "assignment", "files", "matching", "reading", "similarity", "standardization"},
    "dpiat.__main__": {
        *(
            "architecture",
            "assignment",
            "checkpoints",
            "files",
            "heads",
            "index",
            "operators",
            "plan",
            "plotting",
            "reading",
        ),
        *("similarity", "sources", "standardization", "transfer"),
    },
    "experiments.settings": set(),
    "experiments.records": set(),
    "experiments.checkpoints": {"records", "settings"},
    "experiments.locks": {"settings"},
    "experiments.augmentation": set(),
    "experiments.layouts": {"records", "settings"},
    "experiments.streaming": {"augmentation", "layouts", "settings"},
    "experiments.data": {"augmentation", "checkpoints", "layouts", "locks", "settings", "streaming"},
    "experiments.models": {"settings"},
    "experiments.check_weights": {"layouts", "models", "settings"},
    "experiments.ghn2_graph": {"settings"},
    "experiments.ghn2": {"ghn2_graph", "settings"},
    "experiments.initialization": {"ghn2", "models", "settings"},
    "experiments.tracking": {"records", "settings"},
    "experiments.parallel": set(),
    "experiments.malloc": set(),
    "experiments.batchnorm": {"parallel"},
    "experiments.convolution": set(),
    "experiments.graphs": {"settings"},
    "experiments.stopping": {"parallel", "records", "settings"},
    "experiments.training": {"batchnorm", "convolution", "data", "graphs", "parallel"},
    "experiments.trial": {
        *("checkpoints", "data", "initialization", "locks", "models", "parallel", "records", "settings", "tracking"),
        *("malloc", "training"),
    },
    "experiments.grids": {"settings", "trial"},
    "experiments.paper": {"models"},
    "experiments.cells": {"grids", "paper", "records"},
    "experiments.choosing": {"cells", "paper"},
    "experiments.evidence": {"cells", "grids", "paper", "records"},
    "experiments.verdicts": set(),
    "experiments.claims": {"cells", "paper"},
    "experiments.reproduction": {"cells", "grids", "methods", "paper", "records", "verdicts"},
    "experiments.missing": {"cells", "grids", "layouts", "paper", "records", "trial"},
    "experiments.methods": {"cells", "initialization", "models", "paper", "verdicts"},
    "experiments.tables": {
        *("cells", "choosing", "claims", "grids", "methods", "missing", "paper", "records", "reproduction", "settings"),
    },
    "experiments.figures": {"cells", "choosing", "methods", "paper", "records", "reproduction", "tables"},
    "experiments.report": {"figures", "records", "tables"},
    "experiments.callback": {"figures", "records", "tables"},
}
MAY_USE_DPIAT = {
    *("experiments.models", "experiments.initialization", "experiments.trial", "experiments.paper"),
    *("experiments.choosing", "experiments.methods", "experiments.figures"),
}
NO_TORCH = {
    *("experiments.records", "experiments.settings", "experiments.grids", "experiments.paper", "experiments.cells"),
    *(
        "experiments.choosing",
        "experiments.tables",
        "experiments.reproduction",
        "experiments.verdicts",
        "experiments.claims",
    ),
}


def violations(module: str, text: str) -> list[str]:
    """The imports of a module's text that its place does not allow."""
    package, found = module.partition(".")[0], []
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module in ("dpiat", "experiments"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        for name in names:
            owner, _, rest = name.partition(".")
            if owner == package and rest.partition(".")[0] not in ALLOWED[module]:
                found.append(name)
            if owner != package and (owner == "experiments" or (owner == "dpiat" and module not in MAY_USE_DPIAT)):
                found.append(name)
    return found


def sources() -> dict[str, Path]:
    files = [file for folder in ("dpiat", "experiments") for file in sorted((ROOT / folder).glob("*.py"))]
    return {f"{file.parent.name}.{file.stem}": file for file in files if file.stem != "__init__"}


def test_every_module_has_its_place():
    assert set(sources()) == set(ALLOWED)


@pytest.mark.parametrize("module", ALLOWED)
def test_imports_go_one_way(module):
    assert violations(module, sources()[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("dpiat.scoring", "from dpiat.matching import match"),
        ("dpiat.matching", "from experiments import models"),
        ("dpiat.architecture", "import dpiat.transfer"),
        ("experiments.training", "from experiments.initialization import initialize"),
        ("experiments.data", "from dpiat import transfer"),
    ],
)
def test_a_planted_violation_is_found(module, line):
    assert violations(module, sources()[module].read_text() + "\n" + line)


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split())


def test_the_library_needs_torch_and_numpy_alone():
    assert not loaded_by("import dpiat") & {"hydra", "wandb", "timm", "pandas", "matplotlib", "scipy", "experiments"}


def test_records_and_tables_need_no_torch():
    assert "torch" not in loaded_by(f"import {', '.join(sorted(NO_TORCH))}")
