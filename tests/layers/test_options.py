"""The options of layers: one place for each, whatever is assigned under whichever name."""

# Options that are wrong on purpose are what these tests are about.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import implicitcore as ic
from implicitcore.options.options import options_of
from implicitcore_layers import DEQ, ContinuousDEQ, HomoODE, NeuralODE, SkipDEQ, SkipRegDEQ

N = 3


class Cell(nn.Module):
    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.mix = nn.Linear(N, N, dtype=torch.float64)

    def forward(self, z, x):
        return torch.tanh(0.4 * self.mix(z) + x)


class Predictor(nn.Linear):
    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        super().__init__(N, N, dtype=torch.float64)


NAMES = {
    DEQ: "deq",
    ContinuousDEQ: "continuous_deq",
    SkipDEQ: "skip_deq",
    SkipRegDEQ: "skip_reg_deq",
    NeuralODE: "neural_ode",
    HomoODE: "homoode",
}
GIVEN: dict[type, dict[str, Any]] = {
    SkipDEQ: {"predictor": Predictor()},
    HomoODE: {"channels": N},
}
EQUILIBRIUM = {
    "root_solver": ic.Picard(tol=1e-2),
    "gradient": ic.Phantom(steps=3),
    "on_failure": "raise",
    "cell": Cell(seed=1),
}
FLOW = {
    "ode_solver": ic.RK4(dt=0.5),
    "gradient": ic.Unrolled(),
    "horizon": 0.5,
    "on_failure": "raise",
    "cell": Cell(seed=1),
}
OTHER: dict[type, dict[str, Any]] = {
    DEQ: {**EQUILIBRIUM, "shape": (N,)},
    ContinuousDEQ: {**EQUILIBRIUM, "shape": (N,)},
    SkipDEQ: {**EQUILIBRIUM, "weight": 0.5, "predictor": Predictor(seed=1)},
    SkipRegDEQ: {**EQUILIBRIUM, "weight": 0.5, "shape": (N,)},
    NeuralODE: {**FLOW, "start": ic.Zeros()},
    HomoODE: {**FLOW, "shape": (N,)},
}
"""A value other than the default, of each option that can be assigned."""
CASES = [(cls, name) for cls, values in OTHER.items() for name in values]
LAYERS = list(NAMES)


def make(cls: type, **options: Any) -> Any:
    given = {"cell": Cell(), **copy.deepcopy(GIVEN.get(cls, {})), **options}
    return cls(given.pop("cell"), **given)


def answer(layer: Any) -> list[torch.Tensor]:
    """What the options decide: the solution, the evaluations, the loss term and a gradient."""
    x = torch.linspace(-1, 1, 2 * N, dtype=torch.float64).reshape(2, N).requires_grad_()
    solution = layer.to(torch.float64).solve(x)
    [slope] = torch.autograd.grad(solution.z.sum(), x)
    evaluations = torch.tensor(solution.evaluations)
    return [solution.z.detach(), evaluations, layer.regularizer(solution).detach(), slope]


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(one, other) for one, other in zip(answer(a), answer(b), strict=True))


@pytest.mark.parametrize(("cls", "name"), CASES, ids=lambda item: getattr(item, "__name__", item))
def test_an_assigned_option_is_what_solves_and_what_the_config_says(cls, name):
    value = OTHER[cls][name]
    layer, made = make(cls), make(cls, **{name: copy.deepcopy(value)})
    setattr(layer, name, copy.deepcopy(value))
    assert layer.config == made.config
    assert equal(layer, made)
    objects = {key: getattr(layer, key) for key in ("predictor",) if hasattr(layer, key)}
    built = ic.build(layer.config, layer.cell, **objects)
    assert built.config == layer.config
    assert equal(built, layer)
    if name not in ("on_failure", "shape"):  # these change no number here
        assert not equal(layer, make(cls))
    if name not in ("cell", "predictor"):
        assert layer.config != make(cls).config


def test_every_option_is_among_these_cases():
    untried = {"backend", "channels", "init", "autonomous", "coupled"}  # each has a test of its own
    for cls in LAYERS:
        assert set(OTHER[cls]) | untried >= set(options_of(cls))


@pytest.mark.parametrize("cls", LAYERS)
def test_both_names_of_the_solver_are_one_option(cls):
    layer = make(cls)
    own = "ode_solver" if hasattr(layer, "ode_solver") else "root_solver"
    few = replace(layer.solver, max_steps=7)
    for name in ("solver", own):
        layer = make(cls)
        setattr(layer, name, few)
        assert layer.solver is few
        assert getattr(layer, own) is few
        assert layer.config[own]["max_steps"] == 7
    wrong = ic.Picard() if own == "ode_solver" else ic.Tsit5()
    for name in ("solver", own):
        with pytest.raises(ic.ConfigError, match=f"{own}: expected an? {own}, received a"):
            setattr(layer, name, wrong)


@pytest.mark.parametrize("cls", LAYERS)
def test_names_and_mappings_can_be_assigned(cls):
    layer = make(cls)
    layer.gradient = {"name": "unrolled"}
    layer.backend = "torch"
    assert layer.gradient == ic.Unrolled()
    assert layer.config["gradient"]["name"] == "unrolled"
    with pytest.raises(ic.ConfigError, match=r"gradient.stps: unknown option of phantom"):
        layer.gradient = {"name": "phantom", "stps": 2}
    with pytest.raises(ic.ConfigError, match="expected 'raise', 'warn', 'mask' or 'ignore'"):
        layer.on_failure = "wrn"
    assert layer.gradient == ic.Unrolled()
    assert layer.on_failure == "warn"


@pytest.mark.parametrize("cls", LAYERS)
def test_a_config_that_could_only_lie_is_an_error(cls):
    layer = make(cls)
    layer.start = ic.OneStep(layer.dynamics.update) if cls is not SkipRegDEQ else ic.Zeros()
    answer(layer)
    said = "start.update: " if cls is NeuralODE else "start: the layer's start was replaced by a"
    with pytest.raises(ic.ConfigError, match=said):
        _ = layer.config
    layer = make(cls)
    layer.dynamics = type("Other", (type(layer.dynamics),), {})(Cell())
    with pytest.raises(ic.ConfigError, match="dynamics: the layer's dynamics was replaced"):
        _ = layer.config


def test_the_channels_of_a_learned_start_are_fixed():
    layer = make(HomoODE)
    with pytest.raises(ic.ConfigError, match="channels: belongs to the learned start"):
        layer.channels = 5
    assert layer.channels == N


@pytest.mark.parametrize("cls", LAYERS)
def test_another_backend_is_what_runs_and_what_the_config_says(cls):
    layer = make(cls)
    layer.backend = "cupy"
    assert layer.config["backend"] == {"name": "cupy", "cuda_graphs": False}
    with pytest.raises(ic.ConfigError, match="CupyBackend cannot run here"):
        answer(layer)
    layer.backend = None
    assert layer.config == make(cls).config


def test_a_field_may_become_one_of_the_time():
    def timed(t, z, x):
        return t * x - z

    layer = make(NeuralODE)
    layer.cell, layer.autonomous = timed, False
    assert layer.config["autonomous"] is False
    assert equal(layer, make(NeuralODE, cell=timed, autonomous=False))


@pytest.mark.parametrize("cls", LAYERS)
def test_the_signature_is_whole(cls):
    signature = inspect.signature(cls)
    assert list(signature.parameters) == list(options_of(cls)) or set(signature.parameters) == set(
        options_of(cls)
    )
    assert {"gradient", "backend", "on_failure"} <= set(signature.parameters)
    assert all(item.kind is not item.VAR_KEYWORD for item in signature.parameters.values())
    for name, option in options_of(cls).items():
        assert signature.parameters[name].default is option.default


@pytest.mark.parametrize("cls", LAYERS)
def test_a_call_that_does_not_fit_is_one_error_with_every_problem(cls):
    own = "ode_solver" if "ode_solver" in options_of(cls) else "root_solver"
    wrong = {"on_failur": "warn", own: "andersen", "gradient": {"name": "phantom", "stps": 2}}
    with pytest.raises(ic.ConfigError) as caught:
        make(cls, **wrong)
    lines = caught.value.problems
    assert [line.split(":")[0] for line in lines] == ["on_failur", own, "gradient.stps"]
    assert "unknown option of" in lines[0]
    assert "did you mean 'on_failure'?" in lines[0]
    with pytest.raises(ic.ConfigError, match="cell: required by"):
        cls()


def test_a_layer_without_a_part_says_what_it_needs():
    with pytest.raises(ic.ConfigError, match="solver: required by ImplicitLayer"):
        ic.ImplicitLayer(ic.FixedPoint(Cell()))
    with pytest.raises(ic.ConfigError, match="dynamics: expected a dynamics, received a Cell"):
        ic.ImplicitLayer(Cell(), solver="anderson")
    with pytest.raises(
        ic.ConfigError, match=r"start: expected a start object, .* call it: Zeros\(\)"
    ):
        ic.ImplicitLayer(ic.FixedPoint(Cell()), solver="anderson", start=ic.Zeros)


def test_a_layer_takes_names():
    layer = ic.ImplicitLayer(
        ic.FixedPoint(Cell()), solver="anderson", gradient={"name": "phantom", "steps": 3}
    )
    assert layer.solver == ic.Anderson()
    assert layer.gradient == ic.Phantom(steps=3)
    flow = ic.ImplicitLayer(ic.FixedPoint(Cell()), solver="tsit5")
    assert flow.solver == ic.Tsit5()
    assert flow.gradient == ic.Unrolled()


@pytest.mark.parametrize("cls", LAYERS)
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))]
)
def test_a_copy_keeps_its_options(cls, duplicate):
    layer = make(cls)
    layer.solver = replace(layer.solver, max_steps=9)
    twin = duplicate(layer)
    assert twin.config == layer.config
    assert equal(twin, layer)
    twin.gradient = ic.Unrolled()
    assert layer.gradient != twin.gradient
    assert layer.config["gradient"] != twin.config["gradient"]


def test_a_subclass_may_use_its_own_names_as_it_likes():
    class Mine(ic.ImplicitLayer):
        def __init__(self, width: int, **kwargs: Any):
            depth = kwargs.pop("depth")
            super().__init__(ic.FixedPoint(Cell()), solver="picard", **kwargs)
            self.width = nn.Linear(width, depth)  # no option: anything may be kept here

    layer = Mine(2, depth=3, on_failure="raise")
    assert layer.width.out_features == 3
    assert layer.on_failure == "raise"
    with pytest.raises(ic.ConfigError, match="on_failur: unknown option of Mine; did you mean"):
        Mine(2, depth=3, on_failur="raise")


def test_a_type_error_inside_stays_what_it_is():
    class Broken(ic.ImplicitLayer):
        def __init__(self, width: int):
            len(width)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="has no len"):
        Broken(3)


@pytest.mark.parametrize(
    ("name", "option", "there"),
    [
        ("deq", "tol", 'tol is one of the root_solver: root_solver={"name": ..., "tol": ...}'),
        ("neural_ode", "rtol", "rtol is one of the ode_solver"),
        ("continuous_deq", "ode_solver", "ode_solver is one of the root_solver"),
    ],
)
def test_an_option_of_a_part_is_said_to_be_that(name, option, there):
    with pytest.raises(ic.ConfigError, match=f"{option}: unknown option of {name}") as caught:
        ic.build(name, Cell(), **{option: "tsit5"})
    assert there in str(caught.value)
    with pytest.raises(ic.ConfigError) as caught:
        ic.build("deq", Cell(), colour=1)
    assert "one of the" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gradeint", "gradeint: no option of DEQ; did you mean 'gradient'?"),
        ("tol", 'tol: no option of DEQ; tol is one of its solver: layer.solver = {"name": ...'),
        ("tol_", "tol_: no option of DEQ; tol is one of its solver"),
        ("toll", "or layer(x, tol=...) for one call"),
        ("tool", "tol is one of its solver"),
        ("max_step", "max_steps is one of its solver"),
        ("clips", 'clip is one of its gradient: layer.gradient = {"name": ..., "clip": ...}'),
    ],
)
def test_a_new_attribute_that_is_nearly_an_option_is_refused(name, message):
    layer = DEQ(Cell(), root_solver="anderson", gradient="implicit")
    with pytest.raises(ic.ConfigError) as refused:
        setattr(layer, name, 1e-3)
    assert message in str(refused.value)
    assert not hasattr(layer, name)


class Named(DEQ):
    """With attributes of its own."""

    def __init__(self, cell):
        super().__init__(cell)
        self.tol = 1e-3


def test_attributes_of_ones_own_are_as_of_any_module():
    layer = Named(Cell())
    layer.toll, layer.tol = 1, 2
    assert (layer.tol, layer.toll) == (2, 1)
    layer = DEQ(Cell())
    layer.label, layer._tol, layer.head = "first", 1, nn.Linear(N, N)
    assert copy.deepcopy(layer).label == "first"
    layer.label = "second"
    assert pickle.loads(pickle.dumps(layer))._tol == 1
