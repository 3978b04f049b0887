"""A smaller network from a larger one, and a network whose weights are masked.

operator="magnitude" gives a narrower layer the channels with the largest weights instead of those in the centre. A
mask of torch.nn.utils.prune is the target's own: weights that are pruned away stay 0.
"""

import timm
from torch.nn.utils import prune

from dpiat import transfer

source = timm.create_model("mobilenetv2_100")
narrow = timm.create_model("mobilenetv2_050")
print(transfer(source, narrow, operator="magnitude").summary())

masked = timm.create_model("mobilenetv2_050")
prune.l1_unstructured(masked.conv_head, "weight", amount=0.9)
transfer(source, masked)
print(f"{(masked.conv_head.weight == 0).float().mean():.0%} of the masked layer is 0")
