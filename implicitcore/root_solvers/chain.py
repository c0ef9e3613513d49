"""Solvers in a row, each for the samples that the last one left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from implicitcore.errors import ConfigError
from implicitcore.options.options import Options
from implicitcore.root_solvers.anderson import Anderson
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.newton import Newton
from implicitcore.root_solvers.returned import check_solution
from implicitcore.root_solvers.stop_state import origin_of
from implicitcore.solution import Judged, Solution
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.system import System
from implicitcore.tensors.amended import amended
from implicitcore.tensors.norms import column


@final
@dataclass(frozen=True)
class Chain(Options, RootSolver):
    """A cheap solver first.

    Only the samples that it leaves unconverged go on to the next one, from their best iterates. The
    later solvers see those samples alone (:meth:`implicitcore.System.restrict`), and pay for no
    others. Evaluations and steps add up; a sample's iterate, residual and status are those of the
    solver that came closest. Each solver has its own tolerance: the chain promises the loosest of
    them. Prefer a single solver where it converges for all samples: a chain of one is that solver.

    Attributes:
        solvers: in their order.

    Reference:
        Brune, Knepley, Smith, Tu, Composing Scalable Nonlinear Algebraic Solvers, SIAM Review 57
        (2015), p. 535-565.

    Example:
        >>> import torch, implicitcore as ic
        >>> growth = torch.tensor([[0.5], [-3.0]])  # the second sample is no contraction
        >>> chain = ic.Chain([ic.Picard(max_steps=20), ic.Newton()])
        >>> f = lambda z, x: x * z + 1
        >>> solution = ic.fixed_point(f, torch.zeros(2, 1), growth, solver=chain)
        >>> solution.converged.tolist()
        [True, True]
        >>> [round(z, 3) for z in solution.z.flatten().tolist()]
        [2.0, 0.25]
    """

    solvers: tuple[RootSolver, ...] = (Anderson(), Newton())

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.solvers:
            raise ConfigError(["solvers: expected at least one root_solver, received none"])

    def relative_tolerance(self) -> float | None:
        """See :meth:`RootSolver.relative_tolerance`: the least, which any sample may have met.

        None where a solver has none.
        """
        each = [solver.relative_tolerance() for solver in self.solvers]
        known = [tol for tol in each if tol is not None]
        return min(known) if len(known) == len(each) else None

    def solve(self, system: System, z0: Tensor) -> Solution:
        """See :meth:`RootSolver.solve`."""
        first = self.solvers[0].solve(system, z0)
        check_solution(self.solvers[0], first, z0)
        return self._go_on(system, first)

    def solve_from(self, system: System, start: Evaluation) -> Solution:
        """See :meth:`RootSolver.solve_from`."""
        return self._go_on(system, self.solvers[0].solve_from(system, start))

    def _go_on(self, system: System, solution: Solution) -> Solution:
        """The solution of the first solver, with what the others make of it."""
        for solver in self.solvers[1:]:
            left = (~solution.converged).nonzero().squeeze(1)
            if not len(left):
                break
            system = started(system, solution)
            start = solution.z.index_select(0, left)
            after = solver.solve(_part(system, solution, left, start), start)
            check_solution(solver, after, start)
            solution = merge(solution, after, left)
        return solution.amended(evaluations=system.evaluations)


def started(system: System, solution: Solution) -> System:
    """The system of a solve that began where the solution did: the next solver is judged by that.

    A state that has run away would else meet a tolerance relative to its own size.
    """
    if system.context.origin is not None:
        return system
    origin = None if solution.judged is None else solution.judged.origin
    if origin is not None:
        return system.started(origin() if callable(origin) else origin)
    with torch.no_grad():
        first = system.evaluate(solution.start.detach()).residual
    return system.started(origin_of(first.norm, first.update_norm))


def _part(system: System, solution: Solution, left: Tensor, z: Tensor) -> System:
    """The system of the samples ``left``, whose residuals at z, where they go on, are known."""
    if len(left) == len(solution.status):
        return system
    part, mark = system.restrict(left), solution.judged
    if mark is None or mark.residual is not solution.residual:
        return part
    known = z, mark.residual.detach().index_select(0, left)
    return amended(part, context=amended(part.context, known=known))


def merge(before: Solution, after: Solution, which: Tensor) -> Solution:
    """A solution of which some samples were solved further: each as its better solve left it.

    Arguments:
        before: ``[batch, n]``.
        after: of the samples ``which``, in their order.
        which: indices ``[k]``.
    """
    with torch.no_grad():
        old, new = before.residual.detach()[which], after.residual.detach()
        # Converged beats not; else the smaller residual does, and the later solve where they are
        # equal.
        better = after.converged | (~before.converged[which] & (new <= old))
        residual = before.residual.detach().index_copy(0, which, torch.where(better, new, old))
        relative = _relative(before, after, which, better)
        status = before.status.index_copy(
            0, which, torch.where(better, after.status, before.status[which])
        )
    z = before.z.index_copy(
        0, which, torch.where(column(better), after.z, before.z.index_select(0, which))
    )
    steps = before.steps.index_add(0, which, after.steps.to(before.steps))
    trace = after.trace if len(after.z) == len(z) else before.trace
    return before.amended(
        z=z,
        residual=residual,
        judged=Judged(z, residual, status, relative, trace, before.judged.origin)
        if before.judged and after.judged
        else None,
        status=status,
        steps=steps,
    )


def _relative(before: Solution, after: Solution, which: Tensor, better: Tensor) -> Tensor | None:
    old, new = before.relative_residual, after.relative_residual
    if old is None or new is None:
        return None
    return old.index_copy(0, which, torch.where(better, new, old[which]))
