"""What every root solver promises."""

from __future__ import annotations

import torch

from implicitcore.root_solvers.base import RootSolver
from implicitcore.testing.check import contract, expect, expect_close, expect_equal
from implicitcore.testing.problems import Cell, fixed_point, inputs, system_of


@contract("root_solver")
def finds_the_root(solver: RootSolver) -> None:
    """Finds the fixed point of a contraction, in float64."""
    cell, x = Cell(contraction=0.4), inputs()
    z0 = torch.zeros_like(x)
    with torch.no_grad():
        solution = solver.solve(system_of(cell, x, z0), z0)
    exact = fixed_point(lambda z: cell(z, x), z0)
    expect(bool(solution.converged.all()), "solved 8 samples of a contraction by 0.4", f"status {solution.summary()}", "all converged")
    expect_close(solution.z, exact, "compared the root with Newton's", 2e-3)


@contract("root_solver")
def states_the_true_residual(solver: RootSolver) -> None:
    """The residual of the solution is the one that f has there, whatever the status."""
    cell, x = Cell(contraction=0.4), inputs()
    z0 = torch.zeros_like(x)
    with torch.no_grad():
        solution = solver.solve(system_of(cell, x, z0), z0)
        measured = (cell(solution.z, x) - solution.z).norm(dim=1)
    expect(solution.residual is not None, "asked the solution for its residual", None, "a norm per sample")
    if solution.residual is not None:
        expect_close(solution.residual, measured, "measured |f(z) - z| at the solution", 1e-6)


@contract("root_solver")
def leaves_its_arguments_alone(solver: RootSolver) -> None:
    """Neither z0 nor x is changed."""
    cell, x, z0 = Cell(contraction=0.4), inputs(), inputs(seed=2)
    before = z0.clone(), x.clone()
    with torch.no_grad():
        solver.solve(system_of(cell, x, z0), z0)
    expect_equal(z0, before[0], "looked at z0 after the solve")
    expect_equal(x, before[1], "looked at x after the solve")
