"""Positions are no channels: grids are resampled around their prefix, sentences begin at the first token."""

import pytest
import torch
import transformers as hf
from timm.layers import resample_abs_pos_embed, resample_patch_embed, resize_rel_pos_bias_table
from timm.models import Beit, SwinTransformer, VisionTransformer, VisionTransformerDistilled
from torch import Tensor, nn
from torchvision import models as vision
from torchvision.models import VisionTransformer as TorchvisionViT
from torchvision.models.video.swin_transformer import SwinTransformer3d

from dpiat import transfer

as_given = pytest.mark.parametrize("stored", [False, True], ids=["module", "state dict"])
SMALL = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 5}


def transferred(source: nn.Module, target: nn.Module, stored: bool = False) -> tuple[dict[str, Tensor], ...]:
    """The tensors of the source, the target's as they were and as they are. All of the source's are random."""
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    transfer(source.state_dict() if stored else source, target)
    return source.state_dict(), before, target.state_dict()


def vit(size: int | tuple[int, int], **options) -> nn.Module:
    return VisionTransformer(img_size=size, **{**SMALL, **options})


def distilled(size: int, **options) -> nn.Module:
    return VisionTransformerDistilled(img_size=size, **{**SMALL, **options})


def torchvision_vit(size: int) -> nn.Module:
    return TorchvisionViT(size, 8, 1, 2, 16, 64, num_classes=5)


def hf_vit(size: int) -> nn.Module:
    config = hf.ViTConfig(
        image_size=size, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    return hf.ViTForImageClassification(config)


# How to make one for an image of so many pixels, in patches of 8; the name of its table; its tokens before the grid.
TABLES = {
    "vit": (vit, "pos_embed", 1),
    "deit distilled": (distilled, "pos_embed", 2),
    "beit": (lambda size: Beit(size, **SMALL), "pos_embed", 1),
    "vit with registers": (lambda size: vit(size, reg_tokens=4), "pos_embed", 5),
    "vit with registers without places": (lambda size: vit(size, reg_tokens=4, no_embed_class=True), "pos_embed", 0),
    "vit without class token": (lambda size: vit(size, class_token=False, global_pool="avg"), "pos_embed", 0),
    "vit of torchvision": (torchvision_vit, "encoder.pos_embedding", 1),
    "vit of Hugging Face": (hf_vit, "vit.embeddings.position_embeddings", 1),
}


@pytest.mark.parametrize(("make", "table", "prefix"), TABLES.values(), ids=TABLES.keys())
@pytest.mark.parametrize(("given", "wanted"), [(32, 48), (64, 40)])
@as_given
def test_a_table_of_another_grid_is_resampled_around_its_prefix(make, table, prefix, given, wanted, stored):
    source, _, target = transferred(make(given), make(wanted), stored)
    grid = [wanted // 8, wanted // 8]
    expected = resample_abs_pos_embed(source[table], grid, num_prefix_tokens=prefix)
    assert torch.equal(target[table][:, :prefix], source[table][:, :prefix])
    torch.testing.assert_close(target[table], expected)


@as_given
def test_a_grid_may_become_oblong(stored):
    source, _, target = transferred(vit(32), vit((32, 48)), stored)
    torch.testing.assert_close(target["pos_embed"], resample_abs_pos_embed(source["pos_embed"], [4, 6], [4, 4]))


@as_given
def test_patches_keep_their_rows_when_a_prefix_token_comes_in(stored):
    source, _, target = transferred(vit(32), distilled(32), stored)
    assert torch.equal(target["pos_embed"][:, 2:], source["pos_embed"][:, 1:])
    assert torch.equal(target["pos_embed"][:, 0], source["pos_embed"][:, 0])


@as_given
def test_patches_keep_their_rows_when_a_prefix_token_goes(stored):
    source, _, target = transferred(distilled(32), vit(32), stored)
    assert torch.equal(target["pos_embed"][:, 1:], source["pos_embed"][:, 2:])
    assert torch.equal(target["pos_embed"][:, 0], source["pos_embed"][:, 0])


@as_given
def test_a_grid_is_resampled_when_a_prefix_token_comes_in(stored):
    source, _, target = transferred(vit(32), distilled(48), stored)
    expected = resample_abs_pos_embed(source["pos_embed"], [6, 6])
    torch.testing.assert_close(target["pos_embed"][:, 2:], expected[:, 1:])


def test_a_table_of_another_width_keeps_its_rows():
    source, before, target = transferred(vit(32), vit(32, embed_dim=24))
    assert torch.equal(target["pos_embed"][..., :16], source["pos_embed"])
    assert torch.equal(target["pos_embed"][..., 16:], before["pos_embed"][..., 16:])


def test_a_table_of_another_grid_and_width_is_resampled():
    source, _, target = transferred(vit(32), vit(48, embed_dim=24))
    expected = resample_abs_pos_embed(source["pos_embed"], [6, 6])
    torch.testing.assert_close(target["pos_embed"][..., :16], expected)


# The name of the patch embedding in networks of other sizes of patches.
PATCHES = {
    "vit": (lambda size: vit(4 * size, patch_size=size), "patch_embed.proj"),
    "deit distilled": (lambda size: distilled(4 * size, patch_size=size), "patch_embed.proj"),
    "beit": (lambda size: Beit(4 * size, **{**SMALL, "patch_size": size}), "patch_embed.proj"),
    "swin": (
        lambda size: SwinTransformer(8 * size, size, embed_dim=16, depths=(1,), num_heads=(2,), window_size=4),
        "patch_embed.proj",
    ),
    "vit of torchvision": (lambda size: TorchvisionViT(4 * size, size, 1, 2, 16, 64, num_classes=5), "conv_proj"),
}


@pytest.mark.parametrize(("make", "name"), PATCHES.values(), ids=PATCHES.keys())
@pytest.mark.parametrize(("given", "wanted"), [(4, 8), (16, 12)])
@as_given
def test_patches_of_another_size_are_resampled(make, name, given, wanted, stored):
    source, _, target = transferred(make(given), make(wanted), stored)
    expected = resample_patch_embed(source[f"{name}.weight"], [wanted, wanted])
    torch.testing.assert_close(target[f"{name}.weight"], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("given", "wanted"), [(5, 3), (3, 7)])
def test_kernels_that_overlap_stay_centred(given, wanted):
    """They see no patches: a larger one sees more around what the smaller one sees."""
    source, _, target = transferred(
        *(nn.Sequential(nn.Conv2d(3, 8, size), nn.ReLU(), nn.Conv2d(8, 5, 1)) for size in (given, wanted))
    )
    theirs, ours = source["0.weight"], target["0.weight"]
    inner, outer = (theirs, ours) if given < wanted else (ours, theirs)
    margin = (outer.shape[-1] - inner.shape[-1]) // 2
    assert torch.equal(outer[..., margin:-margin, margin:-margin], inner)


def swin(window: int, heads: tuple[int, ...] = (2, 4)) -> nn.Module:
    options = {"embed_dim": 16, "depths": (2, 1), "num_classes": 5}
    return SwinTransformer(window * 8, 4, num_heads=heads, window_size=window, **options)


@pytest.mark.parametrize(("given", "wanted"), [(4, 6), (7, 12), (8, 4)])
@as_given
def test_a_window_of_another_size_is_resampled(given, wanted, stored):
    source, _, target = transferred(swin(given), swin(wanted), stored)
    tables = [name for name in target if name.endswith("relative_position_bias_table")]
    assert len(tables) == 3
    for name in tables:
        size = target[name].shape
        side = (int(size[0] ** 0.5) + 1) // 2
        torch.testing.assert_close(target[name], resize_rel_pos_bias_table(source[name], (side, side), tuple(size)))


@as_given
def test_a_window_of_a_video_has_the_picture_s_offsets_at_each_distance_in_time(stored):
    sizes = {"embed_dim": 8, "depths": [2], "num_heads": [2], "num_classes": 5}
    picture = vision.SwinTransformer([4, 4], window_size=[3, 3], **sizes)
    video = SwinTransformer3d(patch_size=[2, 4, 4], window_size=[4, 3, 3], **sizes)
    source, _, target = transferred(picture, video, stored)
    theirs, ours = (
        state[f"features.{place}.1.attn.relative_position_bias_table"] for state, place in ((source, 1), (target, 0))
    )
    assert theirs.shape == (5 * 5, 2) and ours.shape == (7 * 5 * 5, 2)
    for distance in ours.unflatten(0, (7, 25)):
        assert torch.equal(distance, theirs)


@as_given
def test_the_offsets_of_beit_are_resampled_before_those_of_its_class_token(stored):
    nets = (Beit(size, **SMALL, use_abs_pos_emb=False, use_rel_pos_bias=True) for size in (32, 48))
    source, _, target = transferred(*nets, stored)
    name = "blocks.0.attn.relative_position_bias_table"
    assert torch.equal(target[name][-3:], source[name][-3:])
    expected = resize_rel_pos_bias_table(source[name], (6, 6), tuple(target[name].shape))
    torch.testing.assert_close(target[name], expected)


class Text(nn.Module):
    """As minGPT: a table of places, without a module of its own or as an embedding."""

    def __init__(self, length: int, name: str, embedding: bool):
        super().__init__()
        self.tok_emb = nn.Embedding(9, 8)
        setattr(self, name, nn.Embedding(length, 8) if embedding else nn.Parameter(torch.zeros(1, length, 8)))
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 9)


@pytest.mark.parametrize(("name", "embedding"), [("pos_emb", False), ("positional_embedding", False), ("wpe", True)])
@pytest.mark.parametrize(("given", "wanted"), [(24, 40), (40, 24), (17, 26)])
@as_given
def test_a_sentence_begins_at_the_first_place(name, embedding, given, wanted, stored):
    """Even where the lengths are those of an image with a class token (17 and 26)."""
    source, before, target = transferred(Text(given, name, embedding), Text(wanted, name, embedding), stored)
    key = f"{name}.weight" if embedding else name
    theirs, ours, own = (state[key].view(-1, 8) for state in (source, target, before))
    both = min(given, wanted)
    assert torch.equal(ours[:both], theirs[:both]) and torch.equal(ours[both:], own[both:])


class Constants(nn.Module):
    """Saved buffers that the constructor computes."""

    def __init__(self, length: int):
        super().__init__()
        places = torch.arange(length, dtype=torch.float)
        self.body = nn.Linear(8, 8)
        self.register_buffer("pe", torch.sin(places[:, None] / 100 ** (torch.arange(8) / 8)))
        self.register_buffer("inv_freq", 1 / 10000 ** (places / length))
        self.register_buffer("mask", torch.ones(length, length).tril())
        self.register_buffer("causal", torch.ones(1, 1, length, length, dtype=torch.bool).tril())
        self.register_buffer("attn_mask", torch.full((length, length), -100.0).triu(1))
        self.register_buffer("relative_coords_table", torch.stack(torch.meshgrid(places, places, indexing="ij"), -1))
        self.register_buffer("relative_position_index", places.long()[:, None] - places.long() + length - 1)
        self.register_buffer("position_ids", torch.arange(length)[None])
        self.register_buffer("anchors", torch.stack([places, 2 * places], 1))
        self.register_buffer("window", torch.hann_window(length))
        self.head = nn.Linear(8, 5)


@pytest.mark.parametrize("operator", ["clip", "full"])
@pytest.mark.parametrize(("given", "wanted"), [(12, 20), (20, 12)])
@as_given
def test_what_a_constructor_computes_is_left(operator, given, wanted, stored):
    source, target = Constants(given), Constants(wanted)
    report = transfer(source.state_dict() if stored else source, target, operator=operator)
    for name, buffer in Constants(wanted).named_buffers():
        assert torch.equal(target.get_buffer(name), buffer), name
    left = [entry for entry in report.entries if entry.target in dict(target.named_buffers())]
    assert all(entry.action == "left" and entry.note for entry in left)
