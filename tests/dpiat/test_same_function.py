"""The same network from another library, or from its state dict, is the same function after the transfer."""

from functools import partial

import pytest
import timm
import torch
import torchvision.models as vision
import transformers as hf
from functions import differ, on_meta, randomized
from torch import nn
from torchvision.models.convnext import CNBlockConfig

from dpiat import Plan, coverage, plan, similarity, transfer

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
VIT = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96, "num_labels": 5}
VIT |= {"image_size": 64, "patch_size": 16, "layer_norm_eps": 1e-6}  # Hugging Face's default is 1e-12
TIMM_VIT = {"img_size": 64, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
CONVNEXT = {"depths": (1, 2, 2, 1), "dims": (8, 12, 16, 24), "num_classes": 5}


def vision_swin() -> nn.Module:
    return vision.SwinTransformer([4, 4], 12, [2, 2], [2, 4], [4, 4], stochastic_depth_prob=0, num_classes=5)


def vision_convnext() -> nn.Module:
    outputs = (12, 16, 24, None)
    stages = map(CNBlockConfig, CONVNEXT["dims"], outputs, CONVNEXT["depths"])
    return vision.ConvNeXt(list(stages), stochastic_depth_prob=0, num_classes=5)


def hf_convnext() -> nn.Module:
    config = hf.ConvNextConfig(
        depths=[1, 2, 2, 1], hidden_sizes=[8, 12, 16, 24], num_labels=5, layer_norm_eps=1e-6
    )  # of the last norm; those of the blocks have 1e-6 in any case
    return hf.ConvNextForImageClassification(config)


def hf_resnet(kind: str, *sizes: int) -> nn.Module:
    config = hf.ResNetConfig(
        embedding_size=64, hidden_sizes=list(sizes), depths=[2, 1, 1, 1], layer_type=kind, num_labels=5
    )
    return hf.ResNetForImageClassification(config)


def hf_regnet() -> nn.Module:
    config = hf.RegNetConfig(
        embedding_size=32, hidden_sizes=[24, 56, 152, 368], depths=[1, 1, 4, 7], groups_width=8, num_labels=5
    )
    return hf.RegNetForImageClassification(config)


# One network each, from two libraries.
PAIRS = {
    "resnet18, torchvision": (
        lambda: vision.ResNet(vision.resnet.BasicBlock, [2, 1, 1, 1], num_classes=5),
        lambda: timm.create_model("resnet18", layers=(2, 1, 1, 1), num_classes=5),
    ),
    "resnet50, torchvision": (
        lambda: vision.ResNet(vision.resnet.Bottleneck, [2, 1, 1, 1], num_classes=5),
        lambda: timm.create_model("resnet50", layers=(2, 1, 1, 1), num_classes=5),
    ),
    "efficientnet_b0, torchvision": (
        lambda: vision.efficientnet_b0(num_classes=5),
        lambda: timm.create_model("efficientnet_b0", num_classes=5),
    ),
    "convnext, torchvision": (vision_convnext, lambda: timm.create_model("convnext_tiny", **CONVNEXT)),
    "swin, torchvision": (
        vision_swin,
        lambda: timm.models.SwinTransformer(
            64, embed_dim=12, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=5
        ),
    ),
    "vit, torchvision": (
        lambda: vision.VisionTransformer(64, 16, 3, 3, 24, 96, num_classes=5),
        lambda: timm.create_model("vit_base_patch16_224", **TIMM_VIT),
    ),
    "vit, Hugging Face": (
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT)),
        lambda: timm.create_model("vit_base_patch16_224", **TIMM_VIT),
    ),
    "deit distilled, Hugging Face": (
        lambda: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**VIT)),
        lambda: timm.create_model("deit_base_distilled_patch16_224", **TIMM_VIT),
    ),
    "convnext, Hugging Face": (hf_convnext, lambda: timm.create_model("convnext_tiny", **CONVNEXT)),
    "resnet18, Hugging Face": (
        partial(hf_resnet, "basic", 64, 128, 256, 512),
        lambda: timm.create_model("resnet18", layers=(2, 1, 1, 1), num_classes=5),
    ),
    "resnet50, Hugging Face": (
        partial(hf_resnet, "bottleneck", 256, 512, 1024, 2048),
        lambda: timm.create_model("resnet50", layers=(2, 1, 1, 1), num_classes=5),
    ),
    "regnet, Hugging Face": (hf_regnet, lambda: timm.create_model("regnety_002", num_classes=5)),
    "vit, torchvision and Hugging Face": (
        lambda: vision.VisionTransformer(64, 16, 3, 3, 24, 96, num_classes=5),
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT)),
    ),
}
SLOW = ("efficientnet_b0, torchvision", "regnet, Hugging Face", "resnet50, Hugging Face")
pairs = pytest.mark.parametrize(
    "pair",
    [pytest.param(pair, id=name, marks=pytest.mark.slow if name in SLOW else ()) for name, pair in PAIRS.items()],
)
directions = pytest.mark.parametrize("there", [True, False], ids=["there", "back"])
as_given = pytest.mark.parametrize("stored", [False, True], ids=["module", "state dict"])


@pairs
@directions
@as_given
def test_the_same_network_of_another_library_is_the_same_function(pair, there, stored):
    source, target = (randomized(make(), seed) for seed, make in enumerate(pair if there else pair[::-1]))
    report = transfer(source.state_dict() if stored else source, target)
    trained = {name for name, _ in target.named_parameters()}
    assert [e.target for e in report.entries if e.target in trained and e.filled < e.elements] == []
    assert differ(source, target, IMAGES) < 1e-4


@pairs
def test_the_same_network_of_another_library_is_similar_to_1(pair):
    one, other = map(on_meta, pair)
    assert similarity(one, other) == pytest.approx(1)
    assert coverage(one, other) == pytest.approx(1)


@pairs
def test_a_state_dict_of_another_library_is_similar_to_1(pair):
    one, other = map(on_meta, pair)
    assert similarity(one.state_dict(), other) == similarity(other, one.state_dict()) == pytest.approx(1)


# Networks of one family each, of other widths or depths; and two in which groups stand for depthwise convolutions.
FAMILIES = [
    ("beit_base_patch16_224", "beit_large_patch16_224"),
    ("coat_tiny", "coat_mini"),
    ("convmixer_768_32", "convmixer_1024_20_ks9_p14"),
    ("convnext_atto", "convnext_pico"),
    ("convnextv2_atto", "convnextv2_nano"),
    ("crossvit_9_240", "crossvit_tiny_240"),
    ("cspresnet50", "cspresnext50"),
    ("deit_tiny_distilled_patch16_224", "deit_small_distilled_patch16_224"),
    ("densenet121", "densenet169"),
    ("dla34", "dla60"),
    ("eca_nfnet_l0", "eca_nfnet_l1"),
    ("edgenext_xx_small", "edgenext_small"),
    ("efficientformer_l1", "efficientformer_l3"),
    ("efficientnet_b0", "efficientnet_b3"),
    ("fastvit_t8", "fastvit_t12"),
    ("ghostnet_100", "ghostnet_130"),
    ("hardcorenas_a", "hardcorenas_f"),
    ("levit_128", "levit_256"),
    ("maxvit_tiny_rw_224", "maxvit_small_tf_224"),
    ("mixer_s16_224", "mixer_b16_224"),
    ("mixnet_s", "mixnet_l"),
    ("mnasnet_100", "semnasnet_100"),
    ("mobilenetv2_100", "mobilenetv2_120d"),
    ("mobilenetv3_small_100", "mobilenetv3_large_100"),
    ("mobilevit_xxs", "mobilevit_s"),
    ("poolformer_s12", "poolformer_s24"),
    ("pvt_v2_b0", "pvt_v2_b2"),
    ("regnetx_002", "regnety_008"),
    ("repvgg_a0", "repvgg_b0"),
    ("res2net50_26w_4s", "res2net101_26w_4s"),
    ("resnet18", "resnet34"),
    ("resnet50", "resnext50_32x4d"),
    ("resmlp_12_224", "resmlp_24_224"),
    ("rexnet_100", "rexnet_150"),
    ("swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224"),
    ("swinv2_tiny_window8_256", "swinv2_small_window16_256"),
    ("vgg11", "vgg16_bn"),
    ("vit_base_patch16_224", "vit_large_patch16_224"),
    ("xcit_nano_12_p16_224", "xcit_tiny_12_p16_224"),
    ("mnasnet_100", "regnetx_002"),
    ("resnext50_32x4d", "rexnet_100"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("source", "target"), FAMILIES)
def test_a_network_and_its_state_dict_give_the_same_plan_but_for_strides(source, target, monkeypatch):
    monkeypatch.setattr("dpiat.structure.leveled", lambda blocks, *_: tuple(blocks))
    source, target = (on_meta(timm.create_model, name) for name in (source, target))
    whole, stored = (
        {e.target: e.source for e in plan(given, target).report.entries} for given in (source, source.state_dict())
    )
    assert {name: (whole[name], stored[name]) for name in whole if whole[name] != stored[name]} == {}


@pytest.mark.slow
def test_a_plan_says_that_a_state_dict_tells_no_strides():
    source, target = (on_meta(timm.create_model, name) for name in ("mnasnet_100", "rexnet_100"))
    assert plan(source, target).report.notes == plan(target, source).report.notes == ()
    assert plan(on_meta(timm.create_model, "vit_tiny_patch16_224"), target).report.notes == ()
    assert plan(nn.Linear(3, 4), target).report.notes == ()
    planned = plan(source.state_dict(), target)
    assert "tells no strides" in planned.report.summary()
    assert Plan.from_json(planned.to_json(), source.state_dict(), target).report == planned.report


@pytest.mark.parametrize(
    ("source", "target"),
    [("resnet18", "vit_tiny_patch16_224"), ("swin_tiny_patch4_window7_224", "mnasnet_100"), ("mixnet_s", "vgg11")],
)
def test_similarity_is_a_part_and_has_no_direction(source, target):
    source, target = (on_meta(timm.create_model, name) for name in (source, target))
    assert 0 <= similarity(source, target) < 1
    assert similarity(source, target) == pytest.approx(similarity(target, source))
