"""Products with the Jacobian, by the engine of torch itself and by torch.autograd.grad."""

from __future__ import annotations

import pytest
import torch

import implicitcore as ic
from implicitcore.system import linearization
from implicitcore.system.system import System
from implicitcore.tensors.packing import Packing
from implicitcore.testing.problems import Cell, inputs


@pytest.fixture(params=["engine", "torch.autograd.grad"])
def way(request, monkeypatch):
    if request.param != "engine":
        monkeypatch.setattr(linearization, "_ENGINES", (None, None))


def linearized(cell, z, x):
    return System.of(ic.FixedPoint(cell), x, Packing.of(z)).linearize(z)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_products_are_those_of_the_dense_jacobian(dtype):
    torch.manual_seed(0)
    z, v = torch.randn(2, 3, 4, dtype=dtype)
    weight = 0.3 * torch.randn(4, 4, dtype=dtype)

    def cell(z, x):
        return torch.tanh(z @ weight.mT + x)

    with torch.no_grad():
        jacobian = linearized(cell, z, torch.ones_like(z))
        pulled, pushed, dense = jacobian.vjp(v), jacobian.jvp(v), jacobian.matrix()
    slope = 1 - torch.tanh(z @ weight.mT + 1).square()
    expected = slope[:, :, None] * weight
    if not dtype.is_complex:
        assert torch.allclose(dense, expected)
        assert torch.allclose(pushed, (expected @ v[:, :, None])[:, :, 0])
    assert torch.allclose(pulled, (expected.mH @ v[:, :, None])[:, :, 0])


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "cell", [lambda z, x: x, lambda z, x: x * 2.0, lambda z, x: z.detach() + x]
)
def test_a_cell_without_z_has_products_of_zero(cell):
    z = torch.ones(2, 3)
    with torch.no_grad():
        jacobian = linearized(cell, z, torch.ones(2, 3, requires_grad=True))
        assert torch.equal(jacobian.vjp(z), torch.zeros_like(z))


@pytest.mark.usefixtures("way")
def test_a_product_is_differentiable_where_a_graph_is_wanted():
    cell, x = Cell(), inputs()
    z = torch.zeros_like(x)
    jacobian, v = linearized(cell, z, x), torch.ones_like(x, requires_grad=True)
    with torch.enable_grad():
        pulled = jacobian.vjp(v)
    assert torch.autograd.grad(pulled.sum(), v)[0].any()
