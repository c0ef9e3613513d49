"""What every ODE solver promises."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from implicitcore.errors import InputError
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.root_solvers.steady_state import SteadyState
from implicitcore.testing.check import contract
from implicitcore.testing.expect import NotApplicable, expect, expect_close
from implicitcore.testing.options import for_dtype, needed, with_options
from implicitcore.testing.problems import Problem, inputs, problem_for, root
from implicitcore.testing.subjects import full_label

# Steps or tolerances at which a method of order 1 is right to two digits.
FINE = {"dt": 0.01, "rtol": 1e-5, "atol": 1e-7, "max_steps": 4000}
RIGHT = 2e-2


def _integrates(solver: ODESolver, problem: Problem, exact: Tensor, what: str) -> None:
    fine = for_dtype(with_options(solver, **FINE), problem.z0.dtype)
    solution = problem.solve(fine)
    expect(
        bool(solution.converged.all()), f"integrated {what}", solution.summary(), "all converged"
    )
    expect_close(solution.z, exact.detach(), f"compared {what} with the closed form", RIGHT)


def _turned(z: Tensor) -> Tensor:
    """(p, q) of (q, p)."""
    return torch.cat(z.tensor_split(2, 1)[::-1], 1)


def _exchanging(t: Tensor, z0: Tensor, rate: Tensor) -> Tensor:
    """The states of dq/dt = r p, dp/dt = s q at the times, from (q, p) and (s, r)."""
    (q, p), (s, r) = z0.tensor_split(2, 1), rate.tensor_split(2, 1)
    angle, ratio = (r * s).sqrt() * t, (r / s).sqrt()
    cosh, sinh = angle.cosh(), angle.sinh()
    return torch.cat((q * cosh + ratio * p * sinh, p * cosh + q * sinh / ratio), -1)


def largest_error(solver: ODESolver, problem: Problem | None = None) -> float:
    """The largest error at the output times, relative to the largest state."""
    problem = problem or problem_for(solver)
    solution = problem.solve(solver)
    expect(
        bool(solution.converged.all()),
        f"integrated with {full_label(solver)}",
        solution.summary(),
        "all converged",
    )
    exact = problem.exact().detach()
    return ((solution.z - exact).abs().max() / exact.abs().max()).item()


def expect_order(solver: ODESolver, problem: Problem, where: str) -> None:
    """The error at the output times is O(dt^order)."""
    needed(solver, "dt")
    order = getattr(solver, "order", None) or getattr(getattr(solver, "tableau", None), "order", 1)
    steps = (0.1, 0.05)
    errors = [
        largest_error(with_options(solver, dt=dt, rtol=1e-11, atol=1e-13, max_steps=4000), problem)
        for dt in steps
    ]
    if min(errors) < 1e-12:
        return  # rounding error: no slope to measure
    found = math.log(errors[0] / errors[1], 2)
    expect(
        found > order - 0.4,
        f"halved dt={steps[0]}, looked {where}",
        f"errors {errors[0]:.2g} and {errors[1]:.2g}, order {found:.2f}",
        f"order {order}",
    )


@contract("ode_solver")
def integrates_an_exponential(solver: ODESolver) -> None:
    """Integrates dz/dt = -x z, each sample with a rate of its own.

    A separable field has dq/dt = x p and dp/dt = x q: q + p grows, and q - p decays.
    """
    rate, z0 = inputs(seed=2).abs().add(0.1), inputs()
    times = torch.linspace(0, 1, 3, dtype=torch.float64)
    problem = Problem(f=lambda t, z, x: -x * z, z0=z0, x=rate, times=times)
    exact, what = z0 * torch.exp(-rate * times[:, None, None]), "dz/dt = -x z"
    if solver.separable:
        problem, what = (
            replace(problem, f=lambda t, z, x: _turned(x * z)),
            "dq/dt = x p, dp/dt = x q",
        )
        exact = _exchanging(times[:, None, None], z0, rate)
    _integrates(solver, problem, exact, what)


@contract("ode_solver")
def integrates_an_oscillator(solver: ODESolver) -> None:
    """Integrates dz/dt = (z_2, -z_1), a rotation by t."""
    z0 = inputs(n=2)
    times = torch.linspace(0, 1.5, 4, dtype=torch.float64)
    turned = [
        torch.stack(
            (z0[:, 0] * t.cos() + z0[:, 1] * t.sin(), z0[:, 1] * t.cos() - z0[:, 0] * t.sin()), 1
        )
        for t in times
    ]
    problem = Problem(
        f=lambda t, z, x: torch.stack((z[:, 1], -z[:, 0]), 1), z0=z0, x=z0, times=times
    )
    _integrates(solver, problem, torch.stack(turned), "an oscillator")


@contract("ode_solver")
def integrates_a_time_dependent_field(solver: ODESolver) -> None:
    """Integrates dz/dt = theta cos(t) z + x exp(theta sin(t)) from t = 0.2, or oscillators."""
    problem = problem_for(solver)
    _integrates(solver, problem, problem.exact(), "a field that depends on the time")


@contract("ode_solver")
def integrates_in_float32(solver: ODESolver) -> None:
    """Integrates a time-dependent field in float32."""
    problem = problem_for(solver, dtype=torch.float32)
    _integrates(solver, problem, problem.exact(), "a field that depends on the time, in float32")


@contract("ode_solver")
def integrates_backward(solver: ODESolver) -> None:
    """Integrates over decreasing times."""
    times = torch.tensor([1.0, 0.7, 0.2], dtype=torch.float64)
    problem = replace(problem_for(solver), times=times)
    _integrates(solver, problem, problem.exact(), "a trajectory from t = 1 down to 0.2")


@contract("ode_solver")
def error_follows_rtol(solver: ODESolver) -> None:
    """The error at rtol=1e-5 is at most a tenth of that at 1e-2, or below 1e-5.

    For solvers with an rtol that choose their steps.
    """
    needed(solver, "rtol")
    if getattr(solver, "dt", None) is not None:
        raise NotApplicable("its steps are given by dt")
    loose, tight = (
        largest_error(with_options(solver, rtol=rtol, atol=rtol / 100, max_steps=4000))
        for rtol in (1e-2, 1e-5)
    )
    bound = max(0.1 * loose, 1e-5)
    expect(
        tight <= bound,
        f"integrated with rtol=1e-5, after an error of {loose:.2g} with 1e-2",
        f"{tight:.2g}",
        f"at most {bound:.2g}",
    )


@contract("ode_solver")
def has_its_order(solver: ODESolver) -> None:
    """The error is O(dt^order), where it has a dt.

    The order is its own or that of its ``tableau``, 1 where neither states one.
    """
    expect_order(solver, problem_for(solver), "at the ends of steps")


@contract("ode_solver")
def reports_a_field_that_is_not_finite(solver: ODESolver) -> None:
    """A velocity that is NaN from t = 0.5 on is a status, and z holds the last finite state."""
    times = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    z0, velocity = inputs(3), _turned if solver.separable else torch.neg
    problem = Problem(
        f=lambda t, z, x: torch.where(t < 0.5, velocity(z), torch.nan), z0=z0, x=z0, times=times
    )
    solution = problem.solve(solver)
    did = "integrated a velocity that is NaN from t = 0.5 on"
    expect(not bool(solution.converged.any()), did, solution.summary(), "none converged")
    expect(
        bool(solution.z.isfinite().all()),
        f"{did}, looked at z",
        "values that are not finite",
        "the last accepted state",
    )


@contract("ode_solver")
def refuses_a_field_that_is_not_separable(solver: ODESolver) -> None:
    """Where it is for separable fields, any other one is an InputError: friction, or a drift."""
    if not solver.separable:
        raise NotApplicable("it integrates any field")
    problem = problem_for(solver)
    for name, part in (("a drift", 0), ("friction", 1)):

        def field(t: Tensor, z: Tensor, x: Tensor, part: int = part) -> Tensor:
            del t, x
            lost = [torch.zeros_like(half) for half in z.tensor_split(2, 1)]
            lost[part] = 0.1 * z.tensor_split(2, 1)[part]
            return _turned(z) - torch.cat(lost, 1)

        try:
            replace(problem, f=field).solve(solver)
        except InputError:
            continue
        expect(False, f"gave a field with {name}", "no error", "an InputError")


@contract("ode_solver")
def stops_at_a_steady_state(solver: ODESolver) -> None:
    """``stop`` ends each sample at its steady state: ``SteadyState`` finds a contraction's root."""
    problem = root()
    chosen = with_options(solver, dt=0.1, rtol=1e-4, atol=1e-6)
    try:
        solution = problem.solve(SteadyState(ode_solver=chosen, tol=1e-3, max_steps=1000))
    except InputError as refusal:
        raise NotApplicable(f"it refuses to go to a steady state: {refusal}") from refusal
    expect(
        bool(solution.converged.all()),
        "integrated to a steady state",
        solution.summary(),
        "all converged",
    )
    expect_close(
        solution.z, problem.exact().detach(), "compared the steady state with Newton's root", 1e-2
    )
