"""Stability tools: how contractive f is, and f that stays one function during a solve."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import implicitcore as ic
from implicitcore.testing.dense import implicit_gradient, jacobians, relative_error
from implicitcore.testing.problems import Cell, inputs

SOLVER = ic.Anderson(tol=1e-10, max_steps=100)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- the Jacobian at z
# ----------------------------------------------------------------------------------------------


def test_the_jacobian_regularizer_is_unbiased():
    cell, x = Cell(), inputs()
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=SOLVER)
    solution = layer.solve(x)
    jacobian = jacobians(lambda z: cell(z, x), solution.z.detach())
    expected = jacobian.square().sum((1, 2)).mean() / x.shape[1]
    found = ic.jacobian_regularizer(layer, solution, x, samples=4000, generator=generator())
    assert found.item() == pytest.approx(expected.item(), rel=0.02)
    assert torch.equal(
        ic.jacobian_regularizer(cell, solution.z, x, samples=4000, generator=generator()), found
    )


def test_the_jacobian_regularizer_is_differentiable():
    cell, x = Cell(), inputs().requires_grad_()
    z = inputs(seed=3)
    dynamics = ic.FixedPoint(cell)
    wrt = [*cell.parameters(), x]
    found = torch.autograd.grad(ic.jacobian_regularizer(dynamics, z, x, generator=generator()), wrt)
    v = torch.randint(0, 2, z.shape, generator=generator()).mul(2).sub(1).double()

    def dense():
        slope = 1 - cell(z, x).square()
        return ((v * slope) @ cell.weight).square().sum() / z.numel()

    assert relative_error(found, torch.autograd.grad(dense(), wrt)) < 1e-12


def test_the_jacobian_regularizer_of_a_state_of_parts_and_of_no_samples():
    def f(z, x):
        return (0.5 * z[0] + z[1].mean(2), 0.3 * z[1])

    z = torch.randn(4, 3, generator=generator()), torch.randn(4, 3, 2, generator=generator())
    expected = (3 * 0.25 + 6 * 0.25 + 6 * 0.09) / 9
    assert ic.jacobian_regularizer(
        f, z, samples=3000, generator=generator()
    ).item() == pytest.approx(expected, rel=0.05)
    assert ic.jacobian_regularizer(Cell(), inputs(batch=0), inputs(batch=0)).item() == 0
    assert ic.jacobian_regularizer(lambda z, x: x, z, z).item() == 0
    with pytest.raises(ic.InputError, match="samples"):
        ic.jacobian_regularizer(f, z, samples=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_spectral_radius_of_real_eigenvalues(dtype):
    radii = torch.tensor([0.3, 0.9, 1.5, 0.0], dtype=dtype)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator(), dtype=dtype))[0]
    spread = torch.tensor([1.0, 0.6, 0.5, -0.4, 0.2, 0.1], dtype=dtype)
    matrix = basis @ torch.diag_embed(radii[:, None] * spread) @ basis.T
    found = ic.spectral_radius(
        lambda z, x: torch.einsum("bij,bj->bi", x, z),
        torch.zeros(4, 6, dtype=dtype),
        matrix,
        generator=generator(),
    )
    assert found.dtype == dtype
    assert torch.allclose(found, radii, rtol=1e-4, atol=1e-10)


def test_the_spectral_radius_of_complex_pairs():
    matrix = torch.randn(32, 8, 8, generator=generator(), dtype=torch.float64) / 8**0.5
    expected = torch.linalg.eigvals(matrix).abs().amax(1)

    def f(z, x):
        return torch.einsum("bij,bj->bi", x, z)

    found = ic.spectral_radius(
        f, torch.zeros(32, 8, dtype=torch.float64), matrix, steps=200, generator=generator()
    )
    assert torch.allclose(found, expected, rtol=0.03)
    turn = torch.tensor(
        [[[0.0, -1.6], [0.4, 0.0]]], dtype=torch.float64
    )  # |w_k| swings by a factor of two
    found = ic.spectral_radius(
        f, torch.zeros(1, 2, dtype=torch.float64), turn, generator=generator()
    )
    assert found.item() == pytest.approx(0.8, rel=0.05)


def test_the_spectral_radius_at_an_equilibrium():
    cell, x = Cell(contraction=0.9), inputs()
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=SOLVER)
    solution = layer.solve(x)
    expected = (
        torch.linalg.eigvals(jacobians(lambda z: cell(z, x), solution.z.detach())).abs().amax(1)
    )
    found = ic.spectral_radius(layer, solution, x, steps=300, generator=generator())
    assert torch.allclose(found, expected, rtol=0.03)
    assert not found.requires_grad
    assert ic.spectral_radius(layer, inputs(batch=0), inputs(batch=0)).shape == (0,)
    with pytest.raises(ic.InputError, match="steps"):
        ic.spectral_radius(layer, solution, x, steps=2)


# --- variational dropout
# --------------------------------------------------------------------------------------------


class DropCell(Cell):
    """A cell whose state passes through a dropout; it keeps what it was multiplied by."""

    def __init__(self, p=0.4, **options):
        super().__init__(**options)
        self.drop = ic.VariationalDropout(p)
        self.masks = []

    def forward(self, z, x):
        dropped = self.drop(torch.ones_like(z))
        self.masks.append(dropped.detach())
        return super().forward(dropped * z, x)


@pytest.mark.parametrize(
    "gradient",
    [ic.Implicit(ic.GMRES(tol=1e-10)), ic.Unrolled(), ic.Phantom(steps=3)],
    ids=lambda g: type(g).__name__,
)
def test_a_solve_has_one_mask(gradient):
    cell, x = DropCell(), inputs().requires_grad_()
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=SOLVER, gradient=gradient)
    layer.solve(x)  # in which Unrolled asks the cell, by products, whether it mixes samples
    cell.masks.clear()
    solution = layer.solve(x)
    assert bool(solution.converged.all())
    solution.z.sum().backward()
    masks = torch.stack(cell.masks)
    assert len(masks) == solution.evaluations
    assert bool((masks == masks[0]).all())
    assert masks.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    assert not bool((masks[0] == masks[0, 0]).all())  # a sample's own
    cell.masks.clear()
    layer.solve(x)
    assert not torch.equal(cell.masks[0], masks[0])
    assert pickle.loads(pickle.dumps(layer)).dynamics.cell.drop.p == 0.4


def test_the_gradient_is_that_of_the_masked_function():
    cell, x = DropCell(), inputs().requires_grad_()
    layer = ic.ImplicitLayer(
        ic.FixedPoint(cell), solver=SOLVER, gradient=ic.Implicit(ic.GMRES(tol=1e-12))
    )
    z = layer(x)
    v = inputs(seed=7)
    wrt = [cell.weight, cell.inject, cell.bias, x]
    found = torch.autograd.grad(z, wrt, v)
    mask = cell.masks[0]

    def f(z):
        return Cell.forward(cell, mask * z, x)

    assert torch.allclose(f(z), z, atol=1e-8)
    assert relative_error(found, implicit_gradient(f, z.detach(), v, wrt)) < 1e-6


def test_a_backward_evaluation_has_the_mask_of_its_solve():
    cell, x = DropCell(contraction=0.3), inputs(batch=3).requires_grad_()
    field = ic.VectorField(lambda z, x: cell(z, x) - z, autonomous=True)
    field.cell = cell
    layer = ic.ImplicitLayer(field, solver=ic.Tsit5(rtol=1e-8, atol=1e-10), gradient=ic.Adjoint())
    z = layer(x)
    with torch.no_grad():
        layer(x)  # another solve in between
    evaluations = len(cell.masks)
    own, others = cell.masks[0], {id(m) for m in cell.masks}
    z.sum().backward()
    assert len(cell.masks) > evaluations
    assert all(torch.equal(mask, own) for mask in cell.masks if id(mask) not in others)


LEAVING = [
    ic.Picard(tol=1e-8, compact=True, max_steps=100),
    ic.Chain((ic.Picard(max_steps=12), ic.Newton(tol=1e-8))),
]


@pytest.mark.parametrize("solver", LEAVING, ids=lambda s: type(s).__name__)
def test_samples_that_leave_the_batch_keep_their_masks(solver):
    x = inputs(batch=16).requires_grad_()
    cell = DropCell(p=0.2, contraction=0.8)
    cell.drop.shared = (0,)
    solution = ic.ImplicitLayer(ic.FixedPoint(cell), solver=solver).solve(x)
    assert bool(solution.converged.all())
    cell = DropCell(p=0.2, contraction=0.8)
    solution = ic.ImplicitLayer(ic.FixedPoint(cell), solver=solver).solve(x)
    assert bool(solution.converged.all())
    whole, parts = cell.masks[0], {len(mask) for mask in cell.masks}
    assert len(parts) > 1
    z = solution.z.detach()
    assert torch.allclose(
        Cell.forward(cell, whole * z, x), z, atol=1e-3 if isinstance(solver, ic.Chain) else 1e-7
    )


def test_a_failed_sample_leaves_the_others_their_masks():
    cell, x = DropCell(), inputs()
    x[2] = torch.nan
    solution = ic.ImplicitLayer(ic.FixedPoint(cell), solver=SOLVER, on_failure="mask").solve(x)
    good = [0, 1, 3, 4, 5, 6, 7]
    f = Cell.forward(cell, cell.masks[0] * solution.z, x)
    assert torch.allclose(f[good], solution.z[good], atol=1e-8)


def test_dropout_is_off_in_eval_and_ordinary_outside_a_solve():
    drop, z = ic.VariationalDropout(0.5, shared=(2,)), torch.ones(4, 3, 5)
    first = drop(z)
    assert not torch.equal(drop(z), first)
    assert bool((first == first[:, :, :1]).all())
    assert torch.equal(drop.eval()(z), z)
    assert torch.equal(ic.VariationalDropout(0.0)(z), z)
    assert repr(drop) == "VariationalDropout(p=0.5, shared=(2,))"
    with pytest.raises(ic.ConfigError, match=r"\[0, 1\)"):
        ic.VariationalDropout(1.0)


def test_what_follows_a_solve_can_see_the_same_function():
    cell, x = DropCell(), inputs()
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=SOLVER)
    with ic.frozen_randomness(layer):
        solution = layer.solve(x)
        ic.jacobian_regularizer(layer, solution, x)
        ic.spectral_radius(layer, solution, x)
        layer.solve(x)
    assert all(torch.equal(mask, cell.masks[0]) for mask in cell.masks)


def test_the_outer_solve_counts():
    inner_cell, x = DropCell(contraction=0.3), inputs()
    inner = ic.ImplicitLayer(ic.FixedPoint(inner_cell), solver=SOLVER)
    outer = ic.ImplicitLayer(
        ic.FixedPoint(lambda z, x: 0.3 * inner(0.3 * z) + x), solver=ic.Anderson(tol=1e-8)
    )
    assert bool(outer.solve(x).converged.all())
    assert all(torch.equal(mask, inner_cell.masks[0]) for mask in inner_cell.masks)


# --- parametrised weights
# -------------------------------------------------------------------------------------------


class NormCell(nn.Module):
    def __init__(self, parametrize, n=6):
        super().__init__()
        torch.manual_seed(0)
        self.linear = parametrize(nn.Linear(n, n))
        self.double()

    def forward(self, z, x):
        return torch.tanh(0.8 * self.linear(z) + x)


PARAMETRIZE = {
    "weight": parametrizations.weight_norm,
    "spectral": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}
GRADIENTS = [
    ic.Implicit(ic.GMRES(tol=1e-11)),
    ic.Implicit(ic.Anderson(tol=1e-11)),
    ic.Unrolled(),
    ic.Phantom(steps=60),
]


@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda g: f"{type(g).__name__}")
@pytest.mark.parametrize("name", PARAMETRIZE)
def test_the_gradient_reaches_the_parametrised_weight(name, gradient):
    cell, x, v = NormCell(PARAMETRIZE[name]), inputs().requires_grad_(), inputs(seed=7)
    layer = ic.ImplicitLayer(
        ic.FixedPoint(cell), solver=ic.Anderson(tol=1e-12, max_steps=200), gradient=gradient
    )
    wrt = [*cell.parameters(), x]
    z = layer(x)
    found = torch.autograd.grad(z, wrt, v)
    cell.eval()  # the power iteration stays where the solve left it
    assert relative_error(found, implicit_gradient(lambda z: cell(z, x), z.detach(), v, wrt)) < 1e-6


def test_the_weight_is_computed_once_a_solve(monkeypatch):
    cell, x = NormCell(parametrizations.spectral_norm), inputs()
    calls = []
    parametrization = cell.linear.parametrizations.weight[0]
    original = parametrization.forward
    monkeypatch.setattr(
        parametrization,
        "forward",
        lambda weight: calls.append(torch.is_grad_enabled()) or original(weight),
    )
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=ic.Anderson(tol=1e-10))
    layer(x).sum().backward()
    assert calls == [True]
    assert "forward" not in vars(cell.linear.parametrizations.weight)
    with torch.no_grad():
        layer(x)
    assert len(calls) == 2


HELD = [ic.Picard(tol=1e-9, max_steps=200), ic.Anderson(tol=1e-9), ic.Newton(tol=1e-9)]


@pytest.mark.parametrize("solver", HELD, ids=lambda s: type(s).__name__)
def test_the_power_iteration_does_not_move_during_a_solve(solver):
    cell, x = NormCell(parametrizations.spectral_norm), inputs()
    norm = cell.linear.parametrizations.weight[0]
    seen = []
    dynamics = ic.FixedPoint(lambda z, x: (seen.append(norm._u.clone()), cell(z, x))[1])
    dynamics.inner = cell
    layer = ic.ImplicitLayer(dynamics, solver=solver)
    before = norm._u.clone()
    solution = layer.solve(x)
    solution.z.sum().backward()
    assert bool(solution.converged.all())
    assert not torch.equal(
        seen[0], before
    )  # it moves once a solve, as once a forward pass elsewhere
    assert all(torch.equal(u, seen[0]) for u in seen) and torch.equal(norm._u, seen[0])
    cell.eval()
    assert isinstance(solution, ic.Solution)
    residual = (cell(solution.z, x) - solution.z).norm(dim=1)
    assert torch.allclose(residual, solution.residual, atol=1e-14)


def test_a_backward_evaluation_has_the_weight_of_its_solve():
    cell, x = NormCell(parametrizations.spectral_norm), inputs(batch=3).requires_grad_()

    def layer(gradient):
        solver = ic.Tsit5(rtol=1e-10, atol=1e-12)
        return ic.ImplicitLayer(ic.FixedPoint(cell), solver=solver, gradient=gradient)

    state = {key: value.clone() for key, value in cell.state_dict().items()}
    expected = torch.autograd.grad(layer(ic.Unrolled())(x).square().sum(), [*cell.parameters(), x])
    cell.load_state_dict(state)
    loss = layer(ic.Adjoint())(x).square().sum()
    moved = cell.linear.parametrizations.weight[0]._u.clone()
    for _ in range(3):
        cell.linear.weight  # noqa: B018 - a forward pass elsewhere moves the power iteration
    found = torch.autograd.grad(loss, [*cell.parameters(), x])
    assert not torch.equal(cell.linear.parametrizations.weight[0]._u, moved)
    assert relative_error(found, expected) < 1e-6


def test_second_derivatives_reach_the_parametrised_weight():
    cell, x = NormCell(parametrizations.weight_norm), inputs(batch=2).requires_grad_()
    layer = ic.ImplicitLayer(
        ic.FixedPoint(cell),
        solver=ic.Anderson(tol=1e-13, max_steps=200),
        gradient=ic.Implicit(ic.GMRES(tol=1e-13)),
    )
    unrolled = ic.ImplicitLayer(
        ic.FixedPoint(cell), solver=ic.Picard(tol=1e-13, max_steps=300), gradient=ic.Unrolled()
    )
    results = []
    for each in (layer, unrolled):
        wrt = [*cell.parameters(), x]
        first = torch.autograd.grad(each(x).square().sum(), wrt, create_graph=True)
        results.append(
            torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), wrt)
        )
    assert relative_error(*results) < 1e-6


def test_the_older_spectral_norm_is_refused():
    cell = nn.utils.spectral_norm(nn.Linear(6, 6))
    layer = ic.ImplicitLayer(ic.FixedPoint(Adds(cell)), solver=ic.Picard())
    with pytest.raises(ic.InputError, match=r"parametrizations\.spectral_norm"):
        layer(torch.zeros(2, 6))
    assert layer.eval()(torch.zeros(2, 6)).shape == (2, 6)


class Adds(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, z, x):
        return torch.tanh(0.1 * self.inner(z) + x)
