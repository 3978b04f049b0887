"""Settings of trials that take a second, on real digits, and made-up records of finished trials."""

from pathlib import Path

from experiments.planning import Trial
from experiments.settings import DatasetSettings, InitSettings, Settings

ROOT = Path(__file__).parents[2]


def settings(folder: Path, **changes) -> Settings:
    """The settings of a trial of two small networks that writes into `folder`."""
    changes = {
        "dataset": DatasetSettings(name="digits", image_size=16, train_subset=512),
        "init": InitSettings(name="dpiat"),
        "source": "networks:larger",
        "target": "networks:small",
        "source_epochs": 2,
        "target_epochs": 2,
        "device": "cpu",
        "threads": 1,
        "output_dir": str(folder),
    } | changes
    return Settings(**changes)


def metrics(record: dict) -> list[dict]:
    """The rows of a record's epochs without their seconds."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in record["epochs"]]


def record(trial: Trial, accuracies: list[float], **changes) -> dict:
    """Make the record of a finished trial with these test accuracies, as `trial.run` would leave it."""
    rows = [
        {"epoch": i + 1, "train_loss": 1.0, "test_accuracy": accuracy, "seconds": 2.0}
        for i, accuracy in enumerate(accuracies)
    ]
    return {
        "id": trial.id,
        "status": "finished",
        "scale": "desk",
        "trial": trial.identity(),
        "commit": "0123456789abcdef",
        "dirty": False,
        "cpu": "a processor",
        "device": "cpu",
        "seconds": 7200.0,
        "train_images": 9469,
        "test_images": 3925,
        "initialization": {"similarity": 0.8} if trial.source else {},
        "epochs": rows,
    } | changes
