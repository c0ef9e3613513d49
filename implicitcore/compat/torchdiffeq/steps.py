"""The steps of an integration of one state: sizes by torchdiffeq's rules, each step by ours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from implicitcore.compat.torchdiffeq.adams import GridAdams
from implicitcore.compat.torchdiffeq.control import Control
from implicitcore.compat.torchdiffeq.state import Field
from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.dense import evaluate
from implicitcore.ode_solvers.step_size import Adaptive
from implicitcore.ode_solvers.stepper import Stepper
from implicitcore.ode_solvers.stepwise import StepwiseODESolver
from implicitcore.solution import SolveError
from implicitcore.system.system import System
from implicitcore.tensors.norms import real_dtype

Callback = Callable[[Tensor, Any, Tensor], Any]


class IntegrationError(SolveError, AssertionError):
    """An integration could not go on; torchdiffeq raises an ``AssertionError``."""


@dataclass(frozen=True, eq=False)
class Run:
    """What makes the steps.

    Attributes:
        solver: one step.
        system: the vector field, of one sample.
        field: its function.
        callbacks: ``step``, ``accept`` and ``reject``, as far as the user has them, of (t0, y0,
            dt).
    """

    solver: StepwiseODESolver[Any]
    system: System
    field: Field
    callbacks: dict[str, Callback]

    def step(self, t: Tensor, dt: Tensor, z: Tensor, state: Any) -> Step:
        """A step from t, by dt with its sign, ``[1]`` each."""
        return self.solver.step(self.system, t, dt.to(real_dtype(z)), z, state)

    def tell(self, event: str, t: Tensor, z: Tensor, dt: Tensor) -> None:
        """Call a callback, where there is one."""
        callback = self.callbacks.get(event)
        if callback is not None:
            callback(t[0], self.field.layout.unpack(z[0]), dt[0].abs())


class Piece:
    """An accepted step, and the states on its way.

    Arguments:
        run: what made it.
        t: where it begins, ``[1]``.
        end: where it ends.
        z: the state at its begin, ``[1, n]``.
        state: the solver's there.
        step: the step.
        interp: ``"own"`` for the solver's continuous extension, ``"cubic"`` for Hermite's cubic, or
            ``"linear"``.
        bounds: the times that the field may jump at, before and behind.
    """

    def __init__(  # noqa: PLR0913 - what a step is made of
        self,
        run: Run,
        t: Tensor,
        end: Tensor,
        z: Tensor,
        state: Any,
        step: Step,
        interp: str = "own",
        bounds: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> None:
        self.run, self.t, self.end, self.z, self.state = run, t, end, z, state
        self.step, self.interp, self.bounds = step, interp, bounds

    @cached_property
    def last(self) -> Any:
        """The solver's state at the end: an evaluation where the step did not make it."""
        if self.step.state is not None:
            return self.step.state
        with self.run.field.between(self.z, *self.bounds):
            return self.run.solver.init(self.run.system, self.end, self.step.z)

    @cached_property
    def _coefficients(self) -> Sequence[Tensor]:
        if self.interp == "linear":
            return [self.z, self.step.z - self.z]
        solver, step, cubic = self.run.solver, self.step, self.interp == "cubic"
        if cubic or solver.piece_needs_state:
            step = step._replace(state=self.last)
        dt = (self.end - self.t).to(real_dtype(self.z))
        piece = partial(Stepper.piece, solver) if cubic else solver.piece
        with self.run.field.between(self.z, *self.bounds):
            return piece(self.run.system, self.t, dt, self.z, self.state, step)

    def at(self, t: Tensor) -> Tensor:
        """The state at a time of the step, ``[1, n]``."""
        attached = torch.is_grad_enabled() and (t.requires_grad or self.t.requires_grad)
        if t is self.end or (not attached and bool(t == self.end)):
            return self.step.z
        if not attached and bool(t == self.t):
            return self.z
        share = ((t - self.t) / (self.end - self.t)).to(real_dtype(self.z))
        return evaluate(self._coefficients, share)

    def shortened(self, t: Tensor) -> Tensor:
        """The state at a time of the step by a step of its own, ``[1, n]``."""
        if bool(t == self.t):
            return self.z
        return self.run.step(self.t, t - self.t, self.z, self.state).z


class StepSequence(ABC):
    """Goes on, step by step.

    Attributes:
        tried: steps, the rejected ones included, since this was last set to zero.
    """

    tried = 0

    @abstractmethod
    def advance(self) -> Piece:
        """The next step that is accepted."""


class AdaptiveSequence(StepSequence):
    """Steps of a size that their errors allow.

    Arguments:
        run: what makes the steps.
        control: their sizes.
        t: where to begin, ``[1]``, in the dtype of the clock.
        z: the state there, ``[1, n]``.
        forward: 1, or -1 for back in time.
        stops: times at which steps end, and whether the field jumps there; in order.
        most: steps between two output times.
    """

    def __init__(  # noqa: PLR0913 - what an integration is made of
        self,
        run: Run,
        control: Control,
        t: Tensor,
        z: Tensor,
        forward: float,
        stops: Sequence[tuple[Tensor, bool]] = (),
        most: int = 2**31 - 1,
    ) -> None:
        self.run, self.control, self.t, self.z = run, control, t, z
        self.forward, self.most = forward, most
        self.stops = [stop for stop in stops if bool((stop[0] - t) * forward > 0)]
        self.state = run.solver.init(run.system, t, z)
        order = getattr(run.solver.step_size, "order", 1)
        self.order = float(order)
        velocity = run.solver.velocity(self.state)
        self.size = control.first(run.system, t, z, velocity, self.order, forward)

    def advance(self) -> Piece:
        """See :meth:`StepSequence.advance`.

        Raises:
            IntegrationError: the steps are too many or too short, or the state is not finite.
        """
        run, control, refused = self.run, self.control, None
        while True:
            size = max(control.min_step, min(self.size, control.max_step))
            end, jumps = self._end(size)
            dt = end - self.t
            self._check(dt.detach(), shorter=refused is None or bool(end != refused))
            run.tell("step", self.t, self.z, dt)
            bounds = (None, end if jumps else None)
            with run.field.between(self.z, *bounds):
                step = run.step(self.t, dt, self.z, self.state)
            self.tried += 1
            order = self.order if step.order is None else float(step.order)
            accept, self.size = control.decide(self.z, step, float(dt.detach().abs()), order)
            run.tell("accept" if accept else "reject", self.t, self.z, dt)
            if accept:
                return self._accept(step, end, jumps, bounds)
            refused = end

    def _end(self, size: float) -> tuple[Tensor, bool]:
        """Where a step of this size ends, and whether the field jumps there."""
        end = self.t + self.forward * size
        if self.stops and bool((self.stops[0][0] - end) * self.forward <= 0):
            return self.stops[0]
        return end, False

    def _check(self, dt: Tensor, *, shorter: bool) -> None:
        if self.tried >= self.most:
            raise IntegrationError(
                f"max_num_steps exceeded ({self.tried}>={self.most}) at t = {self.t.item():g}"
            )
        if not bool(self.z.isfinite().all()):
            raise IntegrationError(f"non-finite values in the state at t = {self.t.item():g}")
        if not (shorter and bool(dt * self.forward > 0)):
            raise IntegrationError(
                f"underflow in dt {dt.item():g} at t = {self.t.item():g}: the error of no step "
                "meets the tolerances"
            )

    def _accept(
        self, step: Step, end: Tensor, jumps: bool, bounds: tuple[Tensor | None, Tensor | None]
    ) -> Piece:
        piece = Piece(self.run, self.t, end, self.z, self.state, step, bounds=bounds)
        self.t, self.z = end, step.z
        if self.stops and end is self.stops[0][0]:
            self.stops = self.stops[1:]
        if jumps:
            beyond = end + self.forward * torch.inf
            with self.run.field.between(self.z, end, beyond):
                self.state = self.run.solver.init(self.run.system, end, self.z)
        else:
            self.state = piece.last
        return piece


class GridSequence(StepSequence):
    """Steps from one time of a grid to the next.

    Arguments:
        run: what makes the steps.
        z: the state at the first time, ``[1, n]``.
        grid: the time of each index, ``[1]``.
        interp: ``"linear"`` or ``"cubic"``, between the times of the grid.
        perturb: the field may jump at each of them.
    """

    def __init__(
        self, run: Run, z: Tensor, grid: Callable[[int], Tensor], interp: str, perturb: bool
    ) -> None:
        self.run, self.z, self.grid, self.interp, self.perturb = run, z, grid, interp, perturb
        self.t, self.index = grid(0), 0
        self.state: Any = None

    def advance(self) -> Piece:
        """See :meth:`StepSequence.advance`."""
        run, t = self.run, self.t
        self.index += 1
        self.tried += 1
        end = self.grid(self.index)
        bounds = (t, end) if self.perturb else (None, None)
        dt = end - t
        run.tell("step", t, self.z, dt)
        with run.field.between(self.z, *bounds):
            if self.state is None:
                self.state = run.solver.init(run.system, t, self.z)
            elif self.perturb and isinstance(run.solver, GridAdams):
                self.state = run.solver.renewed(run.system, t, self.z, self.state)
            step = run.step(t, dt, self.z, self.state)
        if not bool(step.z.isfinite().all()):
            raise IntegrationError(f"non-finite values in the state at t = {end.item():g}")
        piece = Piece(run, t, end, self.z, self.state, step, self.interp, bounds)
        self.t, self.z, self.state = end, step.z, step.state
        return piece


def is_adaptive(solver: StepwiseODESolver[Any]) -> bool:
    """Whether a solver estimates the error of its steps."""
    return isinstance(solver.step_size, Adaptive)
