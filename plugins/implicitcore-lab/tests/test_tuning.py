"""The search for the fastest configuration, on cells that are solved in a moment."""

import math
from copy import deepcopy
from dataclasses import dataclass, replace

import pytest
import torch

import implicitcore as ic
from implicitcore.extend import REGISTRY, ResidualTolerance, options_of
from implicitcore.testing.expect import known
from implicitcore_lab import TuningOptions, tune
from implicitcore_lab.errors import TrainingError
from implicitcore_lab.tuning.problem import gradient_error, make_problem
from implicitcore_lab.tuning.reference import reference
from implicitcore_lab.tuning.result import front_of
from implicitcore_lab.tuning.space import ODE_SOLVERS, ROOT_SOLVERS, make_space
from implicitcore_lab.tuning.study import open_study
from implicitcore_lab.tuning.trials import Measured, Row
from implicitcore_layers import ContractiveCell

CPU = torch.device("cpu")


@pytest.fixture
def cell():
    torch.manual_seed(0)
    return ContractiveCell(6)


@pytest.fixture
def x():
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


def exact_gradients(cell, x, loss):
    """By fixed-point iterations with a graph, in float64."""
    cell, x = deepcopy(cell).double(), x.double().requires_grad_()
    z = torch.zeros_like(x)
    for _ in range(300):
        z = cell(z, x)
    return torch.autograd.grad(loss(z), [*cell.parameters(), x])


def test_the_reference_is_the_exact_gradient(cell, x):
    problem = make_problem(ic.build("deq", cell), x, lambda solution: (solution.z**3).sum())
    right = exact_gradients(cell, x, lambda z: (z**3).sum())
    found = reference(problem)
    assert "float64" in found.text
    assert gradient_error(found.gradients, right) < 2e-7  # the user's loss is in float32


def test_the_reference_of_a_trajectory(cell, x):
    problem = make_problem(ic.build("neural_ode", cell), x, lambda solution: (solution.z**3).sum())
    steps = ic.build(
        "neural_ode", cell, ode_solver={"name": "rk4", "dt": 1e-2}, gradient="unrolled"
    )
    _, fine = problem.step(steps)
    assert gradient_error(fine, reference(problem).gradients) < 2e-6


def test_a_function_with_hidden_weights_is_judged_in_its_own_dtype(cell, x):
    layer = ic.build("deq", lambda z, x: cell(z, x))
    found = reference(make_problem(layer, x))
    assert "float32" in found.text
    float64 = reference(make_problem(ic.build("deq", cell), x))
    assert gradient_error(found.gradients[-1:], float64.gradients[-1:]) < 1e-5


def test_a_layer_in_float64_is_judged_in_float64(cell, x):
    found = reference(make_problem(ic.build("deq", cell.double()), x.double()))
    assert {leaf.dtype for leaf in found.gradients if leaf is not None} == {torch.float64}


@pytest.mark.slow
def test_without_a_fixed_point_there_is_no_reference(x):
    layer = ic.build("deq", lambda z, x: z + 1 + x**2)
    with pytest.raises(TrainingError, match=r"no reference to judge gradients by.*float64"):
        reference(make_problem(layer, x))


@pytest.mark.parametrize(
    ("found", "exact", "error"),
    [
        ([[1.0, 0.0]], [[1.0, 0.0]], 0.0),
        ([[1.1, 0.0], [4.0, 0.0]], [[1.0, 0.0], [4.0, 0.0]], 0.1),
        ([None], [[2.0, 0.0]], 1.0),
        ([None], [None], 0.0),
        ([[math.nan, 0.0]], [[1.0, 0.0]], math.inf),
        ([[1.0, 0.0], [1e-9, 0.0]], [[1.0, 0.0], [0.0, 0.0]], 1e-3),
    ],
)
def test_gradient_error(found, exact, error):
    leaves = [[None if it is None else torch.tensor(it) for it in side] for side in (found, exact)]
    assert gradient_error(*leaves) == pytest.approx(error, rel=1e-5)


def row(number, time_ratio, error):
    return Row(number, {"solver": str(number)}, Measured(time_ratio, 1.0, error, 1, 1))


def test_the_front_is_what_nothing_beats():
    rows = [row(1, 1.0, 1e-3), row(2, 0.5, 1e-2), row(3, 0.7, 5e-2), row(4, 2.0, 1e-4)]
    rows += [row(5, 1.0, 2e-3), row(6, 1.5, 1e-3), Row(7, {"solver": "x"}, None, "refused")]
    assert [it.number for it in front_of(rows)] == [2, 1, 4]


def test_the_default_is_trial_0_and_what_is_recommended_is_as_exact(cell, x):
    layer = ic.build("deq", cell, root_solver={"name": "newton", "tol": 1e-6})
    before = layer.config
    found = tune(layer, x, trials=8, repeats=1, seed=1)
    assert layer.config == before
    assert found.rows[0].is_default
    assert known(found.default.measured).time_ratio == 1
    assert len(found.rows) == 8
    assert known(found.best.measured).gradient_error <= found.max_gradient_error
    assert found.max_gradient_error == known(found.default.measured).gradient_error
    names = {it.parts["solver"]["name"] for it in found.rows[1:]}
    assert names >= set(ROOT_SOLVERS)  # each is tried once before anything is learnt
    rebuilt = ic.build(found.config, cell)
    assert rebuilt.config == found.config
    assert {it.number for it in found.front} <= set(range(8))


def test_a_slow_default_is_beaten(cell, x):
    """Hundreds of tiny steps to the equilibrium, where ten iterations do."""
    slow = {"name": "picard", "damping": 0.05, "max_steps": 2000, "tol": 1e-4}
    layer = ic.build("deq", cell, root_solver=slow)
    found = tune(layer, x, trials=7, repeats=2)
    assert found.speedup > 2
    assert "times as fast as the default at equal or smaller gradient error" in found.summary()
    best = ic.build(found.config, cell)
    assert best.root_solver != layer.root_solver


def test_a_fast_default_is_on_the_front(cell, x):
    """One iteration without a backward solve: nothing is faster."""
    layer = ic.build(
        "deq", cell, root_solver={"name": "picard", "tol": 0.9}, gradient={"name": "phantom"}
    )
    found = tune(layer, x, trials=4, repeats=1, max_gradient_error=1e-9)
    assert found.best.is_default
    assert found.speedup == 1
    assert found.config == layer.config
    assert "nothing tried is faster at a gradient error of at most 1e-09" in found.summary()


def test_refused_combinations_keep_their_reason(cell, x):
    reasons = []
    found = tune(
        "deq", x, cell, trials=20, repeats=1, seed=3, report=lambda row: reasons.append(row.reason)
    )
    refused = [it for it in found.rows if it.measured is None]
    assert refused
    assert all(it.reason for it in refused)
    assert [it.reason for it in found.rows] == reasons
    assert not any(it in found.front for it in refused)
    assert any("Shine" in it.reason for it in refused)


def test_a_default_that_fails_is_said(cell, x):
    layer = ic.build("deq", cell, root_solver={"name": "picard", "max_steps": 1, "tol": 1e-6})
    found = tune(layer, x, trials=7, repeats=1)
    assert found.default.measured is None
    assert found.default.reason == "forward: 8 max_steps of 8 samples"
    assert not found.best.is_default
    assert "the default fails (forward: 8 max_steps of 8 samples)" in found.summary()


def test_a_layer_of_ones_own_with_several_inputs(cell):
    """x is a pytree, a part of it belongs to all samples, and the layer is not registered."""
    x = {
        "shift": torch.ones(4, 6),
        "rate": ic.shared(torch.full((6,), 0.5)),
        "index": torch.ones(4, 1).long(),
    }
    dynamics = ic.FixedPoint(lambda z, x: torch.tanh(x["rate"] * z + x["shift"] * x["index"]))
    start = ic.Zeros(shape=(6,))
    layer = ic.ImplicitLayer(dynamics, solver=ic.Newton(tol=1e-5), start=start)
    found = tune(layer, x, trials=6, repeats=1)
    assert sum(it.measured is not None for it in found.rows) >= 5
    for part, spec in found.config.items():
        setattr(layer, part, spec)
    assert layer.solve(x).converged.all()


def test_a_trajectory_is_tuned_among_ode_solvers(cell, x):
    found = tune("neural_ode", x, cell, trials=6, repeats=1)
    assert found.config["name"] == "neural_ode"
    tried = {it.parts["solver"]["name"] for it in found.rows[1:] if it.parts}
    assert tried <= set(ODE_SOLVERS)
    assert len(tried) >= 4


@dataclass(frozen=True, kw_only=True)
class Strange(ResidualTolerance, ic.RootSolver):
    """A stranger's solver: Picard with an option of its own."""

    sweeps: int = 2

    def solve(self, system, z0):
        assert 1 <= self.sweeps <= 8
        picard = ic.Picard(tol=self.tol, atol=self.atol, max_steps=100 * self.sweeps)
        return picard.solve(system, z0)


def test_a_strangers_solver_is_tried_where_it_is_named(cell, x):
    ic.register("root_solver", "tuning-strange", Strange)
    found = tune("deq", x, cell, trials=7, repeats=1, root_solver=("tuning-strange",))
    (strange,) = [it for it in found.rows[1:] if it.parts["solver"]["name"] == "tuning-strange"]
    assert strange.measured
    assert strange.parts["solver"]["sweeps"] == options_of(Strange)["sweeps"].default
    assert strange.parts["gradient"]["solver"]["name"] == "tuning-strange"  # backward too


@pytest.mark.parametrize("kind", ["root_solver", "ode_solver"])
def test_every_registered_solver_can_be_named(kind):
    """Whatever is suggested for a registered part makes that part."""
    space = make_space(kind, {}, CPU)
    names = [part.name for part in REGISTRY.parts(kind)]
    assert len(names) > 10
    for name in names:
        one, study = replace(space, solvers=(name,)), open_study(TuningOptions(study=name))
        for _ in range(5):
            parts = one.suggest(study.ask())
            assert ic.create(kind, parts["solver"]).kind == kind
            assert ic.create("gradient", parts["gradient"]).kind == "gradient"


def test_options_and_names_that_there_are_not(cell, x):
    with pytest.raises(ic.ConfigError, match=r"trails: unknown option .*did you mean 'trials'"):
        tune("deq", x, cell, trails=3)
    with pytest.raises(
        ic.ConfigError, match="trials: expected a number greater than or equal to 1"
    ):
        tune("deq", x, cell, trials=0)
    with pytest.raises(ic.InputError, match="returned shape"):  # the layer's own words
        tune(ic.build("deq", lambda z, x: z[:, :2]), x)
    with pytest.raises(ic.UnknownPartError, match="did you mean 'anderson'"):
        tune("deq", x, cell, root_solver=("andersen",))
