"""A trial that is run once, for all tests that begin with a finished trial."""

import shutil
from pathlib import Path

import pytest
from trials import settings

from experiments import trial


@pytest.fixture(scope="session")
def _first(tmp_path_factory) -> tuple[Path, trial.Outcome]:
    folder = tmp_path_factory.mktemp("first")
    return folder, trial.run(settings(folder))


@pytest.fixture
def outcome(_first, tmp_path) -> trial.Outcome:
    """What `trial.run(settings(tmp_path))` returned; its records and its source's checkpoint are in `tmp_path`."""
    folder, found = _first
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return found
