"""The iterations of a root solve as kernels, of which all state is on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct

import torch
from torch import Tensor

from implicitcore import InputError, Status
from implicitcore.extend import (
    AndersonRule,
    BroydenRule,
    PicardRule,
    RootResult,
    StopRule,
    UpdateRule,
    real_dtype,
)
from implicitcore_cupy.geometry import WARP, Geometry, geometry, threads_for
from implicitcore_cupy.launcher import GROUP, NAMES, Launcher

# Iterations between two looks at how many samples have stopped.
LOOK_EVERY = 4

# The struct of root_iteration.cu: what changes with the iterate, and what does not.
_ITERATE, _SOLVE = Struct("=5Q"), Struct("=13Q10q10d")
_NORMS = 4  # sums of an iterate before those with the history
_REALS = ("size", "update", "norm", "limit", "start_norm", "ceiling", "reach")
_COUNTERS = ("count", "stopped", "steps", "status", "doubted", "pending", "plain", "decision")
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


class DeviceIteration:
    """The iterations of one solve, each a launch, or up to five where a sample is long.

    The host waits for the device after the first iterate, and then in every fourth iteration for
    the one before, while the device has work: how many samples have stopped goes to pinned memory,
    and a solve is evaluated one to four times more. A sample that has stopped stays where it is
    meanwhile, so nothing else follows from it. Where :meth:`size` is asked for, the iterates are
    recorded, and none may be too many: there the host looks at each.

    Arguments:
        launcher: runs the kernels.
        kind: of the update.
        rule: when a sample stops.
        z: the start, ``[batch, n]``.
    """

    def __init__(self, launcher: Launcher, kind: Kind, rule: StopRule, z: Tensor) -> None:
        self.launcher, self.kind, self.rule = launcher, kind, rule
        self.batch, n = z.shape
        self.geometry: Geometry = geometry(n, z.dtype, sums=True)
        self.reals = z.new_empty(len(_REALS), self.batch, dtype=real_dtype(z))
        counters = torch.zeros(len(_COUNTERS) * self.batch + 1, dtype=torch.int64, device=z.device)
        self.counters, self.stopped = counters[:-1].view(-1, self.batch), counters[-1]
        self.best = torch.empty_like(z, memory_format=torch.contiguous_format)
        self.last = self.best
        self.count, self.every = 0, LOOK_EVERY
        self.asked: Callable[[], int] | None = None
        # Kept, for the device refers to them by address.
        self.memory, samples = self._memory(z, kind[0], kind[1]), _samples(rule, self.reals)
        self.given = [tensor for tensor in samples if tensor is not None]
        addresses = (self.best, *self.memory[:4], self.reals, counters, *self.memory[4:], *samples)
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

    def advance(self, z: Tensor, fz: Tensor, g: Tensor | None, last: bool) -> Tensor | None:
        """See :meth:`RootIteration.advance`."""
        shapes = [tuple(each.shape) for each in (z, fz, g) if each is not None]
        if any(shape != tuple(self.best.shape) for shape in shapes):
            raise InputError(
                f"an iterate and f there have the shapes {shapes}, expected "
                f"{tuple(self.best.shape)}, that of the start"
            )
        z, fz = z.contiguous(), fz.contiguous()
        g = None if g is None else g.contiguous()
        z_next = None if last else torch.empty_like(z)
        before = self.last if self.count else z
        words = _ITERATE.pack(*map(_address, (z, fz, g, before, z_next))) + self.solve
        self._launch(z, words, last)
        self.last = z
        self.count += 1
        return None if last or self._all_stopped() else z_next

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

    def _all_stopped(self) -> bool:
        """Whether all had, when the host last asked."""
        if self.count == 1 or self.every == 1:
            return int(self.launcher.later(self.stopped)()) == self.batch
        if self.count % self.every == self.every - 1:
            self.asked = self.launcher.later(self.stopped)
        if self.count % self.every == 0 and self.asked is not None:
            return int(self.asked()) == self.batch
        return False

    def size(self) -> Tensor:
        """See :meth:`RootIteration.size`."""
        self.every = 1
        return self.reals[_REALS.index("size")].clone()

    def between(self, least: float, most: float) -> bool:
        """See :meth:`RootIteration.between`."""
        update = self.reals[_REALS.index("update")]
        return bool(((update >= least) & (update <= most)).all())

    def result(self) -> RootResult:
        """See :meth:`RootIteration.result`."""
        real = dict(zip(_REALS, self.reals.clone(), strict=True))
        counter = dict(zip(_COUNTERS, self.counters, strict=True))
        stopped, pending = counter["stopped"] != 0, counter["pending"] != 0
        ends = torch.where(stopped, counter["steps"], counter["count"] + 1)
        return RootResult(
            z=torch.where(pending[:, None], self.last, self.best),
            residual=real["norm"],
            limit=real["limit"],
            relative=real["norm"] / real["limit"] * self.rule.tol,
            status=torch.where(stopped, counter["status"], int(Status.MAX_STEPS)).to(torch.int8),
            steps=torch.where(stopped, counter["steps"], counter["count"]),
            start_norm=real["start_norm"],
            ceiling=real["ceiling"],
            size=real["size"],
            last=self.last,
            stopped_apart=bool((ends != ends[0]).any()),
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


def _samples(rule: StopRule, like: Tensor) -> list[Tensor | None]:
    """What the rule says of each sample: floor, scale, and where another solver began."""
    floor = rule.floor.to(like).contiguous() if isinstance(rule.floor, Tensor) else None
    fixed = rule.scale.to(like).contiguous() if isinstance(rule.scale, Tensor) else None
    origin = None if rule.origin is None else torch.stack(list(rule.origin)).to(like)
    return [floor, fixed, origin]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
