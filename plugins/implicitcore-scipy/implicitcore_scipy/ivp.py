"""What the solvers of scipy.integrate have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.integrate import OdeSolver
from torch import Tensor

from implicitcore import InputError, ODESolver, Status, Trajectory
from implicitcore.extend import ErrorTolerance, Positive, StepLimit, Stop, System, check_times
from implicitcore_scipy.sample import Array, Sample, check_real, one_by_one

CURE = (
    "use Adjoint(solver=Tsit5()), which goes back by another solver, or one of "
    "implicitcore's own with Unrolled()"
)
# Evaluations in a row that may return a NaN: a smaller step may avoid it, and SciPy may never end.
PATIENCE = 50


@dataclass(frozen=True, kw_only=True)
class IVPSolver(ErrorTolerance, StepLimit, ODESolver):
    """A method of ``scipy.integrate.solve_ivp``, run for each sample by itself.

    Every sample has its own steps. The state goes through NumPy in float64, on the CPU, and there
    is no graph: it trains through ``Adjoint(solver=Tsit5())``, and through ``Implicit`` inside
    ``SteadyState``. Evaluations are of one sample each; a solution counts them as evaluations of
    the whole batch, their sum over the batch size. Use it as a reference, or for what implicitcore
    lacks; it is slow. Inside ``SteadyState``, give it stepping tolerances below the residual that
    is to be reached.

    Attributes:
        first_step: the first step, in the units of the times; None leaves it to SciPy.
        max_step: no step is longer, where given.
    """

    stepper: ClassVar[type[OdeSolver]]
    first_step: Positive | None = None
    max_step: Positive | None = None

    def settings(self, path: Stretch) -> dict[str, Any]:
        """More arguments of SciPy's class."""
        del path
        return {}

    def solve(
        self, system: System, z0: Tensor, times: Tensor, stop: Stop | None = None
    ) -> Trajectory:
        """See :meth:`ODESolver.solve`.

        Raises:
            InputError: the state is complex.
            GradientError: a graph is asked for.
        """
        check_real(z0)
        grid = check_times(times, z0, bounded=stop is None)
        with one_by_one(system, max(len(z0), 1)):
            paths = [Stretch(self, Sample(system, z0, row, CURE), grid) for row in range(len(z0))]
            if stop is None:
                for path in paths:
                    while path.status is None:
                        path.step()
        if stop is not None:
            self._to_steady_state(system, paths, stop)
        return self._trajectory(system, z0, grid, paths)

    def _to_steady_state(self, system: System, paths: list[Stretch], stop: Stop) -> None:
        """Step all samples side by side, and ask at each state which go on.

        The velocity there is one evaluation of the batch.
        """
        for _ in range(self.max_steps + 1):
            if not paths:
                return
            z = torch.cat([path.z for path in paths])
            t = torch.tensor([path.t for path in paths]).to(paths[0].grid)
            going = stop(t, z, system.velocity(t, z)).tolist()
            with one_by_one(system, len(paths)):
                for path, on in zip(paths, going, strict=True):
                    if not on:
                        path.status = path.status or Status.MAX_STEPS
                    elif path.status is None:
                        path.step()
            if all(path.status is not None for path in paths):
                return

    def _trajectory(
        self, system: System, z0: Tensor, grid: Tensor, paths: list[Stretch]
    ) -> Trajectory:
        status = [int(Status.MAX_STEPS if path.status is None else path.status) for path in paths]
        z = (
            torch.stack([path.trajectory() for path in paths], 1)
            if paths
            else z0.expand(len(grid), *z0.shape)
        )
        return Trajectory(
            z=z,
            start=z0,
            status=torch.tensor(status, dtype=torch.int8, device=z0.device),
            steps=torch.tensor([path.steps for path in paths], dtype=torch.int64, device=z0.device),
            evaluations=system.evaluations,
            times=grid,
        )


class Stretch:
    """The trajectory of one sample.

    Attributes:
        t: where it is.
        z: the state there, ``[1, n]``.
        steps: taken so far.
        status: how it ended; None while it goes on.
    """

    def __init__(self, solver: IVPSolver, sample: Sample, grid: Tensor) -> None:
        self.solver, self.sample, self.grid = solver, sample, grid
        self.times: list[float] = grid.tolist()
        self.t, self.z = self.times[0], sample.z0
        self.rows = [sample.z0]
        self.steps = self.bad = 0
        self.status: Status | None = None
        self.stepper: OdeSolver | None = None

    def velocity(self, t: float, y: Array) -> Array:
        """The vector field.

        Raises:
            ArithmeticError: it is not finite, again and again.
        """
        z = self.sample.tensor(y)
        value = self.sample.call(self.sample.system.velocity, self.grid.new_tensor([t]), z)
        self.bad = 0 if bool(value.isfinite().all()) else self.bad + 1
        if self.bad > PATIENCE:
            raise ArithmeticError("the vector field is not finite")
        return self.sample.array(value)

    def step(self) -> None:
        """One step of SciPy's, or the end."""
        try:
            if self.stepper is None:
                self.stepper = self._start()
            if self.status is None and self.steps < self.solver.max_steps:
                self.steps += 1
                self.stepper.step()
                self._look(self.stepper)
                return
        except (ValueError, ArithmeticError) as error:
            if error is self.sample.foreign or not self.bad:
                raise
            self.status = Status.NON_FINITE
        if self.status is None:
            self.status = Status.MAX_STEPS

    def _start(self) -> OdeSolver:
        solver, y0 = self.solver, self.sample.array(self.sample.z0)
        first = (
            {}
            if solver.first_step is None
            else {"first_step": min(solver.first_step, abs(self.times[-1] - self.times[0]))}
        )
        if isinstance(solver.atol, tuple) and len(solver.atol) != y0.size:
            raise InputError(
                f"atol: expected a number, or {y0.size}, one for each in the state of a sample, "
                f"received {len(solver.atol)}"
            )
        longest: dict[str, Any] = {} if solver.max_step is None else {"max_step": solver.max_step}
        settings: dict[str, Any] = {"rtol": solver.rtol, "atol": solver.atol, **first, **longest}
        settings |= solver.settings(self)
        self.velocity(self.times[0], y0)
        if self.bad or not bool(self.sample.z0.isfinite().all()):
            self.bad = 1
            raise ArithmeticError("the start is not finite")
        return solver.stepper(self.velocity, self.times[0], y0, self.times[-1], **settings)

    def _look(self, stepper: OdeSolver) -> None:
        """What became of the step, and the output times that it passed."""
        lost = not np.isfinite(stepper.y).all()
        if lost or stepper.status == "failed":
            self.status = Status.NON_FINITE if lost or self.bad else Status.DIVERGED
            return
        self.t, self.z = float(stepper.t), self.sample.tensor(stepper.y)
        passed = [t for t in self.times[len(self.rows) :] if stepper.direction * (self.t - t) >= 0]
        inner = stepper.dense_output() if passed else None
        self.rows += [
            self.z if t == self.t or inner is None else self.sample.tensor(inner(t)) for t in passed
        ]
        if len(self.rows) == len(self.times):
            self.status = Status.CONVERGED

    def trajectory(self) -> Tensor:
        """``[T, n]``, with the last state at the times that were not reached."""
        rows = [*self.rows, *[self.z] * (len(self.times) - len(self.rows))]
        return torch.cat(rows)
