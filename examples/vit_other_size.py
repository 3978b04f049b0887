"""A vision transformer at another image size, with other patches and another depth.

Positions of the grid are resampled around the class token, and patches so that they give the response that they gave.
"""

import timm

from dpiat import transfer

small = {"embed_dim": 48, "num_heads": 3}  # leave this out for the network itself
source = timm.create_model("vit_tiny_patch16_224", depth=4, **small)
target = timm.create_model("vit_tiny_patch16_224", depth=6, img_size=96, patch_size=8, **small)

report = transfer(source, target)
for entry in report.entries:
    if entry.rule:
        print(entry.target, entry.source_shape, "→", entry.shape, entry.rule)
