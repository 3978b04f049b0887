"""Steps as CUDA graphs compute what plain steps compute. Some of the tests need a GPU."""

import copy

import networks
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from experiments import models
from experiments.data import augmentation
from experiments.data.loading import Data, Split
from experiments.train import graphs, training
from experiments.train.training import Schedule, Steps, train

META, CPU = torch.device("meta"), torch.device("cpu")
NETWORKS = ("eff_b0", "eff_b1", "eff_b2", "mix_m", "mix_l", "rex", "rex_150", "mnas", "semnas", "eff_lite0")
SCHEDULE = Schedule(epochs=3, lr=4e-3, schedule_epochs=10, batch_size=8, image_size=16, seed=0)


def noise(images: int, seed: int, device: torch.device = CPU) -> Split:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 3, 20, 24), dtype=torch.uint8, generator=generator)
    return Split(pixels, torch.randint(0, 10, (images,), generator=generator)).to(device)


class OnTheCPU(TorchDispatchMode):
    """Collects the operations that see a tensor on the CPU: a graph would keep the tensor's values of the capture."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if any(isinstance(t, torch.Tensor) and t.device == CPU for t in tree_leaves((args, kwargs, result))):
            self.found.add(str(func))
        return result


@pytest.mark.slow
@pytest.mark.parametrize("group", [None, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_stays_on_its_device(name, group, monkeypatch):
    """On the meta device, a step that asks for a value raises, and a tensor from the CPU is found."""
    monkeypatch.setattr(training, "_autocast", lambda device: torch.autocast("cpu", enabled=False))
    augmentation._statistics(META)  # once
    with META:
        network = models.build(name, 10)
    schedule = Schedule(epochs=1, lr=0.1, schedule_epochs=1, batch_size=8, image_size=32, seed=0, batchnorm_group=group)
    data = Data(noise(16, 0, META), noise(16, 1, META), [])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=False, foreach=True)
    steps = Steps(network, optimizer, data, schedule, META)
    (draw, *_) = data.train.train_draws(8, 32, torch.Generator())
    (images, labels), *_ = data.test.test_draws(8, 32)
    with OnTheCPU() as cpu:
        network.train()
        steps.train_step(*draw)
        network.eval()
        steps.test_step(images, labels)
    assert cpu.found == set()


def replayed_on_the_cpu(monkeypatch) -> list[str]:
    """Compute steps where a GPU would replay them. The list that is returned fills with what was done."""
    done = []

    def capture(call):
        done.append("captured")
        return lambda: (done.append("replayed"), call())

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(graphs, "synchronizes", lambda call: done.append("watched") or call())
    return done


def epochs(steps: Steps, count: int = 2) -> list[tuple[float, float]]:
    order = torch.Generator().manual_seed(0)
    return [m for _ in range(count) for m in (steps.train(1e-3, order, tqdm(disable=True)), steps.test())]


def both(monkeypatch) -> tuple[Steps, Steps]:
    """Plain steps and replayed steps of two equal networks."""
    torch.manual_seed(0)
    network = networks.larger(10)
    data = Data(noise(50, 0), noise(44, 1), [])  # 6 batches; 5 and one of 4 images
    made = []
    for _ in range(2):
        own = copy.deepcopy(network)
        made.append(Steps(own, torch.optim.Adam(own.parameters(), lr=1e-3), data, SCHEDULE, CPU))
    made[1].training, made[1].testing = graphs.ReplayedStep("training"), graphs.ReplayedStep("testing")
    return tuple(made)


def test_every_call_counts_once(monkeypatch):
    done = replayed_on_the_cpu(monkeypatch)
    plain, replayed = both(monkeypatch)
    assert epochs(plain) == epochs(replayed)
    for name, tensor in plain.network.state_dict().items():
        assert torch.equal(tensor, replayed.network.state_dict()[name]), name
    assert done.count("captured") == 2 and done.count("watched") == 2  # one for training, one for testing
    assert done.count("replayed") == (6 + 6 - graphs.WARM_UP) + (5 + 5 - graphs.WARM_UP)


@pytest.mark.parametrize("why", ["synchronizes", "capture"])
def test_what_cannot_be_captured_is_computed_all_the_same(why, monkeypatch, capsys):
    replayed_on_the_cpu(monkeypatch)

    def refuse(call):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(graphs, why, refuse if why == "capture" else lambda call: call() or True)
    plain, replayed = both(monkeypatch)
    assert epochs(plain) == epochs(replayed)
    cause = "it makes the CPU wait" if why == "synchronizes" else "operation not permitted when stream is capturing"
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["training", "testing"]  # once each
    assert all(f"no CUDA graph, which would be faster ({cause}" in line for line in lines)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def wide(num_classes: int) -> nn.Module:
    return nn.Sequential(networks.larger(64), nn.Dropout(0.2), nn.Linear(64, num_classes))


@pytest.mark.training
@needs_gpu
@pytest.mark.parametrize("make", [networks.larger, wide])
def test_graphs_train_as_steps_do(make, capsys):
    torch.manual_seed(0)
    network = make(10)
    data = Data(noise(80, 0), noise(44, 1), [])
    rows = []
    for captured in (False, True):
        own = copy.deepcopy(network)
        rows.append(train(own, data, SCHEDULE, torch.device("cuda"), graphs=captured)[0])
    assert "no CUDA graph" not in capsys.readouterr().out
    for plain, replayed in zip(*rows, strict=True):
        assert replayed["lr"] == plain["lr"]
        assert replayed["train_loss"] == pytest.approx(plain["train_loss"], rel=0.02)
        assert replayed["test_loss"] == pytest.approx(plain["test_loss"], rel=0.05)


@pytest.mark.training
@needs_gpu
def test_a_training_goes_on_with_graphs():
    torch.manual_seed(0)
    network, states = networks.larger(10), []
    data, cuda = Data(noise(80, 0), noise(44, 1), []), torch.device("cuda")

    def keep(row, state):
        states.append(copy.deepcopy(state))

    whole = train(copy.deepcopy(network), data, SCHEDULE, cuda, on_epoch=keep)[0]
    rest = train(copy.deepcopy(network), data, SCHEDULE, cuda, state=states[0])[0]
    assert [row["test_loss"] for row in rest] == pytest.approx([row["test_loss"] for row in whole], rel=0.05)


@needs_gpu
def test_a_step_that_waits_is_recognised():
    x = torch.ones(3, device="cuda")
    x.add_(1)
    assert not graphs.synchronizes(lambda: x.add_(1))
    assert graphs.synchronizes(lambda: x.sum().item())


@needs_gpu
def test_dropout_works_after_a_capture_that_failed():
    x = torch.ones(1000, device="cuda")
    with graphs.own_stream(x.device):
        with pytest.raises(RuntimeError):
            graphs.capture(lambda: (nn.functional.dropout(x), torch.cuda.synchronize()))
        assert 300 < int((nn.functional.dropout(x) == 0).sum()) < 700
