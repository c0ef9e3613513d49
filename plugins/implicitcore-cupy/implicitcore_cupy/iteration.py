"""The iterations of a root solve as kernels, of which all state is on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct

import torch
from torch import Tensor

from implicitcore.extend import (
    AndersonRule,
    BroydenRule,
    DeviceIteration,
    PicardRule,
    StopRule,
    UpdateRule,
)
from implicitcore_cupy.geometry import WARP, Geometry, geometry, threads_for
from implicitcore_cupy.launcher import GROUP, NAMES, Launcher

# The struct of root_iteration.cu: what changes with the iterate, and what does not.
_ITERATE, _SOLVE = Struct("=5Q"), Struct("=13Q10q10d")
_NORMS = 4  # sums of an iterate before those with the history
_SCALES = {"update": 0, "root": 1}
_FIXED = 2

Kind = tuple[str, int, int, float, float]
"""The name of an update in root_iteration.cu, its depth, period, damping and ridge."""


def kind_of(update: UpdateRule) -> Kind | None:
    """None for an update that has no kernels."""
    if isinstance(update, PicardRule):
        return "Picard", 0, 1, update.damping, 0.0
    if isinstance(update, AndersonRule) and not update.plain_rate:
        return "Anderson", update.depth, update.period, update.damping, update.ridge
    if isinstance(update, BroydenRule):
        return "Broyden", update.memory + 1, 1, 1.0, 0.0
    return None


class CupyIteration(DeviceIteration):
    """The iterations of one solve, each a launch, or up to five where a sample is long.

    Arguments:
        launcher: runs the kernels.
        kind: of the update.
        rule: when a sample stops.
        z: the start, ``[batch, n]``.
    """

    def __init__(self, launcher: Launcher, kind: Kind, rule: StopRule, z: Tensor) -> None:
        super().__init__(rule, z)
        self.launcher, self.kind, n = launcher, kind, z.shape[1]
        self.geometry: Geometry = geometry(n, z.dtype, sums=True)
        # Kept, for the device refers to them by address.
        self.memory = self._memory(z, kind[0], kind[1])
        states = self.best, *self.memory[:4], self.reals, self.all_counters
        addresses = (*states, *self.memory[4:], *self.samples)
        self.solve = _SOLVE.pack(*map(_address, addresses), *self._numbers(n, rule, kind))

    def _memory(self, z: Tensor, name: str, depth: int) -> list[Tensor | None]:
        """The last residual and plain step, the rows of both, sums, those of spans, a matrix."""
        batch, spans, real = self.batch, self.geometry.spans, self.reals
        both = name == "Anderson"
        last = [torch.empty_like(self.best) if both else None for _ in range(2)]
        rows = [
            z.new_empty(batch, depth, z.shape[1]) if wanted else None for wanted in (depth, both)
        ]
        sums = real.new_empty(batch, self._width())
        partial = real.new_empty(batch, self._width(), spans) if spans > 1 else None
        matrix = real.new_empty(batch, depth, depth) if name == "Broyden" else None
        return [*last, *rows, sums, partial, matrix]

    def _width(self) -> int:
        return _NORMS + 3 * self.kind[1]

    def _numbers(self, n: int, rule: StopRule, kind: Kind) -> tuple[float, ...]:
        _, depth, period, damping, ridge = kind
        info, laid = torch.finfo(self.reals.dtype), self.geometry
        scale = _FIXED if isinstance(rule.scale, Tensor) else _SCALES[rule.scale]
        shape = self.batch, laid.lanes, n, laid.span, laid.spans, self._width()
        floor = 0.0 if isinstance(rule.floor, Tensor) else rule.floor
        bounds = rule.tol, rule.rounding, rule.divergence, rule.trust, rule.growth
        whole = *shape, depth, period, rule.min_steps, scale
        return *whole, floor, *bounds, damping, ridge, info.tiny, info.eps

    def launch(
        self, z: Tensor, fz: Tensor, g: Tensor | None, before: Tensor, z_next: Tensor | None
    ) -> None:
        """See :meth:`DeviceIteration.launch`."""
        words = _ITERATE.pack(*map(_address, (z, fz, g, before, z_next))) + self.solve
        self._launch(z, words, z_next is None)

    def later(self, number: Tensor) -> Callable[[], int]:
        """See :meth:`DeviceIteration.later`."""
        return self.launcher.later(number)

    def _launch(self, z: Tensor, words: bytes, last: bool) -> None:
        laid, size, state = self.geometry, self.reals.element_size(), NAMES[z.dtype].state
        grid, threads = laid.grid(self.batch), laid.threads(self.batch)
        shared, name = laid.shared(2 * GROUP, size), self.kind[0]
        if laid.spans == 1:
            kernel = f"iterate<{state}, {name}>"
            self.launcher.launch(kernel, z, grid, threads, words, shared)
            return
        few = max(WARP, threads_for(laid.spans))
        for stage in stages(name, last):
            whole = stage in ("judge", "settle")
            blocks = (self.batch, 1) if whole else grid
            self.launcher.launch(
                f"{stage}<{state}, {name}>", z, blocks, few if whole else threads, words, shared
            )


def stages(update: str, last: bool) -> Sequence[str]:
    """The kernels of an iteration where a sample has several spans."""
    if last:
        return "measure", "judge", "extend"
    return _STAGES[update]


_STAGES = {
    "Picard": ("measure", "judge", "extend", "move"),
    "Anderson": ("measure", "judge", "extend", "settle", "move"),
    "Broyden": ("measure", "judge", "extend", "settle"),
}


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
