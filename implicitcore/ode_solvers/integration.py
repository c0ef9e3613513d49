"""The loop of every stepwise ODE solver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import InputError
from implicitcore.ode_solvers.dense import StepStart
from implicitcore.ode_solvers.events import Event
from implicitcore.ode_solvers.recorder import TrajectoryRecorder
from implicitcore.solution import Solution, Status
from implicitcore.system.system import System
from implicitcore.tensors.norms import all_finite, column, real_dtype

if TYPE_CHECKING:
    from implicitcore.ode_solvers.base import Step, Stop
    from implicitcore.ode_solvers.step_size import StepSize, Verdict
    from implicitcore.ode_solvers.stepwise import StepwiseODESolver


def integrate_loop(  # noqa: PLR0913 - keyword options
    solver: StepwiseODESolver[Any],
    system: System,
    z0: Tensor,
    times: Tensor,
    stop: Stop | None,
    *,
    dense: bool = False,
    event: Event | None = None,
) -> Solution:
    """Integrate from z0 over the output times, each sample at its own pace."""
    control = solver.step_size if stop is None else solver.step_size.settling()
    run = Integration(solver, control, system, z0, check_times(times, z0, bounded=stop is None))
    if dense or event is not None:
        run.follow(TrajectoryRecorder(solver, system, run.t, z0, dense=dense, event=event))
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
        found = (
            f"a tensor of shape {list(times.shape)}"
            if isinstance(times, Tensor)
            else f"a {type(times).__name__}"
        )
        raise InputError(f"times: expected a tensor of shape [T] with T >= 2, received {found}")
    if times.requires_grad:
        raise InputError(
            "times: received a tensor that requires a gradient; the gradient with respect "
            "to times is not computed"
        )
    if times.is_complex():
        raise InputError(f"times: expected real numbers, received {times.dtype}")
    grid = times.to(z0.device, real_dtype(z0))
    steps = grid.diff()
    if not bool((steps > 0).all() | (steps < 0).all()):
        hint = (
            "; a span of length zero has no direction: z there is z0"
            if bool((steps == 0).all())
            else ""
        )
        raise InputError(
            f"times: expected strictly increasing or decreasing values in {grid.dtype}, "
            f"received {times.tolist()}{hint}"
        )
    if not bool(grid[: None if bounded else -1].isfinite().all()):
        raise InputError(f"times: expected finite values, received {times.tolist()}")
    return grid


class Integration:
    """Where each sample is.

    T, the step size, z, the solver's state and the next output time, all ``[batch, ...]``.
    """

    def __init__(
        self,
        solver: StepwiseODESolver[Any],
        control: StepSize,
        system: System,
        z0: Tensor,
        times: Tensor,
    ) -> None:
        self.solver, self.control, self.system, self.times = solver, control, system, times
        batch = z0.shape[0]
        self.t = times[:1].expand(batch)
        self.z = z0
        self.state: Any = None
        self.started = False
        self.size = torch.zeros_like(self.t)
        self.error = torch.ones_like(self.t)
        self.next = torch.ones(batch, dtype=torch.int64, device=z0.device)
        self.target = times[1:2].expand(batch)
        self.active = torch.ones(batch, dtype=torch.bool, device=z0.device)
        self.finite = torch.ones_like(self.active)
        self.moving = torch.ones_like(self.active)
        self.done = torch.zeros_like(self.active)
        self.steps = torch.zeros_like(self.next)
        self.more = batch > 0
        self.outputs = Outputs(z0, len(times))
        self.path: TrajectoryRecorder | None = None

    def follow(self, path: TrajectoryRecorder) -> None:
        """Keep what is wanted of the way between the output times."""
        self.path = path
        self.finite = ~path.undefined
        self.active = self.active & self.finite

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
        self.finite = self.finite & all_finite(velocity)
        self.active = self.active & self.finite
        self.more = bool(self.active.any())
        if self.more:
            self.size = self.control.first(
                self.system, self.t, self.z, velocity, self.target - self.t
            )

    def _choose(self) -> tuple[Tensor, Tensor]:
        """The step of each sample towards its next output time, zero for those that are done, and whether it arrives there."""
        dt, arrives = self.control.fit(self.size, self.target - self.t)
        return torch.where(self.active, dt, 0), arrives

    def _judge(self, step: Step, dt: Tensor) -> tuple[Verdict, Tensor]:
        """The verdict on a step, which no sample accepts that is done or not finite, and which samples are finite."""
        control = self.control if step.order is None else self.control.with_order(step.order)
        verdict = control.judge(self.system, self.z, step.z, step.error, dt.abs(), self.error)
        finite = all_finite(step.z)
        return verdict._replace(accept=verdict.accept & finite & self.active), finite

    def step(self) -> None:
        """One step, accepted or rejected for each sample by itself."""
        with torch.no_grad():
            dt, arrives = self._choose()
        step = self.solver.step(self.system, self.t, dt, self.z, self.state)
        with torch.no_grad():
            verdict, finite = self._judge(step, dt)
            accept = verdict.accept
            end = torch.where(arrives, self.target, self.t + dt)
            self.steps = self.steps + self.active
        if self.path is not None:
            step, end = self.path.follow(
                StepStart(self.t, dt, self.z, self.state), step, end, accept
            )
            stops = self.path.ended | self.path.undefined
            arrives, self.active, self.finite = (
                arrives & ~stops,
                self.active & ~stops,
                self.finite & ~self.path.undefined,
            )
        with torch.no_grad():
            self.t = torch.where(accept, end, self.t)
            self.error = self.control.remember(accept, verdict.error, self.error)
            before, self.size = self.size, verdict.size
            arrived, refused = accept & arrives, self.active & ~accept
            # A sample at its last time may follow the others: its dt is zero.
            follows = accept | self.done
            # The one look at the device in a step where nothing happens.
            alike, any_arrived, any_refused = torch.stack(
                (follows.all(), arrived.any(), refused.any())
            ).tolist()
            if any_refused:
                self._refuse(verdict, dt.abs(), refused, finite)
            if self.system.quadrature:
                self.system.commit(step, dt, None if alike else accept)
        self._keep(step, None if alike else follows)
        if any_arrived:
            self._arrive(arrived, before)
        if any_arrived or any_refused or self.path is not None:
            self.more = bool(self.active.any())

    def _refuse(self, verdict: Verdict, size: Tensor, refused: Tensor, finite: Tensor) -> None:
        """Those of the ``refused`` that cannot go on become inactive.

        No smaller step is left to try.
        """
        eps = torch.finfo(size.dtype).eps
        smallest = (eps * self.t.abs()).clamp(min=max(self.control.min_step, 1e-3 * eps))
        lost = refused & ((verdict.size >= size) | (verdict.size < smallest))
        self.finite = self.finite & ~(lost & ~(finite & verdict.error.isfinite()))
        self.moving = self.moving & ~lost
        self.active = self.active & ~lost

    def _arrive(self, arrived: Tensor, before: Tensor) -> None:
        """Samples ``arrived`` at their next output times, with the step size that they had ``before``."""
        reached, self.next = self.next, self.next + arrived
        self.done = self.next >= len(self.times)
        self.active = self.active & ~self.done
        self.target = self.times[self.next.clamp(max=len(self.times) - 1)]
        # A step that was shortened to arrive says little about the size that the error allows.
        self.size = torch.where(arrived, torch.maximum(self.size, before), self.size)
        self.outputs.add(self.z, arrived, reached)
        if self.system.quadrature:
            self.z, self.state = self.system.arrive(self.z, arrived, reached), None

    def _keep(self, step: Step, which: Tensor | None) -> None:
        """The new state for the samples that accepted.

        For all of them without a choice where ``which`` is None.
        """
        if which is None:
            self.z, self.state = step.z, step.state
            return
        keep = column(which)
        self.z = torch.where(keep, step.z, self.z)
        if (
            step.state is None or self.system.quadrature
        ):  # a quadrature needs each first stage at its own point
            self.state = None
        else:
            self.state = pytree.tree_map(
                lambda new, old: torch.where(_like(which, new), new, old), step.state, self.state
            )

    def solution(self) -> Solution:
        """The states at the output times.

        A sample that failed keeps its last state in those it did not reach.
        """
        status = torch.full_like(self.next, Status.MAX_STEPS, dtype=torch.int8)
        status[~self.moving] = Status.DIVERGED
        status[~self.finite] = Status.NON_FINITE
        path = self.path
        status[self.done if path is None else self.done | path.ended] = Status.CONVERGED
        return Solution(
            z=self.outputs.trajectory(self.z, self.next),
            start=self.outputs.z0,
            residual=None,
            status=status,
            steps=self.steps,
            evaluations=self.system.evaluations,
            times=self.times,
            event_times=path and path.event_times,
            interpolant=path and path.interpolant(self.times),
        )


def _like(mask: Tensor, value: Tensor) -> Tensor:
    return mask.reshape(-1, *(1,) * (value.ndim - 1))


class Outputs:
    """The states at the output times.

    Rows in the order of arrival, and the place of each sample's row at each time.

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
        self.place[which[index], index] = torch.arange(
            self.used, self.used + len(index), device=index.device
        )
        self.used += len(index)

    def trajectory(self, z: Tensor, reached: Tensor) -> Tensor:
        """``[T, batch, n]``, with z at the times that were not ``reached``."""
        late = torch.arange(self.count, device=z.device)[:, None] >= reached
        last = torch.arange(self.used, self.used + self.batch, device=z.device)
        place = torch.where(late, last, self.place)
        return (
            torch.cat((*self.rows, z))
            .index_select(0, place.flatten())
            .reshape(self.count, *z.shape)
        )
