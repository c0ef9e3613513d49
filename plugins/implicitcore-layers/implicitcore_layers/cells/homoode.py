"""The vector field of HomoODE, and its presets."""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor, nn

from implicitcore import VariationalDropout
from implicitcore.extend import Count, Shape, Tolerance
from implicitcore_layers.cells.base import Preset
from implicitcore_layers.cells.norms import ConvNorm, Norm, make_norm

RGB = 3


class HomoODEField(Preset):
    """F(z; c) = norm(drop(conv(relu(norm(conv(z))) + c))), 3 x 3 convolutions with a bias.

    At z = 0 the first norm has nothing to divide by: a solve begins elsewhere, at -1 and 1 in turn
    by default.

    Arguments:
        channels: of z and c, ``[batch, channels, height, width]``.
        classes: how many logits the head gives.
        norm: ``"group"``, or ``"batch"``, which needs a layer with ``coupled=True``.
        groups: of GroupNorm.
        dropout: the probability that an entry is dropped, with one mask a solve.
        features: of the head, between its convolution and its linear layer.

    Reference:
        Ding, Cui, Wang, Shi, Two Sides of The Same Coin: Bridging Deep Equilibrium Models and
        Neural ODEs via Homotopy Continuation, arXiv 2310.09583.
    """

    strides: ClassVar[tuple[int, int]] = (1, 2)
    """Of the two convolutions of the stem."""

    def __init__(  # noqa: PLR0913 - keyword options
        self,
        channels: Count,
        *,
        classes: Count = 10,
        norm: Norm = "group",
        groups: Count = 32,
        dropout: Tolerance = 0.0,
        features: Count = 256,
    ) -> None:
        super().__init__()
        self.channels, self.classes, self.features = channels, classes, features
        self.norm, self.groups, self.dropout = norm, groups, dropout
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = make_norm(norm, channels, groups)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.drop = VariationalDropout(dropout)
        self.norm2 = make_norm(norm, channels, groups)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """F(z; c) with c the input x, ``[batch, channels, height, width]``, as z."""
        inner = self.norm1(self.conv1(z)).relu() + x
        return self.norm2(self.drop(self.conv2(inner)))

    def example_shapes(self) -> tuple[Shape, Shape]:
        """Images."""
        shape = (self.channels, 4, 5)
        return shape, shape

    def stem(self) -> nn.Module:
        """Two convolutions with BatchNorm and relu, of which the second halves the resolution."""
        first, second = self.strides
        return nn.Sequential(
            ConvNorm(RGB, self.channels, 3, stride=first, bias=True),
            ConvNorm(self.channels, self.channels, 3, stride=second, bias=True),
        )

    def head(self) -> nn.Module:
        """Norm, relu, 1 x 1 convolution with BatchNorm and relu, mean over the image, linear."""
        return nn.Sequential(
            make_norm("group", self.channels, self.groups),
            nn.ReLU(),
            ConvNorm(self.channels, self.features, 1, bias=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(self.features, self.classes),
        )


@final
class HomoODECifar10(HomoODEField):
    """HomoODE's field for CIFAR-10: with its stem and head 132,938 parameters, beside the start.

    Arguments:
        norm: ``"group"``, or ``"batch"``, which needs a layer with ``coupled=True``.
        dropout: the probability that an entry is dropped, with one mask a solve.
    """

    def __init__(self, *, norm: Norm = "group", dropout: Tolerance = 0.1) -> None:
        super().__init__(64, norm=norm, dropout=dropout)


@final
class HomoODECifar100(HomoODEField):
    """HomoODE's field for CIFAR-100: with its stem and head 565,988 parameters, beside the start.

    Arguments:
        norm: ``"group"``, or ``"batch"``, which needs a layer with ``coupled=True``.
        dropout: the probability that an entry is dropped, with one mask a solve.
    """

    def __init__(self, *, norm: Norm = "group", dropout: Tolerance = 0.15) -> None:
        super().__init__(128, classes=100, norm=norm, dropout=dropout, features=512)


@final
class HomoODETinyImageNet(HomoODEField):
    """HomoODE's field for Tiny ImageNet, 64 x 64: with its stem and head 617,288 parameters.

    The start's are beside these. Both convolutions of the stem halve the resolution.

    Arguments:
        norm: ``"group"``, or ``"batch"``, which needs a layer with ``coupled=True``.
        dropout: the probability that an entry is dropped, with one mask a solve.
    """

    strides: ClassVar[tuple[int, int]] = (2, 2)

    def __init__(self, *, norm: Norm = "group", dropout: Tolerance = 0.15) -> None:
        super().__init__(128, classes=200, norm=norm, dropout=dropout, features=512)
