"""The Krylov spaces of GMRES as kernels: what each of them is given."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

import torch
from torch import Tensor

from implicitcore.extend import DeviceKrylov, real_dtype
from implicitcore_cupy.geometry import WARP, geometry, threads_for
from implicitcore_cupy.launcher import GROUP, NAMES, Launcher
from implicitcore_cupy.steps import address

SHARED = 48 << 10
"""Bytes of shared memory that every device has for a block."""

# The struct of krylov.cu: what changes with the product, and what does not.
_PRODUCT, _SPACE = Struct("=2Qq"), Struct("=8Q6q2d")


def takes(g: Tensor, most: int) -> bool:
    """Whether the sums of a long sample have room in a block."""
    laid, size = geometry(g.shape[1], g.dtype, sums=True), real_dtype(g).itemsize
    return laid.spans == 1 or laid.shared(GROUP + 1, size) + (2 * most + 2) * size <= SHARED


class CupyKrylov(DeviceKrylov):
    """The spaces of one cycle: a launch for each product, or three where a sample is long.

    Arguments:
        launcher: runs the kernels.
        g: see :class:`DeviceKrylov`.
        limit: the same.
        most: the same.
    """

    def __init__(self, launcher: Launcher, g: Tensor, limit: Tensor, most: int) -> None:
        super().__init__(g, limit, most)
        (batch, n), info = g.shape, torch.finfo(self.rest.dtype)
        self.launcher, self.geometry = launcher, geometry(n, g.dtype, sums=True)
        width, spans = 2 * most + 2, self.geometry.spans
        sums = self.rest.new_empty(batch, width)
        partial = self.rest.new_empty(batch, width, spans) if spans > 1 else None
        self.sums = sums, partial  # kept, for the device refers to them by address
        memory = self.basis, self.rest, self.columns, self.reals, self.limit, self.counters
        shape = batch, self.geometry.lanes, n, self.geometry.span, spans, most
        addresses = map(address, (*memory, sums, partial))
        self.space = _SPACE.pack(*addresses, *shape, info.tiny, info.eps)

    def launch(self, product: Tensor, rows: int, following: Tensor | None) -> None:
        """See :meth:`DeviceKrylov.launch`."""
        words = _PRODUCT.pack(address(product), address(following), rows)
        if self.geometry.spans == 1:
            self._launch("expand", words)
            return
        for stage in ("project", "reduce", "settle") if rows else ("project", "settle"):
            self._launch(stage, words)

    def combine(self, out: Tensor) -> None:
        """See :meth:`DeviceKrylov.combine`."""
        words = _PRODUCT.pack(0, address(out), self.size)
        if self.geometry.spans == 1:
            self._launch("minimise", words)
            return
        few = max(WARP, threads_for(self.size))
        self._launch("solve", words, ((len(self.g), 1), few))
        self._launch("combine", words)

    def later(self, number: Tensor) -> Callable[[], int]:
        """See :meth:`DeviceKrylov.later`."""
        return self.launcher.later(number)

    def _launch(
        self, stage: str, words: bytes, blocks: tuple[tuple[int, int], int] | None = None
    ) -> None:
        """A kernel over all samples, in the blocks of their spans where no others are given."""
        laid, size, batch = self.geometry, self.rest.element_size(), len(self.g)
        grid, threads = blocks or (laid.grid(batch), laid.threads(batch))
        own = 0 if laid.spans == 1 else (2 * self.most + 2) * size
        kernel = f"{stage}<{NAMES[self.g.dtype].state}>"
        shared = laid.shared(GROUP + 1, size) + own
        self.launcher.launch(kernel, self.g, grid, threads, words + self.space, shared)
