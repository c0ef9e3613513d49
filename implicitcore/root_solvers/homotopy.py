"""A path from an easy problem to the one to be solved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from implicitcore.ode_solvers.base import ODESolver
from implicitcore.ode_solvers.runge_kutta import Tsit5
from implicitcore.options.options import Options
from implicitcore.options.types import Whole
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.chain import merge, started
from implicitcore.root_solvers.convergence import StopTest
from implicitcore.root_solvers.krylov import krylov_space
from implicitcore.root_solvers.linearized import Point, solve
from implicitcore.root_solvers.newton import Newton
from implicitcore.root_solvers.stop_state import StopState
from implicitcore.solution import Solution
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.linear_system import LinearSystem
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, norm
from implicitcore.tensors.packing import Packing

# How fast an integrated state is drawn back to the path, per unit of its length.
ATTRACTION = 1.0
# How far GMRES reduces the linear system of a tangent, relative to its right side, and the most
# products.
INNER, MOST = 1e-3, 30


@final
@dataclass(frozen=True, kw_only=True)
class Homotopy(Options, RootSolver):
    """Follow the zero path of a homotopy to the root, then correct.

    The path is H(z, s) = s (z - f(z)) + (1 - s)(z - a) = 0 from s = 0, where z = a = z0, to s = 1.

    Any ODE solver integrates along the path, per sample. Where n <= ``dense_below`` the path is
    followed by its arc length: with v = (I - s J)^-1 (f(z) - a) its tangent is sign(det(I - s J))
    (v, 1) / sqrt(1 + ``|v|^2``), so it may turn back in s as often as it likes. Larger systems are
    followed by s itself, dz/ds = v by GMRES, and a path that turns back is not. The state is also
    drawn towards H = 0, so that loose stepping tolerances do. On a linear system the corrector
    works alone.

    For almost every a the path is smooth and ends at s = 1 or at infinity; where f maps a ball into
    itself and a is in it, at a root. It finds roots with det(I - J) > 0: to find another root of g,
    give ``find_root`` -g. A sample whose path does not arrive is corrected from where it was left.
    For the hard cases, from starts where ``Newton`` ends in a minimum of ``|g|`` that is no root:
    each stage of each step costs what an iteration of ``Newton`` does. Where a graph is wanted
    (``Unrolled``), a path by its length gets none: two Newton steps from its end carry the
    gradient.

    Attributes:
        ode_solver: integrates along the path; its ``max_steps`` bounds the steps.
        corrector: any root solver; its tolerances are those of the solve.
        dense_below: largest n whose Jacobians are formed (n products).

    Reference:
        Chow, Mallet-Paret, Yorke, Finding zeroes of maps: homotopy methods that are constructive
        with probability one, Math. Comp. 32 (1978), p. 887-899; orientation: Allgower, Georg,
        Introduction to Numerical Continuation Methods (1990), section 2.1.
    """

    ode_solver: ODESolver = Tsit5(rtol=1e-2, atol=1e-3, max_steps=300)
    corrector: RootSolver = Newton()
    dense_below: Whole = 64

    def relative_tolerance(self) -> float | None:
        """See :meth:`RootSolver.relative_tolerance`: that of the corrector."""
        return self.corrector.relative_tolerance()

    def solve(self, system: System, z0: Tensor) -> Solution:
        """See :meth:`RootSolver.solve`."""
        if isinstance(system, LinearSystem):
            return self.corrector.solve(system, z0)
        return self._follow(system, system.evaluate(z0))

    def solve_from(self, system: System, start: Evaluation) -> Solution:
        """See :meth:`RootSolver.solve_from`."""
        if isinstance(system, LinearSystem):
            return self.corrector.solve_from(system, start)
        return self._follow(system, start)

    def _follow(self, system: System, start: Evaluation) -> Solution:
        tol, atol = getattr(self.corrector, "tol", 0.0), getattr(self.corrector, "atol", 0.0)
        z0, test = start.z, StopTest(system, start.z, tol, atol)
        if test.check(start):
            return test.solution()
        state = test.state
        dense = z0.shape[1] <= self.dense_below
        z, steps = (
            _by_length(self.ode_solver, system, z0, state)
            if dense
            else _by_s(self.ode_solver, system, z0)
        )
        usable = state.active & (norm(z - z0) < state.start.ceiling)  # not where the path ran away
        z = torch.where(column(usable), z, z0)
        if dense and torch.is_grad_enabled():
            z = _anchored(system, z)
        # To a tolerance that is relative to the start of the path and not to its end.
        found = test.solution()
        after = self.corrector.solve(started(system, found), z)
        merged = merge(found, after, _all(z0))
        steps = torch.where(state.active, steps + after.steps, state.steps)
        return merged.amended(start=z0, steps=steps, evaluations=system.evaluations)


def _anchored(system: System, z: Tensor) -> Tensor:
    """The value z with the graph of two Newton steps.

    Near a root its first two derivatives are the root's, whichever way led there.
    """
    end = z.detach()
    for _ in range(2):
        point = Point.at(system, end)
        end = end + solve(point.matrix(), point.g)[0]
    return z + (end - end.detach())


def _all(z: Tensor) -> Tensor:
    return torch.arange(len(z), device=z.device)


@torch.no_grad()
def _by_length(
    solver: ODESolver, system: System, z0: Tensor, state: StopState
) -> tuple[Tensor, Tensor]:
    """Follow the path by its length; where each sample arrived or was left, and its steps.

    Without a graph: the last step goes beyond s = 1, by a length whose derivative nothing knows.
    """
    path = _LengthPath.path(system, z0, torch.cat((z0, torch.zeros_like(z0[:, :1])), 1))

    def stop(t: Tensor, y: Tensor, velocity: Tensor) -> Tensor:
        del t, velocity
        return state.active & (y[:, -1] < 1) & (norm(y[:, :-1] - z0) < state.start.ceiling)

    solution = solver.solve(path, path.start, torch.tensor([0.0, torch.inf]), stop)
    return solution.z[-1][:, :-1], solution.steps


def _by_s(solver: ODESolver, system: System, z0: Tensor) -> tuple[Tensor, Tensor]:
    """Follow the path by s; where each sample arrived or was left, and its steps."""
    solution = solver.solve(_Path.path(system, z0, z0), z0, torch.tensor([0.0, 1.0]))
    return solution.z[-1], solution.steps


@dataclass(eq=False)
class _Path(System):
    """The zero path of H(z, s) by s, as the vector field dz/ds: matrix-free.

    Attributes:
        system: gives f.
        a: where the path begins, ``[batch, n]``.
        start: its state there.
    """

    system: System
    a: Tensor
    start: Tensor

    @classmethod
    def path(cls, system: System, a: Tensor, start: Tensor) -> Self:
        """The path that begins at a."""
        problem = replace(system.problem, packing=Packing.of(start))
        return cls(problem, system.context.recounted(), system, a, start)

    def map(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`System.map`."""
        g = self.velocity(torch.zeros_like(z[:, 0]), z)
        return z + g, g

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """(I - s J)^-1 (f(z) - a - attraction H)."""
        point, s = Point.at(self.system, z), column(t).to(z.dtype)
        right = point.now.fz - self.a - ATTRACTION * (z - torch.lerp(self.a, point.now.fz, s))
        limit = INNER * norm(right.detach())
        return krylov_space(
            self.backend, lambda v: v - s * point.jacobian.jvp(v), right, limit, MOST
        ).minimise()


@dataclass(eq=False)
class _LengthPath(_Path):
    """The zero path of H in y = (z, s), ``[batch, n + 1]``, by its length.

    Past s = 1 it goes straight on, in s alone.
    """

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """The tangent, and the way back to the path.

        The least step that solves the linearisation of H = 0.
        """
        del t
        point, s = Point.at(self.system, z[:, :-1]), z[:, -1:].clamp(max=1)
        drop = torch.where(z[:, -1:] < 1, point.now.fz - self.a, 0)  # -dH/ds
        away = point.z - torch.lerp(self.a, point.now.fz, s)  # H
        solved, sign = _solve(point.matrix(1.0, s), torch.stack((drop, away), 2))
        tangent = torch.cat((solved[:, :, 0], torch.ones_like(s)), 1)
        tangent = tangent * (sign / column(norm(tangent))).to(z.dtype)
        back = torch.cat((solved[:, :, 1], torch.zeros_like(s)), 1)
        back = back - tangent * (tangent * back).sum(1, keepdim=True)
        return tangent - back * (ATTRACTION / (1 + column(norm(z.detach())))).to(z.dtype)


def _solve(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The solutions for the right sides ``[batch, n, k]``, and det's sign ``[batch, 1]``.

    A zero pivot becomes tiny.
    """
    lu, pivots, _ = torch.linalg.lu_factor_ex(matrix)
    diagonal = lu.diagonal(dim1=1, dim2=2)
    tiny = torch.finfo(lu.dtype).eps * torch.linalg.matrix_norm(matrix.detach()).unsqueeze(1)
    lu = lu + torch.diag_embed(torch.where(diagonal == 0, tiny, 0))
    with torch.no_grad():
        swaps = (pivots != torch.arange(1, pivots.shape[1] + 1, device=pivots.device)).sum(
            1, keepdim=True
        )
        sign = lu.diagonal(dim1=1, dim2=2).sign().prod(1, keepdim=True) * (1 - 2 * (swaps % 2))
    return torch.linalg.lu_solve(lu, pivots, right.to(lu.dtype)).to(right.dtype), sign
