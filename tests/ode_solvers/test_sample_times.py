"""Output times of each sample: own spans and directions, and the gradient with respect to them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.trajectory_solvers import BlackBox, stepwise
from torch import Tensor, nn

import implicitcore as ic
from implicitcore.ode_solvers.implicit_method import ImplicitMethod
from implicitcore_layers import NeuralODE

TIMES = [[0.0, 0.3, 1.0, 1.5], [2.0, 1.7, 1.6, 0.6], [5.0, 5.1, 6.0, 6.2], [-1.0, -1.1, -1.6, -2.0]]
STRATEGIES = [ic.Unrolled(), ic.Checkpointed(), ic.Adjoint()]
DTYPES = [torch.float32, torch.float64, torch.complex128]
ACCURATE = [
    ic.RK4(dt=0.02),
    ic.Tsit5(rtol=1e-9, atol=1e-11, max_steps=5000),
    ic.Adams(rtol=1e-9, atol=1e-11, max_steps=5000),
    ic.RadauIIA5(rtol=1e-7, atol=1e-9),
]

CASES = [
    pytest.param(solver, dtype, id=f"{type(solver).__name__}-{dtype}")
    for solver in stepwise()
    for dtype in DTYPES
    if not (dtype.is_complex and isinstance(solver, ImplicitMethod))
]
"""Implicit methods refuse a complex state by name."""

each_strategy = pytest.mark.parametrize("gradient", STRATEGIES, ids=str)


def real(values, **options):
    return torch.tensor(values, dtype=torch.float64, **options)


def swinging(t, z, x):
    """dz/dt = -x cos(t) z."""
    return -x * t.cos().to(z.dtype) * z


def exact(times, z0, x):
    """[T, batch, n], for times [batch, T]."""
    turned = times.sin() - times[:, :1].sin()
    return z0 * torch.exp(-x * turned.to(z0.dtype)[..., None].transpose(0, 1))


def problem(dtype=torch.float64):
    z0 = torch.tensor([[1.0, 0.5], [2.0, 1.5], [3.0, -1.0], [0.2, 1.0]], dtype=dtype)
    x = torch.tensor([[0.5], [1.0], [2.0], [1.5]], dtype=dtype)
    if dtype.is_complex:
        z0, x = z0 * (1 + 0.5j), x * (1 + 0.3j)
    return z0.requires_grad_(), x.requires_grad_(), real(TIMES, requires_grad=True)


def backwards(gradient, solver):
    """The strategy with a solver that can integrate backwards."""
    if isinstance(gradient, ic.Adjoint) and isinstance(solver, ic.Adams):
        return ic.Adjoint(ic.Tsit5(rtol=solver.rtol, atol=solver.atol, max_steps=5000))
    return gradient


@pytest.mark.parametrize(("solver", "dtype"), CASES)
def test_a_sample_is_what_it_is_alone(solver, dtype):
    z0, x, times = problem(dtype)
    solver, low = replace(solver, max_steps=2000), 100 * torch.finfo(dtype).eps
    with torch.no_grad():
        found = ic.integrate(swinging, z0, x, times=times, solver=solver).raise_if_failed()
        assert found.z.dtype is dtype
        assert torch.equal(found.times, times)
        assert torch.equal(found.z[0], z0)
        for i, row in enumerate(times):
            alone = ic.integrate(swinging, z0[i : i + 1], x[i : i + 1], times=row, solver=solver)
            assert torch.allclose(found.z[:, i], alone.z[:, 0], rtol=low, atol=low)
            assert int(alone.steps) == int(found.steps[i])


@pytest.mark.parametrize(
    ("solver", "dtype"),
    [
        case
        if case.values[1] is torch.float64
        else pytest.param(*case.values, marks=pytest.mark.slow)
        for case in CASES
    ],
)
@each_strategy
def test_every_solver_strategy_and_dtype_has_the_gradients(solver, gradient, dtype):
    z0, x, times = problem(dtype)
    times = times[:, 1:].detach().requires_grad_()
    solver = replace(solver, max_steps=2000)
    found = ic.integrate(
        swinging, z0, x, times=times, solver=solver, gradient=backwards(gradient, solver)
    )
    wanted = torch.autograd.grad(exact(times, z0, x).abs().sum(), (z0, x, times))
    got = torch.autograd.grad(found.z.abs().sum(), (z0, x, times))
    for a, b in zip(got, wanted, strict=True):
        bound = 0.1 if type(solver).__name__ in ("Euler", "ImplicitEuler") else 0.01
        assert ((a - b).norm() / b.norm()).item() < bound


@pytest.mark.parametrize("hit_times", [False, True])
@each_strategy
@pytest.mark.parametrize("solver", ACCURATE, ids=lambda s: type(s).__name__)
def test_states_and_gradients_are_those_of_the_closed_form(solver, gradient, hit_times):
    z0, x, times = problem()
    found = ic.integrate(
        swinging,
        z0,
        x,
        times=times,
        solver=solver,
        gradient=backwards(gradient, solver),
        hit_times=hit_times,
    )
    expected = exact(times, z0, x)
    assert torch.allclose(found.z, expected, rtol=1e-6)
    weights = torch.randn(4, 4, 2, generator=torch.Generator().manual_seed(0)).double()
    got = torch.autograd.grad((found.z * weights).sum(), (z0, x, times))
    wanted = torch.autograd.grad((expected * weights).sum(), (z0, x, times))
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@each_strategy
@pytest.mark.parametrize("solver", ACCURATE, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("row", [0, 1], ids=["forward", "backward"])
def test_times_of_all_samples_have_a_gradient_too(solver, gradient, row):
    z0, x, _ = problem()
    times = real(TIMES[row], requires_grad=True)
    found = ic.integrate(
        swinging, z0, x, times=times, solver=solver, gradient=backwards(gradient, solver)
    )
    plain = ic.integrate(swinging, z0, x, times=times.detach(), solver=solver)
    assert torch.equal(found.z, plain.z)
    weights = torch.linspace(-1, 1, 32, dtype=torch.float64).view(4, 4, 2)
    expected = exact(times.expand(4, -1), z0, x)
    got = torch.autograd.grad((found.z * weights).sum(), (times, z0))
    wanted = torch.autograd.grad((expected * weights).sum(), (times, z0))
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_times_without_a_gradient_cost_nothing_and_with_one_an_evaluation_each():
    z0, x, times = problem()

    def spent(times):
        return ic.integrate(swinging, z0, x, times=times, solver=ic.Tsit5()).evaluations

    assert spent(times) == spent(times.detach()) + 4
    with torch.no_grad():
        assert spent(times) == spent(times.detach())


@pytest.mark.parametrize("solver", [ic.Tsit5(), ic.Adams(), ic.RK4(), ic.RadauIIA5()], ids=str)
def test_a_sample_is_bitwise_what_it_is_with_other_spans_beside_it(solver):
    z0, x, times = problem()
    far = torch.cat((times.detach()[:1], real([[1e9, 1e9 + 1, 1e9 + 2, 1e9 + 4.0]])))
    with torch.no_grad():
        beside = ic.integrate(swinging, z0[:2], x[:2], times=far, solver=solver)
        alone = ic.integrate(
            swinging, torch.stack((z0[0], z0[0])), x[[0, 0]], times=far[[0, 0]], solver=solver
        )
    assert torch.equal(beside.z[:, 0], alone.z[:, 0])
    assert torch.equal(beside.steps[0], alone.steps[0])


@each_strategy
@pytest.mark.parametrize("solver", ACCURATE[:2], ids=lambda s: type(s).__name__)
def test_a_layer_takes_the_times_of_each_sample(solver, gradient):
    class Decay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(real([0.5, 1.0]))

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return -self.rate * z

    layer, times = NeuralODE(Decay(), ode_solver=solver, gradient=gradient), real(TIMES)
    x = problem()[0]
    passed = (times - times[:, :1]).T[..., None]
    expected = x * torch.exp(-layer.dynamics.get_parameter("field.rate") * passed)
    for given in (times, TIMES):
        z = layer(x, times=given)
        assert torch.allclose(z, expected, rtol=1e-6)
    got = torch.autograd.grad(z.square().sum(), (x, *layer.parameters()))
    wanted = torch.autograd.grad(expected.square().sum(), (x, *layer.parameters()))
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    solution = layer.solve(x, times=times)
    assert isinstance(solution, ic.Trajectory)
    assert torch.equal(solution.times, times)


def test_dense_output_and_events_of_each_sample():
    times = real([[0.0, 0.7, 4.0], [10.0, 9.0, 6.0]], requires_grad=True)
    z0 = real([[0.5], [2.0]], requires_grad=True)
    fall = lambda t, z, x: torch.where(t > 5, 1.0, -1.0) * torch.ones_like(z)  # noqa: E731
    found = ic.integrate(fall, z0, times=times, event=lambda t, z, x: z[:, 0], dense=True)
    assert found.event_times is not None
    assert found.event_times.tolist() == pytest.approx([0.5, 8.0])
    assert found.z[:, :, 0].T.flatten().tolist() == pytest.approx([0.5, 0, 0, 2, 1, 0], abs=1e-9)
    # A later start is a later event; the time of a state before the event moves that state alone.
    slope = torch.autograd.grad(found.event_times.sum(), times, retain_graph=True)[0]
    assert torch.allclose(slope, real([[1.0, 0, 0], [1.0, 0, 0]]), atol=1e-7)
    slope = torch.autograd.grad(found.z.sum(), times)[0]
    assert torch.allclose(slope, real([[0.0, 0, 0], [-1.0, 1.0, 0]]), atol=1e-7)
    plain = ic.integrate(fall, z0, times=times.detach(), dense=True)
    at = real([[0.0, 0.25, 4.0], [6.0, 9.5, 10.0]])
    assert plain.interpolate(at)[:, :, 0].T.tolist() == [
        pytest.approx([0.5, 0.25, -3.5]),
        pytest.approx([-2.0, 1.5, 2.0]),
    ]
    with pytest.raises(ic.InputError, match="from 6 to 10, received 1 for sample 1"):
        plain.interpolate(real([1.0]))


@pytest.mark.parametrize("on_failure", ["ignore", "mask"])
@each_strategy
def test_a_failed_sample_leaves_the_gradients_of_the_others(gradient, on_failure):
    """Sample 1 blows up at t = 1; the others have their gradients, with respect to times too."""
    z0 = real([[0.2], [1.0], [0.1]], requires_grad=True)
    times = real([[0.0, 0.4, 1.0], [0.0, 0.5, 2.0], [3.0, 2.5, 2.0]], requires_grad=True)
    found = ic.integrate(
        lambda t, z, x: z * z,
        z0,
        times=times,
        solver=ic.Tsit5(rtol=1e-9, atol=1e-11, max_steps=400),
        gradient=gradient,
        on_failure=on_failure,
    )
    assert found.converged.tolist() == [True, False, True]
    sound = [0, 2]
    expected = z0 / (1 - z0 * (times - times[:, :1]))
    got = torch.autograd.grad(found.z[:, sound].sum(), (z0, times))
    wanted = torch.autograd.grad(expected[sound].sum(), (z0, times))
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a[sound], b[sound], rtol=1e-6)
        assert bool(a.isfinite().all())


@pytest.mark.parametrize(
    ("times", "options", "complaint"),
    [
        ([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0]], {}, r"received \[0.0, 2.0, 1.0\] for sample 1"),
        ([[0.0, torch.inf], [0.0, 1.0]], {}, r"finite values, received \[0.0, inf\] for sample 0"),
        ([[0.0, 1.0], [0.0, torch.nan]], {}, "for sample 1"),
        ([[0.0, 1.0]] * 3, {}, r"\[T\], or \[2, T\].*received a tensor of shape \[3, 2\]"),
        ([[0.0], [1.0]], {}, r"T >= 2"),
        ([[0.0, 1.0], [1.0, 0.0]], {"coupled": True}, "a coupled batch has one clock"),
        (
            [[0.0, 1.0], [1.0, 0.0]],
            {"step_at": [0.5]},
            "step_at: jumps of the field need one clock",
        ),
        ([[0.0, 1.0], [1.0, 0.0]], {"solver": BlackBox()}, "BlackBox has one clock for the batch"),
    ],
    ids=str,
)
def test_times_that_cannot_be_used(times, options, complaint):
    with pytest.raises(ic.InputError, match=complaint):
        ic.integrate(lambda t, z, x: -z, real([[1.0], [1.0]]), times=real(times), **options)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_times_have_no_derivative_for_is_said():
    z0, x, times = problem()
    found = ic.integrate(swinging, z0, x, times=times)
    with pytest.raises(ic.GradientError, match="first derivative"):
        torch.autograd.grad(found.z.sum(), times, create_graph=True)
    with pytest.raises(ic.GradientError, match=r"times.detach\(\)"):
        torch.func.jvp(
            lambda t: ic.integrate(swinging, z0, x, times=t).z,
            (times.detach(),),
            (x.new_ones(4, 4),),
        )
