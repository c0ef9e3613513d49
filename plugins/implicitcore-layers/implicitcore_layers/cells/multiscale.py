"""The cell of multiscale equilibrium models, and its presets."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from implicitcore.extend import Count, Shape, Tolerance, Whole
from implicitcore_layers.cells.base import Preset
from implicitcore_layers.cells.multiscale_head import Head, Stem
from implicitcore_layers.cells.multiscale_parts import (
    Block,
    Exchange,
    Fuse,
    Predict,
    Setting,
)
from implicitcore_layers.cells.norms import Norm


class MultiscaleCell(Preset):
    """f(z, x) at several resolutions: a residual block at each, exchange between all, a fusion.

    z is a tuple of images, each half as fine as the one before. The block of z_i is b_i =
    norm(relu(norm(drop(conv(relu(norm(conv(z_i))))) + x) + z_i)), with x at the finest alone; then
    z_i becomes norm(conv(relu(sum_j e_ij(b_j)))), where e_ii is the identity, e_ij from a finer j
    is a chain of convolutions with stride 2, and from a coarser j one convolution and nearest
    neighbours, both with norm and relu.

    Arguments:
        channels: of each resolution, the finest first, which are those of x too.
        expansion: channels inside a block, relative to those outside.
        norm: ``"group"``, or ``"batch"``, which needs a layer with ``coupled=True``.
        groups: of GroupNorm.
        dropout: the probability that an entry is dropped, with one mask a solve.
        weight_norm: the weights of blocks and fusions are normalised, once a solve.
        heads: for each resolution a quarter of the channels that the head begins with; None: of
            those of the resolution.
        features: of the head, between its convolution and its linear layer.
        classes: how many logits the head gives.
        halvings: how often the stem halves the resolution of the inputs.

    Reference:
        Bai, Koltun, Kolter, Multiscale Deep Equilibrium Models, arXiv 2006.08656.
    """

    def __init__(  # noqa: PLR0913 - keyword options
        self,
        *,
        channels: tuple[Count, ...],
        expansion: Count = 5,
        norm: Norm = "group",
        groups: Count = 8,
        dropout: Tolerance = 0.0,
        weight_norm: bool = False,
        heads: tuple[Count, ...] | None = None,
        features: Count = 200,
        classes: Count = 10,
        halvings: Whole = 0,
    ) -> None:
        super().__init__()
        self.channels, self.expansion = tuple(channels), expansion
        self.norm: Norm = norm
        self.groups, self.dropout = groups, dropout
        self.weight_norm = weight_norm
        self.heads = tuple(heads or (max(count // 4, 1) for count in self.channels))
        self.features, self.classes, self.halvings = features, classes, halvings
        setting = Setting(norm, groups, dropout, weight_norm)
        self.blocks = nn.ModuleList(Block(count, expansion, setting) for count in self.channels)
        self.exchange = Exchange(self.channels, setting)
        self.fuse = nn.ModuleList(Fuse(count, setting) for count in self.channels)

    def forward(self, z: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
        """f(z, x), a tuple as z; x is ``[batch, channels[0], height, width]``, as z[0]."""
        inputs = (x, *(None for _ in self.channels[1:]))
        inner = [block(*pair) for block, *pair in zip(self.blocks, z, inputs, strict=True)]
        mixed = self.exchange(inner)
        return tuple(fuse(part) for fuse, part in zip(self.fuse, mixed, strict=True))

    def example_shapes(self) -> tuple[Shape, Shape]:
        """Images, of two pixels or more at the coarsest resolution."""
        size = 2 ** len(self.channels)
        sizes = [(size >> i, size >> i) for i in range(len(self.channels))]
        z = tuple((count, *pair) for count, pair in zip(self.channels, sizes, strict=True))
        return z, z[0]

    def stem(self) -> nn.Module:
        """Convolutions with BatchNorm and relu: two, more where the resolution is halved more."""
        return Stem(self.channels, self.halvings)

    def predictor(self) -> nn.Module:
        """A block at the finest resolution and its way to the others: the z0 of a Skip DEQ."""
        return Predict(self.channels, Setting(self.norm, self.groups, 0.0, self.weight_norm))

    def head(self) -> nn.Module:
        """A bottleneck at each resolution, summed towards the coarsest, then features, linear."""
        return Head(self.channels, self.heads, self.features, self.classes)


@final
class MultiscaleTiny(MultiscaleCell):
    """The small model of CIFAR-10: two resolutions of 24 channels, 163,546 parameters.

    These are with its stem and head; 200,122 with its predictor.

    Arguments:
        norm: ``"group"``, or ``"batch"`` as the paper has it, which needs a layer with
            ``coupled=True``.
        dropout: the probability that an entry is dropped, with one mask a solve.

    Reference:
        Pal, Edelman, Rackauckas, Continuous Deep Equilibrium Models, arXiv 2201.12240, section 4.2.
    """

    def __init__(self, *, norm: Norm = "group", dropout: Tolerance = 0.25) -> None:
        super().__init__(channels=(24, 24), norm=norm, dropout=dropout, heads=(8, 16))


@final
class MultiscaleLarge(MultiscaleCell):
    """The large model of CIFAR-10: four resolutions, 10,631,958 parameters.

    These are with its stem and head; 11,186,774 with its predictor.

    Arguments:
        norm: ``"group"``, or ``"batch"`` as the paper has it, which needs a layer with
            ``coupled=True``.
        dropout: the probability that an entry is dropped, with one mask a solve.

    Reference:
        Pal, Edelman, Rackauckas, Continuous Deep Equilibrium Models, arXiv 2201.12240, section 4.2.
    """

    def __init__(self, *, norm: Norm = "group", dropout: Tolerance = 0.3) -> None:
        super().__init__(
            channels=(32, 64, 128, 256),
            expansion=4,
            norm=norm,
            dropout=dropout,
            weight_norm=True,
            heads=(14, 28, 56, 112),
            features=1680,
        )


@final
class MultiscaleImageNet(MultiscaleCell):
    """The model of ImageNet, 224 x 224: four resolutions, 17,912,456 parameters.

    These are with its stem and head; 18,467,272 with its predictor.

    Arguments:
        norm: ``"group"``, or ``"batch"`` as the paper has it, which needs a layer with
            ``coupled=True``.
        dropout: the probability that an entry is dropped, with one mask a solve.

    Reference:
        Pal, Edelman, Rackauckas, Continuous Deep Equilibrium Models, arXiv 2201.12240, section 4.3.
    """

    def __init__(self, *, norm: Norm = "group", dropout: Tolerance = 0.0) -> None:
        super().__init__(
            channels=(32, 64, 128, 256),
            norm=norm,
            dropout=dropout,
            weight_norm=True,
            heads=(24, 48, 96, 192),
            features=2048,
            classes=1000,
            halvings=2,
        )
