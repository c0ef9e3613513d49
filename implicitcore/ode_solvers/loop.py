"""The loop of every stepwise ODE solver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import InputError
from implicitcore.norms import column, norm, real_dtype
from implicitcore.solution import Solution, Status
from implicitcore.system import System

if TYPE_CHECKING:
    from implicitcore.ode_solvers.base import Step, StepwiseODESolver, Stop
    from implicitcore.ode_solvers.step_size import StepSize


def march(solver: StepwiseODESolver[Any], system: System, z0: Tensor, times: Tensor, stop: Stop | None) -> Solution:
    """Integrate from z0 over the output times, each sample at its own pace."""
    control = solver.step_size if stop is None else solver.step_size.settling()
    run = _March(solver, control, system, z0, check_times(times, z0, bounded=stop is None))
    for _ in range(solver.max_steps):
        if not run.begin(stop):
            break
        run.step()
    else:
        if stop is not None:
            run.begin(stop)  # the state after the last step is looked at too
    return run.solution()


def check_times(times: Tensor, z0: Tensor, *, bounded: bool = True) -> Tensor:
    """The output times in the dtype and on the device of the integration.

    Raises:
        InputError: says what was received and what was expected.
    """
    if not isinstance(times, Tensor) or times.ndim != 1 or len(times) < 2:
        found = f"a tensor of shape {list(times.shape)}" if isinstance(times, Tensor) else f"a {type(times).__name__}"
        raise InputError(f"times: expected a tensor of shape [T] with T >= 2, received {found}")
    if times.requires_grad:
        raise InputError("times: received a tensor that requires a gradient; the gradient with respect to times is not computed")
    if times.is_complex():
        raise InputError(f"times: expected real numbers, received {times.dtype}")
    grid = times.to(z0.device, real_dtype(z0))
    steps = grid.diff()
    if not bool((steps > 0).all() | (steps < 0).all()):
        raise InputError(f"times: expected strictly increasing or decreasing values in {grid.dtype}, received {times.tolist()}")
    if not bool(grid[: None if bounded else -1].isfinite().all()):
        raise InputError(f"times: expected finite values, received {times.tolist()}")
    return grid


class _March:
    """Where each sample is: t, the step size, z, the solver's state and the next output time, all ``[batch, ...]``."""

    def __init__(self, solver: StepwiseODESolver[Any], control: StepSize, system: System, z0: Tensor, times: Tensor) -> None:
        self.solver, self.control, self.system, self.times = solver, control, system, times
        batch = z0.shape[0]
        self.t = times[:1].expand(batch)
        self.z = z0
        self.state: Any = None
        self.started = False
        self.size = torch.zeros_like(self.t)
        self.error = torch.ones_like(self.t)
        self.next = torch.ones(batch, dtype=torch.int64, device=z0.device)
        self.active = torch.ones(batch, dtype=torch.bool, device=z0.device)
        self.finite = torch.ones_like(self.active)
        self.moving = torch.ones_like(self.active)
        self.steps = torch.zeros_like(self.next)
        self.more = batch > 0
        self.outputs = _Outputs(z0, len(times))

    def begin(self, stop: Stop | None) -> bool:
        """Make ready for a step; False where no sample needs one."""
        if not self.more:
            return False
        if self.state is None:
            self.state = self.solver.init(self.system, self.t, self.z)
        velocity = self.solver.velocity(self.state)
        if stop is not None:
            self.active = self.active & stop(self.t, self.z, velocity)
            self.more = bool(self.active.any())
        if self.more and not self.started:
            self._start(velocity)
        return self.more

    @torch.no_grad()
    def _start(self, velocity: Tensor) -> None:
        self.started = True
        self.finite = norm(velocity).isfinite()
        self.active = self.active & self.finite
        self.more = bool(self.active.any())
        if self.more:
            self.size = self.control.first(self.system, self.t, self.z, velocity, self._target() - self.t)

    def _target(self) -> Tensor:
        return self.times[self.next.clamp(max=len(self.times) - 1)]

    def step(self) -> None:
        """One step, accepted or rejected for each sample by itself."""
        with torch.no_grad():
            target = self._target()
            dt, arrives = self.control.fit(self.size, target - self.t)
            dt = torch.where(self.active, dt, 0)
        step = self.solver.step(self.system, self.t, dt, self.z, self.state)
        with torch.no_grad():
            accept = self._judge(step, dt, arrives)
            self.t = torch.where(accept, torch.where(arrives, target, self.t + dt), self.t)
            arrived = accept & arrives
            reached, self.next = self.next, self.next + arrived
            # A sample at its last time may follow the others: its dt is zero.
            follows = accept | (self.next >= len(self.times))
            self.active = self.active & (self.next < len(self.times))
            # The one look at the device in a step.
            alike, any_arrived, self.more = torch.stack((follows.all(), arrived.any(), self.active.any())).tolist()
            if self.system.quadrature:
                self.system.commit(step, dt, accept)
        self._keep(step, None if alike else follows)
        if any_arrived:
            self.outputs.add(self.z, arrived, reached)
            if self.system.quadrature:
                self.z, self.state = self.system.arrive(self.z, arrived, reached), None

    def _judge(self, step: Step, dt: Tensor, arrives: Tensor) -> Tensor:
        """Which samples accept; those that cannot go on become inactive."""
        size = dt.abs()
        control = self.control if step.order is None else self.control.with_order(step.order)
        verdict = control.judge(self.system, self.z, step.z, step.error, size, self.error)
        finite = norm(step.z).isfinite()
        accept = verdict.accept & finite & self.active
        # Rejected for good: no smaller step is left to try.
        smallest = torch.finfo(size.dtype).eps * self.t.abs().clamp(min=1e-3)
        lost = self.active & ~accept & ((verdict.size >= size) | (verdict.size < smallest))
        self.steps = self.steps + self.active
        self.finite = self.finite & ~(lost & ~(finite & verdict.error.isfinite()))
        self.moving = self.moving & ~lost
        self.active = self.active & ~lost
        # A step that was shortened to arrive says little about the size that the error allows.
        self.size = torch.where(accept & arrives, torch.maximum(verdict.size, self.size), verdict.size)
        self.error = torch.where(accept, verdict.error, self.error)
        return accept

    def _keep(self, step: Step, which: Tensor | None) -> None:
        """The new state for the samples that accepted; for all of them without a choice where ``which`` is None."""
        if which is None:
            self.z, self.state = step.z, step.state
            return
        keep = column(which)
        self.z = torch.where(keep, step.z, self.z)
        if step.state is None or self.system.quadrature:  # a quadrature needs each first stage at its own point
            self.state = None
        else:
            self.state = pytree.tree_map(lambda new, old: torch.where(_like(which, new), new, old), step.state, self.state)

    def solution(self) -> Solution:
        """The states at the output times; a sample that failed keeps its last state in those it did not reach."""
        status = torch.full_like(self.next, Status.MAX_STEPS, dtype=torch.int8)
        status[~self.moving] = Status.DIVERGED
        status[~self.finite] = Status.NON_FINITE
        status[self.next >= len(self.times)] = Status.CONVERGED
        return Solution(
            z=self.outputs.trajectory(self.z, self.next),
            start=self.outputs.z0,
            residual=None,
            status=status,
            steps=self.steps,
            evaluations=self.system.evaluations,
            times=self.times,
        )


def _like(mask: Tensor, value: Tensor) -> Tensor:
    return mask.reshape(-1, *(1,) * (value.ndim - 1))


class _Outputs:
    """The states at the output times: rows in the order of arrival, and the place of each sample's row at each time.

    Arguments:
        z0: the state at the first time, ``[batch, n]``.
        count: output times.
    """

    def __init__(self, z0: Tensor, count: int) -> None:
        self.z0, self.count, self.batch = z0, count, z0.shape[0]
        self.rows = [z0]
        self.used = self.batch
        self.place = torch.arange(self.batch, device=z0.device).repeat(count, 1)

    def add(self, z: Tensor, arrived: Tensor, which: Tensor) -> None:
        """Samples ``arrived`` at their output times ``which``."""
        index = arrived.nonzero().squeeze(1)
        self.rows.append(z.index_select(0, index))
        self.place[which[index], index] = torch.arange(self.used, self.used + len(index), device=index.device)
        self.used += len(index)

    def trajectory(self, z: Tensor, reached: Tensor) -> Tensor:
        """``[T, batch, n]``, with z at the times that were not ``reached``."""
        late = torch.arange(self.count, device=z.device)[:, None] >= reached
        last = torch.arange(self.used, self.used + self.batch, device=z.device)
        place = torch.where(late, last, self.place)
        return torch.cat((*self.rows, z)).index_select(0, place.flatten()).reshape(self.count, *z.shape)
