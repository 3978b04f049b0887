"""A plan is a value: read it, change it, keep it, and only then write the weights."""

import timm

from dpiat import Plan, plan

source = timm.create_model("resnet10t", num_classes=10)
target = timm.create_model("resnet18", num_classes=10)

planned = plan(source, target)  # changes nothing
planned = planned.drop("fc")  # the classifier keeps its own weights
planned = planned.pair("layer4.0.conv2", "layer4.1.conv2")  # this source layer goes to this target layer
text = planned.to_json()

report = Plan.from_json(text, source, target).apply()
print(report.summary())
