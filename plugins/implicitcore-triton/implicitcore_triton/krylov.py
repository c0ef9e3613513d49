"""The Krylov spaces of GMRES, a launch for each product, or three where a sample is long."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from implicitcore.extend import DeviceKrylov
from implicitcore_triton.iteration import Launch

KRYLOV = ("expand", "project", "reduce", "settle", "minimise")
"""Their kernels."""

CHUNK = 4096
"""Columns that one program has."""

TILE, LINES = 4096, 16
"""Entries of the basis that it holds at once, of at most so many vectors, and of two at least."""

PARTS = 64
"""Chunks whose sums are added up at once."""


@final
class TritonKrylov(DeviceKrylov):
    """The spaces of one cycle.

    Arguments:
        run: launches a kernel, with its name, grid, arguments and sizes.
        g: see :class:`DeviceKrylov`.
        limit: the same.
        most: the same.
    """

    def __init__(self, run: Launch, g: Tensor, limit: Tensor, most: int) -> None:
        super().__init__(g, limit, most)
        (batch, n), info = g.shape, torch.finfo(self.rest.dtype)
        columns = min(CHUNK, max(16, _power_of_two(n)))
        chunks, lines = -(-n // columns), max(2, min(LINES, TILE // columns))
        self.run, self.shape = run, (batch, n, most, chunks)
        self.partial = self.rest.new_empty(batch, 2 * most + 2, chunks)
        warps = max(1, lines * columns // 1024)
        self.tile: dict[str, Any] = {"LINES": lines, "COLUMNS": columns, "num_warps": warps}
        self.sizes = {"PARTS": min(PARTS, _power_of_two(chunks)), "TINY": info.tiny}
        self.sizes |= {"EPS": info.eps, **self.tile}

    def launch(self, product: Tensor, rows: int, following: Tensor | None) -> None:
        """See :meth:`DeviceKrylov.launch`."""
        known = self.basis, self.columns, self.reals, self.limit, self.counters, self.partial
        first = rows == 0
        if self.shape[-1] == 1:
            self._launch("expand", product, following, *known, rows, FIRST=first, **self.sizes)
            return
        sums, tile = (self.reals, self.partial, rows), self.tile
        self._launch("project", product, self.basis, *sums, FIRST=first, **tile)
        if not first:
            parts = self.sizes["PARTS"]
            self._launch("reduce", product, self.rest, self.basis, *sums, PARTS=parts, **tile)
        rest = product if first else self.rest
        self._launch("settle", rest, following, *known, rows, FIRST=first, **self.sizes)

    def combine(self, out: Tensor) -> None:
        """See :meth:`DeviceKrylov.combine`."""
        line = max(2, _power_of_two(self.most))
        sizes = {"LINE": line, "COLUMNS": self.tile["COLUMNS"]}
        known = self.basis, self.columns, self.reals, self.counters
        self._launch("minimise", out, *known, self.size, **sizes)

    def _launch(self, name: str, *arguments: Tensor | int | None, **sizes: Any) -> None:
        batch, *_, chunks = self.shape
        self.run(name, (batch * chunks,), *arguments, *self.shape, **sizes)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
