"""What can be a source: state dicts, files, names, wrapped and parametrized modules."""

import copy

import pytest
import safetensors.torch
import timm
import torch
from networks import tied, trained
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn
from torch.nn.utils import parametrizations, weight_norm
from torch.optim.swa_utils import AveragedModel

from dpiat import Plan, load, plan, rank, similarity, standardize, transfer
from dpiat.checkpoints import ORDER


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture(scope="module")
def source():
    return trained("tf_efficientnet_lite0", 0)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto"])
def test_a_state_dict_is_the_network(name):
    source, target = trained(name, 0), trained(name, 1)
    report = transfer(source.state_dict(), target)
    assert report.share == 1 and equal(source, target)


def test_a_folder_of_timms_is_a_name(tmp_path):
    source = timm.create_model("resnet10t", num_classes=7)
    save_for_hf(source, tmp_path / "mine")
    name = f"local-dir:{tmp_path / 'mine'}"
    assert equal(load(name), source)
    assert similarity(name, source) == 1 and rank(source, [name])[0].source == name
    with pytest.raises(ValueError, match=r"no pretrained weights for local-dir:nowhere \(.*\): give a file of weights"):
        load("local-dir:nowhere")


def test_a_state_dict_gives_another_network_what_the_module_gives(source):
    first, second = trained("mnasnet_100", 1), trained("mnasnet_100", 1)
    assert transfer(source, first).share == pytest.approx(transfer(source.state_dict(), second).share, abs=0.02)
    assert torch.equal(first.conv_stem.weight, second.conv_stem.weight)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "model."])
def test_files_and_prefixes(source, tmp_path, prefix):
    state = {prefix + key: tensor for key, tensor in source.state_dict().items()}
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "nested.pth")
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "weights.safetensors")
    for file in (tmp_path / "plain.pt", str(tmp_path / "nested.pth")):
        target = trained("tf_efficientnet_lite0", 1)
        assert transfer(file, target).share == 1 and equal(source, target)
    named = load(tmp_path / "weights.safetensors", architecture="tf_efficientnet_lite0")
    assert standardize(named) == standardize(source) and equal(named, source)


@pytest.mark.slow
def test_wrapped_modules(source):
    wrapped = [nn.DataParallel(source), torch.compile(source), torch.compile(nn.DataParallel(source))]
    for each in wrapped:
        assert standardize(each) == standardize(source)
        target = trained("tf_efficientnet_lite0", 1)
        transfer(each, target)
        assert equal(source, target)
        other = trained("tf_efficientnet_lite0", 1)
        transfer(source, torch.compile(nn.DataParallel(other)))
        assert equal(source, other)


def test_a_wrapper_with_a_buffer_is_a_part_of_the_network():
    class Normalized(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.rand(4))
            self.module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    source, target = Normalized(), Normalized()
    report = transfer(source, target)
    assert equal(source, target) and torch.equal(source.mean, target.mean)
    assert [entry.target for entry in report.entries] == list(target.state_dict())


def test_names():
    assert standardize(load("resnet18", pretrained=False)) == standardize(timm.create_model("resnet18"))
    assert isinstance(load("torch.nn:Identity"), nn.Identity)
    with torch.device("meta"):
        assert similarity(load("resnet18", False), load("resnet34", False)) < 1


def test_mistakes_are_named(tmp_path, source):
    file = tmp_path / "weights.pt"
    torch.save(source.state_dict(), file)
    file.write_bytes(file.read_bytes()[:1000])
    (tmp_path / "broken.safetensors").write_bytes(b"1234")
    torch.save(source, tmp_path / "module.pt")
    torch.save({"loss": 3.0}, tmp_path / "none.pt")
    torch.save([1], tmp_path / "list.pt")
    (tmp_path / "noise.pt").write_bytes(b"hello world " * 9)
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "script.pt")
    torch.save(dict.fromkeys(("params", "params_ema"), source.state_dict()), tmp_path / "two.pt")
    save_file(trained("resnet18", 0).state_dict(), tmp_path / "sorted.safetensors")
    with pytest.raises(ValueError, match=r"sorted.safetensors is not of resnet34: it has no tensor layer1\.2"):
        load(tmp_path / "sorted.safetensors", architecture="resnet34")
    for name, message in (
        (
            "sorted.safetensors",
            "sorted.safetensors has its tensors in an order that is not the network's: name",
        ),
        ("weights.pt", "weights.pt is not a complete file of weights"),
        ("broken.safetensors", "broken.safetensors is not a complete file of weights"),
        ("missing.pt", "missing.pt does not exist"),
        ("module.pt", "module.pt holds more than tensors: load it yourself and pass the module"),
        ("none.pt", "none.pt holds no tensors by their names"),
        ("noise.pt", r"noise\.pt is not a complete file of weights$"),
        ("empty.pt", r"empty\.pt is not a complete file of weights$"),
        ("script.pt", r"script\.pt is a TorchScript archive: pass torch\.jit\.load\('.*script\.pt'\)\.state_dict\(\)"),
        ("two.pt", r"two\.pt holds several networks, such as 'params' and 'params_ema': give one of them"),
        ("list.pt", "list.pt holds no tensors by their names"),
    ):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / name)
    for name, message in (
        ("resnet81", "unknown network 'resnet81': did you mean resnet18"),
        ("torch.nn:Missing", "module torch.nn has no 'Missing'"),
        ("no_such_package:net", "cannot import 'no_such_package:net'"),
        ("torch.nn:Linear", "cannot build 'torch.nn:Linear'"),
        ("collections:Counter", "collections:Counter gave a Counter, not a torch.nn.Module"),
    ):
        with pytest.raises(ValueError, match=message):
            load(name, pretrained=False)


def net(width: int, seed: int, wrap=lambda layer: layer) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(wrap(nn.Conv2d(3, width, 3)), nn.ReLU(), wrap(nn.Conv2d(width, 2 * width, 3)))


WRAPS = [parametrizations.weight_norm, parametrizations.spectral_norm, weight_norm]


@pytest.mark.parametrize("wrap", WRAPS)
@torch.no_grad()
def test_computed_weights_are_read_and_written_through_their_originals(wrap):
    images = torch.randn(2, 3, 9, 9)
    source, plain = net(4, 0, wrap).eval(), net(4, 1).eval()
    transfer(source, plain)
    assert torch.equal(plain(images), source(images))
    alike = net(4, 2, wrap).eval()
    parameters = list(alike.parameters())
    assert transfer(source, alike).share == 1
    assert torch.equal(alike(images), source(images))
    assert all(a is b for a, b in zip(parameters, alike.parameters(), strict=True))
    plain, wrapped = net(4, 3).eval(), net(6, 4, wrap).eval()
    before = wrapped(images)
    report = transfer(plain, wrapped)
    assert {entry.target for entry in report.entries} == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert not torch.equal(wrapped(images), before)
    if wrap is not parametrizations.spectral_norm:  # it scales what it is given
        torch.testing.assert_close(wrapped[0].weight[:4], plain[0].weight)


def test_a_weight_normed_state_dict_has_weights():
    source, target = net(4, 0, weight_norm), net(4, 1)
    transfer(source.state_dict(), target)
    torch.testing.assert_close(target[0].weight, source[0].weight)


def test_a_parametrization_without_an_inverse_is_refused():
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    target = nn.Linear(2, 2)
    nn.utils.parametrize.register_parametrization(target, "weight", Doubled())
    with pytest.raises(ValueError, match="Doubled of weight has no right_inverse"):
        transfer(nn.Linear(3, 3), target, head="copy")


def test_dtypes_and_devices_are_kept_and_casts_reported():
    source, target = nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.bfloat16)
    report = transfer(source, target)
    assert torch.equal(target.weight, source.weight.to(torch.bfloat16))
    assert report.entries[0].note == "float32 → bfloat16" in str(report)
    counter = copy.deepcopy(source)
    counter.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int64), requires_grad=False)
    assert plan(source, counter).report.entries[0].note == "float32 values do not fit int64"
    assert plan(counter, source).report.entries[0].note == "int64 values do not fit float32"


@pytest.mark.parametrize("wrap", [weight_norm, parametrizations.weight_norm])
@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_a_weight_normed_state_dict_keeps_its_order_and_its_dimension(wrap, dim):
    def make(seed: int, wrap) -> nn.Module:
        torch.manual_seed(seed)
        wrapped = wrap(nn.Conv1d(8, 8, 8, bias=False))
        return nn.Sequential(nn.Conv1d(1, 8, 3), wrapped, nn.BatchNorm1d(8), nn.Conv1d(8, 4, 3), nn.Flatten())

    source, target = make(0, lambda layer: wrap(layer, dim=dim)), make(1, lambda layer: layer)
    assert transfer(source.state_dict(), target).share == 1
    torch.testing.assert_close(target[1].weight, source[1].weight)
    assert torch.equal(target[3].weight, source[3].weight)


def test_a_state_dict_tells_a_grey_image_and_gates():
    grey = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    rgb = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    transfer(rgb.state_dict(), grey)
    torch.testing.assert_close(grey[0].weight, rgb[0].weight.sum(1, keepdim=True))
    narrow, wide, alike = (nn.Sequential(nn.LSTM(4, width), nn.Linear(width, 2)) for width in (4, 8, 8))
    alike.load_state_dict(wide.state_dict())
    transfer(narrow.state_dict(), wide)
    transfer(narrow, alike)
    assert all(torch.equal(a, b) for a, b in zip(wide.parameters(), alike.parameters(), strict=True))


def deep(layers: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(layers)))


def test_no_safetensors_file_is_taken_for_a_network_in_order(tmp_path):
    save_file(deep(12).state_dict(), tmp_path / "deep.safetensors")
    with pytest.raises(ValueError, match=r"deep.safetensors has its tensors in an order that is not the network's"):
        transfer(tmp_path / "deep.safetensors", deep(13))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_tensors_of_the_targets_names_are_taken_in_its_order(tmp_path, prefix):
    source, file = deep(12), tmp_path / "deep.safetensors"
    save_file({prefix + key: tensor for key, tensor in source.state_dict().items()}, file)
    for given in (file, dict(sorted(source.state_dict().items()))):
        for wrap in (nn.Identity, nn.DataParallel):
            target = deep(12, seed=1)
            transfer(given, target if wrap is nn.Identity else wrap(target))
            assert equal(source, target)
    target = deep(12, seed=1)
    kept = plan(file, target).to_json()
    Plan.from_json(kept, file, target).apply()
    assert equal(source, target)


def test_a_tied_tensor_may_be_in_the_file_once(tmp_path):
    file, source = tmp_path / "tied.safetensors", tied()
    save_file({key: tensor for key, tensor in source.state_dict().items() if key != "1.weight"}, file)
    for given in (file, load(file, architecture="networks:tied")):
        target = tied()
        assert transfer(given, target).share == 1
        assert equal(source, target) and target[0].weight is target[1].weight
    with pytest.raises(ValueError, match="has its tensors in an order that is not the network's"):
        transfer(file, nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5)))
    with pytest.raises(ValueError, match=f"{tmp_path.name} is a folder: name a file in it"):
        load(tmp_path)


def test_an_order_that_is_not_of_the_files_tensors_is_no_order(tmp_path):
    file = tmp_path / "deep.safetensors"
    save_file(deep(12).state_dict(), file, {ORDER: '["0.weight"]'})
    with pytest.raises(ValueError, match=r"deep.safetensors has its tensors in an order that is not the network's"):
        load(file)


def test_a_sorted_state_dict_without_biases_is_refused():
    state = deep(12).state_dict()
    with pytest.raises(ValueError, match="the state dict has its tensors in an order that is not the network's"):
        load(dict(sorted(state.items())))
    assert list(load(state).state_dict()) == list(state)
    names = ("fc.weight", "fc1.weight", "fc1_1.weight", "fc2.weight")  # sorted, and a network's own order as well
    assert list(load({name: torch.zeros(4, 4) for name in names}).state_dict()) == list(names)


def test_a_standardized_state_dict_has_blocks():
    network = timm.create_model("tf_efficientnet_lite0")
    found = standardize(load(network.state_dict()))
    weighted = [block for block in standardize(network).blocks if any(layer.shape for layer in block.layers)]
    assert len(found.blocks) == len(weighted)
    assert {layer.kind for layer in found.layers} == {"Conv2d", "DepthwiseConv2d", "BatchNorm", "Linear"}


def test_a_sole_mapping_of_tensors_is_taken_under_any_name():
    state, other = deep(2).state_dict(), deep(3).state_dict()
    adam = {"state": {0: {"step": torch.zeros(1)}}, "param_groups": []}
    for given in (
        {"net": state, "epoch": 3, "optimizer": adam},
        {"best": torch.tensor(0.3), "net": state},
        {"teacher": other, "model": state},
        state | {"extra": {"a": torch.zeros(1)}},
    ):
        assert list(load(given).state_dict()) == list(state)
    for given in ({}, {"epoch": torch.tensor(3)}):
        with pytest.raises(ValueError, match="the state dict holds several networks, such as 'generator' and 'critic'"):
            load({**given, "generator": state, "critic": other})
    network = deep(2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(1, 16)).sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="the state dict holds no tensors by their names"):
        load(optimizer.state_dict())


def test_a_state_dict_of_lazy_modules_is_refused_by_name():
    with pytest.raises(ValueError, match="layer '0' has lazy parameters without a shape: run one forward pass first"):
        transfer(nn.Sequential(nn.LazyLinear(3)).state_dict(), nn.Linear(3, 3))


class Twice(nn.Module):
    """A module under two names, beside another one and two that are tied."""

    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
        self.other = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
        self.embedding, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight


def test_a_module_under_two_names_is_one_in_its_state_dict_too(tmp_path):
    source, target = Twice(), Twice()
    torch.save(source.state_dict(), tmp_path / "twice.pt")
    for given in (source.state_dict(), tmp_path / "twice.pt"):
        network = load(given)
        assert network.first is network.second is not network.other
        assert network.embedding is not network.head
        assert len(standardize(network).layers) == len(standardize(source).layers) == 6
    assert transfer(tmp_path / "twice.pt", target).share == 1 and equal(source, target)
    with torch.device("meta"):
        network = load(Twice().state_dict())
    assert network.first is not network.other


def test_a_state_dict_of_shared_modules_is_the_network():
    source, target = timm.create_model("coat_tiny"), timm.create_model("coat_tiny")
    assert transfer(source.state_dict(), target).share == 1 and equal(source, target)


def test_names_of_tensors_are_words():
    with pytest.raises(ValueError, match="holds no tensors by their names"):
        load({0: torch.zeros(3)})


def test_a_format_that_sorts_by_dtype_or_not_at_all_is_noticed(tmp_path):
    network = timm.create_model("resnet18")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.half()
    save_file(network.state_dict(), tmp_path / "mixed.safetensors")
    shuffled = safetensors.torch.load((tmp_path / "mixed.safetensors").read_bytes())
    for state in (safetensors.torch.load_file(tmp_path / "mixed.safetensors"), shuffled):
        with pytest.raises(ValueError, match="the state dict has its tensors in an order that is not the network's"):
            load(state)
    assert len(load(network.state_dict()).state_dict()) == len(shuffled)


class Trained(nn.Module):
    """A network with its loss, as Lightning's modules are."""

    def __init__(self, network: nn.Module, classes: int):
        super().__init__()
        self.model, self.criterion = network, nn.CrossEntropyLoss(torch.rand(classes))


def wrapped(classes: int, seed: int = 0) -> nn.Module:
    return Trained(trained("resnet10t", seed, classes), classes)


@pytest.mark.parametrize("classes", [7, 10])
@pytest.mark.parametrize(
    "kept", [lambda source: source, nn.Module.state_dict, lambda s: {"state_dict": s.state_dict()}]
)
def test_a_loss_with_weights_is_no_part_of_the_network(classes, kept):
    source, target, alone = wrapped(10), wrapped(classes, 1), wrapped(classes, 1).model
    weights = target.criterion.weight.clone()
    reports = [transfer(kept(source), network, new="random") for network in (target, alone)]
    left = {entry.target.removeprefix("model.") for entry in reports[0].entries if entry.action == "left"}
    assert left == {"criterion.weight"} | (set() if classes == 10 else {"fc.weight", "fc.bias"})
    assert {entry.target for entry in reports[1].entries if entry.action == "left"} == left - {"criterion.weight"}
    assert equal(target.model, alone) and torch.equal(target.criterion.weight, weights)
    assert torch.equal(alone.fc.weight, source.model.fc.weight) == (classes == 10)


def test_what_a_wrapper_holds_beside_a_network_is_none_of_its_tensors(tmp_path):
    network = trained("resnet10t", 0)
    averaged, target = AveragedModel(network), trained("resnet10t", 1)
    for file, given in (("averaged", averaged.state_dict()), ("trained", Trained(network, 3).state_dict())):
        save_file({key: t.clone() for key, t in given.items()}, tmp_path / f"{file}.safetensors")
        assert equal(load(tmp_path / f"{file}.safetensors", architecture="resnet10t"), network)
        assert transfer(tmp_path / f"{file}.safetensors", target).share == 1 and equal(target, network)
    with pytest.raises(ValueError, match=r"is not of resnet10t: it has an unknown tensor fc\.scale"):
        load({**averaged.state_dict(), "module.fc.scale": torch.ones(3)}, architecture="resnet10t")


class Inner(nn.Module):
    """A network of the user's own whose only child has the name of a wrapper's."""

    def __init__(self):
        super().__init__()
        self.model = deep(12)


def test_a_network_may_have_what_looks_like_a_wrapper(tmp_path):
    source, target = Inner(), Inner()
    save_file(source.state_dict(), tmp_path / "inner.safetensors")
    assert equal(load(tmp_path / "inner.safetensors", architecture="test_sources:Inner"), source)
    for mode in ("default", "paper"):
        transfer(deep(12, seed=3), target, head="copy")
        assert transfer(tmp_path / "inner.safetensors", target, mode, head="copy").share == 1 and equal(source, target)


@pytest.mark.parametrize("end", [nn.LayerNorm, nn.RMSNorm, nn.PReLU, nn.Identity])
@pytest.mark.parametrize("kept", [lambda source: source, nn.Module.state_dict])
def test_a_backbone_with_a_norm_beside_it_has_no_classifier(end, kept):
    def make(width: int) -> nn.Module:
        return nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, width)), end(width))

    action = "zero" if end is nn.Identity else "cropped"
    assert transfer(kept(make(6)), make(4)).entries[2].action == action


def test_a_loss_may_have_weights_that_are_learned():
    class Margin(nn.modules.loss._Loss):
        def __init__(self, classes: int):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(classes, 4))

    source, target = (nn.Sequential(nn.Linear(4, 4), Margin(5)) for _ in range(2))
    assert transfer(source, target).share == 1 and equal(source, target)


class Scored(nn.Module):
    """Both it and the network in it have a tensor of one name."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(4, width), nn.Linear(width, 2))
        for network in (self, self.model):
            network.scale = nn.Parameter(torch.rand(()))


def test_what_a_wrapper_holds_is_not_taken_for_its_networks(tmp_path):
    source, target, inner = Scored(), Scored(), Scored().model
    assert transfer(source.state_dict(), target).share == 1 and equal(source, target)
    save_file(source.state_dict(), tmp_path / "scored.safetensors")
    assert transfer(tmp_path / "scored.safetensors", inner).share == 1 and equal(source.model, inner)
    norm = {
        "0.weight": torch.rand(4, 4),
        "0.bias": torch.rand(4),
        "norm.weight": torch.rand(4),
        "norm.bias": torch.rand(4),
    }
    with pytest.raises(ValueError, match=r"is not of test_sources:one_layer: it has an unknown tensor norm\.bias"):
        load(norm, architecture="test_sources:one_layer")


def one_layer() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4))


def test_the_file_of_a_network_fills_it_in_any_wrapper(tmp_path):
    source = trained("resnet10t", 0)
    save_file(source.state_dict(), tmp_path / "network.safetensors")
    for wrap in (AveragedModel, lambda network: Trained(network, 3), nn.DataParallel):
        target = wrap(trained("resnet10t", 1))
        transfer(tmp_path / "network.safetensors", target)
        assert equal(target.model if isinstance(target, Trained) else target.module, source)


def test_parameters_before_buffers_are_in_order():
    source, target = trained("resnet10t", 0), trained("resnet10t", 1)
    given = {**dict(source.named_parameters()), **dict(source.named_buffers())}
    assert list(load(given).state_dict()) == list(source.state_dict())
    other = trained("resnet14t", 1)
    assert transfer(given, other).share == transfer(source.state_dict(), other).share
    assert transfer(given, target).share == 1 and equal(source, target)
    with pytest.raises(ValueError, match="has its tensors in an order that is not the network's"):
        load({**dict(source.named_buffers()), **dict(source.named_parameters())})


def test_a_network_may_have_a_state_dict_of_its_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

        def state_dict(self):
            return super().state_dict()

    source, target = Own(), Own()
    assert transfer(source.state_dict(), target).share == 1 and equal(source, target)
