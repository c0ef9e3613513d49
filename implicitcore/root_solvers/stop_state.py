"""Where each sample of a solve is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.solution import Origin, Status
from implicitcore.tensors.norms import real_dtype

# A residual this many times its scale at the start is lost: the sample is stopped before it
# overflows.
DIVERGENCE = 1e8

# The iterates of a map without a fixed point run away, and meet a relative tolerance by that: where
# |f(z)| has grown, the residual is to fall to this share of that at the start, or of the first one
# that met the tolerance, too.
TRUST = 0.1

# So many times the rounding of f(z) at the start is a residual that has fallen, too: in bfloat16
# half of f(z), so that a map whose state grows 50 times on its way to a fixed point converges.
HIDDEN = 128


@cache
def tiny(dtype: torch.dtype) -> float:
    """The least residual that is compared with: above zero, so that an exact root is seen."""
    info = torch.finfo(dtype)
    return info.tiny * info.eps


def origin_of(size: Tensor, update: Tensor) -> Origin:
    """What follows from the first residual and ``|f(z)|``, ``[batch]``.

    A tolerance relative to an infinite start would be met by anything; one relative to NaN is met
    by nothing.
    """
    norm = torch.nan_to_num(size, torch.nan, torch.nan)
    return Origin(norm, torch.maximum(norm, update).mul(DIVERGENCE))


@dataclass
class Trust:
    """How far a limit counts that follows the size of f(z).

    Attributes:
        limit: ``[batch]``, the limit at the start, or a share of the residual there: a larger one
            is owed to a growth of ``|f(z)|``, and met only where the residual has fallen as well.
        doubted: ``[batch]``, the samples that have met such a limit alone.
    """

    limit: Tensor
    doubted: Tensor

    @classmethod
    def at(cls, start: AtStart) -> Trust:
        """Before a sample has met a limit that grew."""
        limit = torch.maximum(start.limit, start.norm * TRUST)
        return cls(limit, torch.zeros_like(limit, dtype=torch.bool))

    def doubt(
        self, met: Tensor, residual: Residual, ceiling: Tensor, rounding: float
    ) -> tuple[Tensor, Tensor]:
        """Which of the samples ``met`` did so by a residual that fell, and which ran away.

        One has run away where ``|f(z)|`` is far above its start, or so large that the ``rounding``
        of f(z) - z hides a residual that has not fallen.
        """
        size, update, hidden = residual.norm, residual.update_norm, residual.update_norm * rounding
        new = met & ~self.doubted
        self.doubted = self.doubted | new
        self.limit = torch.where(new, torch.maximum(self.limit, size * TRUST), self.limit)
        reach = torch.maximum(self.limit, ceiling * (HIDDEN * rounding / DIVERGENCE))
        fell = torch.maximum(size, hidden) <= reach
        return met & fell, met & ~fell & ((hidden > reach) | (update > ceiling))


@dataclass
class AtStart:
    """What follows from the first residual of each sample.

    Attributes:
        ceiling: ``[batch]``, above which a residual is lost.
        small: ``[batch]``, below which the square of a residual underflows; below all for a stopped
            sample.
        norm: ``[batch]``, that residual.
        limit: ``[batch]``, what it was compared with.
        trust: None until a limit is asked for that grew.
    """

    ceiling: Tensor
    small: Tensor
    norm: Tensor
    limit: Tensor
    trust: Trust | None = None

    @property
    def origin(self) -> Origin:
        """The same for solvers that go on."""
        return Origin(self.norm, self.ceiling)


@dataclass
class StopState:
    """Where each sample of a solve is.

    Attributes:
        active: ``[batch]``, the samples that have not stopped.
        steps: ``[batch]``, evaluations up to the stop of each.
        best: ``[batch, n]``, the iterate that met the tolerance; before, that of least residual.
        best_norm: ``[batch]``, its residual.
        best_limit: ``[batch]``, what that is compared with.
        last: ``[batch, n]``, the last iterate: for a stopped sample the one that it stopped at,
            where the solver keeps it there.
        size: ``[batch]``, the last residual.
        floor: ``[batch]``, the least that a residual is compared with: above zero, so that an exact
            root is seen; below all for a stopped sample.
        limit: ``[batch]``, below which a residual meets the tolerance.
        start: what is known from the first residual on.
        failure: ``[batch]`` int8, a :class:`Status` where a sample stopped without having met its
            tolerance and 0 elsewhere; None until one does.
        pending: ``[batch]``, the limits of the last iterate, where that is the best of each sample
            and ``best_limit`` does not have them yet.
    """

    active: Tensor
    steps: Tensor
    best: Tensor
    best_norm: Tensor
    best_limit: Tensor
    last: Tensor
    size: Tensor
    floor: Tensor
    limit: Tensor
    start: AtStart
    failure: Tensor | None = None
    pending: Tensor | None = None

    @classmethod
    def at(cls, z0: Tensor, atol: Tensor | float) -> StopState:
        """Before the first evaluation."""
        batch, dtype, device = z0.shape[0], real_dtype(z0), z0.device
        far = torch.full((batch,), torch.inf, dtype=dtype, device=device)
        info = torch.finfo(dtype)
        least, small = tiny(dtype), torch.full_like(far, 100 * info.tiny**0.5)
        # A tensor where the units of the samples differ.
        floor = (
            torch.full_like(far, atol + least)
            if isinstance(atol, float | int)
            else (atol + least).to(far)
        )
        active = torch.ones(batch, dtype=torch.bool, device=device)
        steps = torch.zeros(batch, dtype=torch.int64, device=device)
        start = AtStart(far, small, far, floor)
        return cls(active, steps, z0, far, floor, z0, far, floor, floor, start)

    def end(self, size: Tensor, count: int) -> None:
        """All samples have met their limits, with these residuals at this evaluation."""
        self.best_norm, self.size, self.best_limit = size, size, self.limit
        self.active = torch.zeros_like(self.active)
        self.steps = torch.full_like(self.steps, count)

    def lower(self, done: Tensor) -> None:
        """Put the limits of samples ``[batch]`` that are done below all residuals."""
        self.floor = self.floor.masked_fill(done, -torch.inf)
        self.start.small = self.start.small.masked_fill(done, -torch.inf)

    def fail(self, which: Tensor, status: int | Tensor) -> None:
        """Samples ``which`` have failed."""
        if self.failure is None:
            self.failure = torch.zeros_like(self.active, dtype=torch.int8)
        self.failure = torch.where(which, status, self.failure).to(torch.int8)

    def lose(self, size: Tensor) -> Tensor:
        """Fail the samples whose residual is not finite or has diverged, and say which."""
        lost = ~(size <= self.start.ceiling) & self.active
        if not bool(lost.any()):
            return lost
        kind = torch.where(size.isfinite(), int(Status.DIVERGED), int(Status.NON_FINITE))
        self.fail(lost, kind)
        return lost

    def converged(self) -> Tensor:
        """The samples ``[batch]`` that stopped because they met their tolerance."""
        met = ~self.active
        return met if self.failure is None else met & (self.failure == 0)

    def failures(self) -> Tensor:
        """``[batch]`` int8, how each sample failed; 0 for the others."""
        if self.failure is None:
            return torch.zeros_like(self.active, dtype=torch.int8)
        return self.failure.clone()

    def going_on(self) -> Tensor:
        """Which samples ``[k]`` go on alone: the active ones, and one that has converged.

        That one is not moved, and so shows whether f is among fewer what it was.
        """
        witness = self.converged().nonzero().squeeze(1)[:1]
        return torch.cat((self.active.nonzero().squeeze(1), witness))

    def put(self, rows: Tensor, part: StopState) -> None:
        """Write back what became of the samples ``rows``."""
        self.active = self.active.index_copy(0, rows, part.active)
        self.steps = self.steps.index_copy(0, rows, part.steps)
        self.best = self.best.index_copy(0, rows, part.best)
        self.best_norm = self.best_norm.index_copy(0, rows, part.best_norm)
        self.best_limit = self.best_limit.index_copy(0, rows, part.best_limit)
        self.last = self.last.index_copy(0, rows, part.last)
        self.size = self.size.index_copy(0, rows, part.size)
        if part.failure is not None:
            if self.failure is None:
                self.failure = torch.zeros_like(self.active, dtype=torch.int8)
            self.failure = self.failure.index_copy(0, rows, part.failure)
