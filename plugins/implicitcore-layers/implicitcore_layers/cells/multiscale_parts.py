"""What a multiscale cell is made of: blocks, the exchange between resolutions, fusions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils.parametrizations import weight_norm

from implicitcore import VariationalDropout
from implicitcore_layers.cells.norms import Norm, make_norm

PREDICTOR_EXPANSION = 3


class Setting(NamedTuple):
    """What all parts of a cell have in common; see :class:`MultiscaleCell`."""

    norm: Norm
    groups: int
    dropout: float
    weight_norm: bool

    def make_norm(self, channels: int) -> nn.Module:
        """The normalisation."""
        return make_norm(self.norm, channels, self.groups)

    def conv(self, inputs: int, outputs: int, kernel: int) -> nn.Module:
        """A convolution without a bias, its weight normalised where the setting says so."""
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        return weight_norm(conv) if self.weight_norm else conv


class Block(nn.Module):
    """norm(relu(norm(drop(conv(relu(norm(conv(z))))) + x) + z)) at one resolution."""

    def __init__(self, channels: int, expansion: int, setting: Setting) -> None:
        super().__init__()
        inner = expansion * channels
        self.conv1 = setting.conv(channels, inner, 3)
        self.norm1 = setting.make_norm(inner)
        self.conv2 = setting.conv(inner, channels, 3)
        self.drop = VariationalDropout(setting.dropout)
        self.norm2 = setting.make_norm(channels)
        self.norm3 = setting.make_norm(channels)

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """``[batch, channels, height, width]``, as z and x."""
        inner = self.drop(self.conv2(self.norm1(self.conv1(z)).relu()))
        inner = inner if x is None else inner + x
        return self.norm3((self.norm2(inner) + z).relu())


class Down(nn.Sequential):
    """To a coarser resolution: convolutions with stride 2, norm and relu, one for each halving.

    The channels double at each where that leads to those wanted, and else change at the last.
    """

    def __init__(self, inputs: int, outputs: int, halvings: int, setting: Setting) -> None:
        doubles = inputs * 2**halvings == outputs
        counts = [inputs * 2**i if doubles else inputs for i in range(halvings)] + [outputs]
        layers: list[nn.Module] = []
        for before, after in pairwise(counts):
            conv = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            layers += [conv, setting.make_norm(after), nn.ReLU()]
        super().__init__(*layers)


class Exchange(nn.Module):
    """The sum, at each resolution, of all of them: brought there by the way from each."""

    def __init__(self, channels: Sequence[int], setting: Setting) -> None:
        super().__init__()
        self.ways = nn.ModuleDict()
        for i, outputs in enumerate(channels):
            for j, inputs in enumerate(channels):
                if j < i:
                    self.ways[f"{j}to{i}"] = Down(inputs, outputs, i - j, setting)
                elif j > i:
                    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
                    self.ways[f"{j}to{i}"] = nn.Sequential(
                        conv, setting.make_norm(outputs), nn.ReLU()
                    )

    def forward(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """A list as ``parts``, the images of each resolution."""
        return [self._at(i, parts) for i in range(len(parts))]

    def _at(self, i: int, parts: Sequence[Tensor]) -> Tensor:
        total = parts[i]
        for j, part in enumerate(parts):
            if j != i:
                brought = self.ways[f"{j}to{i}"](part)
                total = total + (brought if j < i else _as_fine_as(brought, total))
        return total


class Fuse(nn.Module):
    """norm(conv(relu(z))), a 1 x 1 convolution."""

    def __init__(self, channels: int, setting: Setting) -> None:
        super().__init__()
        self.conv = setting.conv(channels, channels, 1)
        self.norm = setting.make_norm(channels)

    def forward(self, z: Tensor) -> Tensor:
        """``[batch, channels, height, width]``, as z."""
        return self.norm(self.conv(z.relu()))


class Predict(nn.Module):
    """x at the finest resolution to a state at each: a block, then the way to the others."""

    def __init__(self, channels: Sequence[int], setting: Setting) -> None:
        super().__init__()
        first, *others = channels
        self.block = Block(first, PREDICTOR_EXPANSION, setting)
        self.ways = nn.ModuleList(
            Down(first, outputs, halvings, setting) for halvings, outputs in enumerate(others, 1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """A tuple of ``[batch, channels, height, width]``, the finest first."""
        finest = self.block(x)
        return (finest, *(way(finest) for way in self.ways))


def _as_fine_as(image: Tensor, like: Tensor) -> Tensor:
    """The nearest neighbours of an image at a finer resolution that its own may not divide."""
    height, width = like.shape[-2:]
    factor = -(-height // image.shape[-2])
    factor = max(factor, -(-width // image.shape[-1]))
    factor = 1 << (factor - 1).bit_length()  # the resolutions are a power of 2 apart
    return interpolate(image, scale_factor=factor)[..., :height, :width]
