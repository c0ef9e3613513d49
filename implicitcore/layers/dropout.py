"""Dropout that is one function for a whole solve."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from implicitcore.errors import ConfigError
from implicitcore.system.scope import current
from implicitcore.tensors.shared import shared
from implicitcore.tensors.transforms import eager


@final
class VariationalDropout(nn.Module):
    """y = m z / (1 - p), where the mask m of zeros and ones is drawn once a solve.

    It is kept for all evaluations of the solve.

    With a fresh mask at each evaluation, as ``torch.nn.Dropout`` draws, f has no fixed point; with
    one, the solve, its residual and its gradient are of the same f. Each solve draws its own;
    nothing is kept on the module. Used twice in one f on tensors of one shape, it drops the same
    entries of both: take a module for each place. Off in ``eval()``, and an ordinary dropout
    outside a solve.

    Arguments:
        p: share of the entries that are dropped, in [0, 1).
        shared: dimensions along which the mask is constant: ``(2, 3)`` drops whole channels of
            ``[batch, channels, height, width]``.

    Raises:
        ConfigError: p is not in [0, 1).

    Reference:
        Gal, Ghahramani, arXiv 1512.05287; in an equilibrium model: Bai, Kolter, Koltun, arXiv
        1909.01377, section 4.
    """

    def __init__(self, p: float = 0.5, shared: tuple[int, ...] = ()) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ConfigError([f"p: expected a number in [0, 1), received {p!r}"])
        self.p = p
        self.shared = tuple(shared)

    def forward(self, z: Tensor) -> Tensor:
        """``[batch, ...]``, the shape and dtype of z."""
        if not self.training or self.p == 0:
            return z
        return z * self._mask(z)

    def extra_repr(self) -> str:
        """The options."""
        return f"p={self.p}" + (f", shared={self.shared}" if self.shared else "")

    @eager
    def _mask(self, z: Tensor) -> Tensor:
        scope = current()
        if scope is None:
            return self._sample(z)
        # On its own shape: in one f the module may see several. The batch is left out: samples may
        # leave it during a solve.
        return scope.draw((self, z.shape[1:]), lambda: self._drawn(z)).to(z.dtype)

    def _drawn(self, z: Tensor) -> Any:
        mask = self._sample(z)
        return shared(mask) if 0 in self.shared else mask

    @torch.no_grad()
    def _sample(self, z: Tensor) -> Tensor:
        shape = [1 if dim in self.shared else size for dim, size in enumerate(z.shape)]
        return z.new_empty(shape).bernoulli_(1 - self.p).div_(1 - self.p)
