"""The leapfrog method: closed forms, energy, reversibility, gradients, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import implicitcore as ic
from implicitcore.testing.dense import relative_error

FORMS = [ic.Leapfrog(dt=0.05), ic.Leapfrog(dt=0.05, form="position")]
each_form = pytest.mark.parametrize("solver", FORMS, ids=lambda solver: solver.form)


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def kepler(t, z, x):
    q, p = z
    return p, -q * q.square().sum(1, keepdim=True) ** -1.5


def energy(z):
    q, p = z
    return p.square().sum(-1) / 2 - q.square().sum(-1).rsqrt()


def orbit(eccentricity):
    """From the pericentre; the period is 2 pi."""
    q = torch.stack((1 - eccentricity, torch.zeros_like(eccentricity)), 1)
    speed = ((1 + eccentricity) / (1 - eccentricity)).sqrt()
    return q, torch.stack((torch.zeros_like(speed), speed), 1)


def on_orbit(t, eccentricity):
    """The position, by Newton's method on Kepler's equation."""
    anomaly = torch.full_like(eccentricity, t)
    for _ in range(50):
        missing = anomaly - eccentricity * anomaly.sin() - t
        anomaly = anomaly - missing / (1 - eccentricity * anomaly.cos())
    return torch.stack(
        (anomaly.cos() - eccentricity, (1 - eccentricity**2).sqrt() * anomaly.sin()), 1
    )


class Chain(nn.Module):
    """A separable field with parameters, an input and the time."""

    def __init__(self):
        super().__init__()
        draw = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0)).double()
        self.kinetic, self.potential = nn.Parameter(draw[0]), nn.Parameter(draw[1])

    def forward(self, t, z, x):
        q, p = z
        force = -torch.sin(q @ self.potential) * (1 + t) + x
        return torch.tanh(p @ self.kinetic) * torch.cos(t), force


def chain():
    draw = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(1)).double()
    q, p, x = draw.requires_grad_().unbind(0)
    return Chain(), (q, p), x, draw


@each_form
def test_the_step_is_that_of_the_formulas(solver):
    field, (q, p), x, _ = chain()
    with torch.no_grad():
        found = ic.integrate(
            field, (q, p), x, times=real(0.3, 0.4), solver=type(solver)(dt=0.1, form=solver.form)
        ).z

    def force(t, q):
        return field(real(t), (q, p), x)[1]

    def velocity(t, p):
        return field(real(t), (q, p), x)[0]

    with torch.no_grad():
        if solver.form == "velocity":
            half = p + 0.05 * force(0.3, q)
            q_1 = q + 0.1 * velocity(0.35, half)
            p_1 = half + 0.05 * force(0.4, q_1)
        else:
            half = q + 0.05 * velocity(0.3, p)
            p_1 = p + 0.1 * force(0.35, half)
            q_1 = half + 0.05 * velocity(0.4, p_1)
    torch.testing.assert_close(found[0][1], q_1, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(found[1][1], p_1, rtol=1e-14, atol=1e-15)


@each_form
def test_its_order_is_two_on_kepler_orbits(solver):
    eccentricity, times = real(0.0, 0.3, 0.6), real(0.0, 1.0, 5.0)
    expected = torch.stack([on_orbit(t.item(), eccentricity) for t in times])
    errors = []
    for dt in (0.02, 0.01, 0.005):
        chosen = type(solver)(dt=dt, form=solver.form)
        found = ic.integrate(kepler, orbit(eccentricity), times=times, solver=chosen).z[0]
        errors.append((found - expected).abs().amax((0, 2)))
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert torch.allclose(torch.log2(coarse / fine), real(2.0, 2.0, 2.0), atol=0.1)


def test_its_order_between_the_steps_is_two_as_well():
    t, errors = torch.linspace(0, 2, 101, dtype=torch.float64), []
    for dt in (0.1, 0.05, 0.025):
        found = ic.integrate(
            lambda t, z, x: (z[1], -torch.sin(z[0])),
            (real([1.0]), real([0.5])),
            times=t[[0, -1]],
            solver=ic.Leapfrog(dt=dt),
            dense=True,
        ).interpolate(t)
        exact = ic.integrate(
            lambda t, z, x: (z[1], -torch.sin(z[0])),
            (real([1.0]), real([0.5])),
            times=t,
            solver=ic.DOP853(rtol=1e-12, atol=1e-13),
        ).z
        errors.append(max((a - b).abs().max().item() for a, b in zip(found, exact, strict=True)))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.2)


@pytest.mark.slow
def test_the_energy_of_ten_thousand_steps_does_not_drift_and_that_of_rk4_does():
    times = torch.linspace(0, 2000, 21, dtype=torch.float64)  # 318 periods
    drifts = {}
    for solver in (*(type(s)(dt=0.2, form=s.form) for s in FORMS), ic.RK4(dt=0.2)):
        solver = replace(solver, max_steps=10_000)
        with torch.no_grad():
            found = ic.integrate(kepler, orbit(real(0.2)), times=times, solver=solver)
        assert found.steps.tolist() == [10_000]
        error = (energy(found.z) - energy(found.z)[0]).abs()[:, 0]
        drifts[str(solver)] = error
    *ours, other = drifts.values()
    for error in ours:
        first, last = error[1:11].max().item(), error[11:].max().item()
        assert last < 1.3 * first, error
        assert last < 0.01
    assert other[-1] > 1.8 * other[10] > 3 * other[5]


@each_form
def test_back_again_it_is_where_it_began_up_to_rounding(solver):
    start, times = orbit(real(0.1, 0.5)), real(0.0, 20.0)
    with torch.no_grad():
        there = ic.integrate(kepler, start, times=times, solver=solver).z
        back = ic.integrate(
            kepler, tuple(part[-1] for part in there), times=times.flip(0), solver=solver
        ).z
    for part, origin, far in zip(back, start, there, strict=True):
        assert (part[-1] - origin).abs().max() < 1e-11
        assert (far[-1] - origin).abs().max() > 0.1


@each_form
@pytest.mark.parametrize(
    "gradient", [ic.Unrolled(), ic.Checkpointed(), ic.Checkpointed(3), ic.Adjoint()], ids=str
)
def test_every_gradient_is_that_of_the_steps(solver, gradient):
    """Against backpropagation through a loop of the formulas, the adjoint up to rounding."""
    field, start, x, draw = chain()
    times, wrt = real(0.0, 0.35, 1.0), [draw, *field.parameters()]
    found = ic.integrate(field, start, x, times=times, solver=solver, gradient=gradient)
    loss = found.z[0][1:].square().sum() + found.z[1][1:].square().sum()
    (q, p), expected = start, torch.zeros((), dtype=torch.float64)
    for begin, end, steps in ((0.0, 0.35, 7), (0.35, 1.0, 13)):
        dt = (end - begin) / steps
        for k in range(steps):
            now = [real(begin + (k + share) * dt) for share in (0, 0.5, 1)]
            if solver.form == "velocity":
                p = p + dt / 2 * field(now[0], (q, p), x)[1]
                q = q + dt * field(now[1], (q, p), x)[0]
                p = p + dt / 2 * field(now[2], (q, p), x)[1]
            else:
                q = q + dt / 2 * field(now[0], (q, p), x)[0]
                p = p + dt * field(now[1], (q, p), x)[1]
                q = q + dt / 2 * field(now[2], (q, p), x)[0]
        expected = expected + q.square().sum() + p.square().sum()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(loss, wrt)
    assert relative_error(gradients, torch.autograd.grad(expected, wrt)) < 1e-12


def test_the_adjoint_of_another_trajectory_may_take_it():
    field, start, x, draw = chain()
    times, wrt = real(0.0, 1.0), [draw, *field.parameters()]
    solver = ic.DOP853(rtol=1e-10, atol=1e-12)
    found = [
        torch.autograd.grad(
            ic.integrate(field, start, x, times=times, solver=solver, gradient=strategy)
            .z[0][-1]
            .square()
            .sum(),
            wrt,
        )
        for strategy in (ic.Unrolled(), ic.Adjoint(solver=ic.Leapfrog(dt=5e-3)))
    ]
    assert relative_error(found[1], found[0]) < 1e-4


def test_one_tensor_has_the_positions_first():
    z0 = torch.tensor([[1.0, 2.0, 0.5, -0.3]], dtype=torch.float64)
    times, solver = real(0.0, 1.0), ic.Leapfrog(dt=0.01)
    turn = lambda t, z, x: torch.cat((z[:, 2:], -z[:, :2]), 1)  # noqa: E731
    pair = lambda t, z, x: (z[1], -z[0])  # noqa: E731
    flat = ic.integrate(turn, z0, times=times, solver=solver).z
    q, p = ic.integrate(pair, (z0[:, :2], z0[:, 2:]), times=times, solver=solver).z
    assert torch.equal(flat, torch.cat((q, p), -1))
    cos, sin = math.cos(1), math.sin(1)
    assert torch.allclose(q[-1], z0[:, :2] * cos + z0[:, 2:] * sin, atol=1e-4)
    images = z0.reshape(1, 2, 2).expand(3, 2, 2)
    field = lambda t, z, x: torch.stack((z[:, 1], -z[:, 0]), 1)  # noqa: E731
    assert torch.equal(
        ic.integrate(field, images, times=times, solver=solver).z.flatten(2)[:, 1], flat[:, 0]
    )


def test_complex_states():
    z0 = torch.tensor([[1 + 1j]]), torch.tensor([[0.5 - 2j]])
    z0 = tuple(part.to(torch.complex128).requires_grad_() for part in z0)
    q, p = ic.integrate(
        lambda t, z, x: (z[1], -z[0]), z0, times=real(0.0, 1.0), solver=ic.Leapfrog(dt=0.01)
    ).z
    exact = z0[0] * math.cos(1) + z0[1] * math.sin(1)
    assert torch.allclose(q[-1], exact, atol=1e-4)
    found = torch.autograd.grad(q[-1].abs().square().sum(), z0)
    for a, b in zip(found, torch.autograd.grad(exact.abs().square().sum(), z0), strict=True):
        assert (a - b).norm() < 1e-4 * b.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    z0 = torch.ones(2, 1, dtype=dtype), torch.zeros(2, 1, dtype=dtype)
    q, _ = ic.integrate(
        lambda t, z, x: (z[1], -z[0]), z0, times=real(0.0, 1.0), solver=ic.Leapfrog(dt=0.05)
    ).z
    assert q.dtype == dtype
    assert (q[-1].double() - math.cos(1)).abs().max() < (1e-3 if dtype == torch.float32 else 3e-2)


def test_samples_with_times_of_their_own_and_events():
    z0 = torch.ones(3, 1, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    turn = lambda t, z, x: (z[1], -z[0])  # noqa: E731
    times = real([0.0, 0.5], [0.0, 1.0], [0.0, -2.0])
    found = ic.integrate(turn, z0, times=times, solver=ic.Leapfrog(dt=0.01)).raise_if_failed()
    assert torch.allclose(found.z[0][-1], torch.cos(times[:, 1:]), atol=1e-4)
    found = ic.integrate(
        turn,
        z0,
        times=real(0.0, 3.0),
        solver=ic.Leapfrog(dt=0.01),
        event=lambda t, z, x: z[0][:, 0],
    )
    assert found.event_times is not None
    assert torch.allclose(found.event_times, real(*[math.pi / 2] * 3), atol=1e-4)


def test_a_step_is_two_evaluations():
    seen = []

    def field(t, z, x):
        seen.append(1)
        return z[1], -z[0]

    z0 = real([1.0]), real([0.0])
    for dense, times in ((False, 3), (True, 3), (False, 100)):
        seen.clear()
        found = ic.integrate(
            field,
            z0,
            times=torch.linspace(0, 1, times, dtype=torch.float64),
            solver=ic.Leapfrog(dt=0.1),
            dense=dense,
        )
        assert found.evaluations == len(seen) == 4 + 2 * 10


@pytest.mark.parametrize(
    ("field", "what"),
    [
        (lambda t, z, x: (z[1], -z[0] - 0.01 * z[1]), "dp/dt changes with p"),
        (lambda t, z, x: (z[1] - 0.01 * z[0], -z[0]), "dq/dt changes with q"),
        (lambda t, z, x: (z[1], z[0] * z[1]), "dp/dt changes with p"),
        (lambda t, z, x: (z[1], z[1] / z[1].norm(dim=1, keepdim=True)), "dp/dt changes with p"),
    ],
)
@pytest.mark.parametrize("q", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_field_that_is_not_separable_is_refused(field, what, q, dtype):
    z0 = torch.full((2, 2), q, dtype=dtype), torch.tensor([[0.3, 1.0]] * 2, dtype=dtype)
    message = rf"Leapfrog integrates separable fields.*here {what}: use another ODE solver \(Tsit5"
    with pytest.raises(ic.InputError, match=message):
        ic.integrate(field, z0, times=real(0.0, 1.0), solver="leapfrog")


@pytest.mark.parametrize(
    ("z0", "coupled"),
    [
        (torch.ones(2, 3), False),
        (torch.ones(2), False),
        (torch.ones(2, 3, 4), False),
        ((torch.ones(2, 3), torch.ones(2, 1)), False),
        ((torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 2)), False),
        (torch.ones(4, 2), True),
    ],
)
def test_a_state_without_two_halves_is_refused(z0, coupled):
    with pytest.raises(ic.InputError, match="Leapfrog: expected a state of positions and momenta"):
        ic.integrate(
            lambda t, z, x: z, z0, times=real(0.0, 1.0), solver=ic.Leapfrog(), coupled=coupled
        )


def test_a_coupled_batch_is_integrated_as_a_pair():
    z0 = torch.ones(3, 1, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    spring = lambda t, z, x: (z[1], -z[0] + z[0].mean(0) * 0.5)  # noqa: E731
    q, _ = ic.integrate(
        spring, z0, times=real(0.0, 1.0), solver=ic.Leapfrog(dt=0.01), coupled=True
    ).z
    assert torch.allclose(q[-1], torch.full_like(q[-1], math.cos(0.5**0.5)), atol=1e-4)


def test_it_comes_to_no_steady_state():
    with pytest.raises(ic.InputError, match="Leapfrog keeps the energy.*use another ODE solver"):
        ic.fixed_point(
            lambda z, x: z / 2, torch.ones(2, 2), solver=ic.SteadyState(ode_solver=ic.Leapfrog())
        )
    with pytest.raises(ic.InputError, match="Leapfrog keeps the energy"):
        ic.find_root(
            lambda z, x: 1 - z, torch.ones(2, 2) / 2, solver=ic.Homotopy(ode_solver=ic.Leapfrog())
        )
    with pytest.raises(ic.ConfigError, match="leapfrog"):
        ic.find_root(lambda z, x: 1 - z, torch.ones(2, 2), solver="leapfrog")


class Hamiltonian(nn.Module):
    """dq/dt = p, dp/dt = -dV/dq by autograd: of the state itself where that has a graph."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.potential = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1, bias=False))

    def forward(self, t, z, x):
        q, p = z[:, :2], z[:, 2:]
        with torch.enable_grad():
            at = q if q.requires_grad else q.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.potential(at).sum(), at, create_graph=True)
        return torch.cat((p, -slope), 1)


@each_form
@pytest.mark.parametrize("gradient", [ic.Adjoint(), ic.Checkpointed(checkpoints=3)])
def test_a_force_may_be_the_gradient_of_a_potential(solver, gradient):
    field = Hamiltonian().double()
    z0 = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    found = []
    for strategy in (ic.Unrolled(), gradient):
        end = ic.integrate(field, z0, times=real(0, 1), solver=solver, gradient=strategy).z[-1]
        found.append(torch.autograd.grad(end.square().sum(), [z0, *field.parameters()]))
    for expected, other in zip(*found, strict=True):
        assert relative_error(other, expected) < 1e-12
