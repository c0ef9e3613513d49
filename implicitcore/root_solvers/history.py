"""The ring of past vectors that Anderson, Broyden and GMRES keep."""

from __future__ import annotations

import torch
from torch import Tensor


class History:
    """The last ``depth`` vectors of each sample, as one tensor ``[batch, depth, n]``.

    Without a graph it is one buffer, allocated once and written in place; with one it is a list, for autograd must
    keep every past value. Rows that were never written are zero.

    Arguments:
        like: a packed state ``[batch, n]``.
        depth: rows.
    """

    def __init__(self, like: Tensor, depth: int) -> None:
        self.depth = depth
        self.count = 0
        self._zero = torch.zeros_like(like) if torch.is_grad_enabled() else None
        self._rows: list[Tensor] = [self._zero] * depth if self._zero is not None else []
        self._buffer = None if self._rows else like.new_zeros(like.shape[0], depth, like.shape[1])

    @property
    def slot(self) -> int:
        """The row that the next vector goes to."""
        return self.count % self.depth

    def append(self, vector: Tensor) -> None:
        """Write over the oldest row."""
        if self._buffer is None:
            self._rows[self.slot] = vector
        else:
            self._buffer[:, self.slot] = vector
        self.count += 1

    def clear(self) -> None:
        """Forget all rows."""
        self.count = 0

    def rows(self) -> Tensor:
        """``[batch, min(count, depth), n]``; the order is that of the slots."""
        used = min(self.count, self.depth)
        if self._buffer is None:
            return torch.stack(self._rows[:used], 1)
        return self._buffer[:, :used]
