"""What root solvers and ODE solvers promise alike."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from implicitcore.ode_solvers.base import ODESolver
from implicitcore.root_solvers.base import RootSolver
from implicitcore.solution import Solution, Status, Trajectory
from implicitcore.testing.check import contract
from implicitcore.testing.expect import NotApplicable, expect
from implicitcore.testing.options import LIMITS, for_dtype, limited, stated, with_options
from implicitcore.testing.problems import Problem, problem_for

Solver = RootSolver | ODESolver


@contract("root_solver", "ode_solver")
def returns_a_whole_solution(solver: Solver) -> None:
    """The solution has a status, a step count and a finite state per sample, in the dtype of z0."""
    for dtype in (torch.float32, torch.float64):
        problem = problem_for(solver, 3, dtype)
        solution = problem.solve(for_dtype(solver, dtype))
        did = f"solved 3 samples in {dtype}"
        kind, shape = (Solution, [3, 6]) if problem.times is None else (Trajectory, [3, 3, 6])
        expect(isinstance(solution, kind), did, type(solution).__name__, f"a {kind.__name__}")
        expect(
            list(solution.z.shape) == shape,
            f"{did}, looked at z",
            f"shape {list(solution.z.shape)}",
            shape,
        )
        expect(solution.z.dtype == dtype, f"{did}, looked at z", solution.z.dtype, dtype)
        expect(
            bool(solution.z.isfinite().all()),
            f"{did}, looked at z",
            "values that are not finite",
            "finite ones",
        )
        for name, kind in (("status", torch.int8), ("steps", torch.int64)):
            value = getattr(solution, name)
            expect(
                list(value.shape) == [3],
                f"{did}, looked at {name}",
                f"shape {list(value.shape)}",
                [3],
            )
            expect(value.dtype == kind, f"{did}, looked at {name}", value.dtype, kind)


@contract("root_solver", "ode_solver")
def reports_nan(solver: Solver) -> None:
    """A NaN in the input of one sample is an error or a status, and never a converged result."""
    problem = problem_for(solver)
    x = problem.x.clone()
    x[3, 2] = torch.nan
    status = replace(problem, x=x).solve(solver).status[3]
    expect(
        bool(status != Status.CONVERGED),
        "put a NaN into sample 3 of 8",
        "the status converged",
        "non_finite",
    )


@contract("root_solver", "ode_solver")
def counts_its_evaluations(solver: Solver) -> None:
    """``evaluations`` of the solution counts every evaluation of f."""
    problem, calls = problem_for(solver, 1), 0

    def counted(*arguments: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return problem.f(*arguments)

    solution = replace(problem, f=counted).solve(solver)
    expect(
        solution.evaluations >= calls,
        "counted the calls of f",
        f"evaluations={solution.evaluations}",
        f"at least {calls}",
    )


@contract("root_solver", "ode_solver")
def no_grad_mode(solver: Solver) -> None:
    """Under no_grad the result has no graph, and the same value."""
    problem = problem_for(solver)
    problem = replace(problem, x=problem.x.requires_grad_(), z0=problem.z0.requires_grad_())
    solution = problem.solve(solver)
    expect(
        not solution.z.requires_grad, "solved under no_grad", "a z that requires a gradient", "none"
    )
    leaves = [problem.x, problem.z0, *problem.f.parameters()]  # pyright: ignore[reportFunctionMemberAccess]
    expect(
        all(leaf.grad is None for leaf in leaves),
        "solved under no_grad",
        "a .grad",
        "none: use autograd.grad, not .backward()",
    )
    expect(
        torch.is_grad_enabled(),
        "asked torch whether it records, after the solve",
        "no",
        "yes, as before",
    )


@contract("root_solver", "ode_solver")
def reports_too_few_steps(solver: Solver) -> None:
    """Too few steps are a status: no error, and not convergence."""
    if all(stated(solver, limit) is None for limit in LIMITS):
        raise NotApplicable(f"{type(solver).__name__} has none of {', '.join(LIMITS)}")
    few = with_options(solver, **limited(1), tol=1e-13, dt=0.05, rtol=1e-9, atol=1e-12)
    problem = problem_for(few)
    solution = problem.solve(few)
    wrong = int((solution.converged & ~_is_solved(problem, solution)).sum())
    expect(
        not wrong,
        "allowed one step, on 8 samples that need more",
        f"{wrong} called converged that are not",
        "the status max_steps",
    )
    expect(
        bool(solution.z.isfinite().all()),
        "allowed one step",
        "values that are not finite",
        "the best state so far",
    )


@contract("root_solver", "ode_solver")
def takes_at_most_max_steps(solver: Solver) -> None:
    """No sample takes more than ``max_steps`` steps (of a root solver: iterates, z0 included)."""
    if getattr(solver, "max_steps", None) is None:
        raise NotApplicable(f"{type(solver).__name__} has no max_steps of its own")
    for most in (1, 3):
        few = with_options(solver, **limited(most), tol=1e-13, dt=0.05, rtol=1e-9, atol=1e-12)
        steps = int(problem_for(few).solve(few).steps.max())
        expect(steps <= most, f"allowed max_steps={most}", f"{steps} steps", f"{most} at most")


def _is_solved(problem: Problem, solution: Solution) -> Tensor:
    """Which samples, ``[batch]``."""
    exact = (
        problem.exact().detach()
        if problem.times is None
        else problem.exact().detach().transpose(0, 1)
    )
    return (problem.states(solution) - exact).abs().flatten(1).amax(1) < 1e-6
