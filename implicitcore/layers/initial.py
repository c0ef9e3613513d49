"""Initial guesses: where the z0 of a solve comes from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from implicitcore.errors import InputError
from implicitcore.layers.shapes import first_tensor, map_shape
from implicitcore.options.options import CheckedMeta
from implicitcore.options.types import Count, Shape, read_shape
from implicitcore.solution import SolveResult


class InitialGuess(nn.Module, metaclass=CheckedMeta):
    """The abstract initial guess: z0 for an input x.

    A subclass keeps every option of its ``__init__`` as an attribute of the same name.

    Attributes:
        detached: the solve starts from z0 without its graph, so that parameters of z0 are trained
            by the layer's regularizer alone.
        evaluations: the evaluations of f that z0 costs; the solution counts them.
    """

    kind: ClassVar[str] = "start"
    detached: ClassVar[bool] = False
    evaluations: ClassVar[int] = 0

    @abstractmethod
    def forward(self, x: Any) -> Any:
        """z0: any pytree of tensors ``[batch, ...]``."""

    def keyed(self, x: Any, keys: Any) -> Any:
        """z0 of the samples that the keys name, for a start that tells them apart.

        Arguments:
            x: the input.
            keys: int64 ``[batch]``, the number of each sample.

        Raises:
            InputError: it does not.
        """
        del x, keys
        raise InputError(
            f"keys: the start {type(self).__name__} takes none; give the layer a WarmStart"
        )

    def keep(self, keys: Any, solution: SolveResult) -> None:
        """What follows a solve with keys: here nothing."""

    def example_shape(self) -> Shape:
        """The shape of one sample of an x that fits, as small as may be: the checks draw such."""
        return (6,)


@final
class Zeros(InitialGuess):
    """z0 = 0.

    Arguments:
        shape: of the state of one sample: sizes, or for a state of several tensors a tuple or dict
            of shapes; None: the shape of x, which is then one tensor.
    """

    def __init__(self, shape: Shape | None = None) -> None:
        super().__init__()
        self.shape = None if shape is None else read_shape(shape)

    def forward(self, x: Any) -> Any:
        """Zeros ``[batch, *shape]`` of x's dtype and device."""
        like = first_tensor(x, self.shape)
        if self.shape is None:
            return like.new_zeros(like.shape)
        return map_shape(lambda sizes: like.new_zeros(like.shape[0], *sizes), self.shape)


@final
class Pyramid(InitialGuess):
    """z0 = 0 at several resolutions, each half as fine as the one before (rounded up).

    The state is a tuple: for an x ``[batch, ..., height, width]`` its i-th tensor is ``[batch,
    channels[i], ceil(height / 2^i), ceil(width / 2^i)]``.

    Arguments:
        channels: of each resolution, the finest first.

    Reference:
        Bai, Koltun, Kolter, Multiscale Deep Equilibrium Models, arXiv 2006.08656.
    """

    def __init__(self, channels: tuple[Count, ...]) -> None:
        super().__init__()
        self.channels = tuple(channels)

    def forward(self, x: Any) -> tuple[Tensor, ...]:
        """Zeros of x's dtype and device.

        Raises:
            InputError: x is no image.
        """
        like = first_tensor(x, ())
        if like.ndim < 3:
            raise InputError(
                f"a state of several resolutions needs an x [batch, ..., height, width]; "
                f"received {list(like.shape)}"
            )
        height, width = like.shape[-2:]
        sizes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(len(self.channels))]
        return tuple(
            like.new_zeros(like.shape[0], count, *size)
            for count, size in zip(self.channels, sizes, strict=True)
        )

    def example_shape(self) -> Shape:
        """One channel, with two pixels or more at the coarsest resolution."""
        size = 2 ** len(self.channels)
        return (1, size, size + 1)


@final
class Identity(InitialGuess):
    """z0 = x, as in a Neural ODE, whose flow maps the input to the output."""

    def forward(self, x: Any) -> Any:
        """x, unchanged."""
        return x


@final
class Augmented(InitialGuess):
    """z0 = (x, 0): x with further channels of zeros, its first dimension after the batch.

    Arguments:
        extra: how many channels are added.

    Reference:
        Dupont, Doucet, Teh, Augmented Neural ODEs, arXiv 1904.01681.
    """

    def __init__(self, extra: Count) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Any) -> Tensor:
        """``[batch, channels + extra, ...]``.

        Raises:
            InputError: x has no channels.
        """
        like = first_tensor(x, None)
        if like.ndim < 2:
            raise InputError(
                f"cannot add channels to an x of shape {list(like.shape)}: expected "
                "[batch, channels, ...]"
            )
        return torch.cat((like, like.new_zeros(len(like), self.extra, *like.shape[2:])), 1)


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
        shape: of the state of one sample: sizes, or for a state of several tensors a tuple or dict
            of shapes; None: the shape of x.
        origin: where the step is taken from, in place of zeros of that shape.
    """

    evaluations: ClassVar[int] = 1

    def __init__(
        self,
        update: Callable[[Any, Any], Any],
        shape: Shape | None = None,
        *,
        origin: InitialGuess | None = None,
    ) -> None:
        super().__init__()
        self.update = update
        self.origin = Zeros(shape) if origin is None else origin

    @property
    def shape(self) -> Any:
        """Of one sample's state; None is that of x."""
        return self.origin.shape

    @shape.setter
    def shape(self, shape: Any) -> None:
        self.origin.shape = shape

    def forward(self, x: Any) -> Any:
        """f(0, x), at the cost of one evaluation."""
        return self.update(self.origin(x), x)
