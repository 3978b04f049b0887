"""Several processes that train one network come to what one process comes to. Batch norms by groups of images."""

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from networks import small
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from trials import ROOT, metrics, settings

from experiments import trial
from experiments.data import loading
from experiments.settings import DatasetSettings, InitSettings, UserError
from experiments.store import records
from experiments.train import parallel, training
from experiments.train.batchnorm import normalizing
from experiments.train.training import Schedule

pytestmark = pytest.mark.training
CPU = torch.device("cpu")
SCHEDULE = Schedule(epochs=2, lr=4e-3, schedule_epochs=2, batch_size=64, image_size=16, seed=5)
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["sklearn.datasets", "experiments.trial", "networks"])


def plain(num_classes: int) -> nn.Module:
    """A network without batch norms, in which the images of one process do not touch the images of another."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes)),
    )


def built(build: Callable[[int], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return build(10)


def gradients(build: Callable[[int], nn.Module], group: int | None) -> dict[str, Tensor]:
    """The gradients of the loss of a batch of 32, of which a process takes its share, and the running statistics."""
    network = built(build)
    generator = torch.Generator().manual_seed(1)
    inputs, labels = torch.rand(32, 3, 8, 8, generator=generator), torch.arange(32) % 10
    own = parallel.own_share(32)
    with normalizing(group):
        replica = parallel.replicated(network, CPU)  # has to live until the gradients are there
        outputs = replica(inputs[own])
    cross_entropy(outputs, labels[own]).backward()
    parallel.average_buffers(network)
    found = {name: tensor.grad for name, tensor in network.named_parameters()}
    return found | {name: buffer.float() for name, buffer in network.named_buffers()}


def rows(build: Callable[[int], nn.Module], group: int | None, folder: Path) -> list[dict]:
    digits = loading.load(DatasetSettings(name="digits", train_subset=256), str(folder))
    return training.train(built(build), digits, replace(SCHEDULE, batchnorm_group=group), CPU)[0]


def work(rank: int, port: int, build: Callable, group: int | None, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    parallel.start()
    torch.save((gradients(build, group), rows(build, group, folder)), folder / f"{rank}.pt")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize(("build", "group"), [(plain, None), (small, None), (small, 8)])
def test_two_processes_come_to_what_one_comes_to(tmp_path, build, group):
    port = free_port()
    processes = [FORKS.Process(target=work, args=(rank, port, build, group, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    wanted, wanted_rows = gradients(build, group), rows(build, group, tmp_path)
    for rank in (0, 1):
        found, found_rows = torch.load(tmp_path / f"{rank}.pt")
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)
        for ours, theirs in zip(metrics({"epochs": found_rows}), metrics({"epochs": wanted_rows}), strict=True):
            assert ours == pytest.approx(theirs, rel=5e-3, abs=2e-2)  # Adam makes much of rounding in small gradients


def test_torchrun_trains_one_trial_with_two_processes(tmp_path):
    fixed = ["dataset=digits", "scale=smoke", "dataset.image_size=16", "threads=1", "device=cpu", "init=random"]
    words = [*fixed, "target=networks:small", f"output_dir={tmp_path}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "helpers")}
    done = subprocess.run(
        [*torchrun, ROOT / "run.py", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("random epoch 1/2") == 1 and done.stdout.count("best within 2 epochs") == 1
    (record,) = map(records.read, tmp_path.glob("records/*"))
    digits = DatasetSettings(name="digits", image_size=16, train_subset=512)
    alone = trial.run(settings(tmp_path / "alone", dataset=digits, init=InitSettings(name="random"))).record
    assert record["id"] == alone["id"] and record["test_images"] == alone["test_images"]
    for ours, theirs in zip(metrics(record), metrics(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=5e-3, abs=2e-2)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, timm.layers.BatchNormAct2d])
def test_a_group_of_images_is_normalized_by_itself(norm):
    torch.manual_seed(0)
    x = torch.randn(12, 5, 4, 4)
    ours, *alone = (norm(5) for _ in range(4))
    with normalizing(4):
        y = ours(x)
    groups = [each(group) for each, group in zip(alone, x.split(4), strict=True)]
    torch.testing.assert_close(y, torch.cat(groups))
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, name), torch.stack([getattr(n, name) for n in alone]).mean(0))
    y.square().mul(torch.arange(12.0).view(-1, 1, 1, 1)).sum().backward()
    torch.cat(groups).square().mul(torch.arange(12.0).view(-1, 1, 1, 1)).sum().backward()
    torch.testing.assert_close(ours.weight.grad, sum(n.weight.grad for n in alone))
    before = ours.running_mean.clone()
    with normalizing(4):
        normalized = ours.eval()(x)
    torch.testing.assert_close(normalized, ours(x))
    assert torch.equal(ours.running_mean, before)


def test_batchnorm_group_makes_another_trial_of_the_same_settings(tmp_path):
    wanted = settings(tmp_path, init=InitSettings(name="random"), batch_size=64)
    whole, grouped = (trial.run(replace(wanted, batchnorm_group=group)).record for group in (None, 16))
    assert whole["id"] != grouped["id"] and metrics(whole) != metrics(grouped)
    assert "batchnorm_group" not in whole["trial"]["recipe"] and grouped["trial"]["recipe"]["batchnorm_group"] == 16
    one = trial.run(replace(wanted, batchnorm_group=64)).record  # a group that is the batch
    assert metrics(one)[-1] == pytest.approx(metrics(whole)[-1], rel=1e-3, abs=1e-2)


def test_groups_that_do_not_fill_a_batch_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="batchnorm_group=48 must divide the 128 images of a batch on one device"):
        trial.run(settings(tmp_path, batchnorm_group=48))
    with pytest.raises(UserError, match="batchnorm_group must be positive, got -1"):
        trial.run(settings(tmp_path, batchnorm_group=-1))
    monkeypatch.setattr(parallel, "size", lambda: 3)
    with pytest.raises(UserError, match="batch_size=128 must be a multiple of the number of processes, 3"):
        trial.run(settings(tmp_path))
