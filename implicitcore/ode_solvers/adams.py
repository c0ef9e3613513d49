"""Adams methods of variable step and order."""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import index
from typing import Annotated, ClassVar, final

import torch
from pydantic import Field
from torch import Tensor

from implicitcore.backends.adams_step import AdamsAttempt
from implicitcore.backends.adams_step import AdamsPast as Past
from implicitcore.backends.base import Backend
from implicitcore.backends.torch import larger, units
from implicitcore.ode_solvers.adams_grid import StepGrid, cumprod_of, piece_constants
from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.error_scale import allowed, norm_of
from implicitcore.ode_solvers.runge_kutta import Tsit5
from implicitcore.ode_solvers.step_size import Adaptive
from implicitcore.ode_solvers.stepwise import StepwiseODESolver
from implicitcore.options.shared import ErrorControl
from implicitcore.system.system import System
from implicitcore.tensors import host
from implicitcore.tensors.norms import HALF, column, real_dtype
from implicitcore.tensors.products import BADDBMM, MATMUL, TENSORDOT

# A product with fewer rows takes a path in torch that was measured six times slower on a CPU: rows
# without weight are cheaper.
FEWEST = 4

# Of the step's own move, as far as the error may go in an integration to a steady state. At order 1
# the estimate is half the change of the velocity over the step: this is the least that lets the
# unit step of a contraction pass. Measured on ten problems.
STEADY_BOUND = 0.6


@final
@dataclass(frozen=True, kw_only=True)
class Adams(ErrorControl, StepwiseODESolver[Past]):
    """Adams' predictor-corrector method of variable step and order, each sample with its own.

    One evaluation a step. z + dt sum_{j<k} g_j beta_j Phi_j, order k: the integral of the
    polynomial through the last k velocities, in Newton's form with the modified divided differences
    Phi_j. The velocity at the new z gives Phi_k there, and dt g_k Phi_k is what the Adams-Moulton
    corrector of order k + 1 would add: the estimate of the error. The same for the orders k - 1 and
    k + 1 costs no evaluation, and the order with the smallest estimate is the next. A solve begins
    at order 1 with a small step, and needs no other method to start.

    This is the mode P_k E C_{k+1}, seen where it evaluates: in equal steps the predicted points of
    order k with their corrections are the points of order k + 1 without (AB_{k+1}). So z is a point
    whose velocity is known, and a steady state can be tested for nothing. A second evaluation after
    the correction (PECE) was measured to cost more than it saves. The estimate is that of the
    result itself and not of a lower order, as a Runge-Kutta pair's is: for the same error of a
    trajectory give a tenth of the rtol.

    Prefer it where evaluations are dear: at loose tolerances, with many steps, and for steady
    states, where it needs a third of the evaluations of Bosh3. Prefer ``Tsit5`` where f is cheap (a
    step has some 30 small operations of its own), for many close output times, which cut the steps
    short, and where the dynamics change abruptly. ``Adjoint()`` goes back with ``Tsit5`` and the
    same options, for a step here is made of velocities of the steps before it.

    Attributes:
        max_order: highest order. 1 is Euler's method with error control, 3 enough for steady
            states. The state of that many velocities is kept.

    Reference:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section III.5,
        (5.4)-(5.8), and III.7 on the order; Shampine, Gordon, Computer Solution of Ordinary
        Differential Equations (1975).
    """

    recordable: ClassVar[bool] = True

    max_order: Annotated[int, Field(ge=1, le=12)] = 5

    @property
    def step_size(self) -> Adaptive:
        """Adaptive; the first step is of order 1, whose error goes with dt^2."""
        return Adaptive.of(self, 2, steady_bound=STEADY_BOUND)

    def backward_solver(self) -> Tsit5:
        """See :meth:`ODESolver.backward_solver`: the options are the same, but for the order."""
        return Tsit5(**{each.name: getattr(self, each.name) for each in fields(Tsit5)})

    @property
    def rows(self) -> int:
        """The differences that are kept."""
        return max(self.max_order, FEWEST)

    def init(self, system: System, t: Tensor, z: Tensor) -> Past:
        """The velocity, and nothing before."""
        rows = self.rows
        differences = torch.nn.functional.pad(
            system.velocity(t, z).unsqueeze(1), (0, 0, 0, rows - 1)
        )
        gaps = torch.arange(1, rows + 1, dtype=real_dtype(z), device=t.device).expand(
            t.shape[0], -1
        )
        return Past(differences, gaps, torch.zeros_like(t, dtype=torch.int64))

    def velocity(self, state: Past) -> Tensor:
        """Phi_0."""
        return state.differences[:, 0]

    def step(self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: Past) -> Step:
        """See :meth:`Stepper.step`."""
        backend, made, own = system.backend, None, None
        if self.norm is None and not isinstance(self.atol, tuple):
            made = backend.adams_step(
                AdamsAttempt(self.max_order, z, dt, state, (self.rtol, self.atol))
            )
        if made is None:
            made = own = PredictedStep(backend, self, z, dt, state)
        error, differences, gaps, following, order = made.correct(system.velocity(t + dt, made.z))
        past, scaled = Past(differences, gaps, following), own and own.scaled
        return Step(made.z, error, past, order=order, scaled=scaled)

    def piece(  # noqa: PLR0913 - that of every solver
        self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: Past, step: Step
    ) -> list[Tensor]:
        """See :meth:`Stepper.piece`.

        The integral of the step's own polynomial: its error on the way is that of the step.
        """
        with torch.no_grad():
            rows = index(state.gaps.shape[1])
            constants, lever, matrix = piece_constants(rows, dt.dtype, dt.device)
            grid = StepGrid(dt, state, constants)
            ratio = (column(dt.abs()) / grid.gaps)[:, :-1]
            products = cumprod_of(1 - lever * ratio)
            products = torch.nn.functional.pad(products, (1, 0), value=1.0)
            along = TENSORDOT[z.is_cpu](matrix, products, 1).transpose(0, 1)
            weights = along * (grid.newton * column(dt)).unsqueeze(1)
        moves = MATMUL[z.is_cpu](weights.to(z.dtype), state.differences)
        return [z, *moves.unbind(1)]


class PredictedStep:
    """One step; see :class:`AdamsStep`.

    Attributes:
        scaled: ``[batch]``, the size of the error, once the step is corrected.

    Arguments:
        backend: has the weighted sums.
        solver: has the highest order, and the units of the error.
        z: ``[batch, n]``.
        dt: ``[batch]``.
        past: the steps before.
    """

    def __init__(self, backend: Backend, solver: Adams, z: Tensor, dt: Tensor, past: Past) -> None:
        self.solver, self.past, self.start = solver, past, z
        self.scaled: Tensor | None = None
        with torch.no_grad():
            self.grid = grid = StepGrid(dt, past)
            weights = grid.weights.unsqueeze(1).to(z.dtype)
        self.z = backend.axpy_history(z.unsqueeze(1), weights, past.differences).squeeze(1)

    def correct(self, velocity: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """See :meth:`AdamsStep.correct`."""
        grid = self.grid
        differences = _differences(velocity, grid.sums, self.past.differences)
        with torch.no_grad():
            errors = differences * grid.moves.unsqueeze(2)  # of all orders
            sizes = self._sizes(errors)
            following = sizes.argmin(1)
            if differences.shape[1] - 1 > self.solver.max_order:
                following = following.clamp(max=self.solver.max_order)
            if self.z.dtype not in HALF:  # the error has more digits than there are of a difference
                self.scaled = sizes.gather(1, column(grid.order)).squeeze(1)
            error = _rows(errors, grid.order).to(velocity.dtype)
        return error, differences[:, :-1], grid.gaps, following, grid.power

    def _sizes(self, errors: Tensor) -> Tensor:
        """Those of errors ``[batch, rows + 1, n]``, as the tolerances measure them.

        Infinite of an order that may not be the next.
        """
        solver, ends, window = self.solver, (self.start, self.z), self.grid.window
        if solver.norm is None and not isinstance(solver.atol, tuple):
            known = _known(units(*ends, solver.rtol, solver.atol))
            return torch.linalg.vector_norm(
                torch.addcdiv(window.unsqueeze(2), errors, known), dim=2
            )
        most = larger(*ends).to(real_dtype(self.z))
        scaled = (errors / _known(allowed(most, solver.rtol, solver.atol))).abs()
        return torch.stack([norm_of(row, solver.norm) for row in scaled.unbind(1)], 1) + window


def _known(scale: Tensor) -> Tensor:
    """Of each error, ``[batch, 1, n]``.

    One over an infinity would be zero: that of an end that is not finite is a NaN.
    """
    return torch.add(scale, scale, alpha=0).unsqueeze(1)


def _differences(velocity: Tensor, sums: Tensor, past: Tensor) -> Tensor:
    """Phi_j at the new time, ``[batch, rows + 1, n]``.

    The velocity less sum_{i<j} beta_i Phi_i of the last.
    """
    return BADDBMM[past.is_cpu](
        velocity.unsqueeze(1).expand(-1, sums.shape[1], -1), sums.to(past.dtype), past, alpha=-1
    )


def _rows(stack: Tensor, which: Tensor) -> Tensor:
    """One row of each sample: ``[batch, rows, n], [batch] -> [batch, n]``."""
    batch, rows, n = stack.shape
    if not host.on_host(stack) and not torch.compiler.is_compiling():
        return stack.gather(1, which.view(-1, 1, 1).expand(-1, 1, n)).squeeze(1)
    return stack.flatten(0, 1).index_select(
        0, torch.arange(0, batch * rows, rows, device=which.device) + which
    )
