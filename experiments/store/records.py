"""One record for each trial: what was run, on which machine, and what came out. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from experiments.store.files import write_text

CODE = ("run.py", "dpiat", "experiments", "configs")  # the files that decide how a trial runs
VERSIONED = ("torch", "torchvision", "timm", "numpy")
EFFECTIVENESS_EPOCHS = 4
ENDED = ("finished", "diverged")  # the statuses of trials that are never run again
RUNS = Path("runs/records")  # where trials leave their records, unless `output_dir` names another folder


def save(record: dict[str, Any], file: Path) -> None:
    """Write a record and, as its last entry, the SHA-256 of the rest."""
    text = json.dumps(record | {"sha256": _digest(record)}, indent=1) + "\n"
    write_text(file, text)


def read(file: Path) -> dict[str, Any] | None:
    """Read the record in `file`.

    Returns None if there is no record, if its trial has not ended, or if the file is damaged. A line names a damaged
    file, which is replaced when its trial is run or brought back.
    """
    try:
        record = _whole(file.read_text())
        return record if record["status"] in ENDED else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        print(f"{file} is damaged and cannot be read: it does not count", flush=True)
        return None


def read_ended(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the records of all trials in a folder that have ended, by their ids."""
    return {record["id"]: record for file in sorted(folder.glob("*.json")) if (record := read(file))}


def _whole(text: str) -> dict[str, Any]:
    """Read a record from its text and check its digest. Raises ValueError if the text is not what was written.

    The oldest records have no digest.
    """
    record = json.loads(text)
    if record.pop("sha256", None) not in (None, _digest(record)):
        raise ValueError("it is not what was written")
    return record


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def best_accuracy(record: dict[str, Any], epochs: int = EFFECTIVENESS_EPOCHS) -> float:
    """Return the highest test accuracy within the first epochs, in [0, 1]."""
    return max(row["test_accuracy"] for row in record["epochs"][:epochs])


def time_to_accuracy(record: dict[str, Any], accuracy: float) -> tuple[int, float] | tuple[None, None]:
    """Return the epochs and the seconds until a test accuracy in [0, 1] is reached; (None, None) if it never is."""
    for number, row in enumerate(record["epochs"], start=1):
        if row["test_accuracy"] >= accuracy:
            return number, sum(each["seconds"] for each in record["epochs"][:number])
    return None, None


def effectiveness(record: dict[str, Any], baseline: dict[str, Any]) -> float:
    """Divide the best accuracy within 4 epochs by the baseline's (section 4.1). NaN if the baseline's is 0."""
    return best_accuracy(record) / (best_accuracy(baseline) or math.nan)


def divergence_text(record: dict[str, Any]) -> str:
    """Say in which epoch a trial diverged, and at which losses."""
    last = record["epochs"][-1]
    losses = f"train loss {last['train_loss']:g}, test loss {last['test_loss']:g}"
    return f"diverged in epoch {last['epoch']} ({losses}; a lower learning rate may help)"


def provenance() -> dict[str, Any]:
    """Collect the commit, whether the code differs from the commit, the versions, and the machine."""
    # `dirty` decides whether a record may become evidence, so it must not miss a change. `status` finds changed files
    # that git knows. A new module that git does not know would run too: `ls-files` looks for these, but in the folders
    # of the code alone, so that notes and outputs elsewhere do not spoil a run.
    folder = Path(__file__).parents[2]
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    added = _git(folder, "ls-files", "--others", "--exclude-standard", "--", *CODE)
    return {
        "commit": _git(folder, "rev-parse", "HEAD"),
        "dirty": bool(changed or added),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in VERSIONED}},
        "cpu": _cpu(),
        "cores": os.cpu_count(),
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


# --- committed evidence -----------------------------------------------------------------------------------------------


def read_evidence(folder: Path) -> list[dict[str, Any]]:
    """Read the committed records of a folder: the lines of its `records.jsonl`, one trial each.

    Raises:
        ValueError: A line is not what was written, has an id that is not its trial's, or does not count as evidence.
    """
    file = folder / "records.jsonl"
    found = []
    for number, line in enumerate(file.read_text().splitlines() if file.is_file() else (), start=1):
        try:
            record = _whole(line)
            if record["id"].rpartition("-")[2] != trial_digest(record["trial"]):
                raise ValueError("its id is not that of its trial")
            check_evidence(record)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{file}, line {number}: {error}: take it from the commit that added it") from error
        found.append(record)
    return found


def check_evidence(record: dict[str, Any]) -> None:
    """Raise ValueError unless a record counts as evidence: an ended trial, a clean commit, all accuracies there."""
    if record["status"] not in ENDED:
        raise ValueError("its trial has not ended")
    if record["dirty"] or not record["commit"]:
        raise ValueError("it was not run from a clean commit")
    if not record["epochs"] or not all(0 <= row["test_accuracy"] <= 1 for row in record["epochs"]):
        raise ValueError("its test accuracies are not all there")


def evidence_line(record: dict[str, Any]) -> str:
    """Return the line of `records.jsonl` for a record."""
    return json.dumps(record | {"sha256": _digest(record)}) + "\n"


def trial_digest(identity: dict[str, Any]) -> str:
    """Return the end of a trial's id: a hash of everything that determines the trial's result."""
    # 40 bits: among ten thousand trials, the chance that any two share an id is one in twenty thousand.
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
