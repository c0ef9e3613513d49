"""What the iterations of a root solve by kernels have in common: their state is on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from implicitcore.backends.pinned import values_later
from implicitcore.backends.root_iteration import RootResult, StopRule
from implicitcore.errors import InputError
from implicitcore.solution import Status
from implicitcore.tensors.norms import real_dtype


class DeviceIteration(ABC):
    """The iterations of one solve by kernels that keep all they remember on the device.

    A derived class launches the kernels (:meth:`launch`), which write ``reals``,
    ``counters``, ``stopped`` and ``best``. The host waits for the device after the
    first iterate, and then in every fourth iteration for the one before, while the device has work:
    how many samples have stopped goes to pinned memory, and a solve is evaluated one to four times
    more. A sample that has stopped stays where it is meanwhile, so nothing else follows from it.
    Where :meth:`size` is asked for, the iterates are recorded, and none may be too many: there the
    host looks at each.

    Arguments:
        rule: when a sample stops.
        z: the start, ``[batch, n]``.

    Attributes:
        reals: ``[len(REALS), batch]``, in float32 at least: of each sample the norm of its last
            residual and of f(z), of the best residual and its limit, of the residual at the start,
            the ceiling, and what the residual is to reach where the limit grew.
        counters: ``[len(COUNTERS), batch]`` int64, zero at the start: of each sample its iterates,
            whether it has stopped, at which of them, with which status, whether its limit was
            doubted, whether the last iterate is the best, whether it came of a plain step, and what
            the kernels note there.
        samples: what the rule says of each sample, as :meth:`given` has it.
        ring: where the iterates are written in turn, as many as the host takes between two looks;
            empty where each is new memory. A graph of several iterations (``cuda_graphs``) refers
            to them by address.
        best: ``[batch, n]``, the iterate of least residual where that is not the last.
    """

    LOOK_EVERY: ClassVar[int] = 4
    REALS: ClassVar[tuple[str, ...]] = (
        *("size", "update", "norm", "limit", "start_norm", "ceiling", "reach"),
    )
    COUNTERS: ClassVar[tuple[str, ...]] = (
        *("count", "stopped", "steps", "status", "doubted", "pending", "plain", "decision"),
    )

    def __init__(self, rule: StopRule, z: Tensor) -> None:
        self.rule, self.batch = rule, len(z)
        self.ring: tuple[Tensor, ...] = ()
        self.reals = z.new_empty(len(self.REALS), self.batch, dtype=real_dtype(z))
        self.all_counters = torch.zeros(
            len(self.COUNTERS) * self.batch + 1, dtype=torch.int64, device=z.device
        )
        self.counters = self.all_counters[:-1].view(-1, self.batch)
        self.best = torch.empty_like(z, memory_format=torch.contiguous_format)
        self.last = self.best
        self.count, self.every = 0, self.LOOK_EVERY
        self.asked: Callable[[], int] | None = None
        self.samples = self.given()

    @property
    def stopped(self) -> Tensor:
        """How many samples have stopped, ``[]`` int64."""
        return self.all_counters[-1]

    @abstractmethod
    def launch(
        self, z: Tensor, fz: Tensor, g: Tensor | None, before: Tensor, z_next: Tensor | None
    ) -> None:
        """Take in an iterate.

        Arguments:
            z: ``[batch, n]`` and contiguous, as all here.
            fz: f(z).
            g: the residual, where it is not f(z) - z.
            before: the iterate before; z itself at the first.
            z_next: what to write the next iterate to; None where there is none.
        """

    def later(self, number: Tensor) -> Callable[[], int]:
        """See :meth:`value_later`."""
        return self.value_later(number)

    @staticmethod
    def value_later(number: Tensor) -> Callable[[], int]:
        """The value that a whole number on the device has here in its stream.

        Returns:
            The value, by a call that waits for what was queued before, and for nothing after it.
        """
        values = values_later(number.reshape(1))
        return lambda: values()[0]

    def given(self) -> list[Tensor | None]:
        """What the rule says of each sample.

        The floor ``[batch]``, the scale ``[batch]``, and where another solver began ``[2, batch]``:
        each in the dtype of ``reals``, and None where there is none.
        """
        rule = self.rule
        floor = rule.floor if isinstance(rule.floor, Tensor) else None
        fixed = rule.scale if isinstance(rule.scale, Tensor) else None
        origin = None if rule.origin is None else torch.stack(list(rule.origin))
        found = (floor, fixed, origin)
        return [None if each is None else each.to(self.reals).contiguous() for each in found]

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
        z_next = None if last else self._next_like(z)
        self.launch(z, fz, g, self.last if self.count else z, z_next)
        self.last = z
        self.count += 1
        return None if last or self._all_stopped() else z_next

    def _next_like(self, z: Tensor) -> Tensor:
        """Memory for the next iterate."""
        return self.ring[(self.count + 1) % len(self.ring)] if self.ring else torch.empty_like(z)

    def restart(self, rule: StopRule) -> None:
        """Begin another solve in the same memory, with a rule of the same numbers."""
        self.rule, self.last = rule, self.best
        self.all_counters.zero_()
        for kept, new in zip(self.samples, self.given(), strict=True):
            if kept is not None and new is not None:
                kept.copy_(new)
        self.count, self.every, self.asked = 0, self.LOOK_EVERY, None

    @classmethod
    def stretch(cls, count: int) -> int:
        """Iterations after ``count`` of them, until the host next asks or looks."""
        place = count % cls.LOOK_EVERY
        return max(cls.LOOK_EVERY - 1 - place, 1)

    def replayed(self, iterations: int) -> Tensor | None:
        """Note that so many iterations were run by a graph, of which none is the last that may be.

        Returns:
            The next iterate; None where all samples are known to have stopped.
        """
        self.count += iterations
        self.last = self.ring[(self.count - 1) % len(self.ring)]
        return None if self._all_stopped() else self.ring[self.count % len(self.ring)]

    def _all_stopped(self) -> bool:
        """Whether all had, when the host last asked."""
        if self.count == 1 or self.every == 1:
            return int(self.later(self.stopped)()) == self.batch
        if self.count % self.every == self.every - 1:
            self.asked = self.later(self.stopped)
        if self.count % self.every == 0 and self.asked is not None:
            return int(self.asked()) == self.batch
        return False

    def size(self) -> Tensor:
        """See :meth:`RootIteration.size`."""
        self.every = 1
        return self.reals[self.REALS.index("size")].clone()

    def between(self, least: float, most: float) -> bool:
        """See :meth:`RootIteration.between`."""
        update = self.reals[self.REALS.index("update")]
        return bool(((update >= least) & (update <= most)).all())

    def result(self) -> RootResult:
        """See :meth:`RootIteration.result`."""
        real = dict(zip(self.REALS, self.reals.clone(), strict=True))
        counter = dict(zip(self.COUNTERS, self.counters, strict=True))
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
