"""The gradients of iterates on the way, for a loss that corrects them."""

from __future__ import annotations

import pytest
import torch

import implicitcore as ic
from implicitcore.compat.torchdeq.loss import fp_correction
from implicitcore.extend import ApproximateGradient
from implicitcore.testing.dense import (
    differentiable_root,
    implicit_gradient,
    jacobians,
    relative_error,
)
from implicitcore.testing.expect import known
from implicitcore.testing.problems import Cell, inputs

COUNTS = (1, 3, 100)
STEPWISE = [
    ic.Picard(tol=1e-9),
    ic.Picard(tol=1e-9, damping=0.7),
    ic.Anderson(tol=1e-9),
    ic.Broyden(tol=1e-9),
]
BACKWARD = [ic.GMRES(tol=1e-12), ic.Anderson(tol=1e-12, max_steps=200)]
KEEPING = [
    ic.Implicit(iterates=COUNTS),
    ic.Phantom(iterates=COUNTS),
    ic.Neumann(iterates=COUNTS),
]


def solved(gradient, solver=STEPWISE[2], **options):
    """A cell, its input and start, and the solution."""
    cell, x, z0 = Cell(), inputs().requires_grad_(), inputs(seed=5)
    return (
        cell,
        x,
        ic.fixed_point(
            cell, z0, x, solver=solver, gradient=gradient, **options, on_failure="ignore"
        ),
    )


by_name = pytest.mark.parametrize("solver", STEPWISE, ids=str)


@pytest.mark.parametrize(
    "solver", [ic.Picard(tol=1e-9), ic.Anderson(tol=1e-9), ic.Broyden(tol=1e-9)], ids=str
)
def test_a_loss_on_several_iterates(solver):
    cell, x = Cell(), inputs().requires_grad_()
    wrt = [*cell.parameters(), x]
    z0 = inputs(seed=5)
    solution = ic.fixed_point(
        cell, z0, x, solver=solver, gradient=ic.Unrolled(iterates=(1, 3, 100))
    )
    assert solution.iterates.shape == (3, *x.shape)
    first = cell(z0, x)
    assert torch.allclose(solution.iterates[0], first, atol=1e-14)
    found = torch.autograd.grad(solution.iterates[0].square().sum(), wrt, retain_graph=True)
    assert relative_error(found, torch.autograd.grad(first.square().sum(), wrt)) < 1e-12
    assert torch.allclose(solution.iterates[2], solution.z, atol=1e-7)  # past the end: the last
    if isinstance(solver, ic.Picard):
        third = cell(cell(first, x), x)
        found = torch.autograd.grad(solution.iterates[1].square().sum(), wrt)
        assert (
            relative_error(
                found, torch.autograd.grad(cell(cell(cell(z0, x), x), x).square().sum(), wrt)
            )
            < 1e-12
        )
        assert torch.allclose(solution.iterates[1], third, atol=1e-14)


@pytest.mark.parametrize("gradient", [*KEEPING, ic.Unrolled(iterates=COUNTS)], ids=str)
def test_iterates_need_a_stepwise_solver(gradient):
    cell, x = Cell(), inputs()
    for solver in (ic.Newton(), ic.SteadyState(), ic.Picard(compact=True)):
        with pytest.raises(ic.GradientError, match="stepwise"):
            ic.fixed_point(cell, torch.zeros_like(x), x, solver=solver, gradient=gradient)


@by_name
@pytest.mark.parametrize("gradient", KEEPING, ids=lambda g: type(g).__name__)
def test_every_strategy_keeps_the_iterates_that_were_made(solver, gradient):
    _, _, expected = solved(ic.Unrolled(iterates=COUNTS), solver)
    _, _, found = solved(gradient, solver)
    torch.testing.assert_close(found.iterates, expected.iterates.detach(), rtol=0, atol=1e-14)
    torch.testing.assert_close(found.z, expected.z.detach(), rtol=0, atol=1e-14)
    assert found.iterates.requires_grad
    # One evaluation with a graph for the solution, and one for each iterate.
    steps = gradient.steps if isinstance(gradient, ic.Phantom) else 1
    assert found.evaluations == int(found.steps.max()) + steps * (1 + len(COUNTS))
    with torch.no_grad():
        _, _, found = solved(gradient, solver)
    torch.testing.assert_close(found.iterates, expected.iterates.detach(), rtol=0, atol=1e-14)
    assert found.evaluations == int(found.steps.max())


@by_name
@pytest.mark.parametrize("backward", BACKWARD, ids=lambda s: type(s).__name__)
def test_implicit_solves_the_linear_system_at_each_iterate(solver, backward):
    cell, x, solution = solved(ic.Implicit(backward, iterates=COUNTS), solver)
    wrt, v = [*cell.parameters(), x], inputs(seed=2)
    for z in (*solution.iterates, solution.z):
        found = torch.autograd.grad(z, wrt, v, retain_graph=True)
        expected = implicit_gradient(lambda z: cell(z, x), z.detach(), v, wrt)
        assert relative_error(found, expected) < 1e-9


def test_implicit_differentiates_each_iterate_twice():
    cell, x, solution = solved(ic.Implicit(ic.GMRES(tol=1e-13), iterates=(2,)))
    wrt, (z,) = [*cell.parameters(), x], solution.iterates

    def second(z):
        first = torch.autograd.grad(z.pow(3).sum(), wrt, create_graph=True)
        return torch.autograd.grad(torch.cat([g.flatten() for g in first]).square().sum(), wrt)

    c = (z - cell(z, x)).detach()
    shifted = differentiable_root(lambda z: cell(z, x) + c, z.detach())
    assert relative_error(second(z), second(shifted)) < 1e-8


@by_name
@pytest.mark.parametrize(("steps", "damping"), [(1, 1.0), (3, 1.0), (3, 0.7)])
def test_phantom_takes_its_steps_from_each_iterate(solver, steps, damping):
    cell, x, solution = solved(ic.Phantom(steps, damping, COUNTS), solver)
    wrt, v = [*cell.parameters(), x], inputs(seed=2)
    for z in (*solution.iterates, solution.z):
        found = torch.autograd.grad(z, wrt, v, retain_graph=True)
        way = z.detach()
        for _ in range(steps):
            way = (1 - damping) * way + damping * cell(way, x)
        assert relative_error(found, torch.autograd.grad(way, wrt, v)) < 1e-12


@by_name
def test_neumann_sums_its_series_at_each_iterate(solver):
    cell, x, solution = solved(ic.Neumann(4, iterates=COUNTS), solver)
    wrt, v = [*cell.parameters(), x], inputs(seed=2)
    for z in (*solution.iterates, solution.z):
        found = torch.autograd.grad(z, wrt, v, retain_graph=True)
        j = jacobians(lambda z: cell(z, x), z.detach()).detach()
        u = term = v
        for _ in range(3):
            term = torch.einsum("bij,bi->bj", j, term)
            u = u + term
        expected = torch.autograd.grad(cell(z.detach(), x), wrt, u)
        assert relative_error(found, expected) < 1e-12


def test_the_record_counts_the_products_of_all_and_says_how_the_last_solve_ended():
    tight = ic.GMRES(tol=1e-12)
    _, x, solution = solved(ic.Implicit(tight, iterates=(1, 3)))
    torch.autograd.grad(solution.iterates[0].sum(), x, retain_graph=True)
    spent = solution.backward.vjps
    assert spent > 0
    assert solution.backward.residual is None
    assert solution.backward.status is None
    torch.autograd.grad(solution.iterates.sum() + solution.z.sum(), x)
    assert solution.backward.vjps > 2 * spent
    assert known(solution.backward.residual).max() <= 1e-12


def test_a_backward_solve_on_the_way_that_fails_is_a_warning():
    _, x, solution = solved(ic.Implicit(ic.GMRES(tol=1e-12, max_products=1), iterates=(1,)))
    with pytest.warns(ic.ConvergenceWarning, match="their gradients are inexact"):
        torch.autograd.grad(solution.iterates.sum(), x)


def test_a_cap_holds_for_each_iterate():
    _, x, solution = solved(ic.Implicit(clip=1e-3, iterates=(1,)))
    plain = solved(ic.Implicit(iterates=(1,)))
    (found,) = torch.autograd.grad(solution.iterates.sum(), x)
    (expected,) = torch.autograd.grad(plain[2].iterates.sum(), plain[1])
    assert 0 < found.norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("gradient", [*KEEPING, ic.Unrolled(iterates=COUNTS)], ids=str)
@pytest.mark.parametrize("decay", [0.8, 1.0, 0.5])
def test_the_loss_weighs_the_states_as_torchdeqs_does(gradient, decay):
    cell, x, solution = solved(gradient)
    wrt, y = [*cell.parameters(), x], inputs(seed=3)
    found = ic.correction_loss(lambda z: (z - y).square().mean(), solution, decay=decay)
    states = [*solution.iterates, solution.z]
    losses = [(z - y).square().mean() for z in states]
    weights = [decay ** (len(COUNTS) - k) for k in range(len(losses))]
    expected = torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)]).sum()
    torch.testing.assert_close(found, expected)
    theirs = fp_correction(lambda z: (z - y).square().mean(), (states,), gamma=decay)
    torch.testing.assert_close(found, theirs)
    gradients = torch.autograd.grad(found, wrt, retain_graph=True)
    assert relative_error(gradients, torch.autograd.grad(expected, wrt)) < 1e-12


def test_the_loss_of_a_solve_without_iterates_and_a_decay_out_of_bounds_are_refused():
    _, _, solution = solved(ic.Implicit())
    with pytest.raises(ic.InputError, match="no iterates: solve with a gradient strategy"):
        ic.correction_loss(torch.sum, solution)
    _, _, solution = solved(ic.Implicit(iterates=(1,)))
    for decay in (0.0, 1.5, float("nan")):
        with pytest.raises(ic.ConfigError, match="decay"):
            ic.correction_loss(torch.sum, solution, decay=decay)


@pytest.mark.parametrize("gradient", KEEPING, ids=lambda g: type(g).__name__)
@pytest.mark.parametrize("coupled", [False, True])
def test_a_state_of_several_tensors(gradient, coupled):
    x = inputs().requires_grad_()

    def cell(z, x):
        return {"a": torch.tanh(0.5 * z["b"][..., 0] + x), "b": 0.3 * z["a"][..., None] + 1}

    z0 = {"a": torch.zeros_like(x), "b": torch.zeros_like(x)[..., None]}
    solution = ic.fixed_point(cell, z0, x, gradient=gradient, coupled=coupled)
    assert solution.iterates["b"].shape == (len(COUNTS), *x.shape, 1)
    torch.testing.assert_close(solution.iterates["a"][0], cell(z0, x)["a"])
    loss = ic.correction_loss(lambda z: z["a"].sum() + z["b"].sum(), solution)
    assert torch.autograd.grad(loss, x)[0].abs().min() > 0


@pytest.mark.parametrize("gradient", KEEPING, ids=lambda g: type(g).__name__)
@pytest.mark.parametrize("size", [1.0, 1e-40, 1e30])
def test_units_and_dtypes_do_not_matter(gradient, size):
    """A linear cell: everything is in proportion, whatever units the solver took."""
    for dtype in (torch.float64, torch.complex128):
        x = (size * inputs().to(dtype)).requires_grad_()
        solution = ic.fixed_point(
            lambda z, x: 0.5 * z + x,
            torch.zeros_like(x),
            x,
            solver=ic.Picard(tol=1e-9),
            gradient=gradient,
        )
        torch.testing.assert_close(solution.iterates[0] / size, x / size)
        torch.testing.assert_close(solution.iterates[1] / size, 1.75 * x / size)
        (found,) = torch.autograd.grad(solution.iterates[1].abs().sum(), x)
        factor = {ic.Implicit: 2.0, ic.Phantom: 1.0, ic.Neumann: 2 - 2.0**-4}[type(gradient)]
        torch.testing.assert_close(found, factor * x.detach().sgn())


@pytest.mark.parametrize("on_failure", ["ignore", "mask"])
@pytest.mark.parametrize("gradient", [*KEEPING, ic.Unrolled(iterates=COUNTS)], ids=str)
@pytest.mark.parametrize("spoiled", [[0], [0, 1, 2, 3]])
def test_a_sample_that_is_not_finite_reaches_no_gradient(gradient, on_failure, spoiled):
    cell, x = Cell(), inputs()[:4].clone()
    z0 = torch.ones_like(x)
    x[spoiled] = torch.nan
    x.requires_grad_()
    solution = ic.fixed_point(cell, z0, x, gradient=gradient, on_failure=on_failure)
    kept = torch.ones(4, dtype=torch.bool)
    kept[spoiled] = False
    if on_failure == "mask":
        assert torch.equal(solution.iterates[:, ~kept], z0[~kept].expand(3, -1, -1))
    if not (on_failure == "mask" and not kept.any()):
        loss = ic.correction_loss(
            lambda z: z[kept].sum() + 0 * z[~kept].nan_to_num().sum(), solution
        )
        for found in torch.autograd.grad(loss, [*cell.parameters()]):
            assert found.isfinite().all()
            assert bool(found.any()) == bool(kept.any())


def test_a_layer_takes_them_from_a_configuration():
    cell = Cell()
    layer = ic.build(
        "deq", cell, root_solver="picard", gradient={"name": "implicit", "iterates": [1, 3]}
    )
    assert layer.gradient == ic.Implicit(iterates=(1, 3))
    again = ic.build(layer.config, cell)
    assert again.gradient == layer.gradient
    solution = again.solve(inputs())
    assert isinstance(solution, ic.Solution)
    assert solution.iterates.shape == (2, *inputs().shape)


class Halved(ApproximateGradient):
    """A strategy of somebody's own."""

    def estimate(self, jacobian, v):
        return v / 2


def test_a_strategy_of_ones_own_keeps_them_too():
    cell, x, solution = solved(Halved(iterates=(1,)))
    (z,) = solution.iterates
    expected = torch.autograd.grad(cell(z.detach(), x).sum() / 2, x)
    assert relative_error(torch.autograd.grad(z.sum(), x), expected) < 1e-12
