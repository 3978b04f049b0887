"""A target with other classes than its source.

The body of the target receives everything. The classifier counts other things, so `head` says what happens to it.
"""

import timm

from dpiat import transfer

source = timm.create_model("mobilenetv3_small_050", num_classes=1000)  # pretrained=True brings ImageNet's weights
target = timm.create_model("mobilenetv3_small_075", num_classes=3)

# head="auto", the default: the weights of a classifier of other classes are zero, and the bias is the target's own.
report = transfer(source, target)
silent = [entry.target for entry in report.entries if entry.note.startswith("zero, so that all classes")]
print("zero at first:", *silent)

# A mapping {target class: source class} fills the rows of the classes that both networks know.
tabby, retriever = 281, 207  # ImageNet's numbers; the third class of the target is new
report = transfer(source, target, head={0: tabby, 1: retriever})
print(report.summary())
