"""See in seconds what survived a transfer, before any training.

The check compares the networks stage by stage, over the same images. Here the target has more blocks than the source,
and the new blocks start as the identity. So each stage agrees with the source's stage, though more than a third of the
target keeps its own values.
"""

import copy

import timm
import torch

from dpiat import transfer

source = timm.create_model("resnet14t", num_classes=10)  # yours is trained
target = timm.create_model("resnet26t", num_classes=10)
images = torch.rand(64, 3, 64, 64)  # take a hundred or more, as the target will see them

fresh = copy.deepcopy(target)  # for comparison: receives nothing

report = transfer(source, target)
checked = report.check(images)
print(checked)
compared = report.check(images, target=fresh)
print(
    f"before the classifier: {checked.stages[-2].agreement:.2f}, without transfer {compared.stages[-2].agreement:.2f}"
)
