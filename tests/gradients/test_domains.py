"""Fields with a domain: trial steps beyond it are retaken, and leave nothing in the gradient."""

from __future__ import annotations

import functools

import pytest
import torch
from support.trajectory_solvers import ADAPTIVE

import implicitcore as ic

OTHERS = [0, 2]


def root(t, z, a):
    return -a * torch.sqrt(z)


def logarithm(t, z, a):
    return -a * (1 - torch.log(z))


def inverse(t, z, a):
    return -a / torch.sqrt(z * z.abs())


def arc(t, z, a):
    return -a * torch.acos(1 - z)


# A field, the starts, and how far it goes: each ends near the edge of its domain, and a first step
# of ten times the span leaps over it.
FIELDS = {
    "sqrt": (root, [1.0, 4.0, 2.0], 1.8),
    "log": (logarithm, [0.5, 2.0, 1.0], 0.2),
    "1/z": (inverse, [1.0, 4.0, 2.0], 0.4),
    "acos": (arc, [1.0, 1.9, 1.5], 1.0),
}
STRATEGIES = [ic.Unrolled(), ic.Checkpointed(), ic.Adjoint(ic.Tsit5(rtol=1e-6), drift=10)]
each_solver = pytest.mark.parametrize("solver", ADAPTIVE, ids=lambda s: s.__name__)
each_strategy = pytest.mark.parametrize("gradient", STRATEGIES, ids=lambda g: type(g).__name__)


def differentiated(field, starts, span, solver, gradient=None, dtype=torch.float64):  # noqa: PLR0913
    z0 = torch.tensor(starts, dtype=dtype)[:, None].requires_grad_()
    a = torch.ones((), dtype=dtype, requires_grad=True)
    solution = ic.integrate(
        field,
        z0,
        ic.shared(a),
        times=torch.tensor([0.0, span / 2, span], dtype=dtype),
        solver=solver,
        gradient=gradient,
        on_failure="ignore",
    )
    loss = solution.z[-1][solution.converged].sum()
    return solution, torch.autograd.grad(loss, [z0, a])


@functools.cache
def reference(name):
    field, starts, span = FIELDS[name]
    tight = ic.DOP853(rtol=1e-10, atol=1e-12, first_step=1e-4)
    return differentiated(field, starts, span, tight, ic.Unrolled())


@each_strategy
@each_solver
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_where_all_converge_all_gradients_are_finite_and_right(name, solver, gradient, dtype):
    field, starts, span = FIELDS[name]
    exact, expected = reference(name)
    method = solver(rtol=1e-5, atol=1e-7, first_step=10 * span, max_steps=5000)
    solution, found = differentiated(field, starts, span, method, gradient, dtype)
    solution.raise_if_failed()
    assert torch.allclose(solution.z[-1].double(), exact.z[-1], atol=2e-3)
    for gradient_found, gradient_expected in zip(found, expected, strict=True):
        assert torch.allclose(gradient_found.double(), gradient_expected, rtol=2e-2, atol=2e-2)


def count(gradient, first_step):
    field, starts, span = FIELDS["sqrt"]
    solver = ic.Tsit5(rtol=1e-5, first_step=first_step)
    return differentiated(field, starts, span, solver, gradient)[0]


def test_only_a_step_that_was_not_finite_is_taken_again():
    with torch.no_grad():
        field, starts, span = FIELDS["sqrt"]
        z0 = torch.tensor(starts, dtype=torch.float64)[:, None]
        a = ic.shared(torch.ones((), dtype=torch.float64))
        times = torch.tensor([0.0, span / 2, span], dtype=torch.float64)
        plain = [
            ic.integrate(
                field, z0, a, times=times, solver=ic.Tsit5(rtol=1e-5, first_step=first)
            ).evaluations
            for first in (0.4, 50.0)
        ]
    assert count(ic.Unrolled(), 0.4).evaluations == plain[0]
    assert plain[1] <= count(ic.Unrolled(), 50.0).evaluations <= plain[1] + 6 * 10


@each_strategy
@pytest.mark.parametrize("where", ["start", "way", "input"])
@pytest.mark.parametrize(
    "solver",
    [*(s(min_step=1e-4) for s in ADAPTIVE), ic.Euler(dt=0.05), ic.RK4(), ic.ImplicitEuler(dt=0.05)],
    ids=lambda s: type(s).__name__,
)
def test_a_sample_that_is_not_finite_leaves_the_others_gradients_as_they_are(
    where, solver, gradient
):
    """z' = -a sqrt(z) + x: not finite from its start, on its way, or by its input."""

    def field(t, z, x):
        rate, shift = x
        return torch.where(shift < -3, torch.nan, -rate * torch.sqrt(z) + shift)

    def solve(rows):
        z0 = torch.tensor([[1.0], [4.0], [2.0]], dtype=torch.float64)
        shift = torch.zeros(3, 1, dtype=torch.float64)
        if where == "start":
            z0[1] = -1
        else:
            shift[1] = -2.5 if where == "way" else -4
        rate = torch.ones((), dtype=torch.float64, requires_grad=True)
        z0, shift = (part[rows].requires_grad_() for part in (z0, shift))
        solution = ic.integrate(
            field,
            z0,
            (ic.shared(rate), shift),
            times=torch.tensor([0.0, 0.5, 1.5], dtype=torch.float64),
            solver=solver,
            gradient=gradient,
            on_failure="ignore",
        )
        loss = solution.z[:, solution.converged].square().sum()
        return solution, torch.autograd.grad(loss, [rate, z0, shift])

    alone, expected = solve(OTHERS)
    found, gradients = solve([0, 1, 2])
    assert found.status.tolist() == [0, ic.Status.NON_FINITE, 0]
    assert torch.allclose(found.z[:, OTHERS], alone.z, rtol=1e-12)
    assert torch.allclose(gradients[0], expected[0], rtol=1e-10)
    for among, apart in zip(gradients[1:], expected[1:], strict=True):
        assert torch.allclose(among[OTHERS], apart, rtol=1e-10, atol=1e-14)
        assert not bool(among[1].any()), "a failed sample has no graph"


@each_strategy
@each_solver
def test_a_sample_that_comes_to_the_edge_of_the_domain_ends_there_in_few_steps(solver, gradient):
    """z' = -sqrt(z) is zero at t = 2 sqrt(z0), and NaN below: there is no way on from there."""

    def solve(starts):
        return differentiated(root, starts, 3.0, solver(rtol=1e-4), gradient)

    (alone, expected), (found, gradients) = solve([4.0, 9.0]), solve([4.0, 1.0, 9.0])
    assert found.status.tolist() == [0, ic.Status.NON_FINITE, 0]
    assert found.z[-1, 1].abs() < 1e-6
    assert int(found.steps[1]) <= 120
    assert torch.allclose(found.z[-1, OTHERS, 0], found.z.new_tensor([0.25, 2.25]), rtol=2e-2)
    assert torch.allclose(found.z[:, OTHERS], alone.z, rtol=1e-12)
    assert torch.equal(found.steps[OTHERS], alone.steps)
    assert torch.allclose(gradients[0][OTHERS], expected[0], rtol=1e-9)
    assert torch.allclose(gradients[1], expected[1], rtol=1e-9)


def test_a_sample_that_goes_along_the_edge_of_the_domain_and_arrives_goes_on():
    """To z = 1e-8, beside which an error of 1e-6 is allowed: many steps are not finite."""
    steps = []
    for atol in (1e-6, 1e-10):
        found = ic.integrate(
            lambda t, z, x: 1e-2 - 100 * torch.sqrt(z),
            torch.full((1, 1), 1e-4, dtype=torch.float64),
            times=torch.tensor([0.0, 0.01], dtype=torch.float64),
            solver=ic.Tsit5(atol=atol, max_steps=6000),
        ).raise_if_failed()
        steps.append(int(found.steps))
        assert found.z[-1].item() == pytest.approx(1e-8, abs=atol)
    assert steps[0] > 3 * steps[1]  # those that were refused


def test_dense_output_and_events_beside_a_sample_that_is_not_finite():
    a = torch.ones((), dtype=torch.float64, requires_grad=True)
    z0 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    found = ic.integrate(
        root,
        z0,
        ic.shared(a),
        times=torch.tensor([0.0, 1.8], dtype=torch.float64),
        event=lambda t, z, x: z[:, 0] - 0.25,
        dense=True,
        on_failure="ignore",
    )
    assert found.event_times is not None
    assert found.status.tolist() == [0, ic.Status.NON_FINITE]
    assert found.event_times[0].item() == pytest.approx(1, abs=1e-3)
    assert torch.autograd.grad(found.event_times[0], a, retain_graph=True)[0].item() == (
        pytest.approx(-1, abs=1e-2)  # 2 (1 - 1/2) / a
    )
    inside = found.interpolate(torch.tensor([0.5], dtype=torch.float64))
    assert inside[0, 0].item() == pytest.approx(0.75**2, abs=1e-3)
    assert bool(inside[0, 1].isnan())
    assert torch.autograd.grad(inside[0, 0], a)[0].item() == pytest.approx(-0.75 * 0.5, abs=1e-2)


ROOT_SOLVERS = [ic.Picard, ic.Anderson, ic.Broyden, ic.Newton, ic.SteadyState]
ROOT_STRATEGIES = [
    ic.Implicit(ic.GMRES(tol=1e-9)),
    ic.Implicit(ic.Anderson(tol=1e-9)),
    ic.Neumann(),
    ic.Phantom(),
    ic.Unrolled(),
]


@pytest.mark.parametrize("gradient", ROOT_STRATEGIES, ids=str)
@pytest.mark.parametrize("solver", ROOT_SOLVERS, ids=lambda s: s.__name__)
def test_equilibria_beside_a_sample_that_is_not_finite(solver, gradient):
    def solve(rows):
        a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        z0 = torch.tensor([[1.0], [-1.0], [2.0]], dtype=torch.float64)[rows]
        x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)[rows].requires_grad_()
        solution = ic.fixed_point(
            lambda z, x: a * torch.sqrt(z) + x,
            z0,
            x,
            solver=solver(tol=1e-9),
            gradient=gradient,
            on_failure="ignore",
        )
        assert solution.converged.tolist() == [row != 1 for row in rows]
        loss = solution.z[solution.converged].sum()
        return solution, torch.autograd.grad(loss, [a, x])

    (alone, expected), (found, gradients) = solve(OTHERS), solve([0, 1, 2])
    assert torch.allclose(found.z[OTHERS], alone.z, rtol=1e-12)
    assert torch.allclose(gradients[0], expected[0], rtol=1e-8)
    assert torch.allclose(gradients[1][OTHERS], expected[1], rtol=1e-8)
    assert not bool(gradients[1][1].any())


@pytest.mark.parametrize("gradient", [*STRATEGIES, *ROOT_STRATEGIES], ids=str)
def test_where_no_sample_is_finite_the_gradient_is_zero(gradient):
    class Root(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, *given):
            return self.a * torch.sqrt(given[-2])  # z of (z, x) and of (t, z, x)

    cell, z0 = Root(), torch.full((2, 1), -1.0)
    if isinstance(gradient, (ic.Checkpointed, ic.Adjoint)):
        times = torch.tensor([0.0, 1.0])
        found = ic.integrate(cell, z0, times=times, gradient=gradient, on_failure="ignore")
    else:
        found = ic.fixed_point(cell, z0, gradient=gradient, on_failure="ignore")
    assert found.status.tolist() == [ic.Status.NON_FINITE] * 2
    z = found.z if isinstance(found, ic.Solution) else found.z[-1]
    assert torch.autograd.grad(z[found.converged].sum(), cell.a)[0] == 0


@pytest.mark.parametrize(
    "solver",
    [ic.RK4(dt=0.02), ic.Trapezoid(dt=0.02), *(kind(rtol=1e-6) for kind in ADAPTIVE[3:7])],
    ids=lambda solver: type(solver).__name__,
)
@pytest.mark.parametrize("when", [0.1, 0.99])
@pytest.mark.parametrize("gradient", STRATEGIES, ids=lambda g: type(g).__name__)
def test_a_field_that_ends_for_one_sample_leaves_no_nan_in_what_all_add_up_to(
    solver, when, gradient
):
    """Beyond a time its velocity is infinite whatever its state: a weight of all samples has the
    gradient of the others, and nobody is warned of a gradient that was not asked for."""
    generator = torch.Generator().manual_seed(0)
    weight, z0, x = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((3, 3), (3, 3), (3, 3))
    )

    rows = torch.tensor([True, False, True])

    def field(t, z, x):
        x, sound = x
        late = (t.reshape(-1, 1) > when) & ~sound
        return torch.tanh(z @ weight) + x + torch.where(late, torch.inf, 0.0)

    def loss(which, strategy):
        times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
        inputs = x[which], rows[which, None]
        found = ic.integrate(
            field,
            z0[which],
            inputs,
            times=times,
            solver=solver,
            gradient=strategy,
            on_failure="ignore",
        )
        assert torch.equal(found.converged, rows[which])
        return found.z[:, found.converged].square().sum()

    found = torch.autograd.grad(loss([0, 1, 2], gradient), (weight, z0, x))
    expected = torch.autograd.grad(loss(OTHERS, ic.Unrolled()), (weight, z0, x))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3)


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((3,), 0.5))

    def forward(self, z, x):
        return self.weight * z + x


EVERY = [
    *(("rk4", gradient) for gradient in ("unrolled", "adjoint", "checkpointed")),
    *(("picard", gradient) for gradient in ("unrolled", "implicit", "phantom", "neumann")),
]


@pytest.mark.parametrize("on_failure", ["ignore", "mask"])
@pytest.mark.parametrize("start", ["zeros", "identity"])
@pytest.mark.parametrize(("solver", "gradient"), EVERY)
def test_so_it_is_of_what_the_solve_has_no_graph_of(solver, gradient, start, on_failure):
    cell, x = Scaled(), torch.full((2, 3), torch.nan, requires_grad=True)
    field = ic.VectorField(lambda t, z, x: cell(z, x))
    layer = ic.ImplicitLayer(
        field if solver == "rk4" else ic.FixedPoint(lambda z, x: cell(z, x)),
        solver={"name": "rk4", "dt": 0.5} if solver == "rk4" else solver,
        gradient=gradient,
        start=start,
        on_failure=on_failure,
    )
    wrt = [x, cell.weight]
    for found, tensor in zip(torch.autograd.grad(layer(x).square().sum(), wrt), wrt, strict=True):
        assert torch.equal(found, torch.zeros_like(tensor))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch, about its own parts
@pytest.mark.parametrize(("solver", "gradient"), [("midpoint", "unrolled"), ("picard", "implicit")])
def test_compiled_it_is_zero_as_well(solver, gradient):
    cell, x = Scaled(), torch.full((2, 3), torch.nan, requires_grad=True)
    field = ic.VectorField(lambda t, z, x: cell(z, x))
    dynamics = field if solver == "midpoint" else ic.FixedPoint(cell)
    options = {"name": solver, "dt": 0.5} if solver == "midpoint" else solver
    layer = ic.ImplicitLayer(dynamics, solver=options, gradient=gradient, on_failure="ignore")
    found = torch.autograd.grad(ic.compile(layer)(x).square().sum(), [x, cell.weight])
    assert not any(each.any() for each in found)
