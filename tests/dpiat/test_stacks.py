"""A stack of blocks that grows or shrinks: each matrix from its own role, whole blocks from whole blocks."""

import re
from functools import partial

import pytest
import timm
import torch
import torchvision.models as vision
import transformers as hf
from functions import on_meta
from torch import nn

from dpiat import plan, standardize, transfer

pytestmark = pytest.mark.slow

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 64}
LLAMA = {**SMALL, "intermediate_size": 40, "num_key_value_heads": 1, "vocab_size": 32}
NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)


def t5(depth: int) -> nn.Module:
    config = hf.T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=64, num_layers=depth, num_heads=4)
    return hf.T5ForConditionalGeneration(config)


def gpt2(depth: int) -> nn.Module:
    config = hf.GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=depth, n_head=2, **NO_TOKENS)
    return hf.GPT2LMHeadModel(config)


def bert(depth: int) -> nn.Module:
    return hf.BertForMaskedLM(hf.BertConfig(**SMALL, num_hidden_layers=depth, vocab_size=32))


def llama(depth: int) -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, num_hidden_layers=depth, **NO_TOKENS))


def hf_vit(depth: int) -> nn.Module:
    config = hf.ViTConfig(**SMALL, num_hidden_layers=depth, image_size=32, patch_size=16, num_labels=5)
    return hf.ViTForImageClassification(config)


def vit(depth: int) -> nn.Module:
    return timm.models.VisionTransformer(32, 16, embed_dim=16, depth=depth, num_heads=2, num_classes=5)


def layer_scaled_vit(depth: int) -> nn.Module:
    options = {"init_values": 1e-5, "qk_norm": True, "reg_tokens": 4}
    return timm.models.VisionTransformer(32, 16, embed_dim=16, depth=depth, num_heads=2, num_classes=5, **options)


def torchvision_vit(depth: int) -> nn.Module:
    return vision.VisionTransformer(32, 16, depth, 2, 16, 64, num_classes=5)


def plain_transformer(depth: int) -> nn.Module:
    return nn.Transformer(16, 2, depth, depth, 64)


def mixer(depth: int) -> nn.Module:
    return timm.models.MlpMixer(num_classes=5, img_size=32, patch_size=8, num_blocks=depth, embed_dim=16)


# A stack of so many blocks, and what its blocks are called in the names of tensors.
STACKS = {
    "llama": (llama, r"layers\.(\d+)\."),
    "gpt2": (gpt2, r"\.h\.(\d+)\."),
    "bert": (bert, r"layer\.(\d+)\."),
    "t5": (t5, r"block\.(\d+)\."),
    "vit": (vit, r"blocks\.(\d+)\."),
    "vit with layer scales and norms of queries": (layer_scaled_vit, r"blocks\.(\d+)\."),
    "vit of Hugging Face": (hf_vit, r"layers\.(\d+)\."),
    "vit of torchvision": (torchvision_vit, r"encoder_layer_(\d+)\."),
    "nn.Transformer": (plain_transformer, r"layers\.(\d+)\."),
    "mixer": (mixer, r"blocks\.(\d+)\."),
}
stacks = pytest.mark.parametrize(("make", "block"), STACKS.values(), ids=STACKS.keys())
depths = pytest.mark.parametrize("depths", [(2, 3), (4, 8), (8, 3)], ids=str)
as_given = pytest.mark.parametrize("stored", [False, True], ids=["module", "state dict"])


def in_blocks(source: nn.Module, target: nn.Module, block: str) -> list[tuple[str, str]]:
    """Each tensor in a block of the target, and the source's that fills it."""
    found = [
        (e.target, e.source) for e in plan(source, target, new="random").report.entries if re.search(block, e.target)
    ]
    assert found
    return found


def role(name: str, block: str) -> str:
    return re.sub(block, ".#.", name, count=1)


@stacks
@depths
@as_given
def test_every_tensor_of_a_stack_comes_from_its_own_role(make, block, depths, stored):
    source, target = (on_meta(make, depth) for depth in depths)
    pairs = in_blocks(source.state_dict() if stored else source, target, block)
    assert [pair for pair in pairs if role(pair[0], block) != role(pair[1], block)] == []


@stacks
@depths
def test_whole_blocks_come_from_whole_blocks(make, block, depths):
    source, target = (on_meta(make, depth) for depth in depths)
    sources: dict[str, set[str]] = {}
    for ours, theirs in in_blocks(source, target, block):
        stack, number = re.split(block, ours)[:2]
        found = re.split(block, theirs)
        sources.setdefault(f"{stack} {number}", set()).add(" ".join(found[:2]))
    assert {name: found for name, found in sources.items() if len(found) > 1} == {}


@stacks
@pytest.mark.parametrize("depths", [(3, 5), (5, 3)], ids=str)
def test_blocks_are_used_alike(make, block, depths):
    """None is dropped where there is room for it, and none is used again while another is not used at all."""
    source, target = (on_meta(make, depth) for depth in depths)
    used = [re.split(block, theirs)[:2] for _, theirs in in_blocks(source, target, block) if theirs]
    stacks = {stack for stack, _ in used}
    for stack in stacks:
        assert len({number for name, number in used if name == stack}) == min(depths)


class Wide(nn.Module):
    """Widths and depths grow at once, as from a base to a large network."""

    def __init__(self, width: int, depth: int):
        super().__init__()
        self.vit = timm.models.VisionTransformer(32, 16, embed_dim=width, depth=depth, num_heads=width // 8)


@pytest.mark.parametrize(("source", "target"), [((24, 3), (32, 6)), ((32, 6), (24, 3)), ((16, 12), (64, 12))], ids=str)
@as_given
def test_a_stack_of_another_width_keeps_its_roles(source, target, stored):
    source, target = on_meta(Wide, *source), on_meta(Wide, *target)
    block = r"blocks\.(\d+)\."
    pairs = in_blocks(source.state_dict() if stored else source, target, block)
    assert [pair for pair in pairs if role(pair[0], block) != role(pair[1], block)] == []


def swin(depths: tuple[int, ...]) -> nn.Module:
    options = {"embed_dim": 8, "num_heads": (1, 2, 4), "window_size": 4, "num_classes": 5}
    return timm.models.SwinTransformer(32, 2, depths=depths, **options)


def convnext(depths: tuple[int, ...]) -> nn.Module:
    return timm.create_model("convnext_atto", depths=(*depths, 1), dims=(8, 12, 16, 24))


def resnet(depths: tuple[int, ...]) -> nn.Module:
    return timm.create_model("resnet18", layers=(*depths, 2))


def bottlenecks(depths: tuple[int, ...]) -> nn.Module:
    return vision.ResNet(vision.resnet.Bottleneck, [*depths, 2])


def residual(depths: tuple[int, ...]) -> nn.Module:
    parts = zip((8, 16, 24), depths, strict=True)
    return nn.ModuleDict({f"s{i}": nn.Sequential(*(Residual(w) for _ in range(d))) for i, (w, d) in enumerate(parts)})


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3), nn.BatchNorm2d(width)


def pvt(depths: tuple[int, ...]) -> nn.Module:
    options = {"embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4), "num_classes": 5}
    return timm.models.PyramidVisionTransformerV2(64, depths=(*depths, 1), **options)


def segformer(depths: tuple[int, ...]) -> nn.Module:
    config = hf.SegformerConfig(depths=[*depths, 1], hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 3, 4])
    return hf.SegformerModel(config)


class Attends(nn.Module):
    """An attention as vit_pytorch writes it, whose norms have "g" and "b" of (1, width, 1, 1)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.ParameterDict({"g": torch.ones(1, width, 1, 1), "b": torch.zeros(1, width, 1, 1)})
        self.to_q, self.to_kv = nn.Conv2d(width, width, 1), nn.Conv2d(width, 2 * width, 2, 2)
        self.to_out = nn.Sequential(nn.Conv2d(width, width, 1))


def nested(depths: tuple[int, ...]) -> nn.Module:
    """Stages in a list, each with a list of blocks somewhere inside, which may be a list of one."""

    def stage(width: int, wider: int, depth: int) -> nn.Module:
        blocks = nn.ModuleList(nn.ModuleList([Attends(wider), nn.Conv2d(wider, wider, 1)]) for _ in range(depth))
        return nn.ModuleList([nn.Conv2d(width, wider, 3, 2), nn.ModuleDict({"layers": blocks})])

    widths = (3, 8, 16, 24, 32)
    parts = zip(widths, widths[1:], (*depths, 1), strict=False)
    return nn.ModuleDict({"layers": nn.ModuleList(stage(*part) for part in parts), "head": nn.Linear(32, 5)})


# Networks in stages, and what precedes and numbers their blocks.
STAGED = {
    "swin": (swin, r"(layers\.\d)\.blocks\.(\d+)\."),
    "convnext": (convnext, r"(stages\.\d)\.blocks\.(\d+)\."),
    "resnet": (resnet, r"(layer\d)\.(\d+)\."),
    "resnet of bottlenecks, torchvision": (bottlenecks, r"(layer\d)\.(\d+)\."),
    "PVT, whose attention shrinks keys and values": (pvt, r"(stages\.\d)\.blocks\.(\d+)\."),
    "SegFormer": (segformer, r"(stages\.\d)\.blocks\.(\d+)\."),
    "stages of nested lists, one of one block": (nested, r"(layers\.\d)\.1\.layers\.(\d+)\."),
    "residual blocks of one's own": (residual, r"(s\d)\.(\d+)\."),
}


@pytest.mark.parametrize(("make", "block"), STAGED.values(), ids=STAGED.keys())
@pytest.mark.parametrize("depths", [((2, 2, 2), (3, 4, 6)), ((3, 4, 6), (2, 2, 2))], ids=str)
@as_given
def test_stages_grow_each_from_its_own(make, block, depths, stored):
    source, target = (on_meta(make, depth) for depth in depths)
    pairs = in_blocks(source.state_dict() if stored else source, target, block)
    same = re.compile(block.replace(r"(\d+)", r"\d+"))
    wrong = []
    for ours, theirs in pairs:
        stage, role_ours, role_theirs = re.search(block, ours)[1], same.sub("", ours), same.sub("", theirs)
        if not theirs.startswith(stage) or role_ours != role_theirs:
            wrong.append((ours, theirs))
    assert wrong == []


def vision_deeplab() -> nn.Module:
    return vision.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None)


def vision_lraspp() -> nn.Module:
    return vision.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)


# A network that classifies, the same with strides that gave way to dilations, and what its names begin with in both.
DILATED = {
    "DeepLab": (vision.resnet50, vision_deeplab, "", "backbone."),
    "LRASPP": (vision.mobilenet_v3_large, vision_lraspp, "features.", "backbone."),
    "ResNet-50": (
        partial(timm.create_model, "resnet50"),
        partial(timm.create_model, "resnet50", output_stride=8),
        "",
        "",
    ),
    "EfficientNet-B0": (
        partial(timm.create_model, "efficientnet_b0"),
        partial(timm.create_model, "efficientnet_b0", output_stride=16),
        "",
        "",
    ),
}


@pytest.mark.parametrize("there", [True, False], ids=["there", "back"])
@pytest.mark.parametrize("case", DILATED.values(), ids=DILATED.keys())
def test_a_stage_whose_stride_gave_way_to_dilation_is_the_same_stage(case, there):
    plain, dilated, *prefixes = case
    networks, prefixes = [on_meta(plain), on_meta(dilated)], list(prefixes)
    source, target = networks if there else networks[::-1]
    theirs, ours = prefixes if there else prefixes[::-1]
    heads = "fc.", "classifier.", "aux_classifier."
    entries = [e for e in plan(source, target).report.entries if e.target.startswith(ours)]
    entries = [e for e in entries if not e.target.startswith(heads)]
    assert len(entries) > 90
    assert [(e.target, e.source) for e in entries if e.source != theirs + e.target.removeprefix(ours)] == []


def test_a_linear_layer_of_a_whole_picture_tells_no_width():
    vgg = on_meta(vision.vgg16)
    ssd = on_meta(vision.detection.ssd300_vgg16, weights=None, weights_backbone=None)
    entries = [e for e in plan(vgg, ssd).report.entries if e.target.startswith("backbone.features")]
    assert len(entries) == 20 and [e for e in entries if e.source != e.target.removeprefix("backbone.")] == []


TWO_TOWERS = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = {**TWO_TOWERS, "vocab_size": 40, **NO_TOKENS}
IMAGES = {**TWO_TOWERS, "image_size": 32, "patch_size": 16}


def language_model() -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**WORDS))


def language_and_vision() -> nn.Module:
    config = hf.LlavaConfig(text_config=hf.LlamaConfig(**WORDS), vision_config=hf.CLIPVisionConfig(**IMAGES))
    return hf.LlavaForConditionalGeneration(config)


def vision_tower() -> nn.Module:
    return hf.CLIPVisionModel(hf.CLIPVisionConfig(**IMAGES))


def partners(source: nn.Module, target: nn.Module, tower: str) -> dict[str, str]:
    """The source's tensors by the target's, in one tower of the target."""
    entries = plan(source, target).report.entries
    return {
        entry.target[entry.target.index(tower) + len(tower) :]: entry.source
        for entry in entries
        if tower in entry.target
    }


@as_given
@pytest.mark.parametrize(
    ("make", "tower", "before"), [(language_model, "language_model.", "model."), (vision_tower, "vision_tower.", "")]
)
def test_a_tower_takes_the_whole_of_a_network_that_is_one(make, tower, before, stored):
    source = on_meta(make)
    found = partners(source.state_dict() if stored else source, on_meta(language_and_vision), tower)
    assert len(found) > 35 and found == {name: before + name for name in found}


@as_given
@pytest.mark.parametrize(
    ("make", "tower", "before"), [(language_model, "language_model.", "model."), (vision_tower, "vision_tower.", "")]
)
def test_a_network_takes_the_tower_that_is_like_it(make, tower, before, stored):
    source, target = on_meta(language_and_vision), on_meta(make)
    found = partners(source.state_dict() if stored else source, target, before)
    assert len(found) > 35 and found == {name: f"model.{tower}{name}" for name in found}


def test_encoder_and_decoder_both_take_the_whole_encoder():
    source = on_meta(lambda: hf.BertModel(hf.BertConfig(**WORDS)))
    for tower in ("encoder.block.", "decoder.block."):
        found = partners(source, on_meta(t5, 4), tower)
        queries = [found[f"{place}.layer.0.SelfAttention.q.weight"] for place in range(4)]
        assert queries == [f"encoder.layer.{place}.attention.self.query.weight" for place in range(4)]


def test_a_network_that_names_its_queries_has_no_nameless_ones():
    bert, albert = hf.BertConfig(**WORDS), hf.AlbertConfig(**WORDS)
    albert.embedding_size = 16  # so that the mapping into the hidden size is as large as a matrix of queries
    with torch.device("meta"):
        planned = plan(hf.BertModel(bert), hf.AlbertModel(albert))
    mapping = next(e for e in planned.report.entries if e.target == "encoder.embedding_hidden_mapping_in.weight")
    assert (mapping.action, mapping.filled) == ("left", 0)


def test_a_router_is_filled_from_a_router_alone():
    sizes = {**WORDS, "num_key_value_heads": 2}
    with torch.device("meta"):
        dense = hf.LlamaModel(hf.LlamaConfig(**sizes))
        four, eight = (hf.MixtralModel(hf.MixtralConfig(**sizes, num_local_experts=count)) for count in (4, 8))
    routers = [e for e in plan(dense, four).report.entries if e.target.endswith("gate.weight")]
    assert [e.action for e in routers] == ["left"] * 4
    routers = [e for e in plan(four, eight).report.entries if e.target.endswith("gate.weight")]
    assert [e.source for e in routers] == [e.target for e in routers]


def test_the_patches_of_a_second_tower_are_resampled():
    source, target = (
        hf.CLIPModel(hf.CLIPConfig(text_config=WORDS, vision_config=IMAGES | {"image_size": 64, "patch_size": patch}))
        for patch in (8, 16)
    )
    report = transfer(source, target)
    patches = next(e for e in report.entries if e.target == "vision_model.embeddings.patch_embedding.weight")
    assert (patches.rule, patches.share, patches.note) == ("patches", 1, "")


@as_given
def test_a_wider_mamba_keeps_the_rows_of_its_state_space_apart(stored):
    source, target = (
        hf.MambaModel(
            hf.MambaConfig(hidden_size=width, num_hidden_layers=1, vocab_size=9, state_size=4, time_step_rank=rank)
        )
        for width, rank in ((16, 1), (32, 2))
    )
    transfer(source.state_dict() if stored else source, target)
    theirs, ours = (network.layers[0].mixer.x_proj.weight for network in (source, target))
    assert theirs.shape == (9, 32) and ours.shape == (10, 64)
    assert torch.equal(ours[0, :32], theirs[0])  # time steps, of which there are 1 and 2
    assert torch.equal(ours[2:, :32], theirs[1:])  # what leads into the state and out of it
    assert not ours[2:, 32:].any()


class Attention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))


def alternating(depth: int) -> nn.Module:
    """A list of [norm, attention], [norm, feed-forward network], [norm, attention], ... as in x-transformers."""

    def element(place: int) -> nn.Module:
        wide = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
        return nn.ModuleList([nn.LayerNorm(16), nn.ModuleDict({"ff": wide}) if place % 2 else Attention(16)])

    return nn.ModuleDict({"layers": nn.ModuleList(map(element, range(2 * depth))), "head": nn.Linear(16, 5)})


def levit(depth: int) -> nn.Module:
    sizes = {"hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4], "key_dim": [8] * 3, "image_size": 64}
    return hf.LevitModel(hf.LevitConfig(**sizes, depths=[depth] * 3))


@pytest.mark.parametrize(("make", "attends"), [(alternating, r"\d+\.1\.to_q"), (levit, r"module\.queries_keys_values")])
@as_given
def test_attentions_and_feed_forward_networks_that_alternate_stay_apart(make, attends, stored):
    source, target = on_meta(make, 2), on_meta(make, 5)
    report = plan(source.state_dict() if stored else source, target).report
    filled = [e for e in report.entries if e.source and ".layers." in f".{e.target}"]
    assert [e for e in filled if re.sub(r"\d+", "#", e.target) != re.sub(r"\d+", "#", e.source)] == []
    queries = [e.source for e in filled if re.search(f"{attends}.*weight$", e.target)]
    assert len(set(queries)) == len([name for name in source.state_dict() if re.search(f"{attends}.*weight$", name)])


def test_a_new_element_of_an_alternating_list_does_nothing_at_first():
    entries = plan(on_meta(alternating, 2), on_meta(alternating, 4)).report.entries
    zero = [e.target for e in entries if e.action == "zero"]
    assert len([name for name in zero if name.endswith("to_out.weight")]) == 2
    assert len([name for name in zero if name.endswith("ff.2.weight")]) == 2


def test_a_new_block_whose_input_is_added_outside_of_it_does_nothing_at_first():
    class Net(nn.Module):
        def __init__(self, depth: int):
            super().__init__()
            units = (
                nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(depth)
            )
            self.stem, self.layers, self.head = nn.Linear(9, 16), nn.ModuleList(units), nn.Linear(16, 5)

        def forward(self, inputs):
            given = self.stem(inputs)
            for layer in self.layers:
                given = given + layer(given)
            return self.head(given)

    source, target, inputs = Net(2), Net(5), torch.randn(7, 9)
    transfer(source, target)
    torch.testing.assert_close(target(inputs), source(inputs))


def test_levit_of_timm_takes_all_of_hugging_faces():
    source = on_meta(lambda: hf.LevitModel(hf.LevitConfig()))
    entries = plan(source, on_meta(timm.create_model, "levit_128")).report.entries
    missing = {e.target.split(".")[0] for e in entries if e.action != "copied"}
    assert len(entries) > 300 and missing <= {"head", "head_dist"}


def test_batch_norms_that_are_registered_last_belong_to_the_convolutions_in_their_order():
    class Block(nn.Module):
        def __init__(self, width: int, last: bool):
            super().__init__()
            parts = {f"conv{i}": nn.Conv2d(width, width, 3, bias=False) for i in (1, 2)}
            norms = {f"bn{i}": nn.BatchNorm2d(width) for i in (1, 2)}
            for name in [*parts, *norms] if last else ["conv1", "bn1", "conv2", "bn2"]:
                self.add_module(name, (parts | norms)[name])

    def network(width: int, last: bool) -> nn.Module:
        blocks = nn.Sequential(*(Block(width, last) for _ in range(3)))
        return nn.ModuleDict({"stem": nn.Conv2d(3, width, 3), "blocks": blocks, "fc": nn.Linear(width, 5)})

    for ours, theirs in ((True, False), (False, True), (True, True)):
        entries = plan(on_meta(network, 8, theirs), on_meta(network, 16, ours)).report.entries
        assert [e for e in entries if e.source != e.target] == []


def test_the_first_layers_of_a_point_net_take_in_the_norms_that_are_registered_last():
    class PointNet(nn.Module):
        def __init__(self, norms: bool):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 16, 1)
            self.fc1, self.fc2 = nn.Linear(16, 12), nn.Linear(12, 5)
            if norms:
                self.bn1, self.bn2, self.bn3 = nn.BatchNorm1d(8), nn.BatchNorm1d(16), nn.BatchNorm1d(12)

        def forward(self, points):
            layers = (self.conv1, "bn1"), (self.conv2, "bn2"), (self.fc1, "bn3")
            for layer, norm in layers:
                points = points.amax(2) if layer is self.fc1 else points
                points = getattr(self, norm, nn.Identity())(layer(points)).relu()
            return self.fc2(points)

    source, target, points = PointNet(norms=True), PointNet(norms=False), torch.randn(9, 3, 20)
    source(points), source.eval()
    for norm in (source.bn1, source.bn2, source.bn3):
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    transfer(source, target, head="copy")
    torch.testing.assert_close(target.eval()(points), source(points))


class Unit(nn.Module):
    def __init__(self, into: int, out: int, stride: int = 1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3), nn.BatchNorm2d(out)


def encoder(depth: int) -> list[nn.Module]:
    stages = [[Unit(8, 8, 2), *(Unit(8, 8) for _ in range(depth - 1))] for _ in range(3)]
    return [nn.Conv2d(3, 8, 3, 2), *(unit for stage in stages for unit in stage)]


def features(depth: int) -> nn.Module:
    return nn.Sequential(*encoder(depth))


def classifier(depth: int) -> nn.Module:
    return nn.Sequential(*encoder(depth), nn.Flatten(), nn.Linear(8, 5))


def detector(depth: int) -> nn.Module:
    """Up to a higher resolution, and down again."""
    neck = [nn.Upsample(scale_factor=2), Unit(8, 8), nn.Upsample(scale_factor=2), Unit(8, 8), Unit(8, 8, 2)]
    return nn.Sequential(*encoder(depth), *neck, nn.Conv2d(8, 5, 1))


def test_levels_count_from_the_lowest_resolution_of_a_network_with_a_decoder():
    levels = [block.level for block in standardize(detector(2)).blocks if not block.run]
    assert levels == [2, 2, 1, 1, 0, 0, 1, 2, 1]
    decoder = [Unit(8, 8), nn.ConvTranspose2d(8, 8, 2, 2), Unit(8, 8), nn.ConvTranspose2d(8, 8, 2, 2), Unit(8, 8)]
    net = nn.Sequential(*encoder(1), *decoder)
    assert [block.level for block in standardize(net).blocks if not block.run] == [2, 1, 0, 0, 1, 2]


@pytest.mark.parametrize("make", [classifier, features])
@pytest.mark.parametrize("back", [False, True], ids=["to detector", "from detector"])
@as_given
def test_the_backbone_of_a_detector_is_the_network_that_classifies(make, back, stored):
    source, target = on_meta(make, 2), on_meta(detector, 2)
    if back:
        source, target = target, source
    entries = plan(source.state_dict() if stored and not back else source, target).report.entries
    backbone = [e for e in entries if int(e.target.split(".")[0]) < 7]
    assert len(backbone) == 86 and [(e.target, e.source) for e in backbone if e.source != e.target] == []


def test_a_norm_is_taken_from_the_layer_of_its_name_where_several_are_equal():
    class Net(nn.Module):
        def __init__(self, first: bool):
            super().__init__()
            embed = [nn.Linear(12, 16), nn.LayerNorm(16)] if first else [nn.Linear(12, 16)]
            self.embed, self.norm = nn.Sequential(*embed), nn.LayerNorm(16)
            blocks = [nn.TransformerEncoderLayer(16, 2, 32) for _ in range(3)]
            self.blocks, self.head = nn.ModuleList(blocks), nn.Linear(16, 5)
            if not first:  # registered behind the blocks
                self.norm = self._modules.pop("norm")
                self.head = self._modules.pop("head")

    entries = plan(on_meta(Net, True), on_meta(Net, False)).report.entries
    assert {e.target: e.source for e in entries if e.target.startswith("norm")} == {
        "norm.weight": "norm.weight",
        "norm.bias": "norm.bias",
    }
