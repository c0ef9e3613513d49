"""Complex states with solvers of real numbers: they get real and imaginary parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import implicitcore as ic
from implicitcore.tensors.packing import Packing, RealPacking

FINE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-7}
SOLVERS: list[Any] = [
    ic.ESDIRK(**FINE),
    ic.Kvaerno5(**FINE),
    ic.RadauIIA5(**FINE),
    ic.KenCarp4(**FINE),
    ic.ImplicitEuler(dt=8e-3),
    ic.Trapezoid(dt=2e-2),
    ic.SDIRK2(dt=2e-2),
]
EACH = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
Z0 = torch.tensor([[1.0 + 0.5j, -2.0j], [0.3 + 0j, 1.0 - 1.0j]], dtype=torch.complex128)
RATE = torch.tensor([[-1.0 + 3.0j, -30.0 + 2.0j], [2.0j, -0.5 + 0j]], dtype=torch.complex128)
TIMES = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)


def close(solver, one, other):
    rough = 2e-2 if isinstance(solver, ic.ImplicitEuler | ic.Trapezoid | ic.SDIRK2) else 1e-4
    torch.testing.assert_close(one, other, rtol=rough, atol=rough)


@EACH
@pytest.mark.parametrize("gradient", [ic.Unrolled(), ic.Checkpointed()], ids=["unrolled", "lean"])
def test_a_linear_field_is_its_exponential(solver, gradient):
    z0, rate = Z0.clone().requires_grad_(), RATE.clone().requires_grad_()
    found = ic.integrate(
        lambda t, z, x: x * z, z0, rate, times=TIMES, solver=solver, gradient=gradient
    )
    assert found.z.dtype == torch.complex128
    exact = z0 * torch.exp(rate * TIMES[:, None, None])
    close(solver, found.z, exact)
    weight = torch.tensor([1.0 - 2.0j, 0.5 + 1.0j], dtype=torch.complex128)
    got, wanted = (
        torch.autograd.grad((z * weight).real.sum(), (z0, rate)) for z in (found.z, exact)
    )
    for one, other in zip(got, wanted, strict=True):
        close(solver, one, other)


@pytest.mark.parametrize("solver", SOLVERS[:4], ids=lambda solver: type(solver).__name__)
def test_a_field_that_is_not_holomorphic(solver):
    """dz/dt = -conj(z): the real part decays, the imaginary one grows."""
    z0 = Z0.clone().requires_grad_()
    found = ic.integrate(lambda z, x: -z.conj(), z0, times=[0.0, 1.0], solver=solver).z[-1]
    e = torch.e
    close(solver, found, torch.complex(z0.real / e, z0.imag * e))
    grad = torch.autograd.grad(found.abs().square().sum(), z0)[0]
    close(solver, grad, 2 * torch.complex(Z0.real / e**2, Z0.imag * e**2))


def test_the_adjoint_and_parameters_of_a_module():
    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = torch.nn.Parameter(RATE[0].clone() / 4)

        def forward(self, z, x):
            return self.rate * z

    for gradient in (ic.Adjoint(), ic.Adjoint(solver=ic.Kvaerno5(**FINE)), ic.Unrolled()):
        field = Field()
        layer = ic.build("neural_ode", field, ode_solver=SOLVERS[0], gradient=gradient)
        z = layer(Z0)
        grad = torch.autograd.grad(z.abs().square().sum(), field.rate)[0]
        rate = RATE[0].clone().div(4).requires_grad_()
        exact = (Z0 * torch.exp(rate)).abs().square().sum()
        close(SOLVERS[0], grad, torch.autograd.grad(exact, rate)[0])


def test_pytrees_dense_output_events_steps_and_single_precision():
    z0 = {"a": Z0[:, :1], "b": Z0[:, 1:].unsqueeze(2)}

    def decay(t, z, x):
        return {"a": -z["a"], "b": 1j * z["b"]}

    found = ic.integrate(
        decay,
        z0,
        times=[0.0, 2.0],
        solver=SOLVERS[0],
        dense=True,
        event=lambda t, z, x: z["a"].abs()[:, 0] - 0.2,
    )
    assert found.event_times is not None
    expected = torch.log(Z0[:, 0].abs() / 0.2)
    assert torch.allclose(found.event_times, expected, rtol=1e-5)
    part = found.interpolate(torch.tensor([0.3], dtype=torch.float64))
    assert torch.allclose(part["b"][0], z0["b"] * torch.exp(torch.tensor(0.3j)), rtol=1e-6)
    single = ic.integrate(
        lambda z, x: 1j * z, Z0.to(torch.complex64), times=[0.0, 1.0], solver=ic.ESDIRK(rtol=1e-4)
    ).z
    assert single.dtype == torch.complex64
    assert torch.allclose(
        single[-1], (Z0 * torch.exp(torch.tensor(1j))).to(torch.complex64), rtol=1e-2
    )
    now = ic.stepping(lambda z, x: 1j * z, Z0, solver=SOLVERS[0]).step(0.01)
    assert torch.allclose(now.z, Z0 * torch.exp(torch.tensor(0.01j)), rtol=1e-6)
    coupled = ic.integrate(
        lambda z, x: 1j * z.mean(0, keepdim=True) + 0 * z,
        Z0,
        times=[0.0, 1.0],
        solver=SOLVERS[0],
        coupled=True,
    ).z[-1]
    mean = Z0.mean(0, keepdim=True)
    assert torch.allclose(coupled, Z0 + mean * (torch.exp(torch.tensor(1j)) - 1), rtol=1e-5)


def test_the_packing():
    packing = Packing.of(Z0, real=True)
    assert type(packing) is RealPacking
    assert type(Packing.of(Z0.real, real=True)) is Packing
    flat = packing.pack(Z0)
    assert flat.tolist()[0] == [1.0, 0.5, 0.0, -2.0]
    assert torch.equal(packing.unpack(flat), Z0)
    assert torch.equal(packing.unpack(flat.expand(3, 2, 4)), Z0.expand(3, 2, 2))
    assert type(Packing.of(Z0)) is Packing
    with pytest.raises(ic.InputError, match="returned torch.float64, expected torch.complex128"):
        ic.integrate(lambda z, x: z.real, Z0, times=[0.0, 1.0], solver=SOLVERS[0])
