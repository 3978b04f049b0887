"""Networks as functions: weights that hide no error, and the distance of two networks."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def randomized(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give a network random parameters and statistics, in eval mode, so that each shows in the output.

    With their usual first values, layer scales, norms and attention logits hide what goes wrong before them.
    """
    torch.manual_seed(seed)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if isinstance(tensor, nn.Parameter) and tensor.dim() > 1 and len(tensor) > 1:
            tensor.normal_(std=(len(tensor) / tensor.numel()) ** 0.5)
        elif isinstance(tensor, nn.Parameter) and (tensor.dim() > 1 or "bias" in name):
            tensor.normal_(std=0.5)
        elif isinstance(tensor, nn.Parameter) or name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            tensor.normal_(std=0.5)
    return network.eval()


@torch.no_grad()
def zeroed(network: nn.Module) -> nn.Module:
    """Set all parameters to zero, in eval mode, so that a wider network has nothing but what it receives."""
    for parameter in network.parameters():
        parameter.zero_()
    return network.eval()


def on_meta(make, *arguments, **options) -> nn.Module:
    """Call `make` on the meta device, without memory for weights."""
    with torch.device("meta"):
        return make(*arguments, **options)


@torch.no_grad()
def output(network: nn.Module, *inputs: Tensor) -> Tensor:
    """The output of a network, or its logits."""
    found = network(*inputs)
    return getattr(found, "logits", found)


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((one - other).abs().max() / other.abs().max())


def differ(source: nn.Module, target: nn.Module, *inputs: Tensor) -> float:
    """The distance of the outputs of two networks."""
    return distance(output(target, *inputs), output(source, *inputs))
