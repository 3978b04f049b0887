"""Streamed images give the same batches whoever makes them, with torchvision's transforms. Errors name the mistake."""

import os
import signal
from pathlib import Path

import images
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from experiments import trial
from experiments.data import loading, streaming
from experiments.data.augmentation import MEAN, STD
from experiments.settings import DatasetSettings, InitSettings, Settings, UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return images.tree(tmp_path_factory.mktemp("streamed") / "trees")


def load(root: Path, **changes) -> loading.Data:
    changes = {"name": "folder", "stream": True, "workers": 0} | changes
    return loading.load(DatasetSettings(root=str(root), **changes), str(root.parent / "cache"))


def epoch(split, seed: int = 0, size: int = 32, batch: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(loading.train_batches(split, batch, size, torch.Generator().manual_seed(seed)))


def same(first, second) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_batches_depend_on_the_seed_and_not_on_the_workers(root):
    alone, parallel = load(root).train, load(root, workers=2).train
    first = epoch(alone)
    assert [tuple(x.shape) for x, _ in first] == [(5, 3, 32, 32)] * 2 and first[0][0].dtype == torch.float32
    assert same(first, epoch(parallel)) and same(first, epoch(parallel)) and not same(first, epoch(alone, seed=1))
    tests = [list(loading.test_batches(split, 4, 32)) for split in (load(root).test, load(root, workers=2).test)]
    assert same(*tests) and [len(labels) for _, labels in tests[0]] == [4, 2]


@pytest.mark.parametrize("changes", [{}, {"stream": False, "stored_size": 40}])
def test_processes_share_the_batches_of_one(root, changes):
    split = load(root, **changes).train
    parts = []
    for rank in range(2):
        generator = torch.Generator().manual_seed(0)
        parts.append(list(loading.train_batches(split, 5, 32, generator, slice(rank, None, 2))))
    for (whole, labels), *shares in zip(epoch(split), *parts, strict=True):
        for rank, (inputs, of) in enumerate(shares):
            torch.testing.assert_close(inputs, whole[rank::2], atol=1e-6, rtol=0)
            assert torch.equal(of, labels[rank::2])


def test_the_generator_is_all_that_a_later_epoch_needs(root):
    split = load(root).train
    generator = torch.Generator().manual_seed(3)
    list(loading.train_batches(split, 5, 32, generator))
    state = generator.get_state()
    second = list(loading.train_batches(split, 5, 32, generator))
    resumed = torch.Generator()
    resumed.set_state(state)
    assert same(second, list(loading.train_batches(load(root, workers=2).train, 5, 32, resumed)))
    assert not same(second, epoch(split, seed=3))


def test_an_epoch_that_was_left_does_not_reach_the_next(root):
    split = load(root, workers=2).train
    left = loading.train_batches(split, 2, 32, torch.Generator().manual_seed(9))
    next(left)
    left.close()
    assert same(epoch(split), epoch(load(root).train))


def test_streaming_draws_nothing_from_the_generator_of_dropout(root):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    epoch(load(root).train)
    epoch(load(root, workers=1).train)
    assert torch.equal(state, torch.get_rng_state())


def test_test_images_are_torchvisions(root):
    ((batch, labels),) = loading.test_batches(load(root).test, 128, 48)
    transform = v2.Compose([v2.Resize(48), v2.CenterCrop(48), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    files = sorted((root / "test").glob("*/*"))
    expected = torch.stack([v2.functional.normalize(transform(Image.open(file)), MEAN, STD) for file in files])
    torch.testing.assert_close(batch, expected, atol=1e-5, rtol=0)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1] and load(root).classes == ["ash", "birch"]


def test_training_images_are_crops_of_each_image_once(tmp_path):
    """Each image has a colour of its own, so that crops are recognized: each colour occurs once, with its label."""
    for k, (label, colour) in enumerate({"ash": (255, 0, 0), "birch": (0, 255, 0), "cedar": (0, 0, 255)}.items()):
        for split in ("train", "test"):
            (tmp_path / "tree" / split / label).mkdir(parents=True)
            Image.new("RGB", (50 + 30 * k, 90), colour).save(tmp_path / "tree" / split / label / "0.png")
    ((batch, labels),) = epoch(load(tmp_path / "tree").train, batch=3)
    assert sorted(labels.tolist()) == [0, 1, 2]
    assert torch.equal(batch.amax((2, 3)).argmax(1), labels)
    assert torch.equal(batch[:, :, :1, :1].expand_as(batch), batch)


def test_crops_have_the_papers_areas(tmp_path):
    """A ramp of brightness shows how much of the width a crop had: more at 32 pixels than at 100."""
    ramp = Image.linear_gradient("L").convert("RGB")
    for split in ("train", "test"):
        (tmp_path / "tree" / split / "ramp").mkdir(parents=True)
        ramp.save(tmp_path / "tree" / split / "ramp" / "0.png")
    split = load(tmp_path / "tree").train

    def heights(size):
        crops = [epoch(split, seed, size, batch=1)[0][0][0, 0] for seed in range(60)]
        return torch.stack([crop.max() - crop.min() for crop in crops]) * STD[0]

    small, large = heights(32), heights(100)
    assert small.min() > 0.5 * 0.9 and large.min() < 0.45 and large.max() > 0.8 and small.max() > 0.9


def test_subsets_are_those_of_data_in_memory(root):
    streamed, stored = load(root, train_subset=6), load(root, stream=False, stored_size=32, train_subset=6)
    assert streamed.train.labels.tolist() == stored.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    whole = load(root).train
    kept = [
        whole.files.path(i) for i in range(12) if whole.files.path(i) in {*map(streamed.train.files.path, range(6))}
    ]
    assert kept == [streamed.train.files.path(i) for i in range(6)]


def test_a_corrupt_image_is_named(root, tmp_path):
    copy = images.tree(tmp_path / "tree", train=2, test=1)
    file = copy / "train" / "ash" / "001.jpg"
    file.write_bytes(file.read_bytes()[:900])
    for workers in (0, 2):
        with pytest.raises(UserError, match=r"^\S*/train/ash/001\.jpg is not an image that can be read: get it again"):
            epoch(load(copy, workers=workers).train, batch=4)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of the queue to it
def test_a_worker_that_is_killed_is_reported_in_one_line(root, monkeypatch):
    split = load(root, workers=1).train
    monkeypatch.setattr(streaming._Images, "_image", lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match=r"a process that decodes images died \(DataLoader worker .*\): lower"):
        epoch(split)


def test_a_mistake_in_a_worker_keeps_its_traceback(root, monkeypatch):
    monkeypatch.setattr(streaming._Images, "_image", lambda *arguments: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match=r"Original Traceback"):
        epoch(load(root, workers=1).train)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "digits"}, "digits is small and kept in memory: set dataset.stream=false"),
        ({"stored_size": 64}, "streamed images are not stored: set dataset.stored_size=null"),
        ({"stream": False}, "to keep folder in memory, set dataset.stored_size"),
        ({"workers": -1}, "dataset.workers must be 0 or more, got -1"),
    ],
)
def test_settings_that_contradict_are_refused(root, changes, message):
    with pytest.raises(UserError, match=message):
        load(root, **changes)


def test_the_number_of_workers_follows_the_cores(root, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert load(root, workers=None).train.workers == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")  # as torchrun sets it
    assert load(root, workers=None).train.workers == 2


def identity(root: Path, **changes) -> str:
    return loading.dataset_id(DatasetSettings(**{"name": "folder", "stream": True, "root": str(root)} | changes))


def test_a_folder_is_known_by_what_is_in_it(tmp_path):
    first, copy = (images.tree(tmp_path / place / "trees", train=2, test=1) for place in "ab")
    assert identity(first) == identity(copy) and identity(first).startswith("folder-trees-")
    images.write(copy / "train" / "ash", ["001.jpg"], 5)  # the same names
    assert identity(first) != identity(copy)


def test_streamed_and_stored_images_are_different_data_to_a_trial(root):
    assert identity(root, name="imagenette", stream=False) == "imagenette"
    assert identity(root, name="imagenette") == "imagenette-streamed" and identity(root, name="food101") == "food101"


@pytest.mark.training
def test_a_trial_streams_its_images(root, tmp_path):
    def run(workers):
        settings = Settings(
            dataset=DatasetSettings(name="folder", root=str(root), stream=True, workers=workers, image_size=16),
            init=InitSettings(name="dpiat"),
            source="networks:larger",
            target="networks:small",
            source_epochs=1,
            target_epochs=2,
            batch_size=4,
            device="cpu",
            output_dir=str(tmp_path / str(workers)),
            cache_dir=str(tmp_path / "cache"),
        )
        return trial.run(settings).record

    alone, parallel = run(0), run(2)
    assert alone["id"] == parallel["id"] and alone["train_images"] == 12 and alone["classes"] == 2
    for key in ("train_loss", "test_loss", "test_accuracy"):
        assert [row[key] for row in alone["epochs"]] == [row[key] for row in parallel["epochs"]]


@pytest.mark.training
@pytest.mark.skipif("DPIAT_IMAGENETTE" not in os.environ, reason="DPIAT_IMAGENETTE names no folder of Imagenette")
def test_real_images_are_streamed():
    root = Path(os.environ["DPIAT_IMAGENETTE"])
    alone, parallel = (load(root, name="imagenette", workers=workers, train_subset=60).train for workers in (0, 2))
    batches = epoch(alone, size=160, batch=20)
    assert same(batches, epoch(parallel, size=160, batch=20))
    assert torch.cat([labels for _, labels in batches]).bincount().min() >= 5
    pixels = torch.cat([images for images, _ in batches])
    assert pixels.mean().abs() < 0.3 and 0.8 < pixels.std() < 1.3  # normalized
