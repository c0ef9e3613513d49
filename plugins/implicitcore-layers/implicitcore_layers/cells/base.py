"""The base of cells."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

from torch import nn

from implicitcore import ConfigError
from implicitcore.extend import Options, options_of


class CellMeta(type(Options)):
    """The class of the classes of cells: the options of a new cell are checked."""

    def __call__(cls, *args: Any, **options: Any) -> Any:
        known = options_of(cls)
        given = {**dict(zip(known, args, strict=False)), **options}
        checked = [known[name].read(value)[1] for name, value in given.items() if name in known]
        problems = list(chain(*checked))
        if problems:
            raise ConfigError(problems)
        return super().__call__(*args, **options)

    def checked_options(cls) -> Mapping[str, Any]:
        """All of them."""
        return options_of(cls)


class Cell(nn.Module, metaclass=CellMeta):
    """f(z, x), a module with weights of its own: the base of every part of the kind ``cell``.

    A subclass keeps every option of its ``__init__`` as an attribute of the same name.
    """

    kind: ClassVar[str] = "cell"

    @abstractmethod
    def forward(self, z: Any, x: Any) -> Any:
        """f(z, x), shaped like z."""


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
