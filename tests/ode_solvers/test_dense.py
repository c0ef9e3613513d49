"""The trajectory between the output times."""

from __future__ import annotations

import pytest
import torch
from support.trajectory_solvers import NAMES, make

import implicitcore as ic
from implicitcore.testing.trajectories import driven, logistic, trajectories

TIGHT = {"rtol": 1e-10, "atol": 1e-12, "max_steps": 5000}
SOLVERS = [
    ic.RK4(dt=0.005),
    ic.Fehlberg45(**TIGHT),
    ic.Dopri5(**TIGHT),
    ic.Tsit5(**TIGHT),
    ic.DOP853(**TIGHT),
]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
SPAN = torch.tensor([0.0, 1.0], dtype=torch.float64)


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


@each_solver
@pytest.mark.parametrize("problem", trajectories(), ids=str)
def test_the_values_and_their_gradients_are_those_of_the_closed_form(problem, solver):
    t = real(0.9, 0.0, 0.37, 1.0, 0.123)
    solution = ic.integrate(
        problem.field, problem.z0, problem.x, times=SPAN, solver=solver, dense=True
    ).raise_if_failed()
    expected = problem.trajectory(t)
    found = solution.interpolate(t)
    assert torch.allclose(found, expected, rtol=1e-7, atol=1e-8)
    weights = torch.randn(
        found.shape, generator=torch.Generator().manual_seed(0), dtype=found.dtype
    )
    gradients = torch.autograd.grad((found * weights).sum(), problem.leaves)
    for a, b in zip(
        gradients, torch.autograd.grad((expected * weights).sum(), problem.leaves), strict=True
    ):
        assert ((a - b).norm() / b.norm()).item() < 1e-6


@pytest.mark.parametrize("shape", [(3, 0), (0, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_states_without_entries_have_dense_output_without_entries(name, shape):
    times = real(0.0, 0.2, 1.0)
    solution = ic.integrate(
        lambda t, z, x: -z,
        torch.ones(shape),
        times=times,
        solver=make(name, dt=0.25),
        dense=True,
    )
    assert solution.z.shape == (3, *shape)
    assert solution.interpolate(times).shape == (3, *shape)


@each_solver
def test_each_sample_may_have_times_of_its_own(solver):
    problem = logistic()
    with torch.no_grad():
        solution = ic.integrate(
            problem.field, problem.z0, problem.x, times=SPAN, solver=solver, dense=True
        )
        t = torch.rand(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        found = solution.interpolate(t)
        for i in range(8):
            assert torch.equal(found[:, i], solution.interpolate(t[i])[:, i])
            assert torch.allclose(found[:, i], problem.trajectory(t[i])[:, i], rtol=1e-7)


@pytest.mark.parametrize(
    "solver", [ic.RK4(), ic.Tsit5(), ic.DOP853()], ids=lambda s: type(s).__name__
)
def test_it_passes_through_the_output_times_and_has_the_fields_slope(solver):
    problem, times = driven(), real(0.2, 0.5, 1.3)
    with torch.no_grad():
        options = {"times": times, "solver": solver, "hit_times": True}
        solution = ic.integrate(problem.field, problem.z0, problem.x, dense=True, **options)
        plain = ic.integrate(problem.field, problem.z0, problem.x, **options)
    assert torch.equal(solution.z, plain.z)  # it is looked on, and changes nothing
    assert torch.allclose(solution.interpolate(times), solution.z, rtol=1e-13)
    t = times.clone().requires_grad_()
    z = solution.interpolate(t)
    slope = torch.autograd.grad(z[:, 2, 1].sum(), t)[0]
    expected = [
        problem.field(time, state, problem.x)[2, 1].item()
        for time, state in zip(times, solution.z, strict=True)
    ]
    assert slope.tolist() == pytest.approx(expected, rel=1e-9)


@each_solver
def test_backwards_in_time(solver):
    problem, times, t = driven(), real(1.0, 0.4, -0.5), real(-0.5, 0.0, 0.99, 1.0)
    start = problem.exact(real(1.0), problem.z0, problem.x).detach()
    with torch.no_grad():
        solution = ic.integrate(
            problem.field, start, problem.x, times=times, solver=solver, dense=True
        ).raise_if_failed()
    assert torch.allclose(solution.interpolate(t), problem.trajectory(t), rtol=1e-6)


def test_a_batch_of_eight_equals_eight_single_solves():
    problem, t = logistic(fastest=20), torch.linspace(0, 1, 23, dtype=torch.float64)
    with torch.no_grad():
        together = ic.integrate(problem.field, problem.z0, problem.x, times=SPAN, dense=True)
        assert len(set(together.steps.tolist())) > 1
        for i in range(8):
            alone = ic.integrate(
                problem.field, problem.z0[i : i + 1], problem.x[i : i + 1], times=SPAN, dense=True
            )
            assert torch.allclose(
                alone.interpolate(t)[:, 0], together.interpolate(t)[:, i], rtol=1e-12
            )


def test_a_sample_that_ended_has_nan_after_its_end_and_no_other_sees_it():
    field = lambda t, z, x: torch.where((t > 0.5) & (x > 0), torch.nan, -z)  # noqa: E731
    x = torch.zeros(3, 1, dtype=torch.float64)
    x[1] = 1
    z0 = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    solution = ic.integrate(
        field, z0, x, times=SPAN, solver=ic.Tsit5(**TIGHT), dense=True, on_failure="ignore"
    )
    assert solution.status.tolist() == [
        ic.Status.CONVERGED,
        ic.Status.NON_FINITE,
        ic.Status.CONVERGED,
    ]
    t = real(0.0, 0.3, 0.8)
    found = solution.interpolate(t)
    assert found[:, 1].isnan().all(1).tolist() == [False, False, True]
    for i in (0, 2):
        assert torch.allclose(found[:, i], torch.exp(-t)[:, None].expand(3, 2), rtol=1e-8)
    gradient = torch.autograd.grad(found[:, [0, 2]].sum(), z0)[0]
    assert torch.allclose(gradient[0], torch.exp(-t).sum().expand(2), rtol=1e-8)
    assert not gradient[1].any()


def test_no_step_at_all():
    solution = ic.integrate(
        lambda t, z, x: z * torch.nan, torch.ones(2, 2), times=SPAN, dense=True, on_failure="ignore"
    )
    assert torch.equal(solution.interpolate(torch.tensor([0.0])), torch.ones(1, 2, 2))
    assert bool(solution.interpolate(torch.tensor([0.5])).isnan().all())
    empty = ic.integrate(lambda t, z, x: -z, torch.ones(0, 2), times=SPAN, dense=True)
    assert empty.interpolate(torch.tensor([0.5, 1.0])).shape == (2, 0, 2)


def test_pytrees_and_complex_states():
    z0 = {
        "a": torch.tensor([[1 + 1j], [2j]], dtype=torch.complex128),
        "b": torch.ones(2, 3, 2, dtype=torch.complex128),
    }
    turn = lambda t, z, x: {"a": 1j * z["a"], "b": -1j * z["b"]}  # noqa: E731
    t = real(0.2, 0.7)
    found = ic.integrate(turn, z0, times=SPAN, solver=ic.Tsit5(**TIGHT), dense=True).interpolate(t)
    assert found["b"].shape == (2, 2, 3, 2)
    assert torch.allclose(found["a"], z0["a"] * torch.exp(1j * t)[:, None, None], rtol=1e-8)
    assert torch.allclose(found["b"], z0["b"] * torch.exp(-1j * t)[:, None, None, None], rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype):
    solution = ic.integrate(
        lambda t, z, x: -z, torch.ones(2, 2, dtype=dtype), times=SPAN, dense=True
    )
    found = solution.interpolate(real(0.25))
    assert found.dtype == dtype
    assert torch.allclose(
        found.double(), torch.full((1, 2, 2), 0.7788, dtype=torch.float64), atol=1e-2
    )


@pytest.mark.parametrize(
    ("t", "complaint"),
    [
        (0.5, "received a float"),
        (torch.tensor(0.5), r"of shape \[\]"),
        (
            torch.zeros(3, 2),
            r"expected a real tensor of shape \[T\] or \[2, T\], received torch.float32 of "
            r"shape \[3, 2\]",
        ),
        (torch.tensor([0.5j]), "complex"),
        (torch.tensor([0.5, 1.25]), "expected times from 0 to 1, received 1.25"),
        (torch.tensor([[0.5], [-0.5]]), "received -0.5"),
        (torch.tensor([torch.nan]), "received nan"),
    ],
    ids=str,
)
def test_times_that_cannot_be_used(t, complaint):
    solution = ic.integrate(lambda t, z, x: -z, torch.ones(2, 2), times=SPAN, dense=True)
    with pytest.raises(ic.InputError, match=complaint):
        solution.interpolate(t)


def test_values_that_were_not_asked_for_are_not_kept():
    solution = ic.integrate(lambda t, z, x: -z, torch.ones(2, 2), times=SPAN)
    assert solution.interpolant is None
    with pytest.raises(ic.InputError, match="dense=True"):
        solution.interpolate(torch.tensor([0.5]))


def test_another_gradient_is_refused():
    with pytest.raises(
        ic.GradientError, match="Adjoint has no gradient between the output times.*Unrolled"
    ):
        ic.integrate(
            lambda t, z, x: -z, torch.ones(2, 2), times=SPAN, gradient=ic.Adjoint(), dense=True
        )


def test_a_black_box_is_refused():
    class BlackBox(ic.ODESolver):
        def solve(self, system, z0, times, stop=None):
            raise AssertionError

    with pytest.raises(ic.InputError, match="BlackBox gives no values between the times"):
        ic.integrate(
            lambda t, z, x: -z, torch.ones(2, 2), times=SPAN, solver=BlackBox(), dense=True
        )


def test_evaluations_of_dense_output_are_counted():
    seen = []

    def field(t, z, x):
        seen.append(1)
        return -z

    for solver, per_step in (
        (ic.RK4(dt=0.25), 4),
        (ic.Heun3(dt=0.25), 3),
        (ic.DOP853(first_step=0.3), 15),
        (ic.Tsit5(first_step=0.3), 6),
    ):
        seen.clear()
        solution = ic.integrate(field, torch.ones(1, 1), times=SPAN, solver=solver, dense=True)
        assert solution.evaluations == len(seen) == 1 + per_step * solution.steps.item()


@each_solver
def test_the_ends_of_the_steps(solver):
    """dz/dt = -x z: each sample with its own steps, and their values and gradients."""
    z0, x = real([1.0], [2.0], [3.0]).requires_grad_(), real([0.1], [3.0], [20.0]).requires_grad_()
    found = ic.integrate(lambda t, z, x: -x * z, z0, x, times=SPAN, solver=solver, dense=True)
    t, z = found.at_steps()
    there = t.isfinite()
    assert torch.equal(there, z[..., 0].isfinite().T)
    assert (there.sum(1) - 1 <= found.steps).all()
    assert torch.equal(t[:, 0], torch.zeros(3).double())
    assert torch.equal(z[0], z0)
    ahead = torch.where(there, t, torch.arange(2.0, 2.0 + t.shape[1]))
    assert (ahead.diff(dim=1) > 0).all()
    assert torch.equal(torch.where(there, t, 0).amax(1), torch.ones(3).double())
    exact = z0 * torch.exp(-x * (t.nan_to_num(0).T[..., None]))
    assert torch.allclose(z[there.T], exact[there.T], rtol=1e-4, atol=1e-8)
    grads, wanted = (
        torch.autograd.grad(torch.where(there.T[..., None], of, 0).sum(), (z0, x))
        for of in (z, exact)
    )
    for one, other in zip(grads, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4)


def test_the_ends_of_equal_steps_of_an_event_and_of_a_sample_that_fails():
    found = ic.integrate(
        lambda z, x: -torch.ones_like(z),
        real([0.25], [5.0]),
        times=[0.0, 1.0],
        solver=ic.RK4(dt=0.1),
        event=lambda t, z, x: z[:, 0],
        dense=True,
    )
    t, z = found.at_steps()
    assert torch.allclose(t[0, :4], real(0.0, 0.1, 0.2, 0.25))
    assert t[0, 4:].isnan().all()
    assert torch.allclose(t[1], torch.linspace(0, 1, 11).double())
    assert torch.allclose(z[:4, 0, 0], real(0.25, 0.15, 0.05, 0.0), atol=1e-12)
    start = real([1.0], [1.0]).requires_grad_()
    masked = ic.integrate(
        lambda z, x: x * z**2,
        start,
        real([2.0], [0.5]),
        times=[0.0, 1.0],
        dense=True,
        on_failure="mask",
    )
    t, z = masked.at_steps()
    assert masked.status.tolist()[1] == 0 != masked.status.tolist()[0]
    last = t[1].isfinite().sum() - 1
    assert t[1, last] == 1.0
    assert torch.allclose(z[last, 1], real(2.0), rtol=1e-3)
    with pytest.raises(ic.InputError, match="dense=True"):
        ic.integrate(lambda z, x: z, real([1.0]), times=[0.0, 1.0]).at_steps()
