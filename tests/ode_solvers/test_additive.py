"""Additive Runge-Kutta pairs: order conditions, split problems, counts and gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import implicitcore as ic
from implicitcore.ode_solvers.additive_tableaus import ARK324, ARK436
from implicitcore.ode_solvers.step_size import Fixed
from implicitcore.tensors import host
from implicitcore.testing.dense import relative_error

PAIRS = [ic.KenCarp3, ic.KenCarp4]
each_pair = pytest.mark.parametrize("pair", PAIRS)
Z0 = torch.tensor([[0.4], [0.7], [-0.9]], dtype=torch.float64)
SPAN = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)


def stiff(t, z, x):
    return -3 * z + 0.3 * z * z * torch.cos(t)


def nonstiff(t, z, x):
    return 3 * z + 0.7 * z * z * torch.cos(t)


SPLIT = ic.SplitField(stiff, nonstiff)


def exact(t):
    return 1 / (1 / Z0 - torch.sin(t)[:, None, None])


def square(rows):
    size = len(rows)
    return torch.tensor([[*row, *[0.0] * (size - len(row))] for row in rows], dtype=torch.float64)


def conditions(b, matrices, c, order):
    """What weights miss of every condition of that order, coupling included."""
    yield b.sum() - 1
    if order > 1:
        yield b @ c - 1 / 2
    if order > 2:
        yield b @ c**2 - 1 / 3
        yield from (b @ (a @ c) - 1 / 6 for a in matrices)
    if order > 3:
        yield b @ c**3 - 1 / 4
        yield from (b @ (c * (a @ c)) - 1 / 8 for a in matrices)
        yield from (b @ (a @ c**2) - 1 / 12 for a in matrices)
        pairs = itertools.product(matrices, repeat=2)
        yield from (b @ (first @ (second @ c)) - 1 / 24 for first, second in pairs)


@pytest.mark.parametrize("tableau", [ARK324, ARK436], ids=["ARK3(2)4L[2]SA", "ARK4(3)6L[2]SA"])
def test_the_tableaus_meet_every_condition_of_their_order(tableau):
    matrices = square(tableau.a), square(tableau.beside)
    c = matrices[0].sum(1)
    assert torch.allclose(c, torch.tensor(tableau.c, dtype=torch.float64), atol=1e-15)
    assert torch.allclose(matrices[1].sum(1), c, atol=1e-15)
    b = torch.tensor(tableau.b, dtype=torch.float64)
    embedded = b - torch.tensor(tableau.error, dtype=torch.float64)
    assert max(abs(miss) for miss in conditions(b, matrices, c, tableau.order)) < 1e-15
    assert max(abs(miss) for miss in conditions(embedded, matrices, c, tableau.order - 1)) < 1e-15
    assert max(abs(miss) for miss in conditions(embedded, matrices, c, tableau.order)) > 1e-3


@each_pair
@pytest.mark.parametrize("field", [SPLIT, lambda t, z, x: z * z * torch.cos(t)], ids=["two", "one"])
def test_the_error_goes_with_the_step_to_the_order_at_the_end_and_between(pair, field):
    t, ends, between = torch.linspace(0, 1, 61, dtype=torch.float64), [], []
    for n in (20, 40):
        equal = {"step_size": property(lambda self, n=n: Fixed(1 / n))}
        solver = type(pair.__name__, (pair.__mro__[1],), {"tableau": pair.tableau, **equal})
        with torch.no_grad():
            found = ic.integrate(
                field, Z0, times=SPAN, solver=solver(rtol=1e-12, atol=1e-12), dense=True
            )
        ends.append((found.z - exact(SPAN)).norm().item())
        between.append((found.interpolate(t) - exact(t)).abs().max().item())
    for errors in (ends, between):
        slope = math.log2(errors[0] / errors[1])
        assert slope == pytest.approx(pair.tableau.order, abs=0.3), errors


@each_pair
def test_the_other_part_is_evaluated_about_once_a_stage_and_never_linearised(pair):
    count = 0

    def counted(t, z, x):
        nonlocal count
        count += 1
        assert not torch.is_grad_enabled()
        return torch.sin(z)

    with torch.no_grad():
        found = ic.integrate(
            ic.SplitField(lambda t, z, x: -100 * z, counted),
            Z0,
            times=SPAN,
            solver=pair(rtol=1e-4, atol=1e-6),
        ).raise_if_failed()
    tries = int(found.steps.max())  # of the slowest sample; all are evaluated together
    stages = len(pair.tableau.a) - 1
    # Once a stage and at the end, at the start and for the first step size; on an accelerator again
    # where the iteration of a stage goes on after a look.
    once = (stages + 1) * tries + 2
    assert stages * tries < count <= (once if host.on_host(Z0) else 1.25 * once)


@each_pair
def test_a_field_in_one_part_is_stiff_as_a_whole(pair):
    field = lambda t, z, x: -1e4 * (z - torch.cos(t))  # noqa: E731
    solver = pair(rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        found = ic.integrate(field, Z0, times=SPAN, solver=solver).raise_if_failed()
    assert found.steps.max() < 200
    assert (found.z[-1] - math.cos(1)).abs().max() < 1e-3
    if pair is ic.KenCarp4:
        other = ic.integrate(field, Z0, times=SPAN, solver=ic.ESDIRK(rtol=1e-5, atol=1e-7))
        assert torch.equal(found.steps, other.steps)


@each_pair
def test_stiff_accuracy_on_a_reaction_with_diffusion(pair):
    n = 24
    laplace = torch.diag(torch.full((n,), -2.0)) + torch.diag(torch.ones(n - 1), 1)
    laplace = ((laplace + torch.diag(torch.ones(n - 1), -1)) * (n + 1) ** 2).double()
    field = ic.SplitField(lambda t, z, x: z @ laplace.T, lambda t, z, x: 5 * z * (1 - z))
    place = torch.linspace(0, 1, n + 2, dtype=torch.float64)[1:-1]
    z0 = torch.stack((torch.sin(math.pi * place), place * (1 - place)))
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    with torch.no_grad():
        found = ic.integrate(field, z0, times=times, solver=pair(rtol=1e-5, atol=1e-7))
        tight = ic.integrate(
            field, z0, times=times, solver=ic.DOP853(rtol=1e-8, atol=1e-10, max_steps=5000)
        )
    assert found.converged.all()
    assert (found.z - tight.z).abs().max() < 1e-4
    assert found.steps.max() < tight.steps.max() / 3


def robertson_fast(t, z, x):
    a, b, c = z.unbind(1)
    return torch.stack((0 * a, 0.04 * a - 1e4 * b * c - 3e7 * b * b, 3e7 * b * b), 1)


def robertson_slow(t, z, x):
    a, b, c = z.unbind(1)
    return torch.stack((1e4 * b * c - 0.04 * a, 0 * a, 0 * a), 1)


def van_der_pol_fast(t, z, x):
    return torch.stack((0 * z[:, 0], 100 * (1 - z[:, 0] ** 2) * z[:, 1] - z[:, 0]), 1)


def van_der_pol_slow(t, z, x):
    return torch.stack((z[:, 1], 0 * z[:, 1]), 1)


# Parts, start, end, and scipy.integrate.solve_ivp's state there: Radau, rtol=1e-10, atol=1e-14.
STIFF = {
    "robertson": (
        ic.SplitField(robertson_fast, robertson_slow),
        [1.0, 0.0, 0.0],
        40.0,
        [0.7158270687194123, 9.185534764558987e-06, 0.28416374574582465],
    ),
    "van der pol": (
        ic.SplitField(van_der_pol_fast, van_der_pol_slow),
        [2.0, 0.0],
        100.0,
        [-1.8689241598836677, 0.0074968383151317024],
    ),
}


@each_pair
@pytest.mark.parametrize(("field", "start", "end", "expected"), STIFF.values(), ids=STIFF)
def test_stiff_problems_in_two_parts(pair, field, start, end, expected):
    """The stiff entry alone is solved for: the steps follow the solution all the same."""
    z0, times = torch.tensor([start]).double(), torch.tensor([0.0, end]).double()
    with torch.no_grad():
        found = ic.integrate(field, z0, times=times, solver=pair(rtol=1e-5, atol=1e-8))
    assert found.raise_if_failed().z[-1, 0].tolist() == pytest.approx(expected, rel=1e-3)
    assert int(found.steps[0]) < 700


@each_pair
def test_no_gradient_by_going_back(pair):
    """The stiff part would grow; an explicit solver may be asked to, where it is mild."""
    z0 = Z0.clone().requires_grad_()
    with pytest.raises(ic.GradientError, match=f"state of {pair.__name__} grow.* use Checkpointed"):
        ic.integrate(SPLIT, z0, times=SPAN, solver=pair(), gradient=ic.Adjoint())
    with torch.no_grad():
        ic.integrate(SPLIT, z0, times=SPAN, solver=pair(), gradient=ic.Adjoint()).raise_if_failed()
    solver, back = pair(rtol=1e-8, atol=1e-10), ic.Tsit5(rtol=1e-8, atol=1e-10)
    found = ic.integrate(SPLIT, z0, times=SPAN, solver=solver, gradient=ic.Adjoint(solver=back))
    (gradient,) = torch.autograd.grad(found.z[-1].sum(), z0)
    expected = (1 - z0.detach() * math.sin(1)) ** -2
    assert torch.allclose(gradient, expected, rtol=1e-5)


@each_pair
@pytest.mark.parametrize("gradient", [ic.Unrolled(), ic.Checkpointed()], ids=str)
def test_gradients_of_both_parts(pair, gradient):
    rates = torch.tensor([1.3, -0.4], dtype=torch.float64, requires_grad=True)
    z0, times = Z0.clone().requires_grad_(), torch.tensor([0.0, 0.1], dtype=torch.float64)
    field = ic.SplitField(
        lambda t, z, x: -20 * rates[0] * z, lambda t, z, x: torch.sin(z * rates[1]) + torch.cos(t)
    )

    def gradients(solver, strategy):
        found = ic.integrate(field, z0, times=times, solver=solver, gradient=strategy)
        return torch.autograd.grad(found.z[1].square().sum(), [rates, z0])

    expected = gradients(ic.DOP853(rtol=1e-10, atol=1e-12), ic.Unrolled())
    found = gradients(pair(rtol=1e-6, atol=1e-8), gradient)
    assert relative_error(found, expected) < 1e-4


def test_other_solvers_integrate_the_sum():
    found = ic.integrate(SPLIT, Z0, times=SPAN, solver=ic.Tsit5(rtol=1e-8, atol=1e-10))
    assert torch.allclose(found.z, exact(SPAN), atol=1e-6)


def test_what_is_no_function_is_refused():
    with pytest.raises(ic.ConfigError, match="stiff: expected a module or function of"):
        ic.SplitField(1.0, nonstiff)  # pyright: ignore[reportArgumentType]


PARTS = {
    "broadcast": (lambda t, z, x: -z.sum(1, keepdim=True), r"shape \[3, 1\]"),
    "scalar": (lambda t, z, x: z.sum(), r"shape \[\]"),
    "narrow": (lambda t, z, x: -z.float(), "float32"),
    "number": (lambda t, z, x: 0.0, "float"),
    "tuple": (lambda t, z, x: (-z, -z), r"shape"),
    "arguments": (lambda z: -z, r"f\(t, z, x\)"),
}


@pytest.mark.parametrize("solver", [ic.Tsit5(), ic.KenCarp4()], ids=["tsit5", "kencarp4"])
@pytest.mark.parametrize("wrong", ["stiff", "nonstiff"])
@pytest.mark.parametrize(("part", "message"), PARTS.values(), ids=PARTS)
def test_a_part_unlike_the_state_is_refused_by_every_solver(solver, wrong, part, message):
    parts = {"stiff": lambda t, z, x: -z, "nonstiff": lambda t, z, x: -z} | {wrong: part}
    with pytest.raises(ic.InputError, match=message):
        ic.integrate(ic.SplitField(**parts), Z0.expand(3, 2), times=SPAN, solver=solver)


def test_under_autocast_each_part_has_a_dtype_of_its_own():
    weight = torch.eye(2)
    field = ic.SplitField(lambda t, z, x: -(z @ weight), lambda t, z, x: z / 2)
    z0 = Z0.float().expand(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = ic.integrate(field, z0, times=SPAN, solver=ic.RK4(dt=0.05))
    torch.testing.assert_close(found.z[-1], z0 * math.exp(-0.5), rtol=1e-2, atol=0)
