"""What root solvers and ODE solvers promise alike."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from implicitcore.ode_solvers.base import ODESolver
from implicitcore.root_solvers.base import RootSolver
from implicitcore.solution import Solution, Status
from implicitcore.testing.check import contract
from implicitcore.testing.expect import NotApplicable, expect, expect_close, expect_equal
from implicitcore.testing.options import LIMITS, for_dtype, limited, stated, with_options
from implicitcore.testing.problems import Problem, problem_for

Solver = RootSolver | ODESolver

# Samples that are solved together may differ by rounding from those solved alone.
ALONE = 1e-7
# What a sample that fails may change of the others: nothing that their tolerances could not change.
SPOILED = 1e-3


@contract("root_solver", "ode_solver")
def returns_a_whole_solution(solver: Solver) -> None:
    """The solution has a status, a step count and a finite state for each sample, in the dtype of z0."""
    for dtype in (torch.float32, torch.float64):
        problem = problem_for(solver, 3, dtype)
        solution = problem.solve(for_dtype(solver, dtype))
        did = f"solved 3 samples in {dtype}"
        shape = [3, 6] if problem.times is None else [3, 3, 6]
        expect(isinstance(solution, Solution), did, type(solution).__name__, "a Solution")
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
def no_input_mutation(solver: Solver) -> None:
    """Neither z0 nor x nor the times are changed."""
    problem = problem_for(solver)
    arguments = {"z0": problem.z0, "x": problem.x, "times": problem.times}
    before = {name: value.clone() for name, value in arguments.items() if value is not None}
    problem.solve(solver)
    for name, value in before.items():
        expect_equal(getattr(problem, name), value, f"looked at {name} after the solve")


@contract("root_solver", "ode_solver")
def per_sample(solver: Solver) -> None:
    """A batch gives what its samples give alone."""
    problem = problem_for(solver)
    problem = replace(
        problem, x=problem.x * torch.logspace(-1, 0.5, 8, dtype=torch.float64)[:, None]
    )
    together = problem.solve(solver)
    for i in range(8):
        part = problem.rows(slice(i, i + 1))
        alone = part.solve(solver)
        did = f"compared sample {i} of 8 with the same sample alone"
        expect_close(problem.states(together)[i : i + 1], part.states(alone), did, ALONE)
        expect(
            bool(together.status[i] == alone.status[0]),
            did,
            _name(together.status[i]),
            _name(alone.status[0]),
        )


@contract("root_solver", "ode_solver")
def keeps_a_nan_in_its_sample(solver: Solver) -> None:
    """A NaN in the input of one sample leaves the others as they are, and is a status."""
    problem = problem_for(solver)
    x = problem.x.clone()
    x[3, 2] = torch.nan
    broken = replace(problem, x=x)
    others = [0, 1, 2, 4, 5, 6, 7]
    clean, found = problem.solve(solver), broken.solve(solver)
    expect_close(
        problem.states(found)[others],
        problem.states(clean)[others],
        "put a NaN into sample 3 of 8, compared the others",
        SPOILED,
    )
    expect_equal(
        found.status[others],
        clean.status[others],
        "put a NaN into sample 3 of 8, compared the status of the others",
    )
    expect(
        bool(found.status[3] != Status.CONVERGED),
        "put a NaN into sample 3 of 8",
        "the status converged",
        "non_finite",
    )


@contract("root_solver", "ode_solver")
def solves_an_empty_batch(solver: Solver) -> None:
    """No samples are no error."""
    problem = problem_for(solver, 0)
    solution = problem.solve(solver)
    shape = list(problem.states(solution).shape)
    expect(
        shape[0] == 0 and shape[-1] == 6,
        "solved an empty batch",
        f"states of shape {shape}",
        "[0, ..., 6]",
    )
    expect(
        list(solution.status.shape) == [0],
        "solved an empty batch",
        f"a status of shape {list(solution.status.shape)}",
        [0],
    )


@contract("root_solver", "ode_solver")
def remembers_nothing(solver: Solver) -> None:
    """The same call gives the same answer, whatever was solved in between."""
    first = problem_for(solver).solve(solver)
    other = replace(problem_for(solver), x=0.5 * problem_for(solver).x)
    for between in (other, other.rows(slice(0, 3))):
        between.solve(solver)
    expect_equal(
        problem_for(solver).solve(solver).z, first.z, "solved a problem again, after others"
    )


@contract("root_solver", "ode_solver")
def counts_its_evaluations(solver: Solver) -> None:
    """No evaluation of f is left out of the solution's count."""
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
def leaves_no_graph(solver: Solver) -> None:
    """Under no_grad nothing is recorded, and no gradient is left on a parameter."""
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
    """Out of steps is a status: never an error, and never called convergence."""
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
    """No sample takes more than ``max_steps`` steps: iterates of a root solver, the start included."""
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


def _name(status: Tensor) -> str:
    return Status(int(status)).name.lower()
