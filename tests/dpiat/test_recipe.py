"""What default mode does between networks that differ: each option of its recipe on networks small enough to check."""

from dataclasses import replace

import pytest
import timm
import torch
import transformers as hf
from functions import differ, randomized
from timm.layers import BatchNormAct2d, MixedConv2d, SqueezeExcite
from torch import Tensor, nn

from dpiat import Plan, plan, standardize, transfer
from dpiat.alignment import align
from dpiat.operators import Weights, shared
from dpiat.recipe import BEFORE, BEST, Recipe

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TINY = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


# --- leading channels and zeros ---------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Two convolutions of a width of their own around a sum."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden)
        self.conv2, self.bn2 = nn.Conv2d(hidden, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


def residual(width: int, hidden: int, depth: int = 2) -> nn.Module:
    stem = nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    blocks = nn.Sequential(*(Residual(width, hidden) for _ in range(depth)))
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*stem, blocks, pool, nn.Linear(width, 5))


def test_a_wider_network_keeps_the_function_whatever_its_new_channels_are():
    """New rows keep their random values, and nothing that was there before reads them."""
    source, target = randomized(residual(8, 12)), randomized(residual(12, 16), seed=1)
    report = transfer(source, target)
    assert differ(source, target, TINY) < 1e-5
    assert 0 < report.elements["zero"] < sum(report.elements.values())
    assert (target[3][0].conv1.weight[:12, 8:] == 0).all() and (target[3][0].conv1.weight[12:] != 0).all()


def test_without_zeros_or_leading_channels_it_is_another_function():
    for recipe in (replace(BEST, zeros=False), replace(BEST, leading=False, zeros=False), BEFORE):
        source, target = randomized(residual(8, 12)), randomized(residual(12, 16), seed=1)
        transfer(source, target, mode=recipe)
        assert differ(source, target, TINY) > 1e-2


def test_leading_channels_are_the_first_ones_and_kernels_are_centred():
    source, target = nn.Sequential(nn.Conv2d(4, 6, 3)), nn.Sequential(nn.Conv2d(5, 8, 5))
    transfer(source, target, head="copy", inputs="zero")
    expected = torch.zeros(6, 5, 5, 5)
    expected[:, :4, 1:4, 1:4] = source[0].weight.detach()
    assert torch.equal(target[0].weight[:6], expected)
    assert (target[0].weight[6:] != 0).all()


def test_in_paper_mode_clip_takes_the_centre_as_ever():
    source, target = nn.Sequential(nn.Linear(4, 6)), nn.Sequential(nn.Linear(4, 8))
    transfer(source, target, mode="paper")
    assert torch.equal(target[0].weight[1:7], source[0].weight)


def test_zeros_of_an_attention_are_in_its_inputs_alone():
    """Heads beyond the source's keep their values, and the projection does not read them."""

    def vit(width: int) -> nn.Module:
        return timm.models.VisionTransformer(32, 16, embed_dim=width, depth=1, num_heads=width // 8, num_classes=5)

    source, target = vit(16), vit(24)
    with torch.no_grad():
        for tensor in target.parameters():
            tensor.fill_(7.0)
    transfer(source, target)
    qkv = target.blocks[0].attn.qkv.weight.view(3, 24, 24)
    assert (qkv[:, :16, 16:] == 0).all() and (qkv[:, 16:] == 7).all()
    assert (target.blocks[0].attn.proj.weight[:16, 16:] == 0).all()
    assert torch.equal(qkv[:, :16, :16], source.blocks[0].attn.qkv.weight.view(3, 16, 16))


def test_an_optimizers_state_is_zero_where_the_weights_are():
    source, target = nn.Sequential(nn.Linear(4, 6)), nn.Sequential(nn.Linear(6, 8))
    both = []
    for network, width in ((source, 4), (target, 6)):
        optimizer = torch.optim.Adam(network.parameters())
        network(torch.ones(3, width)).square().sum().backward()
        optimizer.step()
        both.append(optimizer)
    transfer(source, target, head="copy", optimizer=tuple(both))
    theirs, ours = (o.state[n[0].weight]["exp_avg"] for o, n in zip(both, (source, target), strict=True))
    assert torch.equal(ours[:6, :4], theirs) and (ours[:6, 4:] == 0).all()


# --- convolutions side by side ----------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """A block of MixNet, or with plain convolutions of the same sizes."""

    def __init__(self, width: int, hidden: int, kernels: list[int], plain: bool, stride: int = 1):
        super().__init__()
        points = [1] if plain else [1, 1]
        kernels = [max(kernels)] if plain else kernels

        def conv(into: int, out: int, sizes: list[int], depthwise: bool = False, stride: int = 1) -> nn.Module:
            if len(sizes) > 1:
                return MixedConv2d(into, out, sizes, stride=stride, depthwise=depthwise)
            groups = into if depthwise else 1
            return nn.Conv2d(into, out, sizes[0], stride, sizes[0] // 2, groups=groups, bias=False)

        self.conv_pw, self.bn1 = conv(width, hidden, points), nn.BatchNorm2d(hidden)
        self.conv_dw, self.bn2 = conv(hidden, hidden, kernels, True, stride), nn.BatchNorm2d(hidden)
        self.conv_pwl, self.bn3 = conv(hidden, width, points), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv_pw(x)))
        return self.bn3(self.conv_pwl(torch.relu(self.bn2(self.conv_dw(x)))))


def mixed(plain: bool, width: int = 8, hidden: int = 24, kernels: tuple[int, ...] = (3, 5, 7)) -> nn.Module:
    stem = nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)
    blocks = nn.Sequential(*(Mixed(width, hidden, list(kernels), plain) for _ in range(2)))
    return nn.Sequential(*stem, blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


def test_convolutions_side_by_side_are_one_layer():
    layers = [layer for layer in standardize(mixed(False)).layers if len(layer.shape) == 4]
    assert [(layer.name, layer.shape) for layer in layers[1:4]] == [
        ("2.0.conv_pw", (24, 8, 1, 1)),
        ("2.0.conv_dw", (24, 1, 7, 7)),
        ("2.0.conv_pwl", (8, 24, 1, 1)),
    ]


def test_convolutions_one_after_the_other_are_not():
    chain = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    shared = nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)), "bn": nn.BatchNorm2d(8)})
    for network in (chain, nn.Sequential(nn.Conv2d(3, 4, 1), shared)):  # those of `shared` see all that is given
        count = sum(isinstance(module, nn.Conv2d) for module in network.modules())
        assert sum(layer.kind == "Conv2d" for layer in standardize(network).layers) == count


@pytest.mark.parametrize("stored", [False, True], ids=["module", "state dict"])
def test_the_plain_network_computes_what_mixed_convolutions_do(stored):
    """Their one layer has zeros around the small kernels, and off the diagonal where channels are split."""
    source, target = randomized(mixed(False)), randomized(mixed(True), seed=1)
    transfer(source.state_dict() if stored else source, target)
    assert differ(source, target, IMAGES) < 1e-5


def test_mixed_convolutions_get_what_comes_to_their_places():
    source, target = randomized(mixed(True)), randomized(mixed(False), seed=1)
    transfer(source, target)
    theirs, ours = source[2][1], target[2][1]
    for number, kernel in enumerate((3, 5, 7)):
        rows, margin = slice(8 * number, 8 * number + 8), (7 - kernel) // 2
        expected = theirs.conv_dw.weight[rows, :, margin : 7 - margin, margin : 7 - margin]
        assert torch.equal(ours.conv_dw[str(number)].weight, expected)
    assert torch.equal(ours.conv_pw["1"].weight, theirs.conv_pw.weight[12:, 4:])
    assert torch.equal(ours.conv_pwl["0"].weight, theirs.conv_pwl.weight[:4, :12])
    assert torch.equal(ours.bn2.running_mean, theirs.bn2.running_mean)


def test_other_mixed_convolutions_compute_the_same_where_theirs_are_larger():
    source, target = randomized(mixed(False, kernels=(3, 3))), randomized(mixed(False, kernels=(3, 5, 7)), seed=1)
    transfer(source, target)
    assert differ(source, target, IMAGES) < 1e-5


def test_a_mixed_network_transferred_to_itself_is_copied():
    source, target = randomized(mixed(False)), randomized(mixed(False), seed=1)
    report = transfer(source, target)
    assert {entry.action for entry in report.entries} == {"copied"}
    assert differ(source, target, IMAGES) == 0


def test_a_plan_of_mixed_convolutions_is_the_same_from_its_text():
    source = randomized(mixed(False))
    for plain in (True, False):
        one, other = (randomized(mixed(plain, 10, 30), seed=1) for _ in range(2))
        transfer(source, one)
        Plan.from_json(plan(source, other).to_json(), source, other).apply()
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_before_merging_both_halves_had_the_same_rows():
    source, target = randomized(mixed(True)), randomized(mixed(False), seed=1)
    transfer(source, target, mode=BEFORE)
    assert differ(source, target, IMAGES) > 1e-2


# --- squeeze and excitation -------------------------------------------------------------------------------------------


class Gated(Residual):
    def __init__(self, width: int, hidden: int, gate: bool):
        super().__init__(width, hidden)
        self.se = SqueezeExcite(hidden, rd_channels=4) if gate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(self.se(torch.relu(self.bn1(self.conv1(x)))))))


def gated(gate: bool) -> nn.Module:
    blocks = nn.Sequential(*(Gated(8, 12, gate) for _ in range(2)))
    return nn.Sequential(nn.Conv2d(3, 8, 3), blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def test_a_gate_that_nothing_comes_to_is_constant():
    source, target = randomized(gated(False)), randomized(gated(True), seed=1)
    report = transfer(source, target)
    for block in target[1]:
        x = torch.rand(2, 12, 6, 6)
        assert torch.equal(block.se(x), 0.5 * x)
        assert torch.equal(block.conv2.weight, source[1][int(block is target[1][1])].conv2.weight)
    gates = [entry for entry in report.entries if ".se." in entry.target]
    assert {entry.action for entry in gates} == {"left", "zero"} and not any(entry.source for entry in gates)


def test_a_gate_comes_from_its_like():
    source, target = randomized(gated(True)), randomized(gated(True), seed=1)
    transfer(source, target)
    assert differ(source, target, TINY) == 0


# --- levels and widths ------------------------------------------------------------------------------------------------


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


def block_pairs(source: str, target: str, recipe: Recipe) -> list[tuple[int, int]]:
    """The levels of the blocks that match, the source's first."""
    matched = align(standardize(on_meta(source)), standardize(on_meta(target)), recipe)
    return [(pair.source.level, pair.target.level) for pair in matched.blocks if not pair.target.run]


def test_levels_count_from_the_end():
    def levels(name: str) -> list[int]:
        return [block.level for block in standardize(on_meta(name)).blocks if not block.run]

    assert levels("resnet18") == [3, 3, 2, 2, 1, 1, 0, 0]
    assert levels("mobilenetv2_035")[:3] == [4, 3, 3] and levels("mobilenetv2_035")[-1] == 0
    assert set(levels("vit_tiny_patch16_224")) == {0}


@pytest.mark.parametrize("target", ["rexnet_150", "mixnet_s", "regnetx_002"])
def test_blocks_match_within_a_resolution(target):
    pairs = block_pairs("tf_efficientnet_lite0", target, replace(BEST, levels=True))
    assert pairs and all(min(a, 3) == min(b, 3) for a, b in pairs)


def test_relative_widths_find_the_same_place_in_a_network_that_is_wider_throughout():
    """By Eq. 1 alone, the source's deeper blocks would be nearer to the target's wider ones."""
    source, target = (standardize(on_meta(name)) for name in ("mobilenetv2_050", "mobilenetv2_140"))
    relative, plain = (align(source, target, replace(BEFORE, relative=on)) for on in (True, False))
    same = [pair.source.name == pair.target.name for pair in relative.blocks if not pair.target.run]
    assert all(same) and len(same) >= len(plain.blocks) - 2


def test_widths_of_a_deeper_network_of_the_same_ones_are_compared_as_they_are():
    source, target = (standardize(on_meta(name)) for name in ("resnet18", "resnet34"))
    relative, plain = (align(source, target, replace(BEFORE, relative=on)) for on in (True, False))
    assert relative.layers == plain.layers


def test_a_penalty_for_shortcuts_is_a_part():
    with pytest.raises(ValueError, match="skip must be in"):
        Recipe(skip=0)


# --- new blocks -------------------------------------------------------------------------------------------------------


def vit(depth: int) -> nn.Module:
    return timm.models.VisionTransformer(32, 16, embed_dim=16, depth=depth, num_heads=2, num_classes=5)


def llama(depth: int) -> nn.Module:
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    sizes = {"hidden_size": 16, "intermediate_size": 40, "num_attention_heads": 2, "num_key_value_heads": 1}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, num_hidden_layers=depth, vocab_size=32, **tokens))


def gpt2(depth: int) -> nn.Module:
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=depth, n_head=2, **tokens))


def resnet(depth: int, block: str = "resnet18") -> nn.Module:
    return timm.create_model(block, layers=(1, depth, 1, 1), channels=(8, 16, 24, 32), num_classes=5)


def mobile(depth: int) -> nn.Module:
    blocks = [["ds_r1_k3_s1_c8"], [f"ir_r{depth}_k3_s2_e3_c12_se0.25"], ["ir_r1_k3_s2_e3_c16"]]
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.efficientnet import EfficientNet

    return EfficientNet(decode_arch_def(blocks), num_features=24, stem_size=8, num_classes=5)


def convnext(depth: int) -> nn.Module:
    return timm.create_model("convnext_atto", depths=(1, depth, 1, 1), dims=(8, 12, 16, 24), num_classes=5)


TOKENS = torch.randint(0, 32, (2, 7), generator=torch.Generator().manual_seed(0))
DEEPER = {
    "residual blocks of one's own": (lambda depth: residual(8, 12, depth), IMAGES),
    "resnet": (resnet, IMAGES),
    "bottlenecks": (lambda depth: resnet(depth, "resnet50"), IMAGES),
    "pre-activation": (lambda depth: resnetv2(depth), IMAGES),
    "inverted residuals": (mobile, IMAGES),
    "convnext": (convnext, IMAGES),
    "vit": (vit, IMAGES),
    "llama": (llama, TOKENS),
    "gpt2": (gpt2, TOKENS),
}


def resnetv2(depth: int) -> nn.Module:
    options = {"stem_chs": 8, "num_classes": 5, "norm_layer": BatchNormAct2d}
    return timm.models.resnetv2.ResNetV2((1, depth, 1, 1), channels=(16, 32, 48, 64), **options)


@pytest.mark.parametrize(("make", "inputs"), DEEPER.values(), ids=DEEPER.keys())
def test_with_blocks_inserted_the_function_is_the_same(make, inputs):
    source, target = randomized(make(2)), randomized(make(5), seed=1)
    report = transfer(source, target)
    assert differ(source, target, inputs) < 1e-5
    assert report.elements["zero"] > 0


@pytest.mark.parametrize("make", [vit, resnet])
def test_new_blocks_repeat_others_if_they_are_not_to_be_the_identity(make):
    source, target = randomized(make(2)), randomized(make(4), seed=1)
    report = transfer(source, target, new="random")
    assert report.elements["zero"] == 0 and differ(source, target, IMAGES) > 1e-3


def test_a_block_without_a_shortcut_is_never_silenced():
    def plain(depth: int) -> nn.Module:
        def block() -> nn.Module:
            return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))

        blocks = nn.Sequential(*(block() for _ in range(depth)))
        return nn.Sequential(nn.Conv2d(3, 8, 3), blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

    report = transfer(plain(2), plain(4))
    assert report.elements["zero"] == 0


def test_a_plan_on_the_meta_device_silences_the_same():
    def silenced(source: nn.Module, target: nn.Module) -> list[str]:
        return [entry.target for entry in plan(source, target).report.entries if entry.action == "zero"]

    with torch.device("meta"):
        on_meta = vit(2), vit(4)
    assert silenced(*on_meta) == silenced(vit(2), vit(4)) != []


def test_the_plan_says_what_new_blocks_start_as():
    with pytest.raises(ValueError, match="new must be one of identity, random"):
        plan(vit(1), vit(2), new="zero")


# --- new layers -------------------------------------------------------------------------------------------------------


class Started(nn.Module):
    """A block of MobileNet's kind, as MobileNetV4's with or without a further convolution and norm at its start."""

    def __init__(self, before: nn.Module | None, given: int):
        super().__init__()
        self.dw_start = before
        self.conv_pw, self.bn1 = nn.Conv2d(given, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.conv_dw, self.bn2 = nn.Conv2d(24, 24, 3, 1, 1, groups=24, bias=False), nn.BatchNorm2d(24)
        self.conv_pwl, self.bn3 = nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.dw_start is None else self.dw_start(x)
        y = torch.relu(self.bn1(self.conv_pw(y)))
        return x + self.bn3(self.conv_pwl(torch.relu(self.bn2(self.conv_dw(y)))))


def started(before=lambda: None, given: int = 8, depth: int = 2) -> nn.Module:
    blocks = nn.Sequential(*(Started(before(), given) for _ in range(depth)))
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


STARTS = {
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False), nn.BatchNorm2d(8)), 8),
    "dense": (lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)), 8),
    "wider": (lambda: nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)), 12),
    "in groups": (lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2)), 8),
}
starts = pytest.mark.parametrize(("before", "given"), STARTS.values(), ids=STARTS.keys())


@starts
def test_new_layers_in_blocks_start_as_the_identity(before, given):
    source, target = randomized(started()), started(before, given).eval()
    transfer(source, target, head="copy")
    assert differ(source, target, IMAGES) < 1e-4  # the new norms divide by the root of 1 + eps
    norms = [part for block in target[1] for part in block.dw_start if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == 2 * isinstance(before()[-1], nn.BatchNorm2d)
    assert all((norm.running_var == 1).all() and (norm.weight == 1).all() for norm in norms)


@starts
def test_new_layers_keep_their_values_if_they_are_to_be_random(before, given):
    source, target = randomized(started()), started(before, given)
    name = "1.0.dw_start.0.weight"
    own = target.state_dict()[name].clone()
    entry = next(e for e in transfer(source, target, new="random").entries if e.target == name)
    assert entry.action == "left" and torch.equal(target.state_dict()[name], own)


@starts
def test_a_plan_of_new_layers_says_so_and_is_the_same_from_its_text(before, given):
    source, target = randomized(started()), started(before, given)
    planned = plan(source, target)
    entry = next(e for e in planned.report.entries if e.target == "1.0.dw_start.0.weight")
    passing = before()[0].weight[:8].numel()  # eight of twelve rows, where it is wider
    assert (entry.action, entry.filled, entry.zeros) == ("identity", 0, passing)
    assert "gives what it takes" in entry.note and planned.report.elements["identity"] == 2 * passing
    assert sum(planned.report.elements.values()) == sum(tensor.numel() for tensor in target.state_dict().values())
    kept = Plan.from_json(planned.to_json(), source, target)
    assert kept.apply() == planned.report
    weight = target.state_dict()[entry.target]
    assert weight[:8].count_nonzero() == 8 and weight[:8].sum() == 8


def test_what_a_network_ends_in_is_no_identity():
    """As the boxes of a detector, whose small first values matter."""
    source, target = started(), nn.Sequential(*started()[:2], nn.Conv2d(8, 8, 3))
    entry = next(e for e in plan(source, target).report.entries if e.target == "2.weight")
    assert entry.action == "left"


def test_a_layer_with_an_even_kernel_has_no_identity():
    source, target = started(), started(lambda: nn.Sequential(nn.Conv2d(8, 8, 2, padding="same")))
    entry = next(e for e in plan(source, target).report.entries if e.target == "1.0.dw_start.0.weight")
    assert entry.action == "left"


def test_relative_widths_do_not_need_levels():
    """A state dict tells none: the widths of whole networks are compared then."""
    source, target = (on_meta(name) for name in ("mobilenetv2_050", "mobilenetv2_140"))
    whole, stored = (
        plan(given, target, replace(BEST, levels=False, skip=1.0)) for given in (source, source.state_dict())
    )
    pairs = [[(e.target, e.source) for e in each.report.entries] for each in (whole, stored)]
    assert pairs[0] == pairs[1]
    found = plan(source.state_dict(), target).report.entries
    assert [e.target for e in found if e.source and e.source.rpartition(".")[0] != e.target.rpartition(".")[0]] == []


@pytest.mark.parametrize("default", ["cpu", "meta"])
def test_new_blocks_are_silenced_whatever_wraps_the_target_and_wherever_tensors_are_made(default):
    source, target = vit(2), vit(4)
    expected = [entry.action for entry in plan(source, target).report.entries]
    with torch.device(default):
        found = plan(source, nn.DataParallel(target)).report.entries
    assert [entry.action for entry in found] == expected and "zero" in expected


@pytest.mark.slow
def test_an_operator_of_the_users_writes_no_zeros_around_the_branches_of_a_layer():
    def corner(source: Weights, target: Weights) -> dict:
        both = {name: tuple(map(slice, map(min, s.shape, t.shape))) for name, s, t in shared(source, target)}
        return {name: (index, index) for name, index in both.items()}

    source, target = (on_meta(name) for name in ("mnasnet_100", "mixnet_m"))
    entries = plan(source, target, operator=corner, new="random").report.entries
    branches = [entry for entry in entries if "conv_dw.1" in entry.target and entry.filled]
    assert branches and not any(entry.zeros for entry in branches)
    assert any(
        entry.zeros for entry in plan(source, target, new="random").report.entries if "conv_dw.1" in entry.target
    )


def test_branches_are_joined_again_where_a_part_of_a_stack_comes_from_them():
    source, target = timm.create_model("mixnet_s"), timm.create_model("vit_tiny_patch16_224")
    planned = plan(source, target, operator="uniform")
    assert any("blocks.4.1.conv_pw.weight" in entry.parts for entry in planned.report.entries)  # two convolutions
    assert planned.apply().elements == planned.report.elements
