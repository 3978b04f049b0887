"""The state of the optimizer goes with the weights.

A network that grows in the middle of its training keeps the momentum of what it has learned.
"""

import timm
import torch

from dpiat import transfer

source = timm.create_model("resnet10t", num_classes=10)
source_adam = torch.optim.AdamW(source.parameters(), lr=1e-3)
source(torch.rand(4, 3, 32, 32)).logsumexp(1).sum().backward()  # stands for a training
source_adam.step()

target = timm.create_model("resnet14t", num_classes=10)
target_adam = torch.optim.AdamW(target.parameters(), lr=1e-3)
transfer(source, target, optimizer=(source_adam, target_adam))
print(f"{len(target_adam.state)} tensors of the target have a momentum")
