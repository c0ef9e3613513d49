"""The networks of the papers around a layer: models of the lab."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from typing import Any, final

from torch import Tensor, nn

from implicitcore import ConfigError, UnknownPartError, create
from implicitcore.extend import REGISTRY, Whole, options_of
from implicitcore_lab.models import ModelBuilder, Parts
from implicitcore_layers import HomoODEField, Preset

COLOURS = 3


@final
@dataclass(frozen=True, kw_only=True)
class PresetModel(ModelBuilder):
    """A cell of a paper with the stem, the head and the predictor that the paper has around it.

    Attributes:
        cell: a registered cell with a stem and a head, or a mapping with its ``name`` and options.
            Its options ``features`` or ``channels``, ``inputs`` and ``classes`` follow the
            training, where it has them and they are not given.
        grey: give a stem that takes three channels the one of grey images three times.
    """

    cell: str | dict[str, Any] = "paper-mlp"
    grey: bool = False

    def build(self, hidden: int, shape: tuple[int, ...], classes: int) -> Parts:
        """Make the modules.

        Raises:
            ConfigError: the cell has no stem and head.
        """
        given = {"name": self.cell} if isinstance(self.cell, str) else dict(self.cell)
        follow = {"features": hidden, "inputs": prod(shape), "classes": classes}
        known = _options(given.get("name"))
        follow = {name: value for name, value in follow.items() if name in known}
        cell = create("cell", {**follow, **given}, path="model.cell")
        if not isinstance(cell, Preset):
            raise ConfigError([f"model.cell: {given['name']} has no stem and no head of its own"])
        predictor = getattr(cell, "predictor", nn.Identity)()
        stem = nn.Sequential(Coloured(), cell.stem()) if self.grey else cell.stem()
        return stem, cell, cell.head(), predictor


class Coloured(nn.Module):
    """Grey images as three equal channels."""

    def forward(self, images: Tensor) -> Tensor:
        """``[batch, 3, height, width]`` of ``[batch, 1, height, width]``."""
        return images.expand(-1, COLOURS, -1, -1)


def _options(name: Any) -> Collection[str]:
    """The options of a registered cell; none of one that is not, which ``create`` tells."""
    try:
        return options_of(REGISTRY.find("cell", name).load())
    except UnknownPartError:
        return ()


@final
@dataclass(frozen=True, kw_only=True)
class HomoODEModel(ModelBuilder):
    """HomoODE's stem, field and head for images of any number of channels.

    Attributes:
        extra: channels that the layer adds to those of x (an augmented Neural ODE).
        inject: the field takes the features c at each time; without, it is F(z; 0), as a Neural
            ODE has it, which begins at c.
        features: of the head, between its convolution and its linear layer.
    """

    extra: Whole = 0
    inject: bool = True
    features: Whole = 64

    def build(self, hidden: int, shape: tuple[int, ...], classes: int) -> Parts:
        """Make the modules; the state is ``[batch, hidden, height / 2, width / 2]``."""
        channels = hidden + self.extra
        cell = HomoODEField(channels, classes=classes, groups=channels, features=self.features)
        stem = nn.Sequential(*_conv(shape[0], hidden, 1), *_conv(hidden, hidden, 2))
        field = cell if self.inject else Closed(cell)
        return stem, field, cell.head(), nn.Identity()


class Closed(nn.Module):
    """F(z; 0): a field that its input gives nothing but a start.

    Arguments:
        field: F.
    """

    def __init__(self, field: HomoODEField) -> None:
        super().__init__()
        self.field = field

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """F(z; 0), ``[batch, channels, height, width]``, as z."""
        del c
        return self.field(z, z.new_zeros(()))


def _conv(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU()
