"""What stands before and after a multiscale cell."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from implicitcore_layers.cells.norms import ConvNorm

RGB = 3
QUARTERS = 4


class Stem(nn.Sequential):
    """Images to x at the finest resolution: convolutions with BatchNorm and relu.

    Arguments:
        channels: of each resolution of the cell.
        halvings: how often the resolution is halved; there are at least two convolutions.
    """

    def __init__(self, channels: Sequence[int], halvings: int) -> None:
        width = channels[0]
        layers = [
            ConvNorm(RGB if i == 0 else width, width, 3, stride=2 if i < halvings else 1)
            for i in range(max(halvings, 2))
        ]
        if halvings or len(channels) > 2:
            layers.append(ConvNorm(width, width, 1))
        super().__init__(*layers)


class Bottleneck(nn.Module):
    """relu(f(z) + g(z)): f by a quarter of the channels, g a 1 x 1 convolution where needed."""

    def __init__(self, channels: int, quarter: int) -> None:
        super().__init__()
        outputs = QUARTERS * quarter
        self.inner = nn.Sequential(
            ConvNorm(channels, quarter, 1),
            ConvNorm(quarter, quarter, 3),
            ConvNorm(quarter, outputs, 1, relu=False),
        )
        same = channels == outputs
        self.outer = nn.Identity() if same else ConvNorm(channels, outputs, 1, relu=False)

    def forward(self, z: Tensor) -> Tensor:
        """``[batch, channels, height, width]`` to ``[batch, 4 quarter, height, width]``."""
        return (self.inner(z) + self.outer(z)).relu()


class Head(nn.Module):
    """A state at several resolutions to logits.

    A bottleneck at each resolution; from the finest to the coarsest each is brought to the next by
    a convolution with stride 2 and added to it; features, their mean over the image, and a linear
    layer.

    Arguments:
        channels: of each resolution, the finest first.
        quarters: of the channels of each bottleneck.
        features: before the linear layer.
        classes: how many logits.
    """

    def __init__(
        self, channels: Sequence[int], quarters: Sequence[int], features: int, classes: int
    ) -> None:
        super().__init__()
        pairs = zip(channels, quarters, strict=True)
        self.bottlenecks = nn.ModuleList(Bottleneck(*pair) for pair in pairs)
        self.downs = nn.ModuleList(
            ConvNorm(QUARTERS * fine, QUARTERS * coarse, 3, stride=2, bias=True)
            for fine, coarse in pairwise(quarters)
        )
        self.last = nn.Sequential(
            ConvNorm(QUARTERS * quarters[-1], features, 1, bias=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(features, classes),
        )

    def forward(self, z: Sequence[Tensor]) -> Tensor:
        """``[batch, classes]``."""
        first, *others = [each(part) for each, part in zip(self.bottlenecks, z, strict=True)]
        for down, part in zip(self.downs, others, strict=True):
            first = down(first) + part
        return self.last(first)
