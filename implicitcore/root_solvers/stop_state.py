"""Where each sample of a solve is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.solution import Origin, Status
from implicitcore.tensors.norms import real_dtype
from implicitcore.tensors.transforms import transformed

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


def relative_to(size: Tensor, limit: Tensor, tol: float) -> Tensor:
    """A residual as it was compared with tol, ``[batch]``."""
    return size / limit * tol


@dataclass
class Trust:
    """How far a limit counts that follows the size of f(z).

    Attributes:
        limit: ``[batch]``, the limit at the start, or a share of the residual there: a larger one
            is owed to a growth of ``|f(z)|``, and met only where the residual has fallen as well.
        doubted: ``[batch]``, the samples that have met such a limit alone; None: there are none.
    """

    limit: Tensor
    doubted: Tensor | None = None

    @classmethod
    def at(cls, start: AtStart) -> Trust:
        """Before a sample has met a limit that grew."""
        return cls(torch.maximum(start.limit, start.norm * TRUST))

    def doubt(
        self, met: Tensor, residual: Residual, ceiling: Tensor, rounding: float
    ) -> tuple[Tensor, Tensor]:
        """Which of the samples ``met`` did so by a residual that fell, and which ran away.

        One has run away where ``|f(z)|`` is far above its start, or so large that the ``rounding``
        of f(z) - z hides a residual that has not fallen.
        """
        size, update, hidden = residual.norm, residual.update_norm, residual.update_norm * rounding
        new = met if self.doubted is None else met & ~self.doubted
        self.doubted = new if self.doubted is None else self.doubted | new
        self.limit = torch.where(new, torch.maximum(self.limit, size * TRUST), self.limit)
        reach = torch.maximum(self.limit, ceiling * (HIDDEN * rounding / DIVERGENCE))
        fell = torch.maximum(size, hidden) <= reach
        return met & fell, met & ~fell & ((hidden > reach) | (update > ceiling))


@dataclass
class AtStart:
    """What follows from the first residual of each sample, computed when it is first asked for.

    Attributes:
        size: ``[batch]``, that residual.
        update: ``[batch]``, ``|f(z)|`` there.
        small: ``[batch]``, below which the square of a residual underflows.
        limit: ``[batch]``, what the first residual was compared with.
        known: the same of an earlier start, where another solver began; None until it is asked for.
        trust: None until a limit is asked for that grew.
        bounded: what is not above the first residual is not above the ceiling.
    """

    size: Tensor
    update: Tensor
    small: Tensor
    limit: Tensor
    known: Origin | None = None
    trust: Trust | None = None
    bounded: bool = False

    def origin(self) -> Origin:
        """The same for solvers that go on."""
        if self.known is None:
            self.known = origin_of(self.size, self.update)
        return self.known

    @property
    def norm(self) -> Tensor:
        """``[batch]``, the first residual; NaN where it is not finite."""
        return self.origin().norm

    @property
    def ceiling(self) -> Tensor:
        """``[batch]``, above which a residual is lost."""
        return self.origin().ceiling


class _Fresh(NamedTuple):
    """Where samples are before their first evaluation: ``[batch]``, and nobody writes to them."""

    active: Tensor  # True
    steps: Tensor  # 0
    far: Tensor  # infinity
    small: Tensor  # see AtStart
    floor: Tensor  # the least that a residual is compared with

    @classmethod
    def of(cls, batch: int, dtype: torch.dtype, device: torch.device, floor: float) -> _Fresh:
        """Of so many samples."""
        far = torch.full((batch,), torch.inf, dtype=dtype, device=device)
        active = torch.ones(batch, dtype=torch.bool, device=device)
        steps = torch.zeros(batch, dtype=torch.int64, device=device)
        small = torch.full_like(far, 100 * torch.finfo(dtype).tiny ** 0.5)
        return cls(active, steps, far, small, torch.full_like(far, floor))


# Those of small batches on the host are made once, and no more than so many: a solve of a small
# cell pays for calls.
_KNOWN, _MOST, _SMALL = dict[tuple[Any, ...], _Fresh](), 64, 4096


def _fresh(batch: int, dtype: torch.dtype, device: torch.device, floor: float) -> _Fresh:
    """Those of so many samples, kept where they are to be."""
    found = _Fresh.of(batch, dtype, device, floor)
    # What a mode or a transform makes is its own.
    plain = type(found.far) is Tensor and not (found.far.is_inference() or transformed())
    if plain and device.type == "cpu" and batch <= _SMALL:
        if len(_KNOWN) == _MOST:
            _KNOWN.clear()
        _KNOWN[batch, dtype, device, floor] = found
    return found


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
        dtype = real_dtype(z0)
        least = atol + tiny(dtype)  # a tensor where the units of the samples differ
        alike = 0.0 if isinstance(least, Tensor) else least
        key = z0.shape[0], dtype, z0.device, alike
        fresh = _KNOWN.get(key) or _fresh(*key)
        floor = least.to(fresh.far) if isinstance(least, Tensor) else fresh.floor
        far, start = fresh.far, AtStart(fresh.far, fresh.far, fresh.small, floor)
        return cls(fresh.active, fresh.steps, z0, far, floor, z0, far, floor, floor, start)

    def lower(self, done: Tensor) -> None:
        """Put the limits of samples ``[batch]`` that are done below all residuals."""
        self.floor = self.floor.masked_fill(done, -torch.inf)

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
