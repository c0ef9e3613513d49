"""Deliberately wrong layers and dynamics: each is caught by the checks that should catch it, and by
no other."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support.failing import failed
from torch import nn

import implicitcore as ic
from implicitcore.registry.registry import REGISTRY


class Mine(ic.ImplicitLayer):
    """A right one, with weights of its own and no cell: z = tanh(W z + U x)."""

    def __init__(self, features=6, **options):
        super().__init__(_Own(features), solver=ic.Anderson(tol=1e-6), **options)


class _Own(ic.Dynamics):
    def __init__(self, features):
        super().__init__()
        self.weight, self.inject = (
            nn.Linear(features, features),
            nn.Linear(features, features, bias=False),
        )

    def velocity(self, t, z, x):
        return torch.tanh(0.5 * self.weight(z) + self.inject(x)) - z


class Remembers(Mine):
    last = None

    def solve(self, x, z0=None, *, keys=None, times=None, trace=False):
        z0 = self.last if z0 is None and self.last is not None and len(self.last) == len(x) else z0
        solution = super().solve(x, z0, trace=trace)
        self.last = solution.z.detach()
        return solution


class MixesSamples(Mine):
    def solve(self, x, z0=None, *, keys=None, times=None, trace=False):
        return super().solve(x - x.mean(0) if len(x) else x, z0, trace=trace)


class DropsTheInput(Mine):
    def solve(self, x, z0=None, *, keys=None, times=None, trace=False):
        return super().solve(x.detach(), z0, trace=trace)


class DropsAParameter(Mine):
    def solve(self, x, z0=None, *, keys=None, times=None, trace=False):
        return super().solve(
            x + self.get_parameter("dynamics.inject.weight").detach().sum(1), z0, trace=trace
        )


class ScalesItsGradient(Mine):
    def forward(self, x, z0=None, *, keys=None, times=None):
        z = super().forward(x, z0)
        return 3 * z - 2 * z.detach()


class HidesAWeight(Mine):
    """A tensor that the state_dict does not know."""

    def __init__(self):
        super().__init__()
        self.offset = torch.randn(6)

    def solve(self, x, z0=None, *, keys=None, times=None, trace=False):
        return super().solve(x + self.offset.to(x), z0, trace=trace)


class RegularizerOfEachSample(Mine):
    def regularizer(self, solution):
        return solution.z.square().mean(1)


class Single(Mine):
    """Always float32."""

    def forward(self, x, z0=None, *, keys=None, times=None):
        return super().forward(x, z0).float()


class ChangesItsInput(Mine):
    def solve(self, x, z0=None, *, keys=None, times=None, trace=False):
        solution = super().solve(x, z0, trace=trace)
        if not x.requires_grad:
            x.mul_(1 + 1e-15)
        return solution


class SilentNaN(Mine):
    def forward(self, x, z0=None, *, keys=None, times=None):
        return self.solve(x, z0).z


class NoEmptyBatch(Mine):
    def solve(self, x, z0=None, *, keys=None, times=None, trace=False):
        _ = x[0]
        return super().solve(x, z0, trace=trace)


class ForgetsEval(Mine):
    def forward(self, x, z0=None, *, keys=None, times=None):
        with torch.enable_grad():
            return super().forward(x, z0)


class UnusedParameter(Mine):
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(3))


LEARNING = {"trains_a_step", "every_parameter_gets_a_gradient"}
LAYERS = [
    (Mine, set()),
    (partial(Mine, gradient=ic.Unrolled()), set()),
    (partial(Mine, on_failure="mask"), set()),
    (partial(Mine, gradient=ic.Phantom()), {"gradient_matches_differences"}),
    (Remembers, {"stateless", "no_hidden_state", "per_sample"}),
    (MixesSamples, {"per_sample"}),
    (DropsTheInput, {"gradient_matches_differences"}),
    (DropsAParameter, {"gradient_matches_differences"}),
    (ScalesItsGradient, {"gradient_matches_differences"}),
    (HidesAWeight, {"state_dict_round_trip"}),
    (RegularizerOfEachSample, {"has_a_scalar_regularizer"} | LEARNING),
    (Single, {"maps_a_batch"}),
    (ChangesItsInput, {"no_input_mutation"} | LEARNING),
    (SilentNaN, {"reports_nan"}),
    (NoEmptyBatch, {"empty_batch"}),
    (ForgetsEval, {"no_grad_mode"}),
    (UnusedParameter, {"every_parameter_gets_a_gradient"}),
]


class Relaxed(ic.Dynamics):
    """A right one: dz/dt = (f(z, x) - z) / 2, whose update is the base class's."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def velocity(self, t, z, x):
        return 0.5 * (self.cell(z, x) - z)


class AnotherUpdate(Relaxed):
    def update(self, z, x):
        return self.cell(z, x)


class MixesStates(Relaxed):
    def velocity(self, t, z, x):
        return super().velocity(t, z, x) + z.sum(0)


class OneTime(Relaxed):
    def velocity(self, t, z, x):
        return super().velocity(t, z, x) + (t[0] if len(t) else 0)


class HidesItsCell(ic.Dynamics):
    def __init__(self, cell):
        super().__init__()
        self.cells = [cell]

    def velocity(self, t, z, x):
        return self.cells[0].to(z.dtype)(z, x) - z


class DetachesItsState(Relaxed):
    def velocity(self, t, z, x):
        return self.cell(z, x) - z.detach()


class DetachesItsInput(Relaxed):
    def velocity(self, t, z, x):
        return self.cell(z, x.detach()) - z


class ChangesItsState(Relaxed):
    def velocity(self, t, z, x):
        velocity = super().velocity(t, z, x)
        if not z.requires_grad:
            z.mul_(1 + 1e-15)
        return velocity


class OneScale(Relaxed):
    def scale(self, update_norm, start_norm):
        return update_norm.mean()


class FlatVelocity(Relaxed):
    def velocity(self, t, z, x):
        return super().velocity(t, z, x).double()


class Counts(Relaxed):
    calls = 0

    def velocity(self, t, z, x):
        self.calls += 1
        return super().velocity(t, z, x) * (1 + 1e-14 * self.calls)


DYNAMICS = [
    (Relaxed, set()),
    (AnotherUpdate, {"update_is_the_state_plus_the_velocity"}),
    (MixesStates, {"per_sample", "nan_isolation"}),
    (OneTime, {"per_sample"}),
    (HidesItsCell, {"is_a_module"}),
    (DetachesItsState, {"gradient_matches_differences"}),
    (DetachesItsInput, {"gradient_matches_differences"}),
    (ChangesItsState, {"no_input_mutation"}),
    (OneScale, {"scales_each_sample"}),
    (FlatVelocity, {"velocity_is_shaped_like_the_state"}),
    (Counts, {"stateless"}),
]


@pytest.mark.parametrize(
    ("part", "caught_by"), LAYERS + DYNAMICS, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_wrong_part_is_caught_by_these_checks_and_no_other(part, caught_by):
    assert failed(part) == caught_by


class TwoPlaces(ic.ImplicitLayer):
    """Its option is kept beside the solver that solves, and nothing holds the two together."""

    def __init__(self, features: int = 6, *, root_solver: ic.RootSolver = ic.Anderson(tol=1e-6)):
        super().__init__(_Own(features), solver=root_solver)
        self.root_solver = root_solver
        self.features = features


def test_an_option_that_is_kept_twice_is_caught(monkeypatch):
    monkeypatch.setattr(REGISTRY, "_local", dict(REGISTRY._local))
    ic.register("layer", "two-places", TwoPlaces)
    assert failed(TwoPlaces) == {"follows_its_options"}
