"""A Lightning module that starts from a network of another architecture, unless it goes on from a checkpoint."""

import lightning
import timm
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from dpiat import transfer


class Classifier(lightning.LightningModule):
    def __init__(self, network: torch.nn.Module, source):
        super().__init__()
        self.network, self.source = network, [source]  # in a list: the source is no part of what is trained and saved
        self.started_from = None

    def on_fit_start(self):
        if self.trainer.ckpt_path is None:  # a checkpoint that Lightning restores brings its own weights
            self.started_from = transfer(self.source[0], self.network)
            self.print(self.started_from.summary())

    def training_step(self, batch, number):
        images, labels = batch
        return cross_entropy(self.network(images), labels)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


source = timm.create_model("resnet10t", num_classes=10)  # or the path of a file, or a timm name
module = Classifier(timm.create_model("resnet14t", num_classes=10), source)
batches = DataLoader(TensorDataset(torch.rand(16, 3, 32, 32), torch.arange(16) % 10), batch_size=8)
quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}

trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", **quiet)
trainer.fit(module, batches)
trainer.save_checkpoint("last.ckpt")

# What was stopped goes on from the checkpoint, and nothing is transferred again.
again = Classifier(timm.create_model("resnet14t", num_classes=10), source)
trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", **quiet)
trainer.fit(again, batches, ckpt_path="last.ckpt")
