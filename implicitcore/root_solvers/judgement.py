"""The edge of every root solve: its units, and a measurement of what comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from implicitcore.options.shared import ResidualTolerance
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.convergence import StopTest
from implicitcore.root_solvers.returned import check_solution
from implicitcore.solution import Judged, Solution, Status
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.real import (
    back_to_complex,
    real_evaluation,
    real_system,
    to_complex,
    to_real,
)
from implicitcore.system.scaled import OutOfRange, ScaledSystem, check_range
from implicitcore.system.system import System
from implicitcore.tensors.amended import amended

_DEFAULT = ResidualTolerance()


def solve(solver: RootSolver, system: System, z0: Tensor) -> Solution:
    """What a root solver finds from z0, as a stop test of ours measures it.

    A solver that returns the solution of a :class:`StopTest` as it is has been measured. What
    another one returns is measured here, for two evaluations, at the start and at its end: the
    status and the residual that it states do not count. Its tolerances are its ``tol`` and
    ``atol``, or those that solvers have by default.
    """
    return in_range(system, z0, _solve, solver)


def _solve(system: System, z0: Tensor, solver: RootSolver) -> Solution:
    return judged(solver, system, solver.solve(system, z0), z0)


def solve_from(solver: RootSolver, system: System, start: Evaluation) -> Solution:
    """The same from a point where f is known."""
    if not start.z.is_complex():
        return judged(solver, system, solver.solve_from(system, start), start.z, start)
    part, now = real_system(system, start.z), real_evaluation(start)
    solution = judged(solver, part, solver.solve_from(part, now), now.z, now)
    return _marked(solution, to_complex(solution.z), start.z)


def in_range(system: System, z0: Tensor, run: Callable[..., Any], *also: Any) -> Any:
    """What ``run`` returns for a system, its start and ``also``, as the solvers can take them.

    A complex system as one of real numbers; and in units where norms need them.
    """
    if z0.is_complex():
        recorder = system.context.recorder
        count = len(recorder.iterates or ()) if recorder is not None else 0
        solution = in_range(real_system(system, z0), to_real(z0), run, *also)
        back_to_complex(recorder, count)
        return _marked(solution, to_complex(solution.z), z0)
    if system.context.scope.group is not None:  # processes that differ in their units would part
        return run(system, z0, *also)
    checked = amended(system, context=amended(system.context, range_checked=True))
    try:
        return run(checked, z0, *also)
    except OutOfRange as found:
        unit = _whole(system, z0, found.unit)
    if unit is None:
        return run(system, z0, *also)
    scaled = ScaledSystem.scaled(system, unit)
    solution = run(scaled, scaled.into(z0), *also)
    scaled.unscale(system.context.recorder)
    z, residual = scaled.back(solution.z), solution.residual * scaled.unit
    mark = solution.judged._replace(z=z, residual=residual)
    if mark.trace is not None:
        mark = mark._replace(trace=mark.trace * scaled.unit)
    return solution.amended(z=z, start=z0, residual=residual, judged=mark)


def _whole(system: System, z0: Tensor, unit: Tensor) -> Tensor | None:
    """The units of all samples, where a solver that takes some at a time has asked for theirs."""
    if len(unit) == len(z0):
        return unit
    with torch.no_grad():
        first = system.evaluate(z0.detach())
        try:
            check_range(first.residual.update_norm, first.z, first.fz)
        except OutOfRange as found:
            return found.unit
    return None


def _marked(solution: Solution, z: Tensor, start: Tensor) -> Solution:
    """The same solution as it was measured, its states in another form."""
    mark = solution.judged and solution.judged._replace(z=z)
    return solution.amended(z=z, start=start, judged=mark)


def judged(
    solver: RootSolver,
    system: System,
    solution: Solution,
    z0: Tensor,
    start: Evaluation | None = None,
) -> Solution:
    """The solution from z0 as it is measured; ``start``, where f is known there."""
    if _is_measured(solution):
        return solution
    check_solution(solver, solution, z0)
    if system.scope.group is not None:
        return solution
    with torch.no_grad():
        first = start or system.evaluate(z0.detach())
        end = system.evaluate(solution.z.detach())
    test = StopTest(
        system,
        first.z,
        getattr(solver, "tol", _DEFAULT.tol),
        getattr(solver, "atol", _DEFAULT.atol),
    )
    test.recorder = None  # the solver has left its way there
    if not test.check(first):
        test.check(Evaluation(solution.z, end.fz, end.residual))
    found = test.solution(steps=solution.steps)
    # Above the tolerance it is the solver that knows why.
    failed = torch.where(
        solution.status == Status.CONVERGED, int(Status.MAX_STEPS), solution.status.to(torch.int8)
    )
    status = torch.where(found.status == Status.MAX_STEPS, failed, found.status)
    return solution.amended(
        z=found.z,
        residual=found.residual,
        status=status,
        judged=Judged(found.z, found.residual, status, found.relative_residual),  # pyright: ignore[reportArgumentType] - measured
        evaluations=system.evaluations,
    )


def _is_measured(solution: Any) -> bool:
    """Whether it is the solution of a stop test of ours, as it was."""
    mark = getattr(solution, "judged", None)
    return (
        mark is not None
        and mark.z is solution.z
        and mark.residual is solution.residual
        and mark.status is solution.status
    )
