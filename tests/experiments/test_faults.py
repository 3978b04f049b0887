"""Kills, damaged files, full disks and losses that are not numbers leave no trace in what a trial comes to."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE

import pytest
import torch
from networks import small
from torch import nn
from trials import ROOT, metrics, settings

from experiments import trial
from experiments.data import loading
from experiments.settings import DatasetSettings, InitSettings, Settings
from experiments.store import checkpoints, files, records
from experiments.train import training
from experiments.train.training import Schedule

pytestmark = pytest.mark.training
CPU = torch.device("cpu")


class Killed(BaseException):
    pass


def kill_after(monkeypatch, epoch: int) -> None:
    """Kill the next training when its state after `epoch` is on disk, without a chance to clean up."""

    def killed(*arguments) -> None:
        monkeypatch.undo()
        raise Killed

    monkeypatch.setattr(trial, "_epoch_line", lambda row, epochs: killed() if row["epoch"] == epoch else "")


def trained_epochs(capsys) -> int:
    return len(re.findall(r" epoch \d+/\d+: ", capsys.readouterr().out))


def dropping(num_classes: int) -> nn.Module:
    return nn.Sequential(*small(num_classes)[:-1], nn.Dropout(0.5), nn.Linear(32, num_classes))


def test_a_training_goes_on_from_every_epoch_bit_for_bit(tmp_path):
    digits = loading.load(DatasetSettings(name="digits", train_subset=256), str(tmp_path))
    schedule = Schedule(epochs=4, lr=4e-3, schedule_epochs=4, batch_size=64, image_size=16, seed=5)

    def keep(row, state) -> None:
        checkpoints.write(state, tmp_path / f"{row['epoch']}.pt")

    network = dropping(10)
    torch.manual_seed(1)
    fresh = dropping(10).state_dict()
    network.load_state_dict(fresh)
    rows, best = training.train(network, digits, schedule, CPU, on_epoch=keep)
    for epoch in (1, 2, 3, 4):
        torch.manual_seed(100 + epoch)  # other weights and another random state, to be overwritten
        again = dropping(10)
        state = checkpoints.read(tmp_path / f"{epoch}.pt")
        rows_again, best_again = training.train(again, digits, schedule, CPU, state=state)
        assert metrics({"epochs": rows_again}) == metrics({"epochs": rows})
        for ours, theirs in ((again.state_dict(), network.state_dict()), (best_again, best)):
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_a_bit(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty])
def test_a_damaged_state_is_named_and_the_one_before_it_is_used(tmp_path, monkeypatch, capsys, damage: Callable):
    wanted = settings(tmp_path / "a", init=InitSettings(name="random"), target_epochs=4)
    undisturbed = trial.run(wanted)
    wanted.output_dir = str(tmp_path / "b")
    kill_after(monkeypatch, 3)
    with pytest.raises(Killed):
        trial.run(wanted)
    capsys.readouterr()
    older, newest = sorted((tmp_path / "b" / "unfinished").iterdir())  # the last two of three
    newest.write_bytes(damage(newest.read_bytes()))
    again = trial.run(wanted)
    out = capsys.readouterr().out
    assert f"{newest} is damaged" in out and out.count(" is damaged") == 1
    assert "going on after epoch 2/4" in out and older.name.endswith("epoch-000002.pt")
    assert metrics(again.record) == metrics(undisturbed.record)
    assert not list((tmp_path / "b" / "unfinished").iterdir())


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty])
def test_a_damaged_checkpoint_or_record_is_named_and_made_again(outcome, tmp_path, capsys, damage: Callable):
    (checkpoint,) = tmp_path.glob("checkpoints/*.pt")
    record = tmp_path / "records" / f"{outcome.record['id']}.json"
    for file in (checkpoint, record):
        file.write_bytes(damage(file.read_bytes()))
    again = trial.run(settings(tmp_path))
    out = capsys.readouterr().out
    assert f"{checkpoint} is damaged" in out and f"{record} is damaged" in out
    assert metrics(again.record) == metrics(outcome.record)
    assert records.read(record) == again.record and checkpoints.read(checkpoint) is not None


@pytest.mark.parametrize("text", ["[]", "3", '{"id": 1}', '{"status": "finished", "sha256": "0"}'])
def test_what_is_no_record_is_not_read_as_one(tmp_path, capsys, text: str):
    (tmp_path / "x.json").write_text(text)
    assert records.read(tmp_path / "x.json") is None and "x.json is damaged" in capsys.readouterr().out


def test_a_damaged_state_of_the_users_is_refused(outcome, tmp_path):
    (checkpoint,) = tmp_path.glob("checkpoints/*.pt")
    checkpoint.write_bytes(flip_a_bit(checkpoint.read_bytes()))
    with pytest.raises(trial.UserError, match=f"{checkpoint} is not a complete checkpoint of weights"):
        trial.run(settings(tmp_path / "b", source_checkpoint=str(checkpoint)))


def test_a_file_that_grows_too_large_leaves_what_was_there(tmp_path):
    file = tmp_path / "weights.pt"
    checkpoints.write({"n": torch.zeros(10)}, file)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(files.CannotWrite, match=rf"cannot write {file} \(File too large\): .* intact"):
            checkpoints.write({"n": torch.zeros(100_000)}, file)
        with pytest.raises(files.CannotWrite, match=r"cannot write .*other\.pt \(File too large\)"):
            files.atomic_write(tmp_path / "other.pt", lambda f: torch.save({"n": torch.zeros(100_000)}, f))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoints.read(file)["n"].shape == (10,) and list(tmp_path.iterdir()) == [file]


def test_what_fails_for_another_reason_is_not_hidden(tmp_path):
    def broken(f):
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="a mistake of ours"):
        files.atomic_write(tmp_path / "x", broken)
    assert not list(tmp_path.iterdir())


def test_colleagues_can_read_what_is_written(tmp_path):
    before = os.umask(0o022)
    try:
        files.atomic_write(tmp_path / "x", lambda f: f.write(b"1"))
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_costs_no_epoch(tmp_path, small_disk, capsys):
    wanted = settings(tmp_path, init=InitSettings(name="random"), target_epochs=4)
    undisturbed = trial.run(wanted)
    capsys.readouterr()
    wanted.output_dir = str(small_disk)
    with pytest.raises(files.CannotWrite, match=r"cannot write .*epoch-00000\d\.pt \(No space left on device\)"):
        trial.run(wanted)
    done = trained_epochs(capsys)
    assert 1 <= done < 4 and not list(small_disk.glob("unfinished/.*"))
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    assert metrics(trial.run(wanted).record) == metrics(undisturbed.record)
    assert trained_epochs(capsys) == 4 - done


def test_a_trial_that_diverges_keeps_its_row_and_is_not_run_again(tmp_path, capsys):
    outcome = trial.run(settings(tmp_path, lr=1e30, target_epochs=5))
    record = outcome.record
    assert record["status"] == "diverged" and outcome.baseline["status"] == "finished"
    assert 1 <= len(record["epochs"]) < 5 and training.diverged(record["epochs"])
    assert not training.diverged(record["epochs"][:-1]) and not list(tmp_path.glob("unfinished/*"))
    assert "diverged in epoch" in records.divergence_text(record)
    capsys.readouterr()
    again = trial.run(settings(tmp_path, lr=1e30, target_epochs=5))
    assert trained_epochs(capsys) == 0 and again.record["status"] == "diverged"
    assert json.dumps(again.record) == json.dumps(record)  # NaN is not equal to itself


def test_a_source_that_diverges_ends_its_targets_alone(tmp_path, capsys):
    for trained in (True, False):
        with pytest.raises(trial.Diverged, match=r"networks\.larger-random.*, the source, diverged in epoch \d"):
            trial.run(settings(tmp_path, source_lr=1e30))
        assert (trained_epochs(capsys) > 0) == trained
    assert not list(tmp_path.glob("checkpoints/*"))


def start(folder: Path, *words: str) -> subprocess.Popen:
    """Start run.py with the networks of the tests. It writes into `folder` alone."""
    fixed = [
        "dataset=digits",
        "scale=smoke",
        "dataset.image_size=16",
        "threads=1",
        "device=cpu",
        f"output_dir={folder}",
    ]
    words = [sys.executable, "-u", ROOT / "run.py", *fixed, "target=networks:small", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "helpers")}
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(words, cwd=folder, env=environment, text=True, stdout=PIPE, stderr=PIPE)


def test_sigterm_asks_for_another_start_which_goes_on(tmp_path):
    words = (tmp_path / "a", "init=random", "target_epochs=20")
    run = start(*words)
    assert "epoch 1/20" in run.stdout.readline()
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate()
    assert run.returncode == os.EX_TEMPFAIL == 75
    assert err == "stopped by SIGTERM: every finished epoch is kept, the same command goes on from there\n"
    run = start(*words)
    out, err = run.communicate()
    assert run.returncode == 0 and int(re.search(r"going on after epoch (\d+)/20", out)[1]) >= 1
    (record,) = (tmp_path / "a").glob("records/*")
    digits = DatasetSettings(name="digits", image_size=16, train_subset=512)
    wanted = settings(tmp_path / "b", dataset=digits, init=InitSettings(name="random"), target_epochs=20)
    assert metrics(records.read(record)) == metrics(trial.run(wanted).record)


def test_a_grid_goes_on_after_what_diverged(tmp_path):
    run = start(tmp_path, "source=networks:larger", "source_lr=1e30,4e-3", "lr=1e30,4e-3", "-m")
    out, err = run.communicate()
    assert run.returncode == 0, err
    assert err == ""
    assert out.count("the source, diverged in epoch") == 2 and out.count("networks.small-dpiat") >= 1
    assert out.count("effectiveness within 2 epochs") == 1
    statuses = sorted(json.loads(file.read_text())["status"] for file in tmp_path.glob("records/*"))
    assert statuses == ["diverged", "diverged", "finished", "finished", "finished"]


def test_a_grid_goes_on_after_what_cannot_be_run(tmp_path):
    words = "target=networks:small,networks:two_outputs,networks:unlike", "init=random", "target_epochs=1", "-m"
    run = start(tmp_path, *words)
    out, err = run.communicate()
    assert run.returncode == 1 and out.count("best within 1 epoch:") == 2
    first, last = err.splitlines()
    assert first.startswith("error: networks:two_outputs turns 2 images into (2, 2)")
    assert last == "error: 1 of the grid's trials could not be run, as said above"
    assert len(list(tmp_path.glob("records/*"))) == 2


# --- several processes ------------------------------------------------------------------------------------------------

FORKS = multiprocessing.get_context("forkserver")  # processes start fast, from one that has imported everything
FORKS.set_forkserver_preload(["sklearn.datasets", "experiments.trial", "networks"])


def work(wanted: Settings, log: Path) -> None:
    with log.open("a", buffering=1) as f, contextlib.redirect_stdout(f):
        trial.run(wanted)


def start_process(wanted: Settings) -> tuple[multiprocessing.Process, Path]:
    log = Path(wanted.output_dir) / f"{uuid.uuid4()}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    process = FORKS.Process(target=work, args=(wanted, log))
    process.start()
    return process, log


def begin_trial(wanted: Settings) -> multiprocessing.Process:
    """Start a trial in a process of its own, and return when the trial begins."""
    process, log = start_process(wanted)
    while process.is_alive() and not log.exists():
        time.sleep(0.001)
    return process


def ends(folder: Path) -> dict[str, object]:
    """The results of the trials in a folder: metrics by id, and the weights of checkpoints as bytes."""
    found = {file.stem: metrics(records.read(file)) for file in folder.glob("records/*.json")}
    for file in folder.glob("checkpoints/*.pt"):
        found[file.name] = [(k, v.numpy().tobytes()) for k, v in checkpoints.read(file)["state"].items()]
    return found


def logs(folder: Path) -> str:
    return "".join(file.read_text() for file in folder.glob("*.log"))


def test_a_trial_killed_at_twenty_random_moments_ends_as_if_undisturbed(tmp_path):
    wanted = settings(tmp_path / "undisturbed", source_epochs=12, target_epochs=12)
    process, start = begin_trial(wanted), time.monotonic()
    process.join()
    whole = time.monotonic() - start
    moments, kills = random.Random(0), 0
    while kills < 20:  # in another folder, should a trial end before
        wanted.output_dir = str(tmp_path / f"after {kills}")
        process = begin_trial(wanted)
        while process.is_alive() and kills < 20:
            process.join(moments.uniform(0, whole / 6))
            if process.is_alive():
                process.kill()
                process.join()
                kills += 1
                process = begin_trial(wanted)
        process.join()
        assert process.exitcode == 0
        assert ends(Path(wanted.output_dir)) == ends(tmp_path / "undisturbed")
        assert "damaged" not in logs(Path(wanted.output_dir))
        assert not list(Path(wanted.output_dir).glob("*/.*")) and not list(Path(wanted.output_dir).glob("unfinished/*"))
    assert "going on after epoch" in logs(tmp_path / "after 0")


def test_what_a_kill_after_a_sources_end_left_is_removed(tmp_path):
    wanted = settings(tmp_path, source_epochs=1, target_epochs=1)
    trial.run(wanted)
    (source,) = (tmp_path / "checkpoints").glob("*.pt")
    left = [tmp_path / "unfinished" / f"{source.stem}.epoch-000001.pt", source.with_name(f".{source.stem}.1.tmp")]
    for file in left:
        file.write_bytes(b"a state")
    for record in (tmp_path / "records").glob("*dpiat*"):
        record.unlink()
    trial.run(wanted)
    assert [file for file in left if file.exists()] == []


def test_four_processes_on_one_cell_share_the_work_even_if_one_is_killed(tmp_path):
    wanted = settings(tmp_path / "alone", source_epochs=20, target_epochs=3)
    trial.run(wanted)
    wanted.output_dir = str(tmp_path / "together")
    processes = [start_process(wanted)[0] for _ in range(4)]
    (tmp_path / "together" / "locks").mkdir(exist_ok=True)
    while not list(tmp_path.glob("together/unfinished/*larger*")):  # the source is being trained
        assert any(process.is_alive() for process in processes)
        time.sleep(0.001)
    held = [file for file in tmp_path.glob("together/locks/*larger-random*") if file.read_text()]
    trainer = int(re.match(r"process (\d+) on ", held[0].read_text())[1])
    os.kill(trainer, signal.SIGKILL)
    for process in processes:
        process.join()
    assert sorted(process.exitcode for process in processes) == [-signal.SIGKILL, 0, 0, 0]
    assert ends(tmp_path / "together") == ends(tmp_path / "alone")
    said = logs(tmp_path / "together")
    lines = re.findall(r"^networks:\w+ \w+ epoch \d+/\d+", said, flags=re.MULTILINE)
    assert len(lines) == len(set(lines))  # no epoch was trained again once it was on disk
    assert len(lines) in (25, 26)  # the killed process may have come to keep its last epoch and not to say so
    assert re.search(r"waiting for process \d+ on \S+: it trains digits-networks", said)


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def none(*_) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.raises(trial.UserError, match=r"cannot lock .*locks/digits.*: choose an output_dir and a cache_dir"):
        trial.run(settings(tmp_path))


def test_a_folder_without_locks_is_named(tmp_path):
    (tmp_path / "locks").write_text("a file where a folder should be")
    with pytest.raises(trial.UserError, match=r"cannot lock .*locks/digits.*: choose an output_dir"):
        trial.run(settings(tmp_path))


def test_sigterm_ends_a_grid_and_its_workers(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ("init=random", "target_epochs=900", "launch=joblib", "hydra.launcher.n_jobs=2", "seed=0,1", "-m")
    run = start(tmp_path, *words)
    while run.poll() is None and len(list(tmp_path.glob("unfinished/*.pt"))) < 2:
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM" in run.communicate()[1] and run.returncode == os.EX_TEMPFAIL
    kept = sorted(tmp_path.glob("unfinished/*.pt"))
    time.sleep(1)
    assert sorted(tmp_path.glob("unfinished/*.pt")) == kept  # nobody goes on training
