"""The iterations of a root solve, each one launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard, final

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

Launch = Callable[..., None]

Taken = PicardRule | AndersonRule | BroydenRule
"""The updates that have a kernel."""

WHOLE = 16384
"""Most entries of a sample: one program goes through all of them."""

_SCALES = {"update": 0, "root": 1}
_FIXED = 2
_MAGNIFIERS = {torch.float32: 2.0**100, torch.float64: 2.0**750}


@final
class TritonIteration(DeviceIteration):
    """The iterations of one solve, of samples of at most 16,384 entries.

    Arguments:
        run: launches a kernel, with its name, grid, arguments and sizes.
        update: how the next iterate follows.
        rule: when a sample stops.
        z: the start, ``[batch, n]``.
        samples: that a program holds.
        columns: of each that it holds at once.
    """

    def __init__(
        self, run: Launch, update: Taken, rule: StopRule, z: Tensor, samples: int, columns: int
    ) -> None:
        super().__init__(rule, z)
        self.run, self.grid = run, (-(-len(z) // samples),)
        floor = 0.0 if isinstance(rule.floor, Tensor) else float(rule.floor)
        bounds = rule.tol, rule.rounding, rule.divergence, rule.trust, rule.growth
        self.numbers = (len(z), z.shape[1], rule.min_steps, floor, *map(float, bounds))
        info = torch.finfo(self.reals.dtype)
        self.sizes: dict[str, Any] = {
            "SCALE": _FIXED if isinstance(rule.scale, Tensor) else _SCALES[rule.scale],
            "SAMPLES": samples,
            "COLUMNS": columns,
            "SMALL": 100 * info.tiny**0.5,
            "BY": _MAGNIFIERS[self.reals.dtype],
        }
        self.name, self.memory, self.options = self._update(update, z, info)

    def _update(
        self, update: Taken, z: Tensor, info: torch.finfo
    ) -> tuple[str, list[Tensor], tuple[float, ...]]:
        """The kernel, its memory and its numbers."""
        batch, real = len(z), self.reals.new_zeros
        if isinstance(update, PicardRule):
            return "picard", [], (float(update.damping),)
        if isinstance(update, AndersonRule):
            depth = update.depth
            self.sizes |= {"DEPTH": depth, "TINY": info.tiny**0.5}
            rows = [z.new_empty(batch, depth, z.shape[1]) for _ in range(2)]
            last = [torch.empty_like(self.best) for _ in range(2)]
            memory = [*last, *rows, real(2, depth, batch), real(depth, batch)]
            return "anderson", memory, (float(update.damping), float(update.ridge), update.period)
        depth = update.memory + 1
        line = max(2, 1 << (depth - 1).bit_length())
        self.sizes |= {"DEPTH": depth, "LINE": line, "TINY": info.tiny, "EPS": info.eps}
        rows = z.new_empty(batch, depth, z.shape[1])
        return "broyden", [rows, real(2, batch, depth), real(batch, depth, depth)], ()

    def launch(
        self, z: Tensor, fz: Tensor, g: Tensor | None, before: Tensor, z_next: Tensor | None
    ) -> None:
        """See :meth:`DeviceIteration.launch`."""
        states = z, fz, g, before, z_next, self.best
        known = self.reals, self.all_counters, *self.samples, *self.memory
        self.run(self.name, self.grid, *states, *known, *self.numbers, *self.options, **self.sizes)


def takes(update: UpdateRule, z: Tensor) -> TypeGuard[Taken]:
    """Whether a whole iteration is one kernel: of an update that has one, and no long samples."""
    if isinstance(update, AndersonRule) and update.plain_rate:
        return False
    return z.shape[1] <= WHOLE and isinstance(update, Taken)
