"""The loop of every stepwise ODE solver."""

from __future__ import annotations

import math
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
        if run.begin(stop):
            break
        run.step()
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
    grid = times.to(z0.device, real_dtype(z0))
    steps = grid.diff()
    if not bool((steps > 0).all() | (steps < 0).all()):
        raise InputError(f"times: expected strictly increasing or decreasing values, received {times.tolist()}")
    if bounded and not math.isfinite(float(grid[-1])):
        raise InputError(f"times: expected finite values, received {times.tolist()}")
    return grid


class _March:
    """Where each sample is: t, the step size, z, the solver's state and the next output time, all ``[batch, ...]``."""

    def __init__(self, solver: StepwiseODESolver[Any], control: StepSize, system: System, z0: Tensor, times: Tensor) -> None:
        self.solver, self.control, self.system, self.times = solver, control, system, times
        batch = z0.shape[0]
        self.direction = 1.0 if times[1] > times[0] else -1.0
        self.t = times[:1].expand(batch).clone()
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
        self.outputs = [z0] * len(times)

    def begin(self, stop: Stop | None) -> bool:
        """Make ready for a step; True where no sample needs one."""
        if not bool(self.active.any()):
            return True
        if self.state is None:
            self.state = self.solver.init(self.system, self.t, self.z)
        velocity = self.solver.velocity(self.state)
        if stop is not None:
            self.active = self.active & stop(self.t, self.z, velocity)
            if not bool(self.active.any()):
                return True
        if not self.started:
            self.started = True
            with torch.no_grad():
                self.size = self.control.first(self.system, self.t, self.z, velocity, self.direction)
                self.finite &= norm(velocity).isfinite()
                self.active = self.active & self.finite
        return False

    def step(self) -> None:
        """One step, accepted or rejected for each sample by itself."""
        with torch.no_grad():
            target = self.times[self.next.clamp(max=len(self.times) - 1)]
            dt, arrives = self.control.fit(self.size, target - self.t)
            dt = torch.where(self.active, dt, 0)
        step = self.solver.step(self.system, self.t, dt, self.z, self.state)
        with torch.no_grad():
            verdict = self.control.judge(self.system, self.z, step.z, step.error, dt.abs(), self.error)
            accept = verdict.accept & self.active
            if self.system.quadrature:
                self.system.commit(step, dt, accept)
            self._keep(step, accept)
            self._note(step, accept, verdict.accept)
            # A step that was shortened to arrive says little about the size that the error allows.
            grown = torch.where(arrives & accept, torch.maximum(verdict.size, self.size), verdict.size)
            self.size = torch.where(self.active, grown, self.size)
            self.error = torch.where(accept, verdict.error, self.error)
            self.t = torch.where(accept, torch.where(arrives, target, self.t + dt), self.t)
            reached = accept & arrives
        for k in range(1, len(self.times)):
            self._output(k, reached)
        self.next = self.next + reached
        self.active = self.active & (self.next < len(self.times))

    def _keep(self, step: Step, accept: Tensor) -> None:
        with torch.set_grad_enabled(step.z.requires_grad or self.z.requires_grad):
            keep = column(accept)
            self.z = torch.where(keep, step.z, self.z)
            if step.state is None or self.system.quadrature:  # a quadrature needs each first stage at its own point
                self.state = None
            else:
                self.state = pytree.tree_map(lambda new, old: torch.where(keep, new, old), step.state, self.state)

    def _note(self, step: Step, accept: Tensor, wanted: Tensor) -> None:
        self.steps += self.active
        broken = ~wanted & ~norm(step.z).isfinite() & self.active
        stuck = self.active & ~accept & (self.size < torch.finfo(self.t.dtype).eps * self.t.abs().clamp(min=1e-3))
        self.finite &= ~(broken & (stuck | (step.error is None)))
        self.moving &= ~stuck
        self.active = self.active & self.finite & self.moving

    def _output(self, k: int, reached: Tensor) -> None:
        here = column(reached & (self.next == k))
        self.outputs[k] = torch.where(here, self.z, self.outputs[k])

    def solution(self) -> Solution:
        """The states at the output times; a sample that failed keeps its last state in those it did not reach."""
        done = self.next >= len(self.times)
        outputs = [torch.where(column(self.next > k), z, self.z) for k, z in enumerate(self.outputs)]
        status = torch.full_like(self.next, Status.MAX_STEPS, dtype=torch.int8)
        status[~self.moving] = Status.DIVERGED
        status[~self.finite] = Status.NON_FINITE
        status[done] = Status.CONVERGED
        return Solution(
            z=torch.stack(outputs),
            start=self.outputs[0],
            residual=None,
            status=status,
            steps=self.steps,
            evaluations=self.system.evaluations,
            times=self.times,
        )
