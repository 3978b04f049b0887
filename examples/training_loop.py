"""A training loop that starts from a network of another architecture, unless it goes on from its own checkpoint."""

from pathlib import Path

import timm
import torch
from torch.nn.functional import cross_entropy

from dpiat import transfer

CHECKPOINT = Path("checkpoint.pt")


def start(network: torch.nn.Module, optimizer: torch.optim.Optimizer, source) -> int:
    """The epoch to begin with. The weights come from a checkpoint of this training, or else from `source`."""
    if CHECKPOINT.exists():
        kept = torch.load(CHECKPOINT)
        network.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])
        return kept["epoch"] + 1
    print(transfer(source, network).summary())
    return 0


network = timm.create_model("resnet14t", num_classes=10)
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
source = timm.create_model("resnet10t", num_classes=10)  # or the path of a file, or a timm name

images, labels = torch.rand(16, 3, 32, 32), torch.arange(16) % 10
for epoch in range(start(network, optimizer, source), 3):
    loss = cross_entropy(network(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
    torch.save(state, CHECKPOINT)
    print(f"epoch {epoch}: loss {loss:.2f}")
