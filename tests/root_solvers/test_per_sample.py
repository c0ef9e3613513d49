"""What the loop promises to every root solver: per sample, worst sample, best iterate, honest
status."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import implicitcore as ic
from implicitcore.extend import options_of
from implicitcore.root_solvers.stop_criterion import CHECK_EVERY
from implicitcore.tensors import host
from implicitcore.testing.dense import fixed_point
from implicitcore.testing.options import limited
from implicitcore.testing.problems import Cell, inputs

SOLVERS = [
    ic.Picard(tol=1e-9, max_steps=300),
    ic.Picard(tol=1e-9, max_steps=300, damping=0.7),
    ic.Anderson(tol=1e-9),
    ic.Anderson(tol=1e-9, plain_rate=0.4),
    ic.Broyden(tol=1e-9),
    ic.Broyden(tol=1e-9, memory=2, max_steps=200),
    ic.Broyden(tol=1e-9, variant="bad"),
    ic.Newton(tol=1e-9),
    ic.Newton(tol=1e-9, dense_below=0),
    ic.PseudoTransient(tol=1e-9, first_step=0.2),
    ic.PseudoTransient(tol=1e-9, dense_below=0),
    ic.Homotopy(corrector=ic.Newton(tol=1e-9)),
    ic.Homotopy(ode_solver=ic.Midpoint(dt=0.5), corrector=ic.Anderson(tol=1e-9), dense_below=0),
    ic.Chain((ic.Picard(tol=1e-9, max_steps=20), ic.Newton(tol=1e-9))),
    ic.GMRES(tol=1e-9),
    ic.BiCGSTAB(tol=1e-9),
    ic.SteadyState(ode_solver=ic.Tsit5(), tol=1e-5, max_steps=500),
    ic.SteadyState(ode_solver=ic.Midpoint(dt=0.5), tol=1e-9, max_steps=500),
]
GRADIENTS = [ic.Unrolled(), ic.Implicit(), ic.Phantom(steps=3)]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=str)
each_gradient = pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda g: type(g).__name__)


def solve(solver, gradient, x, cell):
    x = x.clone().requires_grad_()
    solution = ic.fixed_point(
        cell, torch.zeros_like(x), x, solver=solver, gradient=gradient, on_failure="ignore"
    )
    (grad,) = torch.autograd.grad(solution.z.square().sum(), x)
    return solution, grad


def tolerance(solver):
    """The tolerance that the solver promises."""
    if isinstance(solver, ic.Chain):
        return max(map(tolerance, solver.solvers))
    return tolerance(solver.corrector) if isinstance(solver, ic.Homotopy) else solver.tol


def with_options(solver, **options):
    """The solver with another tolerance or number of steps."""
    if isinstance(solver, ic.Chain):
        return ic.Chain(tuple(with_options(part, **options) for part in solver.solvers))
    if isinstance(solver, ic.Homotopy):
        return replace(solver, corrector=with_options(solver.corrector, **options))
    own = options.keys() & set(options_of(type(solver)))
    return replace(solver, **{name: options[name] for name in own})


@each_solver
@each_gradient
def test_a_batch_of_eight_equals_eight_single_solves(solver, gradient):
    cell, x = Cell(), inputs() * torch.logspace(-1, 1, 8, dtype=torch.float64)[:, None]
    together, together_grad = solve(solver, gradient, x, cell)
    assert len(set(together.steps.tolist())) > 1, (
        "the samples of this test need different numbers of steps"
    )
    for i in range(8):
        single, single_grad = solve(solver, gradient, x[i : i + 1], cell)
        assert torch.allclose(single.z, together.z[i : i + 1], rtol=1e-9, atol=1e-12)
        assert torch.allclose(single_grad, together_grad[i : i + 1], rtol=1e-8, atol=1e-11)
        assert single.status[0] == together.status[i]
        assert single.steps[0] == together.steps[i]
        assert single.residual[0] == pytest.approx(together.residual[i].item(), rel=1e-2, abs=1e-13)


@each_solver
@each_gradient
def test_one_nan_sample_leaves_the_other_seven_unchanged(solver, gradient):
    cell, x = Cell(), inputs()
    broken = x.clone()
    broken[3, 2] = torch.nan
    others = [0, 1, 2, 4, 5, 6, 7]
    clean, clean_grad = solve(solver, gradient, x, cell)
    found, found_grad = solve(solver, gradient, broken, cell)
    assert torch.equal(found.z[others], clean.z[others])
    assert torch.equal(found_grad[others], clean_grad[others])
    assert torch.equal(found.residual[others], clean.residual[others])
    assert found.status.tolist() == [
        ic.Status.NON_FINITE if i == 3 else ic.Status.CONVERGED for i in range(8)
    ]


@each_solver
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [0, 1, 33])
def test_the_worst_sample_meets_the_tolerance(solver, dtype, batch):
    cell, x = Cell(dtype=dtype), inputs(batch, dtype=dtype)
    solver = with_options(solver, tol=max(tolerance(solver), 1e-5))
    solution = ic.fixed_point(cell, torch.zeros_like(x), x, solver=solver).raise_if_failed()
    assert solution.z.shape == x.shape
    assert solution.z.dtype == dtype
    fz = cell(solution.z, x)
    measured = (fz - solution.z).norm(dim=1)
    assert bool((measured <= tolerance(solver) * fz.norm(dim=1) * (1 + 1e-3)).all())
    assert torch.allclose(
        solution.residual, measured, rtol=1e-2, atol=1e-7 if dtype == torch.float32 else 1e-15
    )


@each_solver
def test_too_few_steps_are_reported_with_the_best_iterate(solver):
    cell, x = Cell(contraction=0.95), inputs()
    few = with_options(solver, tol=1e-14, **limited(3))
    solution = ic.fixed_point(
        cell, torch.zeros_like(x), x, solver=few, gradient=ic.Unrolled(), on_failure="ignore"
    )
    assert solution.status.tolist() == [ic.Status.MAX_STEPS] * 8
    assert torch.allclose(solution.residual, (cell(solution.z, x) - solution.z).norm(dim=1))
    with pytest.raises(ic.SolveError, match="8 max_steps") as failure:
        solution.raise_if_failed()
    assert failure.value.solution is solution


def test_the_best_iterate_is_kept_where_the_last_is_worse():
    """z -> -1.5 z oscillates away from 0: the start is the best iterate."""
    z0 = torch.tensor([[0.1]], dtype=torch.float64)
    solution = ic.fixed_point(
        lambda z, _: -1.5 * z, z0, solver=ic.Picard(max_steps=10), on_failure="ignore"
    )
    assert solution.z.item() == 0.1
    assert solution.residual.item() == pytest.approx(0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_divergence_is_never_called_convergence(dtype):
    growth = torch.tensor([0.5, 1.2, 3.0, 50.0], dtype=dtype)[:, None]
    solution = ic.fixed_point(
        lambda z, x: x * z + 1,
        torch.zeros(4, 1, dtype=dtype),
        growth,
        solver=ic.Picard(max_steps=200),
        on_failure="ignore",
    )
    assert solution.status.tolist() == [ic.Status.CONVERGED] + [ic.Status.DIVERGED] * 3
    assert bool(solution.z.isfinite().all())


@pytest.mark.parametrize("solver", [ic.Anderson(tol=1e-10), ic.Broyden(tol=1e-10)], ids=str)
def test_quasi_newton_solves_what_the_plain_iteration_cannot(solver):
    weight = torch.diag(torch.tensor([-2.0, 0.9, 0.5, -0.3], dtype=torch.float64))
    x = inputs(n=4)
    solution = ic.fixed_point(
        lambda z, x: z @ weight + x, torch.zeros_like(x), x, solver=solver
    ).raise_if_failed()
    assert torch.allclose(solution.z, x / (1 - weight.diagonal()), rtol=1e-8)
    late = 0 if host.on_host(x) else CHECK_EVERY - 1  # a device goes on to its next look
    assert solution.evaluations <= 12 + late


def test_gmres_needs_at_most_n_products_on_a_linear_system():
    weight = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = inputs()
    solution = ic.fixed_point(
        lambda z, x: z @ weight + x,
        torch.zeros_like(x),
        x,
        solver=ic.GMRES(tol=1e-10),
        gradient=ic.Unrolled(),
    )
    assert int(solution.steps.max()) <= 6
    assert torch.allclose(
        solution.z, x @ torch.linalg.inv(torch.eye(6, dtype=torch.float64) - weight), rtol=1e-8
    )


def test_a_start_at_the_solution_costs_one_evaluation():
    cell, x = Cell(), inputs()
    z = fixed_point(lambda z: cell(z, x), torch.zeros_like(x))
    # A cell is asked once whether it mixes samples.
    ic.fixed_point(cell, z, x, solver=ic.Picard(), gradient=ic.Unrolled())
    for solver in SOLVERS:
        solution = ic.fixed_point(
            cell, z, x, solver=solver, gradient=ic.Unrolled()
        ).raise_if_failed()
        assert solution.evaluations == 1
        assert torch.equal(solution.z, z)


def test_the_start_is_not_changed_and_the_trace_is_the_residual_of_each_step():
    cell, x = Cell(), inputs()
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=ic.Picard(tol=1e-6))
    z0 = torch.zeros_like(x)
    solution = layer.solve(x, z0, trace=True)
    assert not z0.any()
    assert isinstance(solution, ic.Solution) and solution.trace is not None
    assert solution.trace.shape == (int(solution.steps.max()), 8)
    assert torch.allclose(solution.trace[0], cell(z0, x).norm(dim=1))
    assert torch.allclose(solution.trace[-1], solution.residual)
    plain = layer.solve(x)
    assert isinstance(plain, ic.Solution) and plain.trace is None


def test_a_pytree_state_is_solved_as_one_vector():
    x = inputs(n=4)

    def cell(z, x):
        return {
            "a": 0.3 * torch.tanh(z["b"])[:, None, None] + x[:, :2, None],
            "b": 0.5 * z["a"].sum((1, 2)) + x[:, 3],
        }

    z0 = {"a": x.new_zeros(8, 2, 1), "b": x.new_zeros(8)}
    for solver in SOLVERS:
        z = ic.fixed_point(cell, z0, x, solver=solver).raise_if_failed().z
        assert z["a"].shape == (8, 2, 1)
        fz = cell(z, x)
        assert torch.allclose(fz["a"], z["a"], atol=1e-4)
        assert torch.allclose(fz["b"], z["b"], atol=1e-4)
