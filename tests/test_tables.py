"""Records -> committed evidence -> tables."""

import json

import pandas as pd
import pytest

from experiments import figures, records, tables


def record(init: str, seed: int, accuracies: list[float], **changes) -> dict:
    """A finished record as `trial.run` leaves it, of a target from eff_lite0 or from random init."""
    recipe = {"epochs": len(accuracies), "lr": 1e-3, "image_size": 64, "seed": seed}
    source = {"model": "eff_lite0", "init": "pretrained"} if init == "dpiat" else None
    trial = {"dataset": "imagenette", "model": "mnas", "init": init, "recipe": recipe, "source": source}
    rows = [{"epoch": i + 1, "lr": 1e-3, "test_accuracy": a, "seconds": 1.0} for i, a in enumerate(accuracies)]
    facts = {"similarity": 0.8} if source else {}
    return {
        "id": f"{init}-{seed}",
        "status": "finished",
        "scale": "desk",
        "trial": trial,
        "commit": "0123456789abcdef",
        "dirty": False,
        "cpu": "a processor",
        "device": "cpu",
        "seconds": 4.0,
        "train_images": 9469,
        "test_images": 3925,
        "initialization": facts,
        "epochs": rows,
    } | changes


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A results folder with one experiment: two seeds, of which the second has a worse last epoch and a fifth one."""
    folder = tmp_path / "runs"
    for found in (
        record("dpiat", 0, [0.3, 0.6]),
        record("random", 0, [0.2, 0.3]),
        record("dpiat", 1, [0.4, 0.3]),
        record("random", 1, [0.2, 0.1]),
    ):
        records.save(found, folder / f"{found['id']}.json")
    records.collect(folder, tmp_path / "trials" / "mine")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    return tmp_path


def test_effectiveness_is_by_seed(results):
    table = tables.transfer_table("mine").set_index("initialization")
    assert table.loc["dpiat from eff_lite0", "accuracy within 4 epochs"] == "0.500 ± 0.141 (2)"
    assert table.loc["dpiat from eff_lite0", "effectiveness"] == "2.000 ± 0.000 (2)"  # 0.6 / 0.3 and 0.4 / 0.2
    assert table.loc["dpiat from eff_lite0", "effectiveness, random at 0.004"] == "not run"
    assert table.loc["random", "effectiveness"] == "1.000 ± 0.000 (2)"
    assert "9,469 training images at 64 px" in tables.scale_line("mine")


def test_evidence_can_be_traced(results):
    (row,) = tables.provenance_table().to_dict("records")
    assert row["commit"] == "0123456789" and row["hardware"] == "a processor" and row["status"].startswith("4 trials")
    epochs = pd.read_csv(results / "trials" / "mine" / "epochs.csv")
    assert len(epochs) == 8 and set(epochs["id"]) == {"dpiat-0", "dpiat-1", "random-0", "random-1"}


def test_curves_show_every_cell(results):
    figure = figures.curves("mine")
    (axes,) = figure.axes
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["random init, lr 0.001 (n = 2)", "dpiat from eff_lite0, lr 0.001 (n = 2)"]
    assert axes.lines[1].get_ydata() == pytest.approx([0.35, 0.45])


def test_the_effectiveness_window_is_four_epochs():
    late = record("dpiat", 0, [0.1, 0.2, 0.3, 0.4, 0.9])
    assert records.best_accuracy(late) == 0.4
    assert records.effectiveness(late, record("random", 0, [0.1, 0.1, 0.2, 0.1, 0.5])) == 2
    assert "effectiveness within 4 epochs: 2.00" in tables.side_by_side(late, record("random", 0, [0.2] * 5))


@pytest.mark.parametrize("changes", [{"dirty": True}, {"commit": None}])
def test_only_clean_commits_become_evidence(tmp_path, changes):
    records.save(record("dpiat", 0, [0.5], **changes), tmp_path / "runs" / "a.json")
    with pytest.raises(ValueError, match="dpiat-0 was not run from a clean commit"):
        records.collect(tmp_path / "runs", tmp_path / "evidence")
    assert not (tmp_path / "evidence").exists()
    with pytest.raises(ValueError, match="no finished records in"):
        records.collect(tmp_path / "nothing", tmp_path / "evidence")


def test_unfinished_and_damaged_records_do_not_count(tmp_path, capsys):
    file = tmp_path / "a.json"
    assert records.read(file) is None
    file.write_text(json.dumps(record("dpiat", 0, [0.5], status="running")))
    assert records.read(file) is None
    file.write_bytes(file.read_bytes()[:50])
    assert records.read(file) is None and "cannot be read" in capsys.readouterr().out


def test_generated_parts_of_a_readme_are_replaced(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("a\n<!-- one -->\nold\n<!-- /one -->\nb\n")
    assert tables.with_blocks(file, {"one": "new\n", "two": "x"}) == "a\n<!-- one -->\nnew\n<!-- /one -->\nb\n"
