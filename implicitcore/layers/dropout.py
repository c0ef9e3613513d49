"""Dropout with one mask per solve."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from implicitcore.errors import ConfigError
from implicitcore.system.current import current
from implicitcore.system.scope import in_training
from implicitcore.tensors.shared import shared
from implicitcore.tensors.transforms import eager


@final
class VariationalDropout(nn.Module):
    """y = m z / (1 - p) with a mask m of zeros and ones that is drawn once per solve.

    ``torch.nn.Dropout`` draws a mask at each evaluation, and such an f has no fixed point. With one
    mask the solve, its residual and its gradient are of the same f. Nothing is stored on the
    module, and ``train()`` or ``eval()`` after a solve does not change its backward pass. Used
    twice in one f on tensors of the same shape, it drops the same entries of both: use one module
    for each place. It does nothing in ``eval()``, and is an ordinary dropout outside a solve.

    Arguments:
        p: the probability that an entry is dropped, in [0, 1).
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
        return z if self.p == 0 else self._dropped(z)

    def extra_repr(self) -> str:
        """The options."""
        return f"p={self.p}" + (f", shared={self.shared}" if self.shared else "")

    @eager
    def _dropped(self, z: Tensor) -> Tensor:
        if not in_training(self):
            return z
        scope = current()
        if scope is None:
            return z * self._sample(z)
        # Keyed by the shape, of which one f may have several, without the batch, which shrinks
        # where converged samples are compacted.
        return z * scope.draw((self, z.shape[1:]), lambda: self._drawn(z)).to(z.dtype)

    def _drawn(self, z: Tensor) -> Any:
        mask = self._sample(z)
        return shared(mask) if 0 in self.shared else mask

    @torch.no_grad()
    def _sample(self, z: Tensor) -> Tensor:
        shape = [1 if dim in self.shared else size for dim, size in enumerate(z.shape)]
        return z.new_empty(shape).bernoulli_(1 - self.p).div_(1 - self.p)
