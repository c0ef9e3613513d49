"""Random problems, solved by every root solver: what a solution says, against what is so."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import implicitcore as ic
from honesty.measure import Measured, measure
from honesty.problems import Problem, problem
from honesty.solvers import parts, root_solver
from honesty.tally import Row, Tally, answer

TOLERANCES = {
    torch.bfloat16: (1e-1, 1e-2, 1e-3, 1e-6),
    torch.float32: (1e-2, 1e-4, 1e-6, 1e-9),
    torch.float64: (1e-2, 1e-5, 1e-9, 1e-13, 1e-17),
    torch.complex64: (1e-2, 1e-4, 1e-6, 1e-9),
    torch.complex128: (1e-2, 1e-5, 1e-9, 1e-13, 1e-17),
}
"""From loose to below the precision."""
DTYPES = tuple(TOLERANCES)
SEVERAL = 2
"""Solves of a problem by a solver, each in a dtype and at a tolerance of its own."""
SLOW, SHARE = ("homotopy", "scipy-"), 4
"""Solvers that are slow by their nature get each so manieth batch of problems, once."""


@dataclass(frozen=True)
class Asked:
    """A solve and what it is asked for.

    Attributes:
        problem: what is solved.
        name: of the solver.
        solver: how.
        tol: relative tolerance.
        atol: absolute tolerance.
    """

    problem: Problem
    name: str
    solver: ic.RootSolver
    tol: float
    atol: float

    def solve(self) -> ic.Solution:
        problem = self.problem
        call = ic.fixed_point if problem.call == "fixed_point" else ic.find_root
        return call(
            problem.f, problem.z0, problem.parameters, solver=self.solver, on_failure="ignore"
        )

    def __str__(self) -> str:
        return f"{self.problem}, tol {self.tol:g}, atol {self.atol:g}, {self.solver}"


Make = Callable[[str, float, float, random.Random], ic.RootSolver]


def sweep(seed: int, names: tuple[str, ...] = (), make: Make = root_solver) -> Tally:
    """The problem of a seed, by every root solver (or those named)."""
    tally: Tally = {}
    for number, name in enumerate(names or tuple(parts("root_solver"))):
        choose = random.Random(seed * 1009 + number)
        row = tally.setdefault(("root solvers", name), Row())
        slow = name.startswith(SLOW)
        if slow and not names and seed % SHARE:
            continue
        for _ in range(1 if slow else SEVERAL):
            solve(ask(seed, name, choose, make), row, seed)
    return tally


def ask(seed: int, name: str, choose: random.Random, make: Make) -> Asked:
    """A dtype and tolerances, drawn; relative, absolute or both."""
    dtype = choose.choice(DTYPES)
    tol = choose.choice(TOLERANCES[dtype])
    tol, atol = choose.choice(((tol, 0.0), (tol, 0.0), (0.0, tol), (tol, tol)))
    return Asked(problem(seed, dtype), name, make(name, tol, atol, choose), tol, atol)


def solve(asked: Asked, row: Row, seed: int) -> None:
    """Solve, and put what comes of it into the row."""
    subject, case = asked.problem, f"seed {seed}, {asked}"
    before = [each.clone() for each in (*subject.parameters, subject.z0)]
    row.calls += 1
    row.samples += len(subject.z0)
    with torch.no_grad():
        solution = answer(row, case, asked.solve)
    if solution is None:
        return
    after = (*subject.parameters, subject.z0)
    if not all(map(_same, before, after)):
        row.find("changed input", case, "z0 or x is not what it was")
    row.statuses.update(ic.Status(status).name.lower() for status in solution.status.tolist())
    measured = measure(subject, solution.z)
    for kind, wrong in judge(asked, solution, measured):
        if bool(wrong.any()):
            row.find(kind, case, _text(asked, solution, measured, wrong))
    if bool(solution.converged.any()):
        share = measured.residual / measured.limit(asked.tol, asked.atol)
        row.worst = max(row.worst, share[solution.converged].nan_to_num(torch.inf).max().item())


def judge(asked: Asked, solution: ic.Solution, measured: Measured) -> Iterator[tuple[str, Tensor]]:
    """What is not so: the kind, and which samples ``[batch]``."""
    problem, converged = asked.problem, solution.converged
    reported, residual = solution.residual.double(), measured.residual
    limit = measured.limit(asked.tol, asked.atol)
    if solution.z.shape != problem.z0.shape or solution.z.dtype != problem.z0.dtype:
        yield "other shape or dtype", torch.ones_like(converged)
        return
    finite = torch.isfinite(solution.z).all(1)
    yield "converged at a z that is not finite", converged & ~finite
    yield "converged above its tolerance", converged & ~(residual <= limit)
    if problem.family.rootless:
        # Less than that is taken for the rounding of f(z): the page says so of bfloat16.
        hidden = 64 * torch.finfo(problem.z0.dtype).eps
        seen = reported > hidden * torch.maximum(measured.start, measured.start_scale)
        yield "converged where there is no root", converged & seen
    yield "another residual than is so", ~agree(reported, measured, problem)
    yield "converged and called otherwise", _overlooked(asked, solution, measured)
    yield "statuses and residuals disagree", _inconsistent(asked, solution)
    most = getattr(asked.solver, "max_steps", None)
    if most is not None and asked.name not in ("gmres", "bicgstab"):
        yield "more steps than max_steps", solution.steps > most
    yield "steps below zero", solution.steps < 0


def agree(reported: Tensor, measured: Measured, problem: Problem) -> Tensor:
    """Whether the residual reported is the one measured, up to rounding."""
    info = torch.finfo(problem.z0.dtype)
    off = (reported - measured.residual).abs()
    same = off <= measured.rounding + 8 * info.eps * measured.residual
    # A residual that the dtype cannot hold, or one that is beside a value that it cannot.
    beyond = ~reported.isfinite() & ~(measured.residual <= info.max**0.5)
    return same | beyond


def _overlooked(asked: Asked, solution: ic.Solution, measured: Measured) -> Tensor:
    """Samples that met their tolerance and are said to have ended otherwise."""
    met = measured.residual <= measured.clear(asked.tol, asked.atol)
    met &= measured.start.isfinite() & measured.residual.isfinite()
    lost = solution.status == ic.Status.DIVERGED  # a state that runs away meets a relative limit
    return met & ~solution.converged & ~lost


def _inconsistent(asked: Asked, solution: ic.Solution) -> Tensor:
    """Samples that converged, and whose own residual is above the tolerance."""
    relative = solution.relative_residual
    if relative is None:
        return ~torch.isin(solution.status, torch.tensor([*map(int, ic.Status)]))
    eps = torch.finfo(solution.residual.dtype).eps
    return solution.converged & ~(relative <= asked.tol * (1 + 8 * eps))


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(7, 8, 9), b.nan_to_num(7, 8, 9))


def _text(asked: Asked, solution: ic.Solution, measured: Measured, wrong: Tensor) -> str:
    """One sample of those that are wrong."""
    row = int(wrong.nonzero()[0])
    status = ic.Status(int(solution.status[row])).name.lower()
    limit = measured.limit(asked.tol, asked.atol)
    return (
        f"sample {row} of {int(wrong.sum())} is {status}, says "
        f"{solution.residual[row].item():.3g}, has {measured.residual[row].item():.3g}, limit "
        f"{limit[row].item():.3g} of which rounding {measured.rounding[row].item():.3g}, "
        f"z = {solution.z[row].tolist()}"
    )
