"""A trial from its settings to its records, on real digits with small networks of our own."""

import dataclasses
import io
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import networks
import pytest
import torch
from safetensors.torch import save_file
from trials import ROOT, metrics, settings

from experiments import models, planning, trial
from experiments.report import report
from experiments.settings import DatasetSettings, InitSettings, LoggerSettings, Settings, UserError
from experiments.store import checkpoints, records
from experiments.store.records import read_evidence


@pytest.mark.training
def test_equal_seeds_give_equal_metrics_and_others_do_not(outcome, tmp_path):
    again = trial.run(settings(tmp_path / "again"))
    assert metrics(again.record) == metrics(outcome.record) and metrics(again.baseline) == metrics(outcome.baseline)
    other = trial.run(settings(tmp_path, seed=1))
    assert metrics(other.record) != metrics(outcome.record) and metrics(other.baseline) != metrics(outcome.baseline)


@pytest.mark.training
def test_a_trial_leaves_records_that_explain_themselves(outcome, tmp_path):
    on_disk = {record["id"]: record for record in map(records.read, tmp_path.glob("records/*"))}
    assert len(on_disk) == 3  # the source, the baseline and the target
    assert on_disk[outcome.record["id"]] == outcome.record and on_disk[outcome.baseline["id"]] == outcome.baseline
    record = outcome.record
    assert record["status"] == "finished" and record["trial"]["source"]["model"] == "networks:larger"
    assert record["trial"]["recipe"]["lr"] == 4e-3 and [row["epoch"] for row in record["epochs"]] == [1, 2]
    assert 0 < record["initialization"]["similarity"] < 1 and 0 < record["initialization"]["filled"] <= 1
    assert len(record["initialization"]["source weights"]) == 10
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0] and record["train_images"] == 512
    assert set(record) >= {"commit", "dirty", "cpu", "device", "threads", "started", "seconds"}
    assert records.effectiveness(outcome.record, outcome.baseline) > 0


@pytest.mark.training
def test_nothing_is_run_twice(outcome, tmp_path, capsys):
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.[pj]*") if file.is_file()}
    assert len(before) == 4  # three records and a checkpoint
    trial.run(settings(tmp_path))
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.[pj]*") if file.is_file()}
    assert capsys.readouterr().out.count("finished before") == 2
    trial.run(settings(tmp_path, seed=1))  # another target from the same source
    assert len(list(tmp_path.glob("checkpoints/*.pt"))) == 1


@pytest.mark.training
def test_a_transfer_starts_from_the_same_random_weights_as_its_baseline(tmp_path):
    """A tiny rate trains the batch-norm statistics alone: a target that receives nothing is like the baseline."""
    unlike = settings(tmp_path, source="networks:unlike", source_epochs=1, lr=1e-30, baseline_lr=1e-30)
    outcome = trial.run(unlike)
    assert outcome.record["initialization"]["filled"] == 0
    assert metrics(outcome.record) == metrics(outcome.baseline)


def test_learning_rates_are_the_papers(tmp_path):
    def rates(**changes) -> tuple[float, float | None]:
        planned = planning.target_trial(settings(tmp_path, **changes))
        return planned.recipe.lr, planned.source and planned.source.recipe.lr

    assert rates() == (4e-3, 4e-3)
    assert rates(source="eff_lite0", source_weights="imagenet") == (1e-3, 1e-3)
    assert rates(source="eff_lite0", source_weights="imagenet_finetuned") == (1e-3, 1e-3)
    assert rates(init=InitSettings(name="random")) == (4e-3, None)
    assert rates(init=InitSettings(name="pretrained")) == (1e-3, None)
    assert rates(lr=0.5, source_lr=0.25) == (0.5, 0.25)
    recipe = planning.target_trial(settings(tmp_path, target_epochs=100)).recipe
    assert [recipe.learning_rate(epoch) for epoch in (0, 50, 100)] == pytest.approx([4e-3, 2.2e-3, 4e-4])


def test_inputs_have_the_networks_own_size_unless_told(tmp_path):
    digits = DatasetSettings(name="digits")
    planned = planning.target_trial(settings(tmp_path, dataset=digits, source="eff_b2", target="eff_b1"))
    assert (planned.source.recipe.image_size, planned.recipe.image_size) == (260, 240)


@pytest.mark.training
def test_a_damaged_checkpoint_or_record_is_made_again(outcome, tmp_path, capsys):
    (checkpoint,) = tmp_path.glob("checkpoints/*.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    (tmp_path / "records" / f"{outcome.record['id']}.json").write_text('{"id": ')
    again = trial.run(settings(tmp_path))
    assert metrics(again.record) == metrics(outcome.record)
    assert capsys.readouterr().out.count("cannot be read") == 2


@pytest.mark.training
def test_a_users_checkpoint_is_the_source(tmp_path):
    torch.manual_seed(3)
    weights = models.build("networks:larger", 10).state_dict()
    torch.save({"state_dict": weights}, tmp_path / "mine.pt")
    outcome = trial.run(settings(tmp_path, source_checkpoint=str(tmp_path / "mine.pt")))
    assert outcome.record["trial"]["source"]["init"] == "checkpoint" and not list(tmp_path.glob("checkpoints/*"))
    wrapped = {f"module.{name}": t for name, t in weights.items()}
    torch.save({"model_ema": {"n_averaged": torch.tensor(9), **wrapped}}, tmp_path / "averaged.pt")
    save_file(weights, tmp_path / "mine.safetensors")
    for file in ("averaged.pt", "mine.safetensors"):
        same = trial.run(settings(tmp_path, source_checkpoint=str(tmp_path / file)))
        assert metrics(same.record) == metrics(outcome.record)
    ours = trial.run(settings(tmp_path))
    (checkpoint,) = tmp_path.glob("checkpoints/*.pt")
    again = trial.run(settings(tmp_path, source_checkpoint=str(checkpoint)))
    assert metrics(again.record) == metrics(ours.record)


@pytest.mark.training
def test_a_checkpoint_of_other_settings_is_refused(outcome, tmp_path):
    (checkpoint,) = tmp_path.glob("checkpoints/*.pt")
    with pytest.raises(UserError, match="is of other settings: model is 'networks:larger' there, not 'networks:small'"):
        trial.run(settings(tmp_path, source="networks:small", source_checkpoint=str(checkpoint)))
    planned = planning.target_trial(settings(tmp_path, source_epochs=1))
    checkpoint.rename(checkpoint.with_name(f"{planned.source.id}.pt"))
    with pytest.raises(UserError, match="is of other settings: recipe is"):
        trial.run(settings(tmp_path, source_epochs=1))
    with pytest.raises(UserError, match=r"nowhere\.pt does not exist"):
        trial.run(settings(tmp_path, source_checkpoint="nowhere.pt"))
    with pytest.raises(UserError, match="is not a file"):
        trial.run(settings(tmp_path, source_checkpoint=str(tmp_path)))
    (tmp_path / "empty.pt").touch()
    with pytest.raises(UserError, match=r"source_checkpoint: .*empty\.pt is not a complete file of weights"):
        trial.run(settings(tmp_path, source_checkpoint=str(tmp_path / "empty.pt")))
    torch.save(models.build("networks:small", 10).state_dict(), tmp_path / "small.pt")
    with pytest.raises(UserError, match=r"source_checkpoint does not fit the source: .* size mismatch"):
        trial.run(settings(tmp_path, source_checkpoint=str(tmp_path / "small.pt")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "eff_b22"}, "unknown network 'eff_b22': did you mean eff_b2"),
        ({"target": "efficientnet_b00"}, "unknown network 'efficientnet_b00': did you mean efficientnet_b0"),
        ({"target": "no_module_here:net"}, "cannot import 'no_module_here:net': No module named 'no_module_here'"),
        ({"target": "networks:missing"}, "cannot import 'networks:missing': module networks has no 'missing'"),
        ({"target": "networks:no_network"}, "networks:no_network gave a str, not a torch.nn.Module"),
        ({"source": "networks:small", "source_weights": "imagenet"}, "networks:small has no ImageNet weights"),
        ({"source_weights": "finetuned"}, "unknown source_weights 'finetuned'"),
        ({"init": InitSettings(name="xavier")}, "unknown initialization 'xavier'"),
        ({"init": InitSettings(name="dpiat", mode="exact")}, "unknown init.mode 'exact'"),
        ({"dataset": DatasetSettings(name="cifar1000")}, "unknown data set 'cifar1000': did you mean cifar100"),
        ({"dataset": DatasetSettings(name="digits", train_subset=9999)}, "train_subset must be from 1 to 1433"),
        ({"batch_size": 1000}, "512 training images do not fill one batch of 1000"),
        ({"device": "gpu"}, "device=gpu cannot be used"),
        ({"target_epochs": 0}, "target_epochs must be positive, got 0"),
        ({"lr": 0.0}, "lr must be positive, got 0"),
        ({"output_dir": ""}, "output_dir must name a folder, got nothing"),
        ({"lr": math.nan}, "lr must be positive, got nan"),
        ({"seed": -1}, "seed must be from 0 to"),
        ({"logger": LoggerSettings(name="wandb", mode="offlin")}, "unknown logger.mode 'offlin': known are offline"),
        ({"device": "meta"}, "device=meta cannot be used"),
        ({"batch_size": 1, "target": "mnas"}, "mnas cannot take 1 images of 16 px: Expected more than 1 value"),
        ({"dataset": DatasetSettings(name="digits", image_size=-1)}, r"dataset\.image_size must be positive"),
        ({"target": "networks:two_outputs"}, r"networks:two_outputs turns 2 images into \(2, 2\), not \(2, 10\)"),
        ({"source": "torch.nn:Flatten"}, r"torch\.nn:Flatten turns 2 images into \(2, 768\), not \(2, 10\)"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        trial.run(settings(tmp_path, **changes))
    assert not list(tmp_path.rglob("*.json"))


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "run.py", *words], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_the_command_line_names_mistakes_in_one_line(tmp_path):
    done = run("dataset=digits", "source=eff_b3x", f"output_dir={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: unknown network 'eff_b3x': did you mean") and done.stderr.count("\n") == 1
    done = run("experiment=cifar100_growing", "together.pair=source:eff_b0")  # a shell took the braces of a mapping
    assert done.stderr.startswith("error: ") and "together.pair" in done.stderr and done.stderr.count("\n") == 1
    done = run("dataset=cifar1000")
    assert done.returncode == 1 and "Traceback" not in done.stderr and "cifar1000" in done.stderr


@pytest.mark.slow
def test_mistakes_in_keys_and_types_show_before_anything_is_loaded(tmp_path):
    for word, named in (
        ("learning_rate=1", "learning_rate"),
        ("dataset.size=64", "size"),
        ("seed=many", "many"),
        ("lr=fast", "fast"),
        ("source=[eff_b0]", "source"),
    ):
        words = [sys.executable, "-X", "importtime", ROOT / "run.py", "dataset=digits", word]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
        assert done.returncode == 1 and named in "".join(said) and "Traceback" not in done.stderr
        loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "hydra" in loaded and not loaded & {"torch", "timm", "pandas"}


@pytest.mark.slow
def test_help_explains_every_key():
    text = run("--help").stdout

    def keys(cls: type, prefix: str = "") -> None:
        for f in dataclasses.fields(cls):
            if dataclasses.is_dataclass(f.default_factory):
                keys(f.default_factory, f"{prefix}{f.name}.")
            else:
                assert re.search(rf"^  {re.escape(prefix + f.name)}=\S* +\S", text, flags=re.MULTILINE), f.name
                assert len(f.metadata["doc"]) > 10

    keys(Settings)
    for key in ("dataset.image_size=null", "source_epochs=100", "baseline_lr=null", "logger.mode=offline"):
        assert key in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.training
def test_a_bar_shows_epoch_speed_and_time_left_on_a_terminal_alone(tmp_path, monkeypatch, capsys):
    random = {"init": InitSettings(name="random")}
    trial.run(settings(tmp_path, **random))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    trial.run(settings(tmp_path, seed=1, **random))
    assert re.search(r"random epoch 2/2: .*k/1.02k \[\d\d:\d\d<\d\d:\d\d, .* images/s\]", sys.stderr.getvalue())


@pytest.mark.training
def test_the_end_of_a_trial_is_told(outcome, tmp_path):
    lines = report(*outcome, tmp_path / "plots").splitlines()
    assert lines[0].split() == ["epoch", "dpiat", "random"] and [line.split()[0] for line in lines[1:3]] == ["1", "2"]
    assert "effectiveness within 2 epochs" in lines[3] and re.fullmatch(r"similarity 0\.\d\d, \d+% of .*", lines[4])
    assert lines[5].startswith("trained in") and Path(lines[6].removeprefix("plot: ")).is_file()
    alone = report(outcome.baseline, None, tmp_path / "plots")
    assert alone.startswith("epoch      random\n    1       0.") and "best within 2 epochs: 0." in alone
    diverged = outcome.record | {"status": "diverged"}
    assert re.fullmatch(r"digits-\S+ diverged in epoch 2 \(.*\)", report(diverged, outcome.baseline, tmp_path))


@pytest.mark.training
def test_wandb_logs_offline(tmp_path):
    pytest.importorskip("wandb")
    words = ["dataset=digits", "scale=smoke", "source=eff_lite0", "source_weights=imagenet", "target=networks:small"]
    done = subprocess.run(
        [sys.executable, ROOT / "run.py", *words, "logger=wandb", "threads=1", f"output_dir={tmp_path}"],
        cwd=ROOT / "tests" / "helpers",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "effectiveness within 2 epochs" in done.stdout and len(list(tmp_path.glob("plots/*.png"))) == 1
    logged = {run["name"]: run for run in map(logged_by, tmp_path.glob("wandb/offline-run-*/*.wandb"))}
    baseline, target = sorted(logged, key=lambda name: "dpiat" in name)
    assert "digits-networks.small-random-" in baseline and "-dpiat-from-eff_lite0-" in target
    for run in logged.values():
        assert run["test_accuracy"] == 2 and run["epochs"]  # a value for each epoch, and a table of them
        assert {"trial", "commit", "versions"} <= run["config"] and "status" not in run["config"]
    assert "comparison" in logged[target] and "comparison" not in logged[baseline]
    files = [file.name for file in tmp_path.glob("wandb/offline-run-*/files/media/*/*")]
    assert (
        sum(name.endswith(".png") for name in files) == 1 and sum(name.endswith(".table.json") for name in files) == 2
    )


def logged_by(file: Path) -> dict:
    """The name, the config's keys and how often each key was logged, in a file that waits for `wandb sync`."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    store, found = DataStore(), {"config": set()}
    store.open_for_scan(str(file))
    while content := store.scan_data():
        record = Record()
        record.ParseFromString(content)
        if record.HasField("run"):
            found["name"] = record.run.display_name
            found["config"] |= {item.key for item in record.run.config.update}
        for item in record.history.item:
            key = item.key or item.nested_key[0]
            found[key] = found.get(key, 0) + 1
    return found


def test_ids_of_committed_trials_stay():
    """A trial that was run once must be found again, whatever settings were added since."""
    committed = read_evidence(ROOT / "results" / "trials" / "imagenet_to_imagenette")
    chosen = [r for r in committed if r["trial"]["init"] == "dpiat" and r["trial"]["recipe"]["seed"] == 1]
    for record in chosen:
        settings = Settings(
            dataset=DatasetSettings(name="imagenette", stored_size=128, image_size=64),
            init=InitSettings(name="dpiat"),
            source=record["trial"]["source"]["model"],
            target=record["trial"]["model"],
            source_weights="imagenet",
            lr=1e-3,
            seed=1,
        )
        assert planning.target_trial(settings).id == record["id"]
        for key, value in (("matching", "random"), ("operator", "full"), ("head", "skip"), ("mode", "default")):
            other = replace(settings, init=InitSettings(name="dpiat", **{key: value}))
            assert planning.target_trial(other).id != record["id"]
    assert len(chosen) >= 4


@pytest.mark.parametrize("key", ["matching", "operator", "head", "mode"])
def test_unknown_methods_are_named(key):
    settings = Settings(dataset=DatasetSettings(name="digits"), init=InitSettings(name="dpiat", **{key: "other"}))
    with pytest.raises(UserError, match=f"unknown init.{key} 'other': known are "):
        planning.target_trial(settings)


def test_a_name_that_stands_for_another_network_is_another_trial(tmp_path, monkeypatch):
    def ids() -> tuple[str, str]:
        planned = planning.target_trial(settings(tmp_path))
        return planned.source.id, planned.id

    first = ids()
    monkeypatch.setattr("networks.larger", networks.small)
    models.shapes_digest.cache_clear()
    second = ids()
    models.shapes_digest.cache_clear()
    assert first[0] != second[0] and first[1] != second[1]


@pytest.mark.training
def test_a_trial_that_goes_on_elsewhere_says_so(tmp_path, monkeypatch):
    wanted = settings(tmp_path, init=InitSettings(name="random"), target_epochs=3)
    kept = checkpoints.Unfinished.write

    def stop(self, state, epoch):
        kept(self, state, epoch)
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(checkpoints.Unfinished, "write", stop)
        trial.run(wanted)
    monkeypatch.setattr(records, "_cpu", lambda: "another processor")
    record = trial.run(wanted).record
    (there,) = record["continued"]
    assert there["cpu"] == "another processor" != record["cpu"] and there["epoch"] == 2


def test_a_baseline_of_no_accuracy_gives_no_effectiveness():
    ours, random = ({"epochs": [{"epoch": 1, "test_accuracy": accuracy}]} for accuracy in (0.5, 0.0))
    assert math.isnan(records.effectiveness(ours, random))


@pytest.mark.training
def test_a_network_is_looked_at_as_it_is_used(tmp_path):
    weights = tmp_path / "aux.pt"
    torch.save(networks.Auxiliary(10).state_dict(), weights)
    trial.run(settings(tmp_path, source="networks:Auxiliary", source_checkpoint=str(weights)))
    with pytest.raises(UserError, match=r"networks:Auxiliary turns 2 images into tuple, not \(2, 10\)"):
        trial.run(settings(tmp_path, source="networks:Auxiliary"))
    trial.run(settings(tmp_path, target="networks:Fours", init=InitSettings(name="random")))
