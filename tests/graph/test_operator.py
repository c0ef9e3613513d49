"""A compiled layer in training inside of ``torch.compile(model, fullgraph=True)``."""

from __future__ import annotations

import copy
import enum
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import implicitcore as ic

# torch's own: Dynamo looks at the .grad of what is no leaf.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)


class Cell(nn.Module):
    """tanh(W z / 2 + x), of an x that holds what belongs to all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.factor = nn.Linear(6, 6), 0.5

    def forward(self, z, x):
        return torch.tanh(self.factor * self.linear(z) * x["scale"] + x["x"])


class Field(nn.Module):
    """(1 + t) tanh(W z) + x."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, t, z, x):
        return torch.tanh(self.linear(z)) * (1 + t) + x


class Model(nn.Module):
    """A layer between two others, whose output the status follows."""

    def __init__(self, layer) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.layer, self.last = nn.Linear(4, 6), layer, nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.rand(6))

    def inputs(self, x):
        return {"x": self.first(x), "scale": ic.shared(self.scale)}

    def forward(self, x):
        return self.last(self.layer(self.inputs(x)))

    def solve(self, x):
        found = self.layer.solve(self.inputs(x))
        return self.last(found.z), found.status, found.steps, found.residual, found.evaluations


class Flow(nn.Module):
    """A linear layer before a trajectory that begins at its output."""

    def __init__(self, layer) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.layer = nn.Linear(4, 6), layer

    def forward(self, x):
        return self.layer(self.first(x)).sin()


@pytest.fixture(autouse=True)
def fresh(plainly: None):
    """The layer's own graphs in a loop of Python; torch has compiled nothing yet."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def equilibrium(**options) -> ic.ImplicitLayer:
    torch.manual_seed(2)
    options = {"solver": ic.Anderson(tol=1e-12), "start": ic.Zeros((6,)), **options}
    gradient = ic.Implicit(ic.GMRES(tol=1e-12))
    return ic.ImplicitLayer(ic.FixedPoint(Cell()), gradient=gradient, **options)


def flow(solver, **options) -> ic.ImplicitLayer:
    torch.manual_seed(3)
    return ic.ImplicitLayer(
        ic.VectorField(Field()),
        solver=solver,
        start=ic.Identity(),
        gradient=ic.Checkpointed(),
        **options,
    )


def whole(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def values(call, model, x):
    leaf = x.clone().requires_grad_()
    y = call(leaf)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [leaf, *model.parameters()])]


def sample(batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 4, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        (Model, equilibrium),
        (Flow, lambda: flow(ic.RK4(dt=0.3))),
        (Flow, lambda: flow(ic.Bosh3())),
        (Flow, lambda: flow(ic.Adams())),
    ],
    ids=["equilibrium", "RK4", "Bosh3", "Adams"],
)
def test_the_gradients_of_a_model_in_one_graph_are_the_eager_ones(kind, layer):
    eager = kind(layer()).double()
    fast = kind(ic.compile(eager.layer)).double()
    call = whole(fast)
    for batch in (3, 5, 2):
        expected = values(eager, eager, sample(batch))
        found = values(call, fast, sample(batch))
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)
    assert torch._dynamo.utils.counters["graph_break"] == {}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_a_solve_in_the_graph_gives_its_statuses():
    eager = Model(equilibrium(solver=ic.Picard(tol=1e-6, max_steps=7))).double()
    fast = Model(ic.compile(eager.layer)).double()
    x = sample(5) * torch.tensor([[0.0], [1], [1], [5], [30]], dtype=torch.float64)
    z, status, steps, residual, evaluations = whole(fast.solve)(x)
    expected = eager.solve(x)
    assert torch.equal(status, expected[1]) and torch.equal(steps, expected[2])
    assert len(set(status.tolist())) == 2
    torch.testing.assert_close((z, residual), (expected[0], expected[3]))
    assert int(evaluations) == expected[4] - 1 and not residual.requires_grad


def failing(on_failure) -> ic.ImplicitLayer:
    """A sample is NaN where its x is above 5, and diverges where it is below -5."""
    torch.manual_seed(4)
    linear = nn.Linear(3, 3).double()

    def cell(z, x):
        bad = torch.where(x > 5, torch.nan, 0.3 * linear(z) + x)
        return torch.where(x < -5, -3 * z + x, bad)

    gradient = ic.Implicit(ic.GMRES(tol=1e-12))
    dynamics, solver = ic.FixedPoint(cell), ic.Picard(tol=1e-12)
    return ic.ImplicitLayer(dynamics, solver=solver, gradient=gradient, on_failure=on_failure)


ROWS = torch.tensor([[1.0] * 3, [9.0] * 3, [-9.0] * 3, [2.0] * 3], dtype=torch.float64)


def test_a_graph_raises_and_warns_as_the_layer_does():
    def scaled(layer):
        return whole(lambda x: layer(2 * x))

    good, diverging = ROWS[[0, 3]].requires_grad_(), ROWS[[0, 2]].requires_grad_()
    call = scaled(ic.compile(failing("raise")))
    call(good)
    with pytest.raises(ic.SolveError, match="1 converged, 1 diverged"):
        call(diverging)
    call = scaled(ic.compile(failing("warn")))
    with pytest.warns(ic.ConvergenceWarning, match="1 diverged"):
        call(diverging)
    with pytest.raises(ic.SolveError, match="1 non_finite"):
        call(ROWS[:2].requires_grad_())


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [1, 1], [0, 3]])
@pytest.mark.parametrize("on_failure", ["mask", "ignore"])
def test_a_failed_sample_has_the_value_and_the_gradient_of_the_layer(on_failure, rows):
    eager = failing(on_failure)
    found = []
    for call in (eager, whole(ic.compile(eager))):
        leaf = ROWS[rows].clone().requires_grad_()
        z = call(leaf)
        kept = torch.where(leaf.abs() < 5, z, 0)  # what the diverged ones are is left to rounding
        gradient = [None]
        if z.requires_grad:
            gradient = torch.autograd.grad(kept.sum(), [leaf], allow_unused=True)
        found.append((kept, torch.zeros_like(leaf) if gradient[0] is None else gradient[0]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)
    assert found[1][1].isfinite().all()


def test_a_part_that_is_replaced_is_never_used_stale():
    eager = Model(equilibrium()).double()
    fast = Model(ic.compile(eager.layer)).double()
    call = whole(fast)
    call(sample(3))
    cell: Any = eager.layer.dynamics.cell
    cell.linear = nn.Linear(6, 6).double()
    with pytest.raises(ic.InputError, match="replaced since"):
        call(sample(3))
    found = values(call, fast, sample(3))
    for one, other in zip(values(eager, eager, sample(3)), found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)


def test_another_layers_gradient_is_refused_as_outside():
    layer = flow(ic.Bosh3()).double()
    layer.gradient = ic.Adjoint()
    with pytest.raises(ic.GradientError, match=r"gradient=Checkpointed\(\)"):
        whole(Flow(ic.compile(layer)).double())(sample(2))


def test_copies_are_layers_of_their_own():
    fast = ic.compile(equilibrium())
    names = {fast.name, copy.deepcopy(fast).name, pickle.loads(pickle.dumps(fast)).name}
    assert len(names) == 3


def test_what_x_holds_beside_tensors_is_told_apart_by_type_and_value():
    """1 == True == 1.0, and a number that changes has a symbol in a trace."""

    def cell(z, x):
        factor = 0.5 if x["k"] is True else 0.2 * x["k"] + 0.01 * isinstance(x["k"], float)
        return torch.tanh(factor * z + x["x"])

    gradient = ic.Implicit(ic.GMRES(tol=1e-12))
    solver = ic.Picard(tol=1e-12, max_steps=400)
    eager = ic.ImplicitLayer(ic.FixedPoint(cell), solver=solver, gradient=gradient)
    fast = ic.compile(eager)
    call = whole(lambda x, k: fast({"x": x, "k": k}, torch.zeros_like(x)))
    x = torch.randn(2, 6, dtype=torch.float64).requires_grad_()
    for k in (1, True, 1.0, 2, 3, 0.0, -0.0, 2.0, 2.5, 1):
        expected = eager({"x": x, "k": k}, torch.zeros_like(x))
        torch.testing.assert_close(call(x, k), expected, msg=f"k = {k!r}")
        torch.testing.assert_close(fast({"x": x, "k": k}, torch.zeros_like(x)), expected)


def test_a_number_that_is_changed_is_solved_with_in_the_graph():
    eager = Model(equilibrium()).double()
    cell: Any = eager.layer.dynamics.cell
    call = whole(ic.compile(eager.layer))
    x = {"x": torch.randn(2, 6, dtype=torch.float64), "scale": ic.shared(torch.ones(6).double())}
    for factor in (1.0, 0.5, np.float64(0.3), np.float64(0.2), np.bool_(True), np.int32(0)):
        cell.factor = factor
        torch.testing.assert_close(call(x), eager.layer(x))


def test_a_choice_that_is_changed_is_solved_with_in_the_graph():
    class Kind(enum.Enum):
        SMALL, LARGE = 0.1, 0.5

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kind, self.dtype = Kind.SMALL, torch.float64

        def forward(self, z, x):
            return (self.kind.value * z + x).to(self.dtype).to(z.dtype)

    cell = Chosen()
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=ic.Picard(tol=1e-12))
    fast, x = ic.compile(layer), torch.rand(2, 3, dtype=torch.float64)
    call = whole(fast)
    for name, value in (("kind", Kind.SMALL), ("kind", Kind.LARGE), ("dtype", torch.float32)):
        setattr(cell, name, value)
        for compiled in (fast, call):
            torch.testing.assert_close(compiled(x), layer(x), rtol=1e-10, atol=1e-10)
