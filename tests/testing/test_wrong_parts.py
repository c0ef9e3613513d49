"""Deliberately wrong solvers: each is caught by the checks that should catch it, and by no
other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from support.failing import failed
from torch import Tensor

import implicitcore as ic
from implicitcore.extend import EqualSteps, LinearSystem, Options, Step
from implicitcore.ode_solvers import tableaus
from implicitcore.ode_solvers.runge_kutta import AdaptiveRungeKutta, FixedRungeKutta
from implicitcore.ode_solvers.separable import halves, separable_velocity
from implicitcore.options.types import Count, Tolerance
from implicitcore.system.system import System


@dataclass(frozen=True, kw_only=True)
class Plain(Options, ic.RootSolver):
    """A right one: a fixed-point iteration with a loop of its own."""

    tol: Tolerance = 1e-5
    max_steps: Count = 60

    def met(self, size: Tensor, scale: Tensor) -> Tensor:
        return size <= self.tol * scale

    def solve(self, system: System, z0: Tensor) -> ic.Solution:
        z, best, least = z0, z0, torch.full_like(z0[:, 0], torch.inf)
        status = torch.full_like(least, ic.Status.MAX_STEPS, dtype=torch.int8)
        steps = torch.zeros_like(status, dtype=torch.int64)
        for _ in range(self.max_steps):
            fz = self.evaluate(system, z)
            going = status == ic.Status.MAX_STEPS
            with torch.no_grad():
                size = (fz - z).norm(dim=1)
                steps = steps + going
                better = going & (size < least)
                least = torch.where(better, size, least)
                met = self.met(size, system.scale(fz.norm(dim=1), size))
                status = torch.where(going & met, ic.Status.CONVERGED, status)
                status = torch.where(going & ~size.isfinite(), ic.Status.NON_FINITE, status).to(
                    torch.int8
                )
            best = torch.where(better[:, None], z, best)
            if not bool((status == ic.Status.MAX_STEPS).any()):
                break
            z = torch.where((status == ic.Status.MAX_STEPS)[:, None], fz, z)
        return ic.Solution(
            z=best,
            start=z0,
            residual=least,
            status=status,
            steps=steps,
            evaluations=system.evaluations,
        )

    def evaluate(self, system: System, z: Tensor) -> Tensor:
        return system.update(z)


class WrongRoot(Plain):
    def solve(self, system, z0):
        solution = super().solve(system, z0)
        return replace(solution, z=solution.z + 0.05)


class IgnoresItsTolerance(Plain):
    def met(self, size, scale):
        return size <= 1e-3 * scale


class WrongDtype(Plain):
    def solve(self, system, z0):
        solution = super().solve(system, z0)
        return replace(solution, z=solution.z.double())


class ChangesItsStart(Plain):
    def solve(self, system, z0):
        solution = super().solve(system, z0.clone())
        if not torch.is_grad_enabled():
            z0 += 1e-9
        return solution


class LiesAboutConvergence(Plain):
    def solve(self, system, z0):
        solution = super().solve(system, z0)
        return replace(solution, status=torch.zeros_like(solution.status))


class LiesAboutItsResidual(Plain):
    def solve(self, system, z0):
        solution = super().solve(system, z0)
        return replace(solution, residual=torch.zeros_like(solution.residual))


class MeanOfTheBatch(Plain):
    def met(self, size, scale):
        return (size.nanmean() <= self.tol * scale.nanmean()).expand_as(size)


class RaisesOutOfSteps(Plain):
    def solve(self, system, z0):
        solution = super().solve(system, z0)
        if bool((solution.status == ic.Status.MAX_STEPS).any()):
            raise ic.SolveError("out of steps", solution)
        return solution


class Remembers(Plain):
    last: dict = {}

    def solve(self, system, z0):
        warm = self.last.get(z0.shape, z0)
        solution = super().solve(
            system,
            warm
            if warm.dtype == z0.dtype
            and not torch.is_grad_enabled()
            and not isinstance(system, LinearSystem)
            else z0,
        )
        self.last[z0.shape] = solution.z.detach().nan_to_num()
        return solution


class Uncounted(Plain):
    def evaluate(self, system, z):
        return (
            system.update(z)
            if isinstance(system, LinearSystem)
            else system.dynamics.update(z, system.x)
        )


class UnrolledInSilence(Plain):
    def solve(self, system, z0):
        with torch.no_grad():
            return super().solve(system, z0)


class LeavesAGraph(Plain):
    def solve(self, system, z0):
        with torch.enable_grad():
            return super().solve(system, z0)


class LastIterate(Plain):
    def solve(self, system, z0):
        solution = super().solve(system, z0)
        if torch.is_grad_enabled():
            return solution
        lost = (solution.status == ic.Status.MAX_STEPS)[:, None]
        z = torch.where(lost, self.evaluate(system, self.evaluate(system, solution.z)), solution.z)
        return replace(
            solution,
            z=z,
            residual=(self.evaluate(system, z) - z).norm(dim=1),
            evaluations=system.evaluations,
        )


@dataclass(kw_only=True)
class NotFrozen(ic.RootSolver):
    tol: Tolerance = 1e-5
    max_steps: Count = 60

    def solve(self, system, z0):
        return Plain(tol=self.tol, max_steps=self.max_steps).solve(system, z0)


@dataclass(frozen=True, kw_only=True)
class Unchecked(ic.RootSolver):
    tol: Tolerance = 1e-5
    max_steps: Count = 60

    def solve(self, system, z0):
        return Plain(tol=self.tol, max_steps=self.max_steps).solve(system, z0)


class TakesAnything(Plain):
    def __init__(self, *args, tol=1e-5, max_steps=60, **options):
        object.__setattr__(self, "tol", tol)
        object.__setattr__(self, "max_steps", max_steps)
        self.__post_init__()


class OneStepMore(Plain):
    def solve(self, system, z0):
        solution = super().solve(system, z0)
        spent = solution.status == ic.Status.MAX_STEPS
        return replace(solution, steps=solution.steps + spent.to(solution.steps.dtype))


# The part, and the checks that catch it.
FINDS = {
    "finds_the_root",
    "finds_the_root_in_float32",
    "finds_the_root_of_a_linear_map",
    "finds_the_root_of_a_vector_field",
}
GRADIENTS = {"trains_through_the_implicit_gradient", "solves_a_backward_pass"}
TOLD = {
    "reports_the_true_residual",
    "meets_its_tolerance",
    "returns_its_best_iterate",
    "reports_divergence",
}
UNCHECKED = {"refuses_a_value_of_another_type", "refuses_an_infinite_value"}
FAILURES = {
    "reports_too_few_steps",
    "reports_divergence",
    "claims_no_root_where_there_is_none",
    "reports_nan",
}
ROOT_SOLVERS = [
    (Plain(), set()),
    (WrongRoot(), FINDS | GRADIENTS | TOLD | {"keeps_a_start_at_a_root"}),
    (
        IgnoresItsTolerance(tol=1e-3),
        GRADIENTS | {"meets_its_tolerance", "can_be_unrolled_or_refuses"},
    ),
    (WrongDtype(), {"returns_a_whole_solution"}),
    (ChangesItsStart(), {"no_input_mutation"}),
    (LiesAboutConvergence(), FAILURES),
    (LiesAboutItsResidual(), {"reports_the_true_residual"}),
    (MeanOfTheBatch(), {"per_sample", "meets_its_tolerance", "claims_no_root_where_there_is_none"}),
    (
        RaisesOutOfSteps(),
        {
            "takes_at_most_max_steps",
            "reports_too_few_steps",
            "reports_divergence",
            "reports_the_true_residual",
            "returns_its_best_iterate",
        },
    ),
    (Remembers(), {"stateless", "per_sample"}),
    (Uncounted(), {"counts_its_evaluations"}),
    (UnrolledInSilence(), {"can_be_unrolled_or_refuses"}),
    (LeavesAGraph(), {"no_grad_mode"}),
    (LastIterate(), {"returns_its_best_iterate"}),
    (NotFrozen(), {"is_a_frozen_dataclass", *UNCHECKED}),
    (Unchecked(), UNCHECKED),
    (TakesAnything(), {"refuses_an_unknown_option"}),
    (OneStepMore(), {"takes_at_most_max_steps"}),
]


class SecondOrder(FixedRungeKutta):
    """A right one, and so is its other tableau."""

    tableau = tableaus.HEUN


class LowerOrder(FixedRungeKutta):
    tableau = replace(tableaus.HEUN, b=(0.75, 0.25))


class WrongSlope(FixedRungeKutta):
    tableau = replace(tableaus.HEUN, b=(0.5, 0.4))


class IgnoresTheTime(SecondOrder):
    def step(self, system, t, dt, z, state):
        return super().step(_AtZero(system), t, dt, z, state)


class _AtZero(System):
    def __init__(self, system):
        super().__init__(system.problem, system.context)
        self.velocity = lambda t, z: system.velocity(torch.zeros_like(t), z)


class OnlyForward(SecondOrder):
    def step(self, system, t, dt, z, state):
        return super().step(system, t, dt.abs(), z, state)


class WrongTimeOrder(SecondOrder):
    def solve(self, system, z0, times, stop=None, **options):
        solution = super().solve(system, z0, times, stop, **options)
        return solution if stop else replace(solution, z=solution.z.flip(0))


class NoStart(SecondOrder):
    def solve(self, system, z0, times, stop=None, **options):
        solution = super().solve(system, z0, times, stop, **options)
        return (
            solution
            if stop
            else replace(solution, z=torch.cat((solution.z[:1] * 1.001, solution.z[1:])))
        )


class NeverFails(SecondOrder):
    def solve(self, system, z0, times, stop=None, **options):
        solution = super().solve(system, z0, times, stop, **options)
        return replace(solution, status=torch.zeros_like(solution.status))


class TakesAnyTimes(SecondOrder):
    def solve(self, system, z0, times, stop=None, **options):
        if stop is None and (
            len(times) < 2 or not bool((times.diff() > 0).all() | (times.diff() < 0).all())
        ):
            times = torch.linspace(0, 1, len(times), dtype=times.dtype)
        return super().solve(system, z0, times, stop, **options)


class NeverSettles(SecondOrder):
    def solve(self, system, z0, times, stop=None, **options):
        return super().solve(
            system, z0, times if stop is None else times.clamp(max=1), None, **options
        )


class LeaksBetweenSamples(SecondOrder):
    def step(self, system, t, dt, z, state):
        step = super().step(system, t, dt, z, state)
        return step._replace(z=step.z + 1e-6 * step.z.mean(0))


class IgnoresItsTolerances(AdaptiveRungeKutta):
    tableau = tableaus.BOSH3

    @property
    def step_size(self):
        return ic.Bosh3(rtol=1e-2, atol=1e-3).step_size


class StraightBetweenItsSteps(AdaptiveRungeKutta):
    tableau = tableaus.TSIT5

    def piece(self, system, t, dt, z, state, step):
        return [z, step.z - z]


class StraightBetweenEqualSteps(FixedRungeKutta):
    tableau = tableaus.HEUN3

    def piece(self, system, t, dt, z, state, step):
        return [z, step.z - z]


class StopsAtOutputTimes(SecondOrder):
    def solve(self, system, z0, times, stop=None, **options):
        options["hit_times"] = stop is None
        return super().solve(system, z0, times, stop, **options)


class Pairs(EqualSteps[Tensor]):
    """A right one of positions and momenta, of order 1: the symplectic Euler method."""

    separable = True

    def init(self, system, t, z):
        return separable_velocity(type(self).__name__, system, t, z)

    def step(self, system, t, dt, z, state):
        (q, p), size = halves(system, z), dt[:, None]
        z = z + size * p * state
        return Step(z + size * q * system.velocity(t + dt, z), None, None)


class TakesAnyPairs(Pairs):
    def init(self, system, t, z):
        return system.velocity(t, z)


class OldPositions(Pairs):
    def step(self, system, t, dt, z, state):
        q, p = halves(system, z)
        return Step(z + dt[:, None] * (0.5 * p + q) * state, None, None)


TIMED = {"integrates_a_time_dependent_field", "integrates_in_float32", "integrates_backward"}
FOLLOWS = TIMED | {"integrates_an_exponential", "integrates_an_oscillator"}
BACK = {
    "can_be_unrolled_or_refuses",
    "integrates_the_adjoint_or_refuses",
    "trains_through_an_adjoint",
}
ORDER = {"has_its_order", "keeps_its_order_between_its_steps"}
ODE_SOLVERS = [
    (SecondOrder(), set()),
    (LowerOrder(), ORDER),
    (WrongSlope(), FOLLOWS | BACK | {"returns_every_time", *ORDER}),
    (IgnoresTheTime(), TIMED | BACK | ORDER),
    (OnlyForward(), {"integrates_backward", "integrates_the_adjoint_or_refuses"}),
    (
        WrongTimeOrder(),
        FOLLOWS | BACK | {"returns_every_time", "returns_z0_at_the_first_time", *ORDER},
    ),
    (NoStart(), {"returns_z0_at_the_first_time"}),
    (
        NeverFails(),
        {
            "reports_too_few_steps",
            "reports_a_field_that_is_not_finite",
            "reports_nan",
        },
    ),
    (TakesAnyTimes(), {"refuses_times_that_cannot_be_used"}),
    (NeverSettles(), {"stops_at_a_steady_state"}),
    (LeaksBetweenSamples(), {"per_sample", "nan_isolation"}),
    (IgnoresItsTolerances(), {"error_follows_rtol"}),
    (Pairs(), set()),
    (TakesAnyPairs(), {"refuses_a_field_that_is_not_separable"}),
    (
        OldPositions(),
        FOLLOWS | BACK - {"integrates_the_adjoint_or_refuses"} | {"returns_every_time", *ORDER},
    ),
    (StraightBetweenItsSteps(), {"is_right_between_its_steps"}),
    (StraightBetweenEqualSteps(), {"keeps_its_order_between_its_steps"}),
    (
        StopsAtOutputTimes(),  # whose steps between so many do not go with dt
        {"output_times_change_no_step", "keeps_its_order_between_its_steps"},
    ),
]


@pytest.mark.parametrize(
    ("part", "caught_by"), ROOT_SOLVERS + ODE_SOLVERS, ids=lambda value: type(value).__name__
)
def test_a_wrong_solver_is_caught_by_these_checks_and_no_other(part, caught_by):
    assert failed(part) == caught_by
