"""The base of cells."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from implicitcore.extend import CheckedMeta, Shape


class Cell(nn.Module, metaclass=CheckedMeta):
    """f(z, x), a module with weights of its own: the base of every part of the kind ``cell``.

    A subclass keeps every option of its ``__init__`` as an attribute of the same name.
    """

    kind: ClassVar[str] = "cell"

    @abstractmethod
    def forward(self, z: Any, x: Any) -> Any:
        """f(z, x), shaped like z."""

    def example_shapes(self) -> tuple[Shape, Shape]:
        """The shapes of one sample of z and of x, as small as may be: the checks draw such."""
        return (6,), (6,)


class Preset(Cell):
    """A cell of a paper, with what the paper has around it.

    ``torch.nn.Sequential(cell.stem(), layer, cell.head())`` is the paper's network.
    """

    @abstractmethod
    def stem(self) -> nn.Module:
        """A new module from the inputs to the x of the cell."""

    @abstractmethod
    def head(self) -> nn.Module:
        """A new module from the layer's output to logits ``[batch, classes]``."""


@dataclass(frozen=True)
class Certificate:
    """What a cell guarantees at its present weights, for every x.

    Attributes:
        unique: the equilibrium z = f(z, x) exists and is the only one.
        rate: a bound on the rate of the plain iteration z <- f(z, x): each step takes the 2-norm of
            the distance to the equilibrium to this share of itself, or less.
    """

    unique: bool
    rate: float
