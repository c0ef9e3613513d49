"""The backward pass evaluates the f that was solved, or says that it cannot."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import implicitcore as ic
from implicitcore.testing.dense import relative_error
from implicitcore.testing.problems import inputs

TIMES = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
SCALES = torch.tensor([1.0, 0.7, 0.5, 0.3, 0.1, 0.05, 0.01, 0.0], dtype=torch.float64)[:, None]
COMPACT = ic.Implicit(ic.Picard(tol=1e-10, compact=True, max_steps=200))
TRAJECTORIES = [ic.Adjoint(), ic.Checkpointed(), ic.Checkpointed(checkpoints=1)]


class Cell(nn.Module):
    """Reads a buffer, a frozen weight, an attribute and its mode; counts in a buffer of its own."""

    gain: Tensor
    count: Tensor

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 3)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("gain", torch.ones(3))
        self.register_buffer("count", torch.zeros(()))
        self.double()
        self.offset = torch.zeros(3, dtype=torch.float64)

    def forward(self, *arguments):
        z, x = arguments[-2:]
        self.count += 1
        gain = self.gain if self.training else self.gain * 0.9
        return torch.tanh(self.linear(0.5 * z) * gain * x * self.frozen + x + self.offset)


def solve(f, gradient, x):
    if isinstance(gradient, ic.Implicit):
        return ic.fixed_point(f, torch.zeros_like(x), x, gradient=gradient, on_failure="ignore").z
    return ic.integrate(
        f, torch.ones_like(x), x, times=TIMES, gradient=gradient, on_failure="ignore"
    ).z[-1]


def data():
    return inputs(batch=8, n=3) * SCALES


CHANGES = {
    "buffer": lambda cell, x: cell.gain.mul_(2),
    "frozen": lambda cell, x: cell.frozen.mul_(2),
    "x": lambda cell, x: x.mul_(2),
    "mode": lambda cell, x: cell.eval(),
    "replaced": lambda cell, x: setattr(cell, "gain", torch.full_like(cell.gain, 2.0)),
    "parameter": lambda cell, x: setattr(
        cell.linear, "weight", nn.Parameter(2 * cell.linear.weight)
    ),
    "attribute": lambda cell, x: setattr(cell, "offset", torch.ones(3, dtype=torch.float64)),
}
TEXT = {"attribute": "was changed since", "mode": r"train\(\) to eval\(\)"}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("gradient", TRAJECTORIES, ids=str)
def test_a_trajectory_is_differentiated_as_it_was_integrated(gradient, change):
    cell, x = Cell(), data()
    z = solve(cell, gradient, x)
    weight = cell.linear.weight
    with torch.no_grad():
        CHANGES[change](cell, x)
    with pytest.raises(ic.GradientError, match=TEXT.get(change, "was changed")):
        torch.autograd.grad(z.sum(), weight)


@pytest.mark.parametrize("change", ["buffer", "frozen", "x", "mode", "replaced", "parameter"])
@pytest.mark.parametrize("order", ["second", "compact"])
def test_an_equilibrium_is_differentiated_as_it_was_solved(order, change):
    cell, x = Cell(), data()
    z = solve(cell, COMPACT if order == "compact" else ic.Implicit(), x)
    weight = cell.linear.weight
    expected = torch.autograd.grad(z.sum(), weight, retain_graph=True)
    with torch.no_grad():
        CHANGES[change](cell, x)
    # torch's own error comes first where the graph of the forward evaluation saved the tensor.
    with pytest.raises(RuntimeError, match=r"was changed|modified by an inplace operation"):
        torch.autograd.grad(z.sum(), weight, create_graph=order == "second")
    assert all(each.isfinite().all() for each in expected)


@pytest.mark.parametrize("change", ["mode", "replaced", "attribute"])
def test_an_equilibrium_that_evaluates_nothing_again_needs_nothing(change):
    cell, x = Cell(), data()
    z = solve(cell, ic.Implicit(), x)
    expected = torch.autograd.grad(z.sum(), cell.linear.weight, retain_graph=True)
    CHANGES[change](cell, x)
    assert relative_error(torch.autograd.grad(z.sum(), cell.linear.weight), expected) == 0


@pytest.mark.parametrize("gradient", [*TRAJECTORIES, COMPACT, ic.Implicit()], ids=str)
def test_what_f_writes_itself_is_no_change(gradient):
    """Two forward passes, then both backward: a counter moves, statistics are written."""

    class Norm(Cell):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3).double().eval()

        def forward(self, *arguments):
            return self.norm(super().forward(*arguments))

    cell, x = Norm(), data()
    losses = [solve(cell, gradient, x).sum() for _ in range(2)]
    found = [torch.autograd.grad(loss, cell.linear.weight) for loss in reversed(losses)]
    assert relative_error(*found) < 1e-12


@pytest.mark.parametrize("gradient", TRAJECTORIES, ids=str)
def test_a_mode_that_nothing_reads_may_change(gradient):
    linear = nn.Linear(3, 3)
    cell = nn.Sequential(linear, nn.Tanh(), nn.Dropout(0.0), nn.LayerNorm(3)).double()
    f, x = lambda t, z, x: cell(z) * x, data()  # noqa: E731
    z = solve(f, gradient, x)
    expected = torch.autograd.grad(z.sum(), linear.weight, retain_graph=True)
    cell.eval()
    assert relative_error(torch.autograd.grad(z.sum(), linear.weight), expected) < 1e-12


@pytest.mark.parametrize("kind", ["batch_norm", "dropout", "functional"])
@pytest.mark.parametrize("gradient", TRAJECTORIES, ids=str)
def test_a_mode_that_a_module_reads(gradient, kind):
    class Functional(nn.Module):
        def forward(self, z):
            return self._drop(z)

        def _drop(self, z):
            return nn.functional.dropout(z, 0.5, self.training)

    part = {
        "batch_norm": nn.BatchNorm1d(3),
        "dropout": nn.Dropout(0.5),
        "functional": Functional(),
    }[kind]
    linear, x = nn.Linear(3, 3), data()
    cell = nn.Sequential(linear, part).double().eval()
    z = solve(lambda t, z, x: torch.tanh(cell(z)) * x, gradient, x)
    cell.train()
    with pytest.raises(ic.GradientError, match=rf"{type(part).__name__}.*changed.*eval\(\) to tra"):
        torch.autograd.grad(z.sum(), linear.weight)


@pytest.mark.parametrize("switch", [(True, False), (False, True)])
@pytest.mark.parametrize("gradient", [*TRAJECTORIES, COMPACT, ic.Implicit()], ids=str)
def test_the_mode_of_variational_dropout_belongs_to_the_solve(gradient, switch):
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = ic.VariationalDropout(0.5)
            self.weight = nn.Parameter(torch.full((3, 3), 0.1, dtype=torch.float64))

        def forward(self, *arguments):
            z, x = arguments[-2:]
            return self.drop(torch.tanh(z @ self.weight + x))

    before, after = switch
    cell, x = Dropping().train(before), data()
    z = solve(cell, gradient, x)
    expected = torch.autograd.grad(z.sum(), cell.weight, retain_graph=True)
    cell.train(after)
    assert relative_error(torch.autograd.grad(z.sum(), cell.weight), expected) < 1e-12


@pytest.mark.parametrize("gradient", TRAJECTORIES, ids=str)
def test_an_attribute_set_for_each_solve(gradient):
    cell, x = Cell(), data()
    losses = []
    for offset in (0.0, 1.0):
        cell.offset = torch.full((3,), offset, dtype=torch.float64)
        losses.append(solve(cell, gradient, x).sum())
    torch.autograd.grad(losses[1], cell.linear.weight)
    with pytest.raises(ic.GradientError, match="give what changes in x"):
        torch.autograd.grad(losses[0], cell.linear.weight)


@pytest.mark.parametrize("gradient", TRAJECTORIES, ids=str)
@pytest.mark.parametrize("same", [True, False])
def test_weights_of_functional_call(same, gradient):
    cell, x = Cell(), data()
    layer = ic.ImplicitLayer(
        ic.VectorField(lambda t, z, x: cell(z, x)), solver=ic.Tsit5(), gradient=gradient
    )
    layer.cell = cell
    weights = {
        f"cell.{name}": (value if same else 2 * value).detach().clone().requires_grad_()
        for name, value in cell.named_parameters()
        if value.requires_grad
    }
    z = torch.func.functional_call(layer, weights, (x,))
    with pytest.raises(ic.GradientError, match=r"functional_call"):
        torch.autograd.grad(z.sum(), list(weights.values()), allow_unused=True)


class Late:
    """A field that uses its second weight in a window of time."""

    def __init__(self, begin, end):
        self.window = begin, end
        self.first = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        self.second = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def __call__(self, t, z, x):
        inside = self.window[0] < t.mean() < self.window[1]
        return self.first * z + (self.second * z if inside else 0)


@pytest.mark.parametrize("window", [(0.25, 0.7), (0.6, 2.0), (-1.0, 0.4)])
@pytest.mark.parametrize("gradient", TRAJECTORIES, ids=str)
def test_a_captured_leaf_has_its_gradient_or_an_error(gradient, window):
    def run(gradient):
        f = Late(*window)
        z = ic.integrate(
            f, torch.ones_like(data()), times=TIMES, solver=ic.RK4(dt=0.01), gradient=gradient
        ).z[-1]
        return torch.autograd.grad(z.sum(), [f.first, f.second], allow_unused=True)

    try:
        found = run(gradient)
    except ic.GradientError as error:
        assert "at some times" in str(error)
        assert window[0] > 0
    else:
        assert None not in found
        assert relative_error(found, run(ic.Unrolled())) < 0.02  # a jump, of first order


RANDOM = {
    "Dropout": nn.Dropout(0.3),
    "Dropout1d": nn.Dropout1d(0.3),
    "Dropout2d": nn.Dropout2d(0.3),
    "Dropout3d": nn.Dropout3d(0.3),
    "AlphaDropout": nn.AlphaDropout(0.3),
    "FeatureAlphaDropout": nn.FeatureAlphaDropout(0.3),
    "RReLU": nn.RReLU(),
    "MultiheadAttention": nn.MultiheadAttention(4, 2, dropout=0.1),
    "LSTM": nn.LSTM(3, 3, num_layers=2, dropout=0.1),
    "DropPath": type("DropPath", (nn.Module,), {})(),
}


class Holds(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.inner = nn.ModuleDict({"part": part})

    def forward(self, *arguments):
        return 0.5 * torch.tanh(arguments[-2] + arguments[-1])


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("gradient", [ic.Implicit(), ic.Unrolled(), *TRAJECTORIES[:2]], ids=str)
def test_a_module_that_draws_anew_is_refused(gradient, name):
    cell, x = Holds(RANDOM[name].train()), data()
    text = rf"{name} \((cell|field)\.inner\.part\) draws anew.*VariationalDropout"
    if not isinstance(gradient, ic.Implicit):  # as an integral, of noise
        if isinstance(gradient, ic.Unrolled):
            with pytest.warns(ic.InputWarning, match=text):
                solve(cell, gradient, x)
        else:
            with pytest.raises(ic.InputError, match=text):
                solve(cell, gradient, x)
    with pytest.raises(ic.InputError, match=text):
        ic.fixed_point(cell, torch.zeros_like(x), x, solver=ic.Picard())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(cell.eval(), gradient, x)


@pytest.mark.parametrize(
    "part", [nn.Dropout(0.0), nn.RReLU(0.2, 0.2), nn.MultiheadAttention(4, 2), nn.LSTM(3, 3)]
)
def test_a_module_that_draws_nothing_is_not(part):
    cell, x = Holds(part.train()), data()
    assert bool(ic.fixed_point(cell, torch.zeros_like(x), x, on_failure="ignore").converged.all())


def test_dropout_of_a_start_or_of_another_part_of_the_model_is_fine():
    model: Any = Holds(nn.Dropout(0.5))
    model.cell = Cell()
    x = data()
    f = lambda z, x: model.cell(z, x)  # noqa: E731
    assert bool(ic.fixed_point(f, torch.zeros_like(x), x, on_failure="ignore").converged.all())
    layer = ic.ImplicitLayer(
        ic.FixedPoint(Cell()),
        solver=ic.Anderson(),
        start=ic.Predictor(nn.Dropout(0.5)),
    )
    assert bool(layer.solve(x).converged.all())


def test_a_function_that_draws_is_told_by_its_replay():
    x = data()
    f = lambda t, z, x: nn.functional.dropout(torch.tanh(z), 0.5) * x  # noqa: E731
    for gradient in TRAJECTORIES:
        z = ic.integrate(
            f, torch.ones_like(x), x.requires_grad_(), times=TIMES, solver=ic.RK4(dt=0.1),
            gradient=gradient,
        ).z[-1]  # fmt: skip
        with pytest.raises(ic.GradientError, match="draws random numbers"):
            torch.autograd.grad(z.sum(), x)
