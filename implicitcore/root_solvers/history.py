"""The ring of past vectors that Anderson, Broyden and GMRES keep."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Up to so many entries, the rows in use are eight and double when they are full: the same view
# serves several steps, zeros cost less than views, and a product with fewer than four rows takes a
# path in torch that was measured four times slower on a CPU. Where a row has more entries than are
# soon read, they are four more at a time.
SMALL, FIRST = 2**20, 8
LONG, MORE = 2**14, 4


@dataclass
class History:
    """The last ``depth`` vectors of each sample, as one tensor ``[batch, depth, n]``.

    Without a graph it is one buffer, allocated once and written in place; with one it is a list,
    for autograd must keep every past value.

    Attributes:
        depth: rows.
        buffer: ``[batch, depth, n]``, where there is no graph.
        kept: the rows, each ``[batch, 1, n]``, where there is one.
        count: vectors written, or left out.
        skipped: the last ones were left out, and none was written since the last clearing.
        narrow: the rows are in another dtype than the state.
    """

    depth: int
    buffer: Tensor | None
    kept: list[Tensor]
    count: int = 0
    skipped: bool = False
    narrow: bool = False

    def __post_init__(self) -> None:
        self.slots: list[Tensor] = []  # views of the first rows, made when one is first needed
        self.used = 0
        self.view = self.buffer

    @classmethod
    def like(
        cls, z: Tensor, depth: int, width: int | None = None, dtype: torch.dtype | None = None
    ) -> History:
        """An empty history.

        Arguments:
            z: a packed state ``[batch, n]``.
            depth: rows.
            width: entries of a row; None is n.
            dtype: of the rows where there is no graph; None is that of z.
        """
        graph = torch.is_grad_enabled()
        shape = len(z), depth, width or z.shape[1]
        narrow = dtype is not None and dtype != z.dtype
        return cls(depth, None if graph else z.new_empty(shape, dtype=dtype), [], narrow=narrow)

    @property
    def slot(self) -> int:
        """The row that the next vector goes to."""
        return self.count % self.depth

    def append(self, row: Tensor, scale: Tensor | None = None) -> None:
        """Write a row ``[batch, 1, n]``, times ``scale`` ``[batch, 1, 1]``, over the oldest."""
        if self.skipped:
            self._blank(row)
        if self.buffer is None:
            new = row if scale is None else (row * scale).to(row.dtype)
            self.kept[self.slot : self.slot + 1] = [new]
        elif scale is None:
            self._at(self.slot).copy_(row)
        else:
            torch.mul(row, scale, out=self._at(self.slot))
        self.count += 1

    def append_quotient(self, row: Tensor, scale: Tensor) -> None:
        """Write a row ``[batch, 1, n]`` over ``scale`` ``[batch, 1, 1]``; none was left out."""
        if self.buffer is None:
            self.kept[self.slot : self.slot + 1] = [(row / scale).to(row.dtype)]
        else:
            torch.div(row, scale, out=self._at(self.slot))
        self.count += 1

    def _at(self, slot: int) -> Tensor:
        """A row of the buffer: most solves need few of the views, and each is an object."""
        while slot >= len(self.slots) and self.buffer is not None:
            first = len(self.slots)
            part = self.buffer
            if self.depth > FIRST:
                part = part.narrow(1, first, min(FIRST, self.depth - first))
            self.slots += part.split(1, 1)
        return self.slots[slot]

    def skip(self) -> None:
        """Leave the next row out, which is zero then; only before the first that is written."""
        self.count += 1
        self.skipped = True

    def _blank(self, row: Tensor) -> None:
        """The rows that were left out, beside one that is written."""
        if self.buffer is None:
            self.kept = [torch.zeros_like(row)] * min(self.count, self.depth)
        else:
            self.buffer.zero_()
            self.used, self.view = self.depth, self.buffer
        self.skipped = False

    def clear(self) -> None:
        """Forget all rows."""
        self.count = self.used = 0
        self.kept, self.skipped = [], False

    @property
    def is_empty(self) -> bool:
        """Whether no row is written."""
        return self.skipped or not self.count

    def last(self) -> Tensor:
        """The newest row, ``[batch, 1, n]``."""
        slot = (self.count - 1) % self.depth
        return self.kept[slot] if self.buffer is None else self._at(slot)

    def each(self) -> list[Tensor]:
        """The rows, one by one, in the order of the slots."""
        return self.kept if self.buffer is None else self.slots[: self.count]

    def rows(self, ahead: int = 0) -> Tensor:
        """``[batch, rows, n]`` in the order of the slots.

        Those written, ``ahead`` zero rows, and some more where there are few.
        """
        if self.buffer is None or self.view is None:
            return torch.cat(self.kept, 1)
        needed = min(self.count + ahead, self.depth)
        if needed > self.used:
            self.used = self._room(self.buffer, needed)
            if self.used > self.count:
                self.buffer.narrow(1, self.count, self.used - self.count).zero_()
            self.view = self.buffer.narrow(1, 0, self.used)
        return self.view

    def _room(self, buffer: Tensor, needed: int) -> int:
        """How many rows to use where so many are needed."""
        if buffer.numel() > SMALL:
            return needed
        long = buffer.numel() > LONG * self.depth
        room = needed + -needed % MORE if long else max(FIRST, needed, 2 * self.used)
        return min(room, self.depth)

    def written(self) -> Tensor:
        """``[batch, count, n]``: only those written."""
        return self.rows()[:, : self.count]
