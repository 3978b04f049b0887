"""Small transformers for images of 64 px, whose sizes differ in one thing each: for the ablation of default mode."""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer


def _transformer(classes: int, width: int, depth: int) -> VisionTransformer:
    """Patches of 8 px and heads of 64 channels."""
    return VisionTransformer(
        img_size=64, patch_size=8, num_classes=classes, embed_dim=width, depth=depth, num_heads=width // 64
    )


def vit(num_classes: int) -> VisionTransformer:
    return _transformer(num_classes, 192, 6)


def vit_wide(num_classes: int) -> VisionTransformer:
    return _transformer(num_classes, 256, 6)


def vit_deep(num_classes: int) -> VisionTransformer:
    return _transformer(num_classes, 192, 9)
