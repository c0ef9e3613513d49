"""The learned initial guess of HomoODE."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from implicitcore.errors import ConfigError, InputError
from implicitcore.layers.initial import InitialGuess
from implicitcore.layers.shapes import first_tensor, map_shape
from implicitcore.options.types import Count, Shape, read_shape

Init = Literal["signs", "normal"] | float | tuple[float, ...]
"""What the learned values begin at."""


@final
class LearnedInitialGuess(InitialGuess):
    """z0 is one learned value per channel, the same for all samples and positions (HomoODE).

    The values are a parameter, so part of the state_dict. They begin at -1 and 1 in turn: where
    they begin at zero, a field that opens with a normalisation is singular there, and the solve
    takes several times the evaluations.

    Arguments:
        channels: the size of the first dimension of the state after the batch; for a state of
            several tensors one number for each.
        shape: of the state of one sample, ``(channels, ...)``, or for a state of several tensors a
            tuple or dict of such shapes; None: the shape of x.
        init: what the values begin at: ``"signs"`` is -1 and 1 in turn, ``"normal"`` draws them
            from a standard normal distribution; or a constant, or the values themselves.

    Raises:
        ConfigError: ``init`` has another number of values than there are channels.
    """

    detached: ClassVar[bool] = True

    def __init__(
        self,
        channels: Count | tuple[Count, ...],
        shape: Shape | None = None,
        init: Init = "signs",
    ) -> None:
        super().__init__()
        self.shape = None if shape is None else read_shape(shape)
        self._channels = channels if isinstance(channels, int) else tuple(channels)
        self._init = init
        self.value = nn.Parameter(_first(init, self._sizes))

    @property
    def channels(self) -> int | tuple[int, ...]:
        """How many values there are, for each tensor of the state."""
        return self._channels

    @property
    def init(self) -> Any:
        """What the values began at."""
        return self._init

    @property
    def _sizes(self) -> tuple[int, ...]:
        return (self._channels,) if isinstance(self._channels, int) else self._channels

    def forward(self, x: Any) -> Any:
        """``[batch, channels, ...]``: each channel filled with its value.

        Raises:
            InputError: the state has another number of channels.
        """
        like = first_tensor(x, self.shape)
        shape = tuple(like.shape[1:]) if self.shape is None else self.shape
        values = list(self.value.to(like.dtype).split(self._sizes))
        values.reverse()  # the next one is the last

        def fill(sizes: tuple[int, ...]) -> Tensor:
            if not values or sizes[:1] != values[-1].shape:
                raise InputError(
                    f"the learned initial guess has {self._told} channels, but the state of one "
                    f"sample has shape {_told(shape)}"
                )
            value = values.pop()
            return value.reshape(-1, *(1,) * (len(sizes) - 1)).expand(len(like), *sizes)

        filled = map_shape(fill, shape)
        if values:
            raise InputError(
                f"the learned initial guess has {self._told} channels, for a state of "
                f"{len(self._sizes)} tensors, but the state of one sample has shape {_told(shape)}"
            )
        return filled

    def example_shape(self) -> Shape:
        """The state's own where it is that of x, else what it is by default."""
        if self.shape is not None or not isinstance(self._channels, int):
            return super().example_shape()
        return (self._channels, 2, 3)

    @property
    def _told(self) -> str:
        return _told(self._channels)


def _told(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _first(init: Init, sizes: tuple[int, ...]) -> Tensor:
    """The values that training begins from."""
    total, dtype = sum(sizes), torch.get_default_dtype()
    if init == "signs":
        return torch.cat([torch.arange(size) % 2 * 2 - 1 for size in sizes]).to(dtype)
    if init == "normal":
        return torch.randn(total)
    if isinstance(init, tuple | list):
        if len(init) != total:
            raise ConfigError([f"init: expected {total} values, received {len(init)}"])
        return torch.tensor(init, dtype=dtype)
    return torch.full((total,), float(init), dtype=dtype)
