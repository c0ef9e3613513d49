"""What an adaptive step's error is measured by: atol of each number, norms, exponents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import implicitcore as ic
from implicitcore.backends.torch import TORCH
from implicitcore.ode_solvers.error_scale import measured

SOLVERS: list[Any] = [
    ic.Tsit5(),
    ic.Dopri5(),
    ic.Bosh3(),
    ic.DOP853(),
    ic.Adams(),
    ic.ESDIRK(),
    ic.Kvaerno5(),
    ic.RadauIIA5(),
    ic.KenCarp4(),
]
EACH = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
UNITS = torch.tensor([1.0, 1024.0, 1.0 / 4096], dtype=torch.float64)
ONES = torch.ones_like(UNITS)
Z0 = torch.tensor([[1.0, 0.5, -0.5], [0.3, -1.0, 2.0]], dtype=torch.float64)
TIMES = torch.tensor([0.0, 0.7, 2.0], dtype=torch.float64)


def rotation(t, z, x):
    """A field that mixes its three numbers, by powers of two's units exactly as without them."""
    w = z / x
    return x * torch.stack((w[:, 1] - w[:, 0], torch.sin(w[:, 2]) - w[:, 1], -w[:, 0]), 1)


def run(solver, units, **options):
    z0 = (Z0 * units).requires_grad_()
    found = ic.integrate(rotation, z0, ic.shared(units), times=TIMES, solver=solver, **options)
    weight = found.z[-1] / units
    return found, torch.autograd.grad(weight.square().sum(), z0)[0] * units


@EACH
@pytest.mark.parametrize("gradient", [ic.Unrolled(), ic.Checkpointed()], ids=["unrolled", "lean"])
def test_units_and_their_tolerances_change_no_step(solver, gradient):
    plain = replace(solver, rtol=1e-5, atol=1e-7)
    scaled = replace(plain, atol=tuple((1e-7 * UNITS).tolist()))
    one, one_grad = run(plain, ONES, gradient=gradient)
    other, other_grad = run(scaled, UNITS, gradient=gradient)
    assert torch.equal(one.steps, other.steps)
    assert torch.allclose(one.z, other.z / UNITS, rtol=1e-9, atol=1e-12)
    assert torch.allclose(one_grad, other_grad, rtol=1e-8, atol=1e-11)


@EACH
def test_a_tolerance_of_each_is_kept_by_each(solver):
    """Next to nothing of rtol, and two tolerances of the first number alone."""
    exact = run(ic.DOP853(rtol=1e-12, atol=1e-13), ONES)[0].z

    def error(atol):
        found, _ = run(replace(solver, rtol=1e-12, atol=(atol, 1e-2, 1e-2)), ONES)
        assert found.converged.all()
        return (found.z - exact).abs()[-1, :, 0].max()

    assert error(1e-7) < 0.05 * error(1e-3)


@EACH
def test_the_root_mean_square_as_a_norm_of_ones_own_is_the_default(solver):
    plain = replace(solver, rtol=1e-5, atol=1e-7)
    own = replace(plain, norm=lambda scaled: scaled.square().mean(1).sqrt())
    (one, one_grad), (other, other_grad) = (run(way, ONES) for way in (plain, own))
    assert torch.equal(one.steps, other.steps)
    assert torch.allclose(one.z, other.z, rtol=1e-10, atol=1e-13)
    assert torch.allclose(one_grad, other_grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS[:5], ids=lambda solver: type(solver).__name__)
def test_a_norm_four_times_as_large_is_a_fourth_of_the_tolerance(solver):
    far = replace(
        solver, rtol=1e-5, atol=1e-7, norm=lambda scaled: 4 * scaled.square().mean(1).sqrt()
    )
    one, other = (run(way, ONES)[0] for way in (far, replace(solver, rtol=2.5e-6, atol=2.5e-8)))
    assert (one.steps - other.steps).abs().max() <= 1  # the first step's estimate is not linear
    assert torch.allclose(one.z, other.z, atol=1e-5)
    assert (one.steps > run(replace(far, norm=None), ONES)[0].steps).all()


@EACH
@pytest.mark.parametrize(
    ("name", "exponents"), [("i", (1.0,)), ("pi", (0.7, -0.4)), ("pid", (0.49, -0.34, 0.1))]
)
def test_a_controller_by_its_exponents_is_that_of_its_name(solver, name, exponents):
    named, given = (replace(solver, controller=way) for way in (name, exponents))
    (one, one_grad), (other, other_grad) = (run(way, ONES) for way in (named, given))
    assert torch.equal(one.z, other.z)
    assert torch.equal(one_grad, other_grad)


def test_other_exponents_take_other_steps_and_keep_the_tolerance():
    exact = run(ic.DOP853(rtol=1e-12, atol=1e-13), ONES)[0].z
    way = ic.Tsit5(rtol=1e-6, atol=1e-8, controller=(0.6, -0.2, 0.05))
    found, plain = (run(each, ONES)[0] for each in (way, ic.Tsit5(rtol=1e-6, atol=1e-8)))
    assert not torch.equal(found.z, plain.z)
    assert (found.z - exact).abs().max() < 1e-4


def test_the_measure_is_that_of_numpy():
    generator = torch.Generator().manual_seed(0)
    error, z, end = (torch.randn(4, 3, generator=generator).double() for _ in range(3))
    atol = (0.5, 2.0, 1e-3)
    scale = np.maximum(abs(z.numpy()), abs(end.numpy())) * 0.1 + np.array(atol)
    by_hand = abs(error.numpy()) / scale
    for norm, expected in (
        (None, np.sqrt((by_hand**2).mean(1))),
        (lambda scaled: scaled.amax(1), by_hand.max(1)),
    ):
        found = measured(error, TORCH, z, end, 0.1, atol, norm)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-14)


def test_complex_states_have_real_tolerances():
    def field(t, z, x):
        return 1j * z

    z0 = torch.tensor([[1.0 + 0j, 100.0j]], dtype=torch.complex128)
    for norm in (None, lambda scaled: scaled.amax(1)):
        solver = ic.Tsit5(rtol=1e-8, atol=(1e-9, 1e-7), norm=norm)
        found = ic.integrate(field, z0, times=[0.0, 1.0], solver=solver)
        assert torch.allclose(found.z[-1], z0 * torch.exp(torch.tensor(1j)), rtol=1e-6)


def test_a_tolerance_for_each_of_a_pair_of_tensors_is_in_their_order():
    def field(t, z, x):
        return {"a": z["a"], "b": -z["b"]}

    z0 = {"a": torch.ones(2, 1, dtype=torch.float64), "b": torch.ones(2, 2, dtype=torch.float64)}
    found = ic.integrate(
        field, z0, times=[0.0, 1.0], solver=ic.Tsit5(rtol=1e-12, atol=(1e-9, 1.0, 1.0))
    ).z
    assert (found["a"][-1] - torch.e).abs().max() < 1e-7


@pytest.mark.parametrize("gradient", [ic.Unrolled(), ic.Checkpointed(), ic.Adjoint()], ids=str)
def test_a_wrong_number_of_tolerances_is_one_error(gradient):
    with pytest.raises(ic.InputError, match=r"atol: expected a number, or 3, .* received 2"):
        run(ic.Tsit5(atol=(1e-6, 1e-6)), ONES, gradient=gradient)


@pytest.mark.parametrize("solver", [ic.Tsit5(), ic.DOP853()], ids=["tsit5", "dop853"])
def test_the_adjoint_keeps_what_is_said_of_each_number_of_a_state(solver):
    """And its own error small, also where the norm sees a part of the state alone."""
    widths = set()

    def of_the_first(scaled):
        widths.add(scaled.shape[1])
        return scaled[:, 0]

    exact = run(ic.DOP853(rtol=1e-11, atol=1e-12), ONES, gradient=ic.Unrolled())[1]
    forward = ic.DOP853(rtol=1e-10, atol=1e-11)
    for options in ({"atol": (1e-9, 1e-8, 1e-9)}, {"atol": 1e-9, "norm": of_the_first}):
        there = replace(solver, rtol=1e-8, **options)
        found = run(forward, ONES, gradient=ic.Adjoint(there))[1]
        assert torch.allclose(found, exact, rtol=1e-8, atol=1e-8)
    found = run(replace(solver, rtol=1e-8, atol=(1e-9,) * 3), ONES, gradient=ic.Adjoint())[1]
    assert torch.allclose(found, exact, rtol=1e-6, atol=1e-6)
    assert widths == {3}
    with pytest.raises(ic.InputError, match=r"or 3, one for each .* received 6"):
        run(forward, ONES, gradient=ic.Adjoint(replace(solver, atol=(1e-6,) * 6)))


def test_a_norm_that_returns_something_else_is_one_error():
    wrong: list[tuple[Any, str]] = [
        (lambda scaled: scaled, r"received shape \[2, 3\]"),
        (lambda scaled: 1.0, "received a float"),
    ]
    for norm, said in wrong:
        with pytest.raises(ic.InputError, match=said):
            run(ic.Tsit5(norm=norm), ONES)


def test_the_options_are_checked():
    with pytest.raises(ic.ConfigError, match="atol"):
        ic.Tsit5(atol=(1e-6, -1.0))
    with pytest.raises(ic.ConfigError, match="controller"):
        ic.Tsit5(controller=())
    with pytest.raises(ic.ConfigError, match="controller"):
        ic.Tsit5(controller=(0.1, 0.2, 0.3, 0.4))
    solver = ic.build("neural_ode", lambda z, x: -z, ode_solver=ic.Tsit5(atol=(1e-6, 1e-3)))
    again = ic.build(solver.config, lambda z, x: -z)
    assert again.solver == solver.solver


def test_scipy_has_the_same_answer():
    atol = [1e-9, 1e-4, 1e-6]
    theirs = solve_ivp(
        lambda t, z: rotation(t, torch.from_numpy(z)[None], torch.ones(3))[0].numpy(),
        (0, 2),
        Z0[0].numpy(),
        rtol=1e-6,
        atol=atol,
    ).y[:, -1]
    ours = run(ic.Dopri5(rtol=1e-6, atol=tuple(atol)), ONES)[0].z[-1, 0]
    np.testing.assert_allclose(ours.detach().numpy(), theirs, atol=1e-4)
