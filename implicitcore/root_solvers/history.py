"""The ring of past vectors that Anderson, Broyden and GMRES keep."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

# Up to so many entries, the rows in use are eight and double when they are full: the same view
# serves several steps, zeros cost less than views, and a product with fewer than four rows takes a
# path in torch that was measured four times slower on a CPU.
SMALL, FIRST = 2**20, 8


class History:
    """The last ``depth`` vectors of each sample, as one tensor ``[batch, depth, n]``.

    Without a graph it is one buffer, allocated once and written in place; with one it is a list,
    for autograd must keep every past value.

    Arguments:
        like: a packed state ``[batch, n]``.
        depth: rows.
        width: entries of a row; None is n.
    """

    def __init__(self, like: Tensor, depth: int, width: int | None = None) -> None:
        self.depth = depth
        self.count = 0
        self._list: list[Tensor] | None = None
        if torch.is_grad_enabled():
            self._list = []
        else:
            self._hold(like.new_empty(like.shape[0], depth, width or like.shape[1]))

    def _hold(self, buffer: Tensor) -> None:
        self._buffer, self._slots = buffer, buffer.split(1, 1)
        self._used = 0
        self._view = buffer

    @property
    def slot(self) -> int:
        """The row that the next vector goes to."""
        return self.count % self.depth

    def append(self, row: Tensor, scale: Tensor | None = None) -> None:
        """Write a row ``[batch, 1, n]``, times ``scale`` ``[batch, 1, 1]``, over the oldest."""
        if self._list is not None:
            self._list[self.slot : self.slot + 1] = [
                row if scale is None else (row * scale).to(row.dtype)
            ]
        elif scale is None:
            self._slots[self.slot].copy_(row)
        else:
            torch.mul(row, scale, out=self._slots[self.slot])
        self.count += 1

    def clear(self) -> None:
        """Forget all rows."""
        self.count = self._used = 0
        if self._list is not None:
            self._list = []

    def last(self) -> Tensor:
        """The newest row, ``[batch, 1, n]``."""
        slot = (self.count - 1) % self.depth
        return self._slots[slot] if self._list is None else self._list[slot]

    def each(self) -> list[Tensor]:
        """The rows, one by one, in the order of the slots."""
        return list(self._slots[: self.count]) if self._list is None else self._list

    def rows(self, ahead: int = 0) -> Tensor:
        """``[batch, rows, n]`` in the order of the slots.

        Those written, ``ahead`` zero rows, and some more where there are few.
        """
        if self._list is not None:
            return torch.cat(self._list, 1)
        needed = min(self.count + ahead, self.depth)
        if needed > self._used:
            small = self._buffer.numel() <= SMALL
            self._used = min(max(FIRST, needed, 2 * self._used), self.depth) if small else needed
            self._buffer[:, self.count : self._used] = 0
            self._view = self._buffer[:, : self._used]
        return self._view

    def written(self) -> Tensor:
        """``[batch, count, n]``: only those written."""
        return self.rows()[:, : self.count]

    def select(self, index: Tensor) -> History:
        """The history of some samples."""
        part = copy.copy(self)
        if self._list is not None:
            part._list = [row.index_select(0, index) for row in self._list]
        else:
            part._hold(self._buffer.index_select(0, index))
        return part
