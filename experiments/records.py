"""One record for each trial: what was run, on what, and what came out. Written whole or not at all; no torch."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

VERSIONED = ("torch", "torchvision", "timm", "numpy")
EFFECTIVENESS_EPOCHS = 4


def atomic_write(file: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write `file` so that it is there whole, with what it held before, or not at all, whenever the process dies."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save(record: dict[str, Any], file: Path) -> None:
    atomic_write(file, lambda f: f.write((json.dumps(record, indent=1) + "\n").encode()))


def read(file: Path) -> dict[str, Any] | None:
    """The finished record in `file`; None if there is none or it cannot be read, in which case the trial runs again."""
    try:
        record = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        print(f"{file} cannot be read: running its trial again")
        return None
    return record if record.get("status") == "finished" else None


def best_accuracy(record: dict[str, Any], epochs: int = EFFECTIVENESS_EPOCHS) -> float:
    """The highest test accuracy within the first epochs, in [0, 1]."""
    return max(row["test_accuracy"] for row in record["epochs"][:epochs])


def effectiveness(record: dict[str, Any], baseline: dict[str, Any]) -> float:
    """Accuracy within the first 4 epochs divided by that of the random-init baseline (section 4.1)."""
    return best_accuracy(record) / best_accuracy(baseline)


def provenance() -> dict[str, Any]:
    """The commit, whether tracked files differ from it, the versions and the machine that a trial runs with."""
    folder = Path(__file__).parent
    return {
        "commit": _git(folder, "rev-parse", "HEAD"),
        "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no")),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in VERSIONED}},
        "cpu": _cpu(),
    }


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
