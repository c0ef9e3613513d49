"""The ring of past vectors that Anderson, Broyden and GMRES keep."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

# A product with fewer rows takes a path in torch that was measured four times slower on a CPU: zero rows are cheaper.
FEWEST = 4

# A buffer of up to so many entries is used whole from the start: a slice of it would cost more than its zeros do.
SMALL = 2**20


class History:
    """The last ``depth`` vectors of each sample, as one tensor ``[batch, depth, n]``.

    Without a graph it is one buffer, allocated once and written in place; with one it is a list, for autograd must
    keep every past value.

    Arguments:
        like: a packed state ``[batch, n]``.
        depth: rows.
    """

    def __init__(self, like: Tensor, depth: int) -> None:
        self.depth = depth
        self.count = 0
        self._list: list[Tensor] | None = None
        if torch.is_grad_enabled():
            self._list = []
        else:
            self._buffer = like.new_empty(like.shape[0], depth, like.shape[1])
            self._fewest = depth if self._buffer.numel() <= SMALL else min(FEWEST, depth)
            self._buffer[:, : self._fewest] = 0
            self._slots = self._buffer.unbind(1)

    @property
    def slot(self) -> int:
        """The row that the next vector goes to."""
        return self.count % self.depth

    def append(self, vector: Tensor, scale: Tensor | None = None) -> None:
        """Write a vector, times ``scale`` ``[batch, 1]``, over the oldest row."""
        if self._list is not None:
            self._list[self.slot : self.slot + 1] = [vector if scale is None else vector * scale]
        elif scale is None:
            self._slots[self.slot].copy_(vector)
        else:
            torch.mul(vector, scale, out=self._slots[self.slot])
        self.count += 1

    def clear(self) -> None:
        """Forget all rows."""
        self.count = 0
        if self._list is not None:
            self._list = []
        else:
            self._buffer[:, : self._fewest] = 0

    def last(self) -> Tensor:
        """The newest vector, ``[batch, n]``."""
        slot = (self.count - 1) % self.depth
        return self._slots[slot] if self._list is None else self._list[slot]

    def rows(self) -> Tensor:
        """``[batch, rows, n]`` in the order of the slots: those written, and some zero rows where there are few."""
        if self._list is not None:
            return torch.stack(self._list, 1)
        used = max(self.count, self._fewest)
        return self._buffer if used >= self.depth else self._buffer[:, :used]

    def written(self) -> Tensor:
        """``[batch, count, n]``: only those written."""
        return self.rows()[:, : self.count]

    def select(self, index: Tensor) -> History:
        """The history of some samples."""
        part = copy.copy(self)
        if self._list is not None:
            part._list = [row.index_select(0, index) for row in self._list]
        else:
            part._buffer = self._buffer.index_select(0, index)
            part._slots = part._buffer.unbind(1)
        return part
