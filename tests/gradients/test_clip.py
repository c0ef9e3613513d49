"""A cap on the adjoint of each sample."""

import pytest
import torch

import implicitcore as ic


def gradients(clip, dtype=torch.float64, scale=1.0):
    """Three samples z = a z + x with a = 0, 0.5 and 0.99: u = v / (1 - a)."""
    a = torch.tensor([[0.0], [0.5], [0.99]], dtype=dtype)
    x = torch.ones(3, 2, dtype=dtype, requires_grad=True)
    found = ic.fixed_point(
        lambda z, x: a * z + x,
        torch.zeros_like(x),
        x,
        solver=ic.Newton(tol=1e-6),
        gradient=ic.Implicit(ic.GMRES(tol=1e-6), clip=clip),
    )
    v = scale * torch.tensor([[3.0, 4.0]], dtype=dtype).expand(3, 2)
    return torch.autograd.grad(found.z, x, v)[0] / scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_adjoint_is_at_most_so_many_times_the_incoming_gradient(dtype, scale):
    plain = gradients(None, dtype, scale)
    torch.testing.assert_close(plain.norm(dim=1), torch.tensor([5.0, 10, 500], dtype=dtype))
    found = gradients(2.5, dtype, scale)
    torch.testing.assert_close(found[:2], plain[:2])
    torch.testing.assert_close(found[2], plain[2] * 12.5 / 500)
    torch.testing.assert_close(gradients(1e3, dtype, scale), plain)


def test_a_zero_gradient_stays_zero():
    x = torch.ones(2, 3, requires_grad=True)
    z = ic.fixed_point(lambda z, x: 0.5 * z + x, x, x, gradient=ic.Implicit(clip=1.0)).z
    assert not torch.autograd.grad(0 * z.sum(), x)[0].any()


def test_it_has_no_second_derivative():
    x = torch.ones(2, 3, requires_grad=True)
    z = ic.fixed_point(lambda z, x: torch.tanh(0.5 * z + x), x, x, gradient=ic.Implicit(clip=1.0)).z
    with pytest.raises(ic.GradientError, match="a clipped implicit gradient has no second"):
        torch.autograd.grad(z.sum(), x, create_graph=True)
