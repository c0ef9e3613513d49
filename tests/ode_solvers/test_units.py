"""A trajectory in any units that the dtype holds is that in units of one."""

import pytest
import torch

import implicitcore as ic

SIZES = (1e-30, 1e-25, 1e-22, 1e-18, 1.0, 1e18, 1e20, 1e25)
ADAPTIVE = [
    ic.Tsit5(rtol=1e-5, atol=1e-38),
    ic.Dopri5(rtol=1e-5, atol=1e-38),
    ic.Bosh3(rtol=1e-5, atol=1e-38),
    ic.DOP853(rtol=1e-5, atol=1e-38),
    ic.Adams(rtol=1e-5, atol=1e-38),
    ic.ESDIRK(rtol=1e-5, atol=1e-38),
    ic.Kvaerno5(rtol=1e-5, atol=1e-38),
    ic.RadauIIA5(rtol=1e-5, atol=1e-38),
]
FIXED = [ic.RK4(dt=0.05), ic.Heun(dt=0.01), ic.Trapezoid(dt=0.02, atol=1e-38)]


def named(part) -> str:
    return type(part).__name__


def decay(t, z, x):
    return -x * z


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("solver", [*ADAPTIVE, *FIXED], ids=named)
def test_a_state_of_any_size(solver, size):
    z0 = size * torch.tensor([[1.0, 2.0], [0.5, -3.0]])
    rate = torch.tensor([[1.0], [2.0]])
    times = torch.tensor([0.0, 1.0])
    found = ic.integrate(decay, z0, rate, times=times, solver=solver)
    assert found.converged.all()
    exact = z0 / size * torch.exp(-rate)
    assert torch.allclose(found.z[-1] / size, exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("size", [1e-25, 1e-18, 1e18, 1e25])
@pytest.mark.parametrize(
    "gradient", [ic.Unrolled(), ic.Checkpointed(), ic.Adjoint(ic.Tsit5(atol=1e-38))], ids=named
)
def test_an_incoming_gradient_of_any_size(gradient, size):
    z0 = torch.tensor([[1.0, 2.0], [0.5, -3.0]], requires_grad=True)
    found = ic.integrate(
        decay, z0, torch.ones(2, 1), times=torch.tensor([0.0, 1.0]), gradient=gradient
    )
    [slope] = torch.autograd.grad(found.z[-1], z0, torch.full_like(z0, size))
    assert torch.allclose(slope / size, torch.full_like(z0, 0.36787944), rtol=5e-3)
