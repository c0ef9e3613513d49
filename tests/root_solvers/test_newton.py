"""Newton's method and pseudo-transient continuation: cost, singular Jacobians, the edge of the
domain, large systems."""

from __future__ import annotations

import pytest
import torch

import implicitcore as ic
from implicitcore.system.system import System
from implicitcore.tensors.packing import Packing
from implicitcore.testing.dense import jacobians
from implicitcore.testing.expect import known
from implicitcore.testing.problems import Cell, inputs

T = torch.float64


def root(g, *start, solver):
    with torch.no_grad():
        return ic.find_root(
            lambda z, _: g(z), torch.tensor([start], dtype=T), solver=solver, on_failure="ignore"
        )


def test_a_linear_system_takes_one_step_of_n_products():
    weight = torch.randn(6, 6, dtype=T, generator=torch.Generator().manual_seed(0))
    x = inputs()
    with torch.no_grad():
        solution = ic.fixed_point(
            lambda z, x: z @ weight + x, torch.zeros_like(x), x, solver=ic.Newton(tol=1e-12)
        ).raise_if_failed()
    assert torch.allclose(
        solution.z, x @ torch.linalg.inv(torch.eye(6, dtype=T) - weight), rtol=1e-10
    )
    assert solution.steps.tolist() == [2] * 8
    assert solution.evaluations == 2 + 6


def test_convergence_is_quadratic_and_a_step_costs_one_evaluation_and_n_products():
    layer = ic.ImplicitLayer(ic.FixedPoint(Cell()), solver=ic.Newton(tol=1e-13))
    with torch.no_grad():
        solution = layer.solve(inputs(), torch.zeros(8, 6, dtype=T), trace=True)
    assert isinstance(solution, ic.Solution)
    worst = known(solution.trace).max(1).values.tolist()
    assert solution.evaluations == len(worst) + 6 * (len(worst) - 1)
    assert all(after < before**2 for before, after in zip(worst[1:3], worst[2:4], strict=True))


@pytest.mark.parametrize(
    "solver", [ic.Newton(tol=1e-8), ic.PseudoTransient(tol=1e-8)], ids=lambda s: type(s).__name__
)
def test_the_inner_gmres_spends_far_fewer_products_than_there_are_unknowns(solver):
    cell, x = Cell(n=200, contraction=0.9), inputs(n=200)
    with torch.no_grad():
        solution = ic.fixed_point(cell, torch.zeros_like(x), x, solver=solver).raise_if_failed()
    assert solution.evaluations < 80


@pytest.mark.parametrize("dense_below", [0, 64])
def test_the_forcing_term_does_not_solve_the_first_systems_further_than_is_of_use(dense_below):
    cell, x = Cell(n=40, contraction=0.9), inputs(n=40)
    with torch.no_grad():
        solution = ic.fixed_point(
            cell, torch.zeros_like(x), x, solver=ic.Newton(tol=1e-10, dense_below=dense_below)
        ).raise_if_failed()
    assert solution.evaluations < 5 * 41 if dense_below else solution.evaluations < 60


def test_a_singular_jacobian_takes_a_damped_step():
    """x + 2 y = 4, 2 x y = 3 from the origin, where the second row of the Jacobian is zero."""
    solution = root(
        lambda z: torch.stack((z[:, 0] + 2 * z[:, 1] - 4, 2 * z.prod(1) - 3), 1),
        0.0,
        0.0,
        solver=ic.Newton(tol=1e-12),
    )
    assert solution.converged.item()
    assert torch.allclose(solution.z, torch.tensor([3.0, 0.5], dtype=T))


def test_a_stationary_point_that_is_no_root_ends_the_solve_early_and_honestly():
    solution = root(lambda z: z**2 + 1, 1.5, solver=ic.Newton(tol=1e-10, max_steps=10_000))
    assert solution.status.item() == ic.Status.STALLED
    assert solution.steps.item() < 200
    assert solution.residual.item() == pytest.approx(1, abs=1e-6)


def test_a_stalled_sample_does_not_change_the_others():
    shift = torch.tensor([[1.0], [-1.0], [-4.0]], dtype=T)
    with torch.no_grad():
        solution = ic.find_root(
            lambda z, x: z**2 + x,
            torch.full((3, 1), 1.5, dtype=T),
            shift,
            solver=ic.Newton(tol=1e-10),
            on_failure="ignore",
        )
    assert solution.converged.tolist() == [False, True, True]
    assert torch.allclose(solution.z[1:], torch.tensor([[1.0], [2.0]], dtype=T))


@pytest.mark.parametrize(
    "solver",
    [ic.Newton(tol=1e-10), ic.PseudoTransient(tol=1e-10, first_step=100.0)],
    ids=lambda s: type(s).__name__,
)
def test_a_step_out_of_the_domain_is_taken_back(solver):
    """From 5 the full step of -log goes to -3, where there is no logarithm."""
    solution = root(lambda z: -z.log(), 5.0, solver=solver)
    assert solution.converged.item()
    assert solution.z.item() == pytest.approx(1)
    undamped = root(lambda z: -z.log(), 5.0, solver=ic.Newton(tol=1e-10, backtracks=0))
    assert undamped.status.item() == ic.Status.NON_FINITE


def test_pseudo_transient_passes_through_a_minimum_in_which_the_line_search_ends():
    cubic = lambda z: -(z**3 - 2 * z + 2)  # noqa: E731
    assert not root(cubic, 0.0, solver=ic.Newton(tol=1e-10)).converged.item()
    solution = root(cubic, 0.0, solver=ic.PseudoTransient(tol=1e-10))
    assert solution.z.item() == pytest.approx(-1.7692923542386314)


class NoBatchingRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.sin()

    @staticmethod
    def backward(ctx, *grad_outputs):
        (z,) = ctx.saved_tensors
        return torch.from_numpy(grad_outputs[0].numpy()) * z.cos()


@pytest.mark.parametrize(
    "function", [torch.sin, NoBatchingRule.apply], ids=["sin", "no batching rule"]
)
def test_the_jacobian_is_that_of_each_sample(function):
    weight = torch.randn(4, 4, dtype=T, generator=torch.Generator().manual_seed(0))
    f = lambda z, _=None: function(z @ weight)  # noqa: E731
    z = inputs(n=4)
    system = System.of(ic.FixedPoint(f), None, Packing.of(z))
    assert torch.allclose(
        system.linearize(z).matrix(), jacobians(lambda z: torch.sin(z @ weight), z)
    )
    assert system.evaluations == 1 + 4


def test_a_map_that_does_not_depend_on_z_and_an_empty_state():
    x = inputs(n=3)
    for solver in (
        ic.Newton(),
        ic.Newton(dense_below=0),
        ic.PseudoTransient(),
        ic.Homotopy(),
        ic.BiCGSTAB(),
        ic.Chain(),
    ):
        with torch.no_grad():
            assert torch.allclose(
                ic.fixed_point(lambda z, x: x * 1, torch.zeros_like(x), x, solver=solver)
                .raise_if_failed()
                .z,
                x,
            )
            assert ic.fixed_point(
                lambda z, x: z, torch.zeros(2, 0), solver=solver
            ).raise_if_failed().z.shape == (2, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_state_is_solved_in_float32(dtype):
    x = inputs(n=4, dtype=dtype)
    for solver in (
        ic.Newton(tol=2e-2),
        ic.PseudoTransient(tol=2e-2),
        ic.Homotopy(corrector=ic.Newton(tol=2e-2)),
        ic.BiCGSTAB(tol=2e-2),
    ):
        with torch.no_grad():
            solution = ic.fixed_point(
                lambda z, x: torch.tanh(0.5 * z + x), torch.zeros_like(x), x, solver=solver
            ).raise_if_failed()
        assert solution.z.dtype == dtype


def test_a_start_that_requires_a_gradient_where_none_is_kept():
    z0 = torch.full((2, 3), 1.5, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        solution = ic.find_root(
            lambda z, x: z**3 - 2, z0, solver=ic.Newton(tol=1e-10)
        ).raise_if_failed()
    assert torch.allclose(solution.z, torch.full_like(z0, 2 ** (1 / 3)), rtol=1e-9)
