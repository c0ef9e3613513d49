"""The abstract dynamics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class Dynamics(nn.Module, ABC):
    """dz/dt = g(t, z, x). An equilibrium is a z with g = 0.

    A new implicit model is a subclass with a :meth:`velocity`, or a :class:`FixedPointMap` with an
    ``update``. z is any pytree of tensors with the batch first, x any pytree.

    Attributes:
        exact_time: t comes in the dtype of the times; else rounded to the real dtype of z, float32
            at least, so that it mixes with z.
    """

    kind: ClassVar[str] = "dynamics"
    exact_time: bool = False

    @abstractmethod
    def velocity(self, t: Tensor, z: Any, x: Any) -> Any:
        """The vector field g(t, z, x).

        Arguments:
            t: the time of each sample, ``[batch, 1, ..., 1]``, which broadcasts with the first
                tensor of z.
            z: the state.
            x: the input.

        Returns:
            dz/dt, shaped like z.
        """

    def update(self, z: Any, x: Any) -> Any:
        """The fixed-point map z + g(0, z, x), shaped like z.

        Its fixed points are the equilibria.
        """
        first = pytree.tree_leaves(z)[0]
        t = torch.zeros(
            (first.shape[0],) + (1,) * (first.ndim - 1), dtype=first.real.dtype, device=first.device
        )
        return pytree.tree_map(torch.add, z, self.velocity(t, z, x))

    def explain_call(self, error: TypeError) -> None:
        """Say what the user's function is called with, where it takes something else.

        Arguments:
            error: what its call raised.

        Raises:
            InputError: it does not take these arguments.
        """

    def is_map(self) -> bool:
        """Whether the model is a map f with g = f(z) - z, and not a g with f = z + g."""
        return type(self).update is not Dynamics.update

    def scale(self, update_norm: Tensor, start_norm: Tensor) -> Tensor:
        """What the relative tolerance ``tol`` is relative to, ``[batch]``.

        Here max(1, min(``|g(z0)|``, ``|z + g(z)|``)): a bad start, with a large residual, does not
        loosen it beyond the size of the state.

        Arguments:
            update_norm: ``|z + g(z)|`` at the current iterate, ``[batch]``.
            start_norm: ``|g(z0)|``, ``[batch]``.
        """
        # A NaN at the start stays one, and meets nothing.
        return torch.minimum(start_norm, update_norm).clamp(min=1)
