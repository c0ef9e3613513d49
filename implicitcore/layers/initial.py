"""Where z0 comes from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from implicitcore.errors import InputError
from implicitcore.options.option import Option
from implicitcore.options.options import PartMeta, options_of
from implicitcore.options.types import Count


class InitialGuess(nn.Module, metaclass=PartMeta):
    """Gives z0 for an input x.

    Attributes:
        detached: the solve begins from z0 without its graph, so that z0 learns from the layer's
            regulariser alone.
        evaluations: of f that it spends; they count in the solution.
    """

    detached: ClassVar[bool] = False
    evaluations: ClassVar[int] = 0

    @classmethod
    def checked_options(cls) -> Mapping[str, Option]:
        """All of them, where one of them cannot be used."""
        return options_of(cls)

    @abstractmethod
    def forward(self, x: Any) -> Any:
        """z0, any pytree of tensors ``[batch, ...]``."""


@final
class Zeros(InitialGuess):
    """z0 = 0.

    Arguments:
        shape: of one sample's state; None is that of x, where x is one tensor.
    """

    def __init__(self, shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.shape = None if shape is None else tuple(shape)

    def forward(self, x: Any) -> Tensor:
        """Zeros ``[batch, *shape]`` of x's dtype and device."""
        like = first_tensor(x, self.shape)
        return like.new_zeros(
            like.shape[0], *(like.shape[1:] if self.shape is None else self.shape)
        )


@final
class Identity(InitialGuess):
    """z0 = x: the flow of a Neural ODE carries the input itself."""

    def forward(self, x: Any) -> Any:
        """X itself."""
        return x


@final
class Predictor(InitialGuess):
    """z0 = predictor(x), which learns from the regulariser alone (Skip DEQ).

    Arguments:
        predictor: a module of x.
    """

    detached: ClassVar[bool] = True

    def __init__(self, predictor: Callable[[Any], Any]) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, x: Any) -> Any:
        """predictor(x)."""
        return self.predictor(x)


@final
class OneStep(InitialGuess):
    """z0 = f(0, x): the cell predicts for itself (Skip Reg DEQ).

    Arguments:
        update: f, as the method of the layer's dynamics: as a module it would stand twice in the
            state_dict.
        shape: of one sample's state; None is that of x.
    """

    evaluations: ClassVar[int] = 1

    def __init__(
        self, update: Callable[[Any, Any], Any], shape: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        self.update = update
        self.zeros = Zeros(shape)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of one sample's state; None is that of x."""
        return self.zeros.shape

    @shape.setter
    def shape(self, shape: tuple[int, ...] | None) -> None:
        self.zeros.shape = shape

    def forward(self, x: Any) -> Any:
        """f(0, x): one evaluation."""
        return self.update(self.zeros(x), x)


@final
class LearnedInitialGuess(InitialGuess):
    """One learned value per channel, shared by all samples and positions (HomoODE).

    It is part of the state_dict.

    Arguments:
        channels: of the state, its first dimension after the batch.
        shape: of one sample's state, ``(channels, ...)``; None is that of x.
    """

    detached: ClassVar[bool] = True

    def __init__(self, channels: Count, shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.shape = None if shape is None else tuple(shape)
        self.value = nn.Parameter(torch.zeros(channels))

    @property
    def channels(self) -> int:
        """How many values there are."""
        return len(self.value)

    def forward(self, x: Any) -> Tensor:
        """``[batch, channels, ...]``: the value of each channel everywhere.

        Raises:
            InputError: the state has another number of channels.
        """
        like = first_tensor(x, self.shape)
        shape = tuple(like.shape[1:]) if self.shape is None else self.shape
        channels = self.channels
        if not shape or shape[0] != channels:
            raise InputError(
                f"the learned start has {channels} channels, but the state of one sample "
                f"has shape {list(shape)}"
            )
        value = self.value.reshape(channels, *(1,) * (len(shape) - 1)).to(like.dtype)
        return value.expand(like.shape[0], *shape)


def first_tensor(x: Any, shape: tuple[int, ...] | None) -> Tensor:
    """The tensor of x that tells the batch size, dtype and device of the state.

    And its shape, where ``shape`` is None.

    Raises:
        InputError: x holds no floating-point tensor, or several and no ``shape`` is given.
    """
    if isinstance(x, Tensor) and x.ndim and x.is_floating_point():
        return x
    leaves = [
        leaf
        for leaf in pytree.tree_leaves(x)
        if isinstance(leaf, Tensor) and leaf.ndim and leaf.is_floating_point()
    ]
    if not leaves or (shape is None and len(leaves) > 1):
        raise InputError(
            f"cannot tell the shape of the state from an x with {len(leaves)} "
            "floating-point tensors; give shape= or z0"
        )
    return leaves[0]
