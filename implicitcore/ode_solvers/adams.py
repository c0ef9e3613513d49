"""Adams methods of variable step and order."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from operator import index
from typing import Annotated, final

import torch
from pydantic import Field
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from implicitcore.backends.adams_step import AdamsPast as Past
from implicitcore.backends.base import Backend
from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.step_size import Adaptive, StepSize
from implicitcore.ode_solvers.stepwise import StepwiseODESolver
from implicitcore.options.shared import ErrorControl
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, real_dtype

# A step so many times as long as the last is of order 1: the differences over a step that was cut
# short to arrive at an output time are mostly rounding, and would be magnified.
LONGER = 1e3

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
    short, and where the dynamics change abruptly. ``Adjoint`` needs another solver for the way
    back: ``Adjoint(Tsit5())``.

    Attributes:
        max_order: highest order. 1 is Euler's method with error control, 3 enough for steady
            states. The state of that many velocities is kept.

    Reference:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section III.5,
        (5.4)-(5.8), and III.7 on the order; Shampine, Gordon, Computer Solution of Ordinary
        Differential Equations (1975).
    """

    max_order: Annotated[int, Field(ge=1, le=12)] = 5

    @property
    def step_size(self) -> StepSize:
        """Adaptive; the first step is of order 1, whose error goes with dt^2."""
        return Adaptive.of(self, 2, steady_bound=STEADY_BOUND)

    def init(self, system: System, t: Tensor, z: Tensor) -> Past:
        """The velocity, and nothing before."""
        rows = max(self.max_order, FEWEST)
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
        made = system.backend.adams_step(self.max_order, z, dt, state)
        if made is None:
            made = PredictedStep(system.backend, self.max_order, z, dt, state)
        error, differences, gaps, following, order = made.correct(system.velocity(t + dt, made.z))
        return Step(made.z, error, Past(differences, gaps, following), order=order)

    def piece(  # noqa: PLR0913 - that of every solver
        self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: Past, step: Step
    ) -> list[Tensor]:
        """See :meth:`Stepper.piece`.

        The integral of the step's own polynomial: its error on the way is that of the step.
        """
        with torch.no_grad():
            grid, rows = _Grid(dt, state), state.gaps.shape[1]
            lever, integrals = _integrals(rows, dt.dtype, dt.device)
            ratio = (column(dt.abs()) / grid.gaps)[:, :-1]
            products = (1 - lever * ratio).cumprod(2)
            products = torch.nn.functional.pad(products, (1, 0), value=1.0)
            along = torch.tensordot(integrals, products, 1).transpose(0, 1)
            weights = along * (grid.newton * column(dt)).unsqueeze(1)
        return [z, *(weights.to(z.dtype) @ state.differences).unbind(1)]


class PredictedStep:
    """One step; see :class:`AdamsStep`.

    Arguments:
        backend: has the weighted sums.
        max_order: highest order of the next step.
        z: ``[batch, n]``.
        dt: ``[batch]``.
        past: the steps before.
    """

    def __init__(self, backend: Backend, max_order: int, z: Tensor, dt: Tensor, past: Past) -> None:
        self.max_order, self.dt, self.past = max_order, dt, past
        with torch.no_grad():
            self.grid = grid = _Grid(dt, past)
            weights = (grid.weights * column(dt)).unsqueeze(1).to(z.dtype)
        self.z = backend.axpy_history(z.unsqueeze(1), weights, past.differences).squeeze(1)

    def correct(self, velocity: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """See :meth:`AdamsStep.correct`."""
        grid = self.grid
        differences = _differences(velocity, grid.sums, self.past.differences)
        with torch.no_grad():
            sizes = torch.linalg.vector_norm(differences, dim=2)
            following = grid.choose(sizes).clamp(max=self.max_order)
            share = grid.g.gather(1, column(grid.order)) * column(self.dt)
            error = _rows(differences, grid.order) * share.to(velocity.dtype)
        return error, differences[:, :-1], grid.gaps, following, grid.order + 1


class _Grid:
    """The coefficients of one step from the distances of the last times, per sample.

    Arguments:
        dt: ``[batch]``; zero where a sample is done, for which any coefficients will do.
        past: the state.

    Attributes:
        gaps: those of the next state.
        sums: ``[batch, rows + 1, rows]``, beta_i where i < j: the factors that make differences of
            the last grid those of this.
        g: ``[batch, rows + 1]``, g_0 .., the integrals over the step of the polynomials of Newton's
            form, over dt.
        order: ``[batch]``, of this step.
        newton: ``[batch, rows]``, beta_j below the order, else zero.
        weights: ``[batch, rows]``, those of the differences.
        highest: ``[batch]``, the highest next order whose error can be estimated.
    """

    def __init__(self, dt: Tensor, past: Past) -> None:
        known = index(past.gaps.shape[1]), dt.dtype, dt.device
        constants = _traced_constants if torch.compiler.is_compiling() else _constants
        lever, weights, lower = constants(*known)
        last = past.gaps[:, 0]
        size = torch.where(dt == 0, last, dt.abs())
        step = column(size)
        self.gaps = torch.cat((step, past.gaps[:, :-1] + step), 1)
        cumprod = _traced_cumprod if torch.compiler.is_compiling() else _cumprod
        beta = cumprod(torch.nn.functional.pad((self.gaps / past.gaps)[:, :-1], (1, 0), value=1.0))
        # g_j is the integral over [0, 1] of prod_{i<j} (1 - (1 - u) dt / gap_i): the nodes of Gauss
        # are exact.
        products = cumprod(1 - lever * (step / self.gaps))
        self.g = torch.nn.functional.pad(
            (weights @ products.flatten(1)).view_as(self.gaps), (1, 0), value=1.0
        )
        self.order = torch.where(size > LONGER * last, 1, past.order.clamp(min=1))
        self.highest = past.order + 1
        self.sums = beta.unsqueeze(1) * lower
        self.newton = beta * lower.index_select(0, self.order)
        self.weights = self.g[:, :-1] * self.newton

    def choose(self, sizes: Tensor) -> Tensor:
        """The next order: of this, one less and one more, that with the smallest error.

        ``sizes`` are those of the differences.
        """
        errors = torch.nn.functional.pad((sizes * self.g)[:, 1:], (1, 1), value=torch.inf)
        near = column(self.order) + torch.arange(-1, 2, device=sizes.device)
        return torch.minimum(self.order + errors.gather(1, near).argmin(1) - 1, self.highest)


def _cumprod(factors: Tensor) -> Tensor:
    """The products of the first, the first two, .. along the last dimension."""
    return factors.cumprod(-1)


def _traced_cumprod(factors: Tensor) -> Tensor:
    """The same in a graph: product by product, for ONNX has no other, and a compiler fuses them."""
    products = [factors[..., 0]]
    for place in range(1, index(factors.shape[-1])):
        products.append(products[-1] * factors[..., place])
    return torch.stack(products, -1)


def _differences(velocity: Tensor, sums: Tensor, past: Tensor) -> Tensor:
    """Phi_j at the new time, ``[batch, rows + 1, n]``.

    The velocity less sum_{i<j} beta_i Phi_i of the last.
    """
    return torch.baddbmm(
        velocity.unsqueeze(1).expand(-1, sums.shape[1], -1), sums.to(past.dtype), past, alpha=-1
    )


def _rows(stack: Tensor, which: Tensor) -> Tensor:
    """One row of each sample: ``[batch, rows, n], [batch] -> [batch, n]``."""
    batch, rows = stack.shape[:2]
    return stack.flatten(0, 1).index_select(
        0, torch.arange(0, batch * rows, rows, device=which.device) + which
    )


@functools.cache
def _constants(
    size: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """1 - u ``[nodes, 1, 1]`` and the weights of Gauss' quadrature on [0, 1]; lower triangles.

    The quadrature is exact for degree ``size``; row k of the last has k ones of ``size``.
    """
    with torch.inference_mode(False):
        off = torch.arange(1.0, size // 2 + 1, dtype=torch.float64, device="cpu")
        off = off / (4 * off * off - 1).sqrt()
        nodes, vectors = torch.linalg.eigh(off.diag(1) + off.diag(-1))  # Golub and Welsch
        lever, weights = (1 - nodes)[:, None, None] / 2, vectors[0].square()
        lower = torch.ones(size + 1, size, device="cpu").tril(-1)
        return lever.to(device, dtype), weights.to(device, dtype), lower.to(device, dtype)


def _traced_constants(
    size: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The same constants in a graph."""
    nodes = size // 2 + 1
    lever, weights, lower = _flat_constants(size, dtype, device).split(
        [nodes, nodes, size * (size + 1)]
    )
    return lever.view(-1, 1, 1), weights, lower.view(size + 1, size)


@torch.compiler.assume_constant_result
def _flat_constants(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """All of them in one tensor, which a graph takes as it is."""
    with unset_fake_temporarily():
        return torch.cat([constant.flatten() for constant in _constants(size, dtype, device)])


@functools.cache
def _integrals(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """What makes a piece of a polynomial of degree ``size`` - 1 on [0, 1]: of its integral from 0.

    1 - u at ``size`` nodes ``[nodes, 1, 1]``, and the matrix ``[size, nodes]`` that takes its
    values there to c_1, c_2, .. of :func:`~implicitcore.ode_solvers.dense.evaluate`.
    """
    with torch.inference_mode(False):
        angles = torch.arange(size, dtype=torch.float64, device="cpu").add(0.5) * (torch.pi / size)
        nodes = (1 - angles.cos()) / 2  # Chebyshev's
        gauss, weights, _ = _constants(2 * size, torch.float64, torch.device("cpu"))
        inner = nodes * (1 - gauss.flatten()[:, None])  # [gauss, nodes]
        away = inner[..., None, None] - nodes
        apart = nodes[:, None] - nodes + torch.eye(size, dtype=torch.float64, device="cpu")
        same = torch.eye(size, dtype=torch.bool, device="cpu")
        lagrange = torch.where(same, 1, away / apart).prod(-1)  # [gauss, nodes, size]
        sums = (weights[:, None, None] * lagrange).sum(0) * nodes[:, None]
        factors = [nodes if k % 2 == 0 else 1 - nodes for k in range(size)]
        basis = torch.stack(factors).cumprod(0).T
        matrix = torch.linalg.solve(basis, sums)
        return (1 - nodes)[:, None, None].to(device, dtype), matrix.to(device, dtype)
