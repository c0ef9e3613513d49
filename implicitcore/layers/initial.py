"""Initial guesses: where the z0 of a solve comes from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from implicitcore.errors import InputError, show
from implicitcore.options.option import Option
from implicitcore.options.options import PartMeta, options_of
from implicitcore.options.types import Count


class InitialGuess(nn.Module, metaclass=PartMeta):
    """The abstract initial guess: z0 for an input x.

    Attributes:
        detached: the solve starts from z0 without its graph, so that parameters of z0 are trained
            by the layer's regularizer alone.
        evaluations: the evaluations of f that z0 costs; the solution counts them.
    """

    detached: ClassVar[bool] = False
    evaluations: ClassVar[int] = 0

    @classmethod
    def checked_options(cls) -> Mapping[str, Option]:
        """All of them, where one of them cannot be used."""
        return options_of(cls)

    @abstractmethod
    def forward(self, x: Any) -> Any:
        """z0: any pytree of tensors ``[batch, ...]``."""


@final
class Zeros(InitialGuess):
    """z0 = 0.

    Arguments:
        shape: of the state of one sample; None: the shape of x, which is then one tensor.
    """

    def __init__(self, shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.shape = None if shape is None else tuple(shape)

    def forward(self, x: Any) -> Tensor:
        """Zeros ``[batch, *shape]`` of x's dtype and device."""
        like = first_tensor(x, self.shape)
        shape = like.shape[1:] if self.shape is None else self.shape
        return like.new_zeros(like.shape[0], *shape)


@final
class Identity(InitialGuess):
    """z0 = x, as in a Neural ODE, whose flow maps the input to the output."""

    def forward(self, x: Any) -> Any:
        """x, unchanged."""
        return x


@final
class Predictor(InitialGuess):
    """z0 = predictor(x), trained by the regularizer alone (Skip DEQ).

    Arguments:
        predictor: a module or function of x that returns a state.
    """

    detached: ClassVar[bool] = True

    def __init__(self, predictor: Callable[[Any], Any]) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, x: Any) -> Any:
        """predictor(x), a state."""
        return self.predictor(x)


@final
class OneStep(InitialGuess):
    """z0 = f(0, x): one fixed-point step from zero (Skip Reg DEQ).

    Arguments:
        update: f, as the bound method ``update`` of the layer's dynamics. A module here would
            appear twice in the layer's state_dict.
        shape: of the state of one sample; None: the shape of x.
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
        """f(0, x), at the cost of one evaluation."""
        return self.update(self.zeros(x), x)


@final
class LearnedInitialGuess(InitialGuess):
    """z0 is one learned value per channel, the same for all samples and positions (HomoODE).

    The values are a parameter, so part of the state_dict.

    Arguments:
        channels: the size of the first dimension of the state after the batch.
        shape: of the state of one sample, ``(channels, ...)``; None: the shape of x.
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
        """``[batch, channels, ...]``: each channel filled with its value.

        Raises:
            InputError: the state has another number of channels.
        """
        like = first_tensor(x, self.shape)
        shape = tuple(like.shape[1:]) if self.shape is None else self.shape
        channels = self.channels
        if not shape or shape[0] != channels:
            raise InputError(
                f"the learned initial guess has {channels} channels, but the state of one sample "
                f"has shape {list(shape)}"
            )
        value = self.value.reshape(channels, *(1,) * (len(shape) - 1)).to(like.dtype)
        return value.expand(like.shape[0], *shape)


def first_tensor(x: Any, shape: tuple[int, ...] | None) -> Tensor:
    """The tensor of x that has the batch size, dtype and device of the state.

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
        kinds = ", ".join(
            f"{leaf.dtype} {list(leaf.shape)}" if isinstance(leaf, Tensor) else show(leaf)
            for leaf in pytree.tree_leaves(x)[:3]
        )
        raise InputError(
            f"cannot tell the shape of the state from an x with {len(leaves)} "
            f"floating-point tensors; give shape= or z0 (x holds {kinds or 'nothing'}; numbers and "
            "arrays become tensors by torch.as_tensor(...), integers by x.float())"
        )
    return leaves[0]
