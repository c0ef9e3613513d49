"""What a backend of kernels may count on, and what the torch backend does in its place."""

from __future__ import annotations

import pytest
import torch
from support.watched import REFERENCE, Watched
from torch.autograd import forward_ad

import implicitcore as ic
from implicitcore.testing.dense import relative_error
from implicitcore.testing.expect import known
from implicitcore.testing.problems import Cell, inputs


def residual_gradients(backend, gradient, solver, *, second=False):
    cell, x = Cell(contraction=0.5), inputs().requires_grad_()
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=solver, gradient=gradient, backend=backend)
    wrt = [*cell.parameters(), x]
    first = torch.autograd.grad(layer(x).square().sum(), wrt, create_graph=second)
    if not second:
        return first
    return torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), wrt)


@pytest.mark.parametrize(
    "solver",
    [ic.Anderson(tol=1e-11), ic.Broyden(tol=1e-11), ic.Newton(tol=1e-11), ic.SteadyState(tol=1e-8)],
    ids=repr,
)
@pytest.mark.parametrize(
    "gradient",
    [ic.Implicit(ic.GMRES(tol=1e-11)), ic.Unrolled(), ic.Phantom()],
    ids=lambda part: type(part).__name__,
)
def test_the_kernels_run_in_the_loop_and_gradients_are_the_same(solver, gradient):
    backend = Watched()
    found, expected = (
        residual_gradients(backend, gradient, solver),
        residual_gradients(REFERENCE, gradient, solver),
    )
    assert relative_error(found, expected) < 1e-9
    assert isinstance(gradient, ic.Unrolled) or backend.calls


def test_second_derivatives_are_the_same():
    options = (ic.Implicit(ic.GMRES(tol=1e-12)), ic.Anderson(tol=1e-12))
    found, expected = (
        residual_gradients(Watched(), *options, second=True),
        residual_gradients(REFERENCE, *options, second=True),
    )
    assert relative_error(found, expected) < 1e-8


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own
def test_a_forward_derivative_passes_through():
    backend, z = Watched(), torch.randn(2, 3, dtype=torch.float64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(z, z)
        value, slope = forward_ad.unpack_dual(backend.residual(2 * dual, dual).norm)
    assert torch.allclose(known(slope), value)
    assert not backend.calls


@pytest.mark.parametrize(
    "z",
    [
        torch.zeros(0, 4, dtype=torch.float64),
        torch.zeros(3, 0, dtype=torch.float64),
        torch.ones(2, 4),
    ],
    ids=str,
)
def test_what_the_kernels_do_not_take_the_torch_backend_does(z):
    backend = Watched()
    assert torch.equal(backend.residual(z + 1, z).norm, REFERENCE.residual(z + 1, z).norm)
    assert not backend.calls


def test_states_of_any_strides_reach_the_kernels_in_one_piece():
    backend, z = Watched(), torch.randn(4, 3, dtype=torch.float64).T
    found, expected = backend.residual(2 * z, z), REFERENCE.residual(2 * z, z)
    assert torch.equal(found.value, expected.value)
    assert backend.residual(2 * z, z, out := torch.empty_like(z)).value is out
    assert torch.equal(out, expected.value)
    assert backend.calls == ["residual"]  # into other strides torch writes


def test_a_backend_that_cannot_run_says_why():
    backend = Watched(reason="no device")
    with pytest.raises(
        ic.ConfigError, match="backend: Watched cannot run here: no device; use 'auto' or 'torch'"
    ):
        ic.fixed_point(lambda z, x: torch.cos(z), torch.zeros(2, 3), None, backend=backend)
