"""A target with other input channels than its source: a fourth band beside red, green and blue.

The first convolution repeats the weights of the channels that the source knows and divides them, so that a picture with
equal channels gives the response that it gave. inputs="zero" keeps the old response, and new channels begin with zeros.
"""

import timm

from dpiat import transfer

source = timm.create_model("resnet10t")
infrared = timm.create_model("resnet10t", in_chans=4)
grey = timm.create_model("resnet10t", in_chans=1)

transfer(source, infrared)
transfer(source, grey)  # one channel receives the sum of the three

report = transfer(source, infrared, inputs="zero")
print(next(entry for entry in report.entries if entry.rule))
