"""What every root solver promises."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from implicitcore.dynamics.vector_field import VectorField
from implicitcore.root_solvers.base import RootSolver
from implicitcore.solution import Solution
from implicitcore.system.system import System
from implicitcore.tensors.packing import Packing
from implicitcore.testing.check import contract
from implicitcore.testing.dense import fixed_point
from implicitcore.testing.expect import expect, expect_close
from implicitcore.testing.options import for_dtype, limited, needed, stated, with_options
from implicitcore.testing.problems import Linear, Problem, inputs, root


def _tolerance(solver: RootSolver) -> float:
    """The relative residual that a solver may leave; 1e-3 for one without a ``tol``."""
    tol = stated(solver, "tol")
    return 1e-3 if tol is None else tol + (stated(solver, "atol") or 0.0)


def _finds(solver: RootSolver, problem: Problem, what: str) -> None:
    """Compare the solution with that of Newton's method in float64."""
    solution = problem.solve(solver)
    expect(bool(solution.converged.all()), f"solved {what}", solution.summary(), "all converged")
    double = replace(problem, f=problem.f.double(), x=problem.x.double(), z0=problem.z0.double())  # pyright: ignore[reportFunctionMemberAccess]
    exact = fixed_point(lambda z: double.f(z, double.x), double.z0)
    bound = 20 * max(_tolerance(solver), torch.finfo(problem.z0.dtype).eps)
    expect_close(
        solution.z.double(), exact, f"compared the root of {what} with Newton's method", bound
    )


@contract("root_solver")
def finds_the_root(solver: RootSolver) -> None:
    """Finds the fixed point of a nonlinear contraction by 0.4, in float64."""
    _finds(solver, root(), "tanh(W z + U x + b)")


@contract("root_solver")
def finds_the_root_in_float32(solver: RootSolver) -> None:
    """Finds the fixed point of a nonlinear contraction by 0.4, in float32."""
    _finds(
        for_dtype(solver, torch.float32),
        root(dtype=torch.float32),
        "tanh(W z + U x + b) in float32",
    )


@contract("root_solver")
def finds_the_root_of_a_linear_map(solver: RootSolver) -> None:
    """Finds the fixed point of W z + x with ``|W|`` = 1/2."""
    x = inputs()
    _finds(solver, Problem(f=Linear(), z0=torch.zeros_like(x), x=x), "W z + x")


@contract("root_solver")
def finds_the_root_of_a_vector_field(solver: RootSolver) -> None:
    """Finds z with g(z) = 0 for dynamics that are given by g alone."""
    problem = root()
    dynamics = VectorField(lambda z, x: problem.f(z, x) - z, autonomous=True)
    with torch.no_grad():
        solution = solver.solve(System.of(dynamics, problem.x, Packing.of(problem.z0)), problem.z0)
    start = problem.f(problem.z0, problem.x).norm(dim=1).clamp(min=1)
    bound = 20 * max(_tolerance(solver), 1e-12) * start.max().item()
    expect_close(
        solution.z, problem.exact().detach(), "compared the root of g with Newton's method", bound
    )


@contract("root_solver")
def keeps_a_start_at_a_root(solver: RootSolver) -> None:
    """A start whose residual is exactly zero is returned as it is."""
    x = torch.zeros(3, 6, dtype=torch.float64)
    solution = Problem(f=Linear(), z0=torch.zeros_like(x), x=x).solve(solver)
    expect(bool(solution.converged.all()), "started at a root", solution.summary(), "all converged")
    expect_close(solution.z, x, "started at the root z = 0", 1e-12)


@contract("root_solver")
def reports_the_true_residual(solver: RootSolver) -> None:
    """The residual of the solution is that of f at its z, whatever the status."""
    for steps in (2, None):
        few = {} if steps is None else {**limited(steps), "tol": 1e-12}
        chosen = with_options(solver, **few) if few else solver
        problem = root()
        solution = problem.solve(chosen)
        expect(
            solution.residual is not None,
            "asked the solution for its residual",
            None,
            "a norm per sample",
        )
        if solution.residual is not None:
            measured = _measure(problem, solution)[0]
            did = "measured |f(z) - z| at the solution" + (f" after {steps} steps" if steps else "")
            expect_close(
                solution.residual, measured, did, 1e-6 * min(1.0, measured.max().item()) + 1e-13
            )


@contract("root_solver")
def meets_its_tolerance(solver: RootSolver) -> None:
    """Each converged sample has ``|f(z) - z| <= tol |f(z)| + atol``, measured at z, at any tol."""
    given = needed(solver, "tol")
    x = inputs() * torch.logspace(-1, 1, 8, dtype=torch.float64)[:, None]
    for tol in (given, 1e-2, 1e-8):
        chosen = with_options(solver, tol=tol)
        problem = replace(root(), x=x)
        solution = problem.solve(chosen)
        did = f"solved 8 samples to tol={tol:g}"
        measured, size = _measure(problem, solution)
        limit = tol * size + (stated(chosen, "atol") or 0.0)
        excess = (
            (measured / limit)[solution.converged].amax().item()
            if bool(solution.converged.any())
            else 0.0
        )
        expect(
            excess <= 1.001,
            f"{did}, measured the converged ones",
            f"a residual {excess:.3g} times the limit",
            "at most 1",
        )


@contract("root_solver")
def reaches_a_tight_tolerance(solver: RootSolver) -> None:
    """With tol=1e-8 and enough steps every sample of a contraction by 0.4 converges."""
    needed(solver, "tol")
    solution = root().solve(with_options(solver, tol=1e-8, **limited(500)))
    expect(
        bool(solution.converged.all()),
        "solved to tol=1e-8 with 500 steps",
        solution.summary(),
        "all converged",
    )


@contract("root_solver")
def claims_no_root_where_there_is_none(solver: RootSolver) -> None:
    """No sample of g(z) = z^2 + 1, which has no real root, converges."""
    x = torch.tensor([[0.0], [0.5], [-2.0]], dtype=torch.float64)
    solution = Problem(f=lambda z, x: z + 1 + z * z, z0=x, x=x).solve(
        with_options(solver, tol=1e-4)
    )
    expect(
        not bool(solution.converged.any()),
        "looked for a root of z^2 + 1",
        solution.summary(),
        "none converged",
    )


@contract("root_solver")
def reports_divergence(solver: RootSolver) -> None:
    """Where z <- f(z) diverges, each sample is at its root or not converged, and finite."""
    growth = torch.tensor([0.5, 1.2, 3.0, 50.0], dtype=torch.float64)[:, None]
    problem = Problem(f=lambda z, x: x * z + 1, z0=torch.zeros_like(growth), x=growth)
    solution = problem.solve(with_options(solver, tol=1e-4))
    did = "solved z = a z + 1 for a in (0.5, 1.2, 3, 50)"
    expect(bool(solution.z.isfinite().all()), did, solution.z.flatten().tolist(), "finite values")
    exact = 1 / (1 - growth)
    right = ((solution.z - exact).abs() <= 1e-2 * exact.abs()).squeeze(1)
    wrong = growth.squeeze(1)[solution.converged & ~right].tolist()
    expect(not wrong, did, f"called converged, and wrong, for a in {wrong}", "another status")


@contract("root_solver")
def returns_its_best_iterate(solver: RootSolver) -> None:
    """Where the iteration diverges, the residual at the solution is at most that at the start."""
    z0 = torch.tensor([[0.1], [-2.0], [30.0]], dtype=torch.float64)
    problem = Problem(f=lambda z, x: x - 1.5 * z, z0=z0, x=torch.zeros_like(z0))
    after = _measure(problem, problem.solve(solver))[0]
    before = (problem.f(z0, problem.x) - z0).norm(dim=1)
    expect(
        bool((after <= before * (1 + 1e-9)).all()),
        "solved z = -1.5 z",
        f"residuals {after.tolist()}",
        f"at most {before.tolist()}",
    )


def _measure(problem: Problem, solution: Solution) -> tuple[Tensor, Tensor]:
    """``|f(z) - z|`` and ``|f(z)|`` at the solution, ``[batch]``."""
    with torch.no_grad():
        fz = problem.f(solution.z, problem.x)
    return (fz - solution.z).norm(dim=1), fz.norm(dim=1)
