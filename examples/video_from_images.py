"""A network for videos from a network for pictures.

A kernel of a picture is repeated along the time and divided, so that a video that stands still gives the response that
the picture gave. Sources of photographs are many, and videos are costly to learn from.
"""

from torch import nn

from dpiat import transfer


def network(convolution: type[nn.Module], norm: type[nn.Module], pool: type[nn.Module]) -> nn.Module:
    def unit(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(convolution(inputs, outputs, 3, padding=1), norm(outputs), nn.ReLU())

    return nn.Sequential(unit(3, 16), unit(16, 32), unit(32, 32), pool(1), nn.Flatten(), nn.Linear(32, 10)).eval()


pictures = network(nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d)
videos = network(nn.Conv3d, nn.BatchNorm3d, nn.AdaptiveAvgPool3d)
print(transfer(pictures, videos).summary())
