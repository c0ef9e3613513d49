"""What every ODE solver promises about its output times."""

from __future__ import annotations

from dataclasses import replace

import torch

from implicitcore.errors import InputError
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.ode_solvers.stepwise import StepwiseODESolver
from implicitcore.testing.check import contract
from implicitcore.testing.checks.ode_solver import expect_order, largest_error
from implicitcore.testing.expect import NotApplicable, expect, expect_close, expect_equal
from implicitcore.testing.options import needed, with_options
from implicitcore.testing.problems import Problem, inputs, problem_for


def _times(count: int) -> torch.Tensor:
    return torch.linspace(0.2, 1, count, dtype=torch.float64)


@contract("ode_solver")
def returns_every_time(solver: ODESolver) -> None:
    """z is ``[T, batch, n]`` in the order of the times, which the trajectory repeats."""
    times = torch.tensor([0.0, 0.1, 0.15, 0.6, 0.61, 1.0], dtype=torch.float64)
    problem = Problem(f=lambda t, z, x: x, z0=inputs(), x=inputs(seed=2), times=times)
    solution = problem.solve(solver)
    expected = problem.z0 + times[1:, None, None] * problem.x
    expect_close(solution.z[1:], expected, "integrated dz/dt = x to six times", 1e-4)
    did = "compared the times of the trajectory with those given"
    expect_close(solution.times, times, did, 1e-12)


@contract("ode_solver")
def returns_z0_at_the_first_time(solver: ODESolver) -> None:
    """z at the first time is z0 exactly."""
    problem = problem_for(solver)
    expect_equal(problem.solve(solver).z[0], problem.z0, "compared z[0] with z0")


@contract("ode_solver")
def is_right_between_its_steps(solver: ODESolver) -> None:
    """z at many output times is as right as at the ends of its steps.

    For solvers with an rtol that choose their steps, which may interpolate.
    """
    needed(solver, "rtol")
    if getattr(solver, "dt", None) is not None:
        raise NotApplicable("its steps are given by dt")
    problem = problem_for(solver)
    chosen = with_options(solver, rtol=1e-6, atol=1e-8, max_steps=4000)
    few, many = (largest_error(chosen, replace(problem, times=_times(count))) for count in (2, 50))
    bound = max(3 * few, 1e-5)
    expect(
        many <= bound,
        f"integrated to 50 output times, after an error of {few:.2g} at the last alone",
        f"{many:.2g}",
        f"at most {bound:.2g}",
    )


@contract("ode_solver")
def keeps_its_order_between_its_steps(solver: ODESolver) -> None:
    """The error at many output times is O(dt^order) too, where it has a dt and shows its steps.

    Hermite's cubic, the ``piece`` of a solver that has none of its own, is of order 4.
    """
    if not isinstance(solver, StepwiseODESolver):
        raise NotApplicable(f"{type(solver).__name__} shows no steps")
    problem = replace(problem_for(solver), times=_times(72))
    expect_order(solver, problem, "at 72 output times, most of them between the steps")


@contract("ode_solver")
def output_times_change_no_step(solver: ODESolver) -> None:
    """Many output times take the steps of two, and end at the same state.

    For solvers that show their steps.
    """
    if not isinstance(solver, StepwiseODESolver):
        raise NotApplicable(f"{type(solver).__name__} shows no steps")
    problem = problem_for(solver)
    two, many = (replace(problem, times=_times(count)).solve(solver) for count in (2, 72))
    did = "integrated to 72 output times, after 2 of the same span"
    expect_equal(many.steps, two.steps, f"{did}, looked at steps")
    expect_close(many.z[-1], two.z[-1], f"{did}, looked at the last z", 1e-12)


@contract("ode_solver")
def refuses_times_that_cannot_be_used(solver: ODESolver) -> None:
    """One time, or times that are not monotonic, are an InputError."""
    for times in ([0.0], [0.0, 1.0, 0.5]):
        problem = replace(problem_for(solver), times=torch.tensor(times, dtype=torch.float64))
        try:
            problem.solve(solver)
        except InputError:
            continue
        expect(
            False,
            f"gave the times {times}",
            "no error",
            "an InputError (implicitcore.ode_solvers.integration.check_times)",
        )
