"""One record for each trial: what was run, on what, and what came out. Written whole or not at all; no torch."""

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

CODE = ("run.py", "dpiat", "experiments", "configs")  # what decides how a trial runs
VERSIONED = ("torch", "torchvision", "timm", "numpy")
EFFECTIVENESS_EPOCHS = 4
ENDED = ("finished", "diverged")  # the statuses of trials that are not run again
RUNS = Path("runs/records")  # where trials leave their records, unless `output_dir` says otherwise


def save(record: dict[str, Any], file: Path) -> None:
    """Write a record and, as its last entry, the SHA-256 of the rest."""
    text = json.dumps(record | {"sha256": _digest(record)}, indent=1) + "\n"
    write_text(file, text)


def read(file: Path) -> dict[str, Any] | None:
    """The record in `file` if its trial has ended; None if not, if there is none, or if it is damaged.

    A damaged one is named, and replaced when its trial is run or brought back. Records without a digest are of before
    there was one.
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
    """The records in a folder of trials that have ended, by their ids."""
    return {record["id"]: record for file in sorted(folder.glob("*.json")) if (record := read(file))}


def _whole(text: str) -> dict[str, Any]:
    """A record from its text, without its digest. Raises ValueError if it is not what was written."""
    record = json.loads(text)
    if record.pop("sha256", None) not in (None, _digest(record)):
        raise ValueError("it is not what was written")
    return record


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def best_accuracy(record: dict[str, Any], epochs: int = EFFECTIVENESS_EPOCHS) -> float:
    """The highest test accuracy within the first epochs, in [0, 1]."""
    return max(row["test_accuracy"] for row in record["epochs"][:epochs])


def time_to_accuracy(record: dict[str, Any], accuracy: float) -> tuple[int, float] | tuple[None, None]:
    """Epochs and seconds until a test accuracy is reached; None where it never is."""
    for number, row in enumerate(record["epochs"], start=1):
        if row["test_accuracy"] >= accuracy:
            return number, sum(each["seconds"] for each in record["epochs"][:number])
    return None, None


def effectiveness(record: dict[str, Any], baseline: dict[str, Any]) -> float:
    """Accuracy within the first 4 epochs divided by that of the random-init baseline (section 4.1); NaN over 0."""
    return best_accuracy(record) / (best_accuracy(baseline) or math.nan)


def divergence_text(record: dict[str, Any]) -> str:
    """What to say of a trial whose status is diverged."""
    last = record["epochs"][-1]
    losses = f"train loss {last['train_loss']:g}, test loss {last['test_loss']:g}"
    return f"diverged in epoch {last['epoch']} ({losses}; a lower learning rate may help)"


def provenance() -> dict[str, Any]:
    """The commit, whether code and settings differ from it, the versions and the machine that a trial runs with."""
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
    """The records that are committed in a folder: the lines of its `records.jsonl`, a trial each.

    Raises ValueError for a line that is not what was written, whose id is not that of its trial, or that is no result.
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
    """Raise ValueError unless a record counts: of a trial that has ended, from a clean commit, with its accuracies."""
    if record["status"] not in ENDED:
        raise ValueError("its trial has not ended")
    if record["dirty"] or not record["commit"]:
        raise ValueError("it was not run from a clean commit")
    if not record["epochs"] or not all(0 <= row["test_accuracy"] <= 1 for row in record["epochs"]):
        raise ValueError("its test accuracies are not all there")


def evidence_line(record: dict[str, Any]) -> str:
    return json.dumps(record | {"sha256": _digest(record)}) + "\n"


def trial_digest(identity: dict[str, Any]) -> str:
    """What ends the id of a trial: all that determines its result, in 40 bits."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
