"""Every strategy at an equilibrium, for every root solver, against dense float64 computations."""

from __future__ import annotations

import warnings

import pytest
import torch

import implicitcore as ic
from implicitcore.testing.dense import fixed_point, implicit_gradient, jacobians, relative_error
from implicitcore.testing.expect import known
from implicitcore.testing.problems import Cell, inputs

TIGHT = {"tol": 1e-13, "max_steps": 500}
LINEAR = {"tol": 1e-13, "max_products": 500}
ROOT_SOLVERS = [
    ic.Picard(**TIGHT),
    ic.Picard(damping=0.8, **TIGHT),
    ic.Anderson(**TIGHT),
    ic.Anderson(depth=2, damping=0.9, **TIGHT),
    ic.Anderson(plain_rate=0.5, **TIGHT),
    ic.Broyden(**TIGHT),
    ic.Broyden(variant="bad", **TIGHT),
    ic.Broyden(memory=3, **TIGHT),
    ic.Newton(tol=1e-13),
    ic.Newton(tol=1e-13, dense_below=0),
    ic.PseudoTransient(tol=1e-13),
    ic.PseudoTransient(tol=1e-13, dense_below=0),
    ic.Homotopy(corrector=ic.Newton(tol=1e-13)),
    ic.Homotopy(ode_solver=ic.RK4(dt=0.5), corrector=ic.Newton(tol=1e-13), dense_below=0),
    ic.Chain((ic.Picard(tol=1e-13, max_steps=12), ic.Newton(tol=1e-13))),
    ic.Chain((ic.GMRES(tol=1e-13, max_products=3), ic.GMRES(**LINEAR))),
    ic.GMRES(**LINEAR),
    ic.BiCGSTAB(**LINEAR),
    ic.SteadyState(ode_solver=ic.Tsit5(rtol=1e-3, atol=1e-14), tol=1e-13, max_steps=2000),
    ic.SteadyState(ode_solver=ic.Euler(dt=0.9), tol=1e-13, max_steps=2000),
    ic.SteadyState(ode_solver=ic.RK4(dt=1.0), tol=1e-13, max_steps=2000),
]
EXACT = [ic.Unrolled(), *(ic.Implicit(solver) for solver in ROOT_SOLVERS)]


@pytest.fixture(scope="module")
def problem():
    cell, x = Cell(), inputs().requires_grad_()
    z = fixed_point(lambda z: cell(z, x), torch.zeros_like(x))
    v = inputs(seed=2)
    wrt = [*cell.parameters(), x]
    return cell, x, z, v, wrt, implicit_gradient(lambda z: cell(z, x), z, v, wrt)


@pytest.mark.parametrize("solver", ROOT_SOLVERS, ids=str)
@pytest.mark.parametrize(
    "gradient", [ic.Unrolled(), ic.Implicit(ic.GMRES(tol=1e-13))], ids=lambda g: type(g).__name__
)
def test_every_root_solver_gives_the_dense_gradient(problem, solver, gradient):
    cell, x, z, v, wrt, expected = problem
    solution = ic.fixed_point(
        cell, torch.zeros_like(x), x, solver=solver, gradient=gradient
    ).raise_if_failed()
    assert relative_error([solution.z], [z]) < 1e-12
    assert relative_error(torch.autograd.grad(solution.z, wrt, v), expected) < 1e-6


@pytest.mark.parametrize("gradient", [ic.Implicit(solver) for solver in ROOT_SOLVERS], ids=str)
def test_every_root_solver_solves_the_backward_system(problem, gradient):
    cell, x, _, v, wrt, expected = problem
    solution = ic.fixed_point(
        cell, torch.zeros_like(x), x, solver=ic.Anderson(**TIGHT), gradient=gradient
    )
    assert relative_error(torch.autograd.grad(solution.z, wrt, v), expected) < 1e-6
    assert solution.backward.vjps > 0
    assert known(solution.backward.residual).max() < 1e-12


BACKWARD: list[ic.RootSolver] = [
    *(solver(tol=1e-10, max_products=500) for solver in (ic.GMRES, ic.BiCGSTAB)),
    *(solver(tol=1e-10, max_steps=500) for solver in (ic.Picard, ic.Anderson, ic.Broyden)),
]


@pytest.mark.parametrize("gradient", [ic.Unrolled(), *map(ic.Implicit, BACKWARD)], ids=str)
@pytest.mark.parametrize("solver", [ic.Picard, ic.Anderson, ic.Broyden])
def test_a_cell_that_mixes_samples_gets_its_gradient(solver, gradient):
    weight = Cell().weight.detach().clone().requires_grad_()
    x = inputs()

    def cell(z, x):
        h = z @ weight + x
        return torch.tanh(h - 0.3 * h.mean(0, keepdim=True))

    def whole(z):
        return cell(z.reshape(x.shape), x).reshape(1, -1)

    # The whole batch as one sample: its Jacobian is dense.
    z = fixed_point(whole, torch.zeros(1, x.numel(), dtype=x.dtype))
    expected = implicit_gradient(whole, z, 2 * z, [weight])

    def found(coupled):
        options = {"solver": solver(tol=1e-12, max_steps=500), "gradient": gradient}
        solution = ic.fixed_point(cell, torch.zeros_like(x), x, coupled=coupled, **options)
        return torch.autograd.grad(solution.z.square().sum(), [weight])

    assert relative_error(found(coupled=True), expected) < 1e-6
    try:
        apart = found(coupled=False)
    except ic.InputError as error:
        assert "use coupled=True" in str(error)
    else:
        # A sample that rests while the others go on has no step to differentiate.
        limit = 1e-5 if isinstance(gradient, ic.Unrolled) else 1e-6
        assert relative_error(apart, expected) < limit


@pytest.mark.parametrize(("steps", "damping"), [(1, 1.0), (1, 0.5), (4, 1.0), (4, 0.7)])
def test_phantom_is_the_cut_neumann_series(problem, steps, damping):
    cell, x, z, v, wrt, _ = problem
    transposed = jacobians(lambda z: cell(z, x), z).transpose(1, 2)
    u, term = torch.zeros_like(v), damping * v
    for _ in range(steps):
        u, term = (
            u + term,
            (1 - damping) * term + damping * torch.einsum("bij,bj->bi", transposed, term),
        )
    expected = torch.autograd.grad(cell(z, x), wrt, u)
    solution = ic.fixed_point(
        cell,
        torch.zeros_like(x),
        x,
        solver=ic.Picard(**TIGHT),
        gradient=ic.Phantom(steps=steps, damping=damping),
    )
    assert relative_error(torch.autograd.grad(solution.z, wrt, v), expected) < 1e-10


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_neumann_is_the_cut_series(problem, steps):
    cell, x, z, v, wrt, _ = problem
    transposed = jacobians(lambda z: cell(z, x), z).transpose(1, 2)
    terms = [
        torch.einsum("bij,bj->bi", torch.linalg.matrix_power(transposed, i), v)
        for i in range(steps)
    ]
    u = torch.stack(terms).sum(0)
    expected = torch.autograd.grad(cell(z, x), wrt, u)
    solution = ic.fixed_point(
        cell, torch.zeros_like(x), x, solver=ic.Anderson(**TIGHT), gradient=ic.Neumann(steps=steps)
    )
    assert relative_error(torch.autograd.grad(solution.z, wrt, v), expected) < 1e-10
    assert solution.backward.vjps == steps - 1


def test_neumann_tends_to_the_implicit_gradient(problem):
    cell, x, _, v, wrt, expected = problem
    solution = ic.fixed_point(
        cell, torch.zeros_like(x), x, solver=ic.Anderson(**TIGHT), gradient=ic.Neumann(steps=60)
    )
    assert relative_error(torch.autograd.grad(solution.z, wrt, v), expected) < 1e-6


def test_phantom_tends_to_the_implicit_gradient(problem):
    cell, x, _, v, wrt, expected = problem
    solution = ic.fixed_point(
        cell, torch.zeros_like(x), x, solver=ic.Picard(**TIGHT), gradient=ic.Phantom(steps=60)
    )
    assert relative_error(torch.autograd.grad(solution.z, wrt, v), expected) < 1e-6


@pytest.mark.parametrize("gradient", [ic.Unrolled(), ic.Implicit()], ids=lambda g: type(g).__name__)
def test_a_root_of_g_gets_the_dense_gradient(gradient):
    """g(z, x) = z^3 + z - x: dz/dx = 1 / (3 z^2 + 1)."""
    x = inputs(n=3).requires_grad_()
    solver = ic.Broyden(tol=1e-14, max_steps=100)
    solution = ic.find_root(
        lambda z, x: 0.2 * (x - z - z**3), torch.zeros_like(x), x, solver=solver, gradient=gradient
    ).raise_if_failed()
    assert torch.allclose(solution.z**3 + solution.z, x, atol=1e-12)
    (found,) = torch.autograd.grad(solution.z.sum(), x)
    assert relative_error([found], [1 / (3 * solution.z**2 + 1)]) < (
        1e-6 if isinstance(gradient, ic.Unrolled) else 1e-4
    )


@pytest.mark.parametrize(
    "gradient",
    [ic.Implicit(), ic.Implicit(ic.Anderson(tol=1e-5)), ic.Implicit(ic.Picard(tol=1e-5))],
    ids=str,
)
def test_a_scaled_loss_has_the_same_relative_gradient_error(problem, gradient):
    cell, x, _, v, wrt, expected = problem
    errors = []
    for scale in (1.0, 1e-6, 1e6):
        solution = ic.fixed_point(
            cell, torch.zeros_like(x), x, solver=ic.Anderson(**TIGHT), gradient=gradient
        )
        found = torch.autograd.grad(solution.z, wrt, v * scale)
        errors.append(relative_error([g / scale for g in found], expected))
    assert errors[0] < 1e-4
    assert errors == pytest.approx([errors[0]] * 3, rel=1e-3)


def test_captured_tensors_get_their_gradient():
    """A closure's tensors are found: leaves, and values computed before the solve."""
    weight = (0.5 * torch.eye(4, dtype=torch.float64)).requires_grad_()
    x = inputs(n=4)
    shift = x * weight.diagonal()
    f = lambda z, _: torch.tanh(z @ weight + shift)  # noqa: E731
    z = fixed_point(f_ := (lambda z: f(z, None)), torch.zeros_like(x))
    expected = implicit_gradient(f_, z, torch.ones_like(z), [weight, shift])
    solution = ic.fixed_point(
        f,
        torch.zeros_like(x),
        solver=ic.Anderson(**TIGHT),
        gradient=ic.Implicit(ic.GMRES(tol=1e-12)),
    )
    found = torch.autograd.grad(solution.z.sum(), [weight, shift])
    assert relative_error(found, expected) < 1e-6


def test_implicit_gives_z0_no_gradient_and_unrolled_gives_it_one(problem):
    cell, x, *_ = problem
    for gradient, reached in ((ic.Implicit(), False), (ic.Unrolled(), True)):
        z0 = torch.zeros_like(x).requires_grad_()
        solution = ic.fixed_point(
            cell,
            z0,
            x,
            solver=ic.Picard(max_steps=4, tol=0),
            gradient=gradient,
            on_failure="ignore",
        )
        (found,) = torch.autograd.grad(solution.z.sum(), z0, allow_unused=True)
        assert (found is not None) == reached


def test_unrolled_z0_gradient_is_that_of_the_iteration():
    weight = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) / 4
    z0 = inputs(batch=2, n=3).requires_grad_()
    solution = ic.fixed_point(
        lambda z, _: z @ weight.T,
        z0,
        solver=ic.Picard(max_steps=4, tol=0),
        gradient=ic.Unrolled(),
        on_failure="ignore",
    )
    (found,) = torch.autograd.grad(solution.z.sum(), z0)
    expected = torch.ones(2, 3, dtype=torch.float64) @ torch.linalg.matrix_power(weight, 3)
    assert torch.allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "solver",
    [ic.GMRES(tol=1e-13), ic.Anderson(**TIGHT), ic.Newton(tol=1e-13)],
    ids=lambda s: type(s).__name__,
)
def test_implicit_is_differentiable_twice(solver):
    """With a captured leaf on which both f and x depend, and an x of two tensors of which one
    depends on the other."""
    generator = torch.Generator().manual_seed(4)
    weight = (0.3 * torch.randn(3, 3, dtype=torch.float64, generator=generator)).requires_grad_()
    x = inputs(batch=2, n=3).requires_grad_()

    def equilibrium(weight, x):
        f = lambda z, pair: torch.tanh(z @ weight.T + pair[0] * pair[1])  # noqa: E731
        pair = (x, x.sin() @ weight)
        return ic.fixed_point(
            f, torch.zeros_like(x), pair, solver=ic.Anderson(**TIGHT), gradient=ic.Implicit(solver)
        ).z

    assert torch.autograd.gradcheck(equilibrium, (weight, x))
    assert torch.autograd.gradgradcheck(equilibrium, (weight, x))


def test_a_third_derivative_through_implicit_is_an_error_not_a_wrong_number(problem):
    cell, x, *_ = problem
    solution = ic.fixed_point(cell, torch.zeros_like(x), x)
    (first,) = torch.autograd.grad(solution.z.square().sum(), x, create_graph=True)
    with pytest.raises(ic.GradientError, match="unrolled"):
        torch.autograd.grad(first.square().sum(), x, create_graph=True)


def test_a_poor_backward_solve_is_seen_and_said(problem):
    cell, x, *_ = problem
    solution = ic.fixed_point(
        cell,
        torch.zeros_like(x),
        x,
        gradient=ic.Implicit(ic.GMRES(tol=1e-12, max_products=1)),
        on_failure="ignore",
    )
    with pytest.warns(ic.ConvergenceWarning, match="8 of 8 samples"):
        torch.autograd.grad(solution.z.sum(), x)
    assert not bool((solution.backward.status == ic.Status.CONVERGED).any())
    assert known(solution.backward.residual).min() > 1e-12


def test_no_graph_is_built_where_none_is_wanted(problem):
    cell, x, *_ = problem
    for gradient in (ic.Unrolled(), ic.Implicit(), ic.Neumann(), ic.Phantom()):
        with torch.no_grad():
            solution = ic.fixed_point(cell, torch.zeros_like(x), x, gradient=gradient)
        assert not solution.z.requires_grad


def test_implicit_spends_one_evaluation_more_and_memory_does_not_grow(problem):
    cell, x, *_ = problem
    with torch.no_grad():
        bare = ic.fixed_point(cell, torch.zeros_like(x), x).evaluations
    assert ic.fixed_point(cell, torch.zeros_like(x), x).evaluations == bare + 1
    saved = []
    for steps in (5, 50):
        tensors: list[int] = []

        def pack(tensor, tensors=tensors):
            tensors.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            solution = ic.fixed_point(
                cell,
                torch.zeros_like(x),
                x,
                solver=ic.Picard(tol=0, max_steps=steps),
                on_failure="ignore",
            )
        assert solution.evaluations == steps + 1
        saved.append(sum(tensors))
    assert saved[0] == saved[1]


@pytest.mark.parametrize(
    "gradient",
    [ic.Implicit(), ic.Neumann(), ic.Phantom(), ic.Shine()],
    ids=lambda g: type(g).__name__,
)
def test_an_equilibrium_strategy_refuses_a_trajectory(gradient):
    x = inputs(n=2).requires_grad_()
    with pytest.raises(ic.GradientError, match="Adjoint"):
        ic.integrate(
            lambda t, z, x: -z,
            x,
            x,
            times=torch.tensor([0.0, 1.0], dtype=torch.float64),
            gradient=gradient,
        )


def test_warnings_name_the_loss_free_case(problem):
    """A zero incoming gradient is solved at once, without a warning."""
    cell, x, *_ = problem
    solution = ic.fixed_point(cell, torch.zeros_like(x), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = torch.autograd.grad(solution.z, x, torch.zeros_like(x))
    assert not found.any()
    assert solution.backward.vjps == 0
