"""The normalisations that cells of images choose between."""

from __future__ import annotations

from math import gcd
from typing import Literal

from torch import nn

Norm = Literal["group", "batch"]
"""``"group"`` keeps samples apart; ``"batch"`` makes them one system: ``coupled=True``."""


def make_norm(norm: Norm, channels: int, groups: int) -> nn.Module:
    """A normalisation of ``[batch, channels, height, width]`` for use inside f.

    BatchNorm keeps no running statistics: f must be one function for the whole solve.

    Arguments:
        norm: which.
        channels: of the tensor.
        groups: of GroupNorm; where they do not divide the channels, the largest number that divides
            both.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels, track_running_stats=False)
    return nn.GroupNorm(gcd(groups, channels), channels)


class ConvNorm(nn.Sequential):
    """Convolution and BatchNorm with running statistics, for use outside a solve.

    Arguments:
        inputs: channels.
        outputs: channels.
        kernel: the size of the kernel, an odd number.
        stride: of the convolution.
        bias: the convolution has one.
        relu: what follows is a relu.
    """

    def __init__(  # noqa: PLR0913 - keyword options
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        bias: bool = False,
        relu: bool = True,
    ) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias)
        super().__init__(conv, nn.BatchNorm2d(outputs), *([nn.ReLU()] if relu else []))
