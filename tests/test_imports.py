"""Which module may import which, and what `import dpiat` may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# The modules of this repository that each module may import. Imports go one way.
ALLOWED = {
    "dpiat.architecture": set(),
    "dpiat.files": set(),
    "dpiat.parametrized": set(),
    "dpiat.report": {"plotting"},
    "dpiat.agreement": set(),
    "dpiat.calibration": {"observing"},
    "dpiat.observing": {"architecture", "heads", "levels", "reading", "sources"},
    "dpiat.checking": {"agreement", "observing", "reading", "report", "sources", "stored"},
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
    "dpiat.recipe": set(),
    "dpiat.levels": {"architecture", "roles", "standardization", "stored"},
    "dpiat.branches": {"architecture", "levels", "operators", "standardization"},
    "dpiat.new": {"architecture", "heads", "levels", "matching", "operators", "roles", "standardization"},
    "dpiat.context": {"architecture", "layers", "roles", "standardization"},
    "dpiat.structure": {
        *("architecture", "branches", "context", "layers", "levels", "parametrized", "roles", "standardization"),
    },
    "dpiat.reading": {"architecture", "standardization", "stored", "structure"},
    "dpiat.scoring": {"architecture"},
    "dpiat.matching": {"architecture", "scoring"},
    "dpiat.alignment": {"architecture", "levels", "matching", "recipe", "roles", "standardization"},
    "dpiat.assignment": {"alignment", "architecture", "matching", "scoring"},
    "dpiat.heads": {"architecture", "roles", "standardization"},
    "dpiat.pairing": {"alignment", "architecture", "context", "layers", "matching", "standardization"},
    "dpiat.writing": {"operators", "parametrized", "standardization"},
    "dpiat.filling": {
        *("branches", "layers", "operators", "positions", "recipe", "report", "roles"),
        *("sources", "standardization", "stored"),
    },
    "dpiat.plan": {
        *(
            "branches",
            "checking",
            "filling",
            "heads",
            "layers",
            "new",
            "operators",
            "parametrized",
            "reading",
            "recipe",
            "report",
            "roles",
        ),
        *("sources", "standardization", "stored", "webpage", "writing"),
    },
    "dpiat.transfer": {
        *("alignment", "architecture", "branches", "new", "recipe"),
        *("assignment", "filling", "heads", "operators", "pairing", "plan", "reading", "report", "sources", "writing"),
        "stored",
    },
    "dpiat.channels": {"standardization"},
    "dpiat.stages": {"architecture", "roles", "standardization"},
    "dpiat.growing": {
        *(
            "architecture",
            "branches",
            "channels",
            "checking",
            "layers",
            "reading",
            "report",
            "roles",
            "stages",
            "standardization",
            "writing",
        ),
    },
    "dpiat.timm_index": {
        "architecture",
        "branches",
        "context",
        "levels",
        "files",
        "layers",
        "parametrized",
        "reading",
        "roles",
        "sources",
    }
    | {"standardization", "structure"},
    "dpiat.similarity": {"alignment", "architecture", "timm_index", "matching", "reading", "sources", "stored"},
    "dpiat.plotting": {"architecture", "assignment", "files", "matching", "reading", "similarity", "standardization"},
    "dpiat.__main__": {
        *(
            "architecture",
            "assignment",
            "checkpoints",
            "files",
            "heads",
            "timm_index",
            "operators",
            "plan",
            "plotting",
            "reading",
        ),
        *("similarity", "sources", "standardization", "transfer"),
    },
    # A wing of experiments/ may import what is named here, and its own modules as long as there is no circle.
    "experiments.datasets": set(),
    "experiments.settings": {"datasets"},
    "experiments.store": {"settings"},
    "experiments.data": {"datasets", "settings", "store"},
    "experiments.train": {"data", "settings", "store"},
    "experiments.light": set(),
    "experiments.models": {"datasets", "light", "settings"},
    "experiments.ghn2_graph": {"settings"},
    "experiments.ghn2": {"datasets", "ghn2_graph", "settings"},
    "experiments.initialization": {"ghn2", "models", "settings"},
    "experiments.tracking": {"settings", "store"},
    "experiments.planning": {"data", "initialization", "models", "settings", "store", "tracking", "train"},
    "experiments.trial": {"data", "initialization", "models", "planning", "settings", "store", "tracking", "train"},
    "experiments.families": set(),
    "experiments.recipe": {"data", "models", "results", "settings", "store", "tables", "train"},
    "experiments.grids": {"planning", "settings"},
    "experiments.results": {"datasets", "grids", "initialization", "models", "planning", "store"},
    "experiments.tables": {"grids", "results", "settings", "store"},
    "experiments.figures": {"grids", "results", "store"},
    "experiments.evidence": {"grids", "results", "store"},
    "experiments.check_weights": {"data", "datasets", "models", "settings"},
    "experiments.report": {"results", "store"},
    "experiments.callback": {"figures", "results", "store", "tables"},
}
WINGS = {name for name in ALLOWED if (ROOT / name.replace(".", "/")).is_dir()}
MAY_USE_DPIAT = {
    *(
        "experiments.models",
        "experiments.initialization",
        "experiments.recipe",
        "experiments.planning",
        "experiments.trial",
    ),
    *(f"experiments.results.{name}" for name in ("drawing", "method_effects", "paper", "source_choice")),
}
NO_TORCH = {
    *("experiments.datasets", "experiments.settings", "experiments.grids", "experiments.tables"),
    *("experiments.store.records", "experiments.results.cells", "experiments.results.source_choice"),
    *(
        f"experiments.results.{name}"
        for name in ("claims", "ours", "paper", "reproduction", "source_effects", "verdicts")
    ),
}


def sources() -> dict[str, Path]:
    """The files of both packages by the names of their modules."""
    files = [file for folder in ("dpiat", "experiments") for file in sorted((ROOT / folder).rglob("*.py"))]
    named = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    return {name: file for name, file in named.items() if not name.endswith(".__init__")}


def place(module: str) -> str:
    """The key of ALLOWED that a module stands under: its wing, or itself."""
    return next((wing for wing in WINGS if module.startswith(f"{wing}.")), module)


def imported(text: str) -> list[str]:
    """The imports of a module's text from this repository: names of modules, or of what modules define."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in found if name.partition(".")[0] in ("dpiat", "experiments")]


def violations(module: str, text: str) -> list[str]:
    """The imports of a module's text that its place does not allow."""
    package, found = module.partition(".")[0], []
    for name in imported(text):
        owner, _, rest = name.partition(".")
        own_wing = place(module) in WINGS and place(name) == place(module)
        if owner == package and not own_wing and rest.partition(".")[0] not in ALLOWED[place(module)]:
            found.append(name)
        if owner != package and (owner == "experiments" or module not in MAY_USE_DPIAT):
            found.append(name)
    return found


def test_every_module_has_its_place():
    assert {place(module) for module in sources()} == set(ALLOWED)


@pytest.mark.parametrize("module", sources())
def test_imports_go_one_way(module):
    assert violations(module, sources()[module].read_text()) == []


def circle(graph: dict[str, set[str]]) -> set[str]:
    """The modules that are on a circle of imports, or import a module that is."""
    left = dict(graph)
    while ground := {module for module, uses in left.items() if not uses & left.keys()}:
        left = {module: uses for module, uses in left.items() if module not in ground}
    return set(left)


def test_no_wing_has_a_circle():
    modules = sources()
    graph = {}
    for module, file in modules.items():
        names = imported(file.read_text())
        graph[module] = {name if name in modules else name.rpartition(".")[0] for name in names} - {module}
    assert circle(graph) == set()
    assert circle(graph | {"experiments.store.files": {"experiments.store.records"}})


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("dpiat.scoring", "from dpiat.matching import match"),
        ("dpiat.matching", "from experiments import models"),
        ("dpiat.architecture", "import dpiat.transfer"),
        ("experiments.train.training", "from experiments.initialization import initialize"),
        ("experiments.data.loading", "from dpiat import transfer"),
        ("experiments.store.records", "from experiments.results import cells"),
    ],
)
def test_a_planted_violation_is_found(module, line):
    assert violations(module, sources()[module].read_text() + "\n" + line)


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split())


@pytest.mark.slow
def test_the_library_needs_torch_and_numpy_alone():
    assert not loaded_by("import dpiat") & {"hydra", "wandb", "timm", "pandas", "matplotlib", "scipy", "experiments"}


@pytest.mark.slow
def test_records_and_tables_need_no_torch():
    assert "torch" not in loaded_by(f"import {', '.join(sorted(NO_TORCH))}")
