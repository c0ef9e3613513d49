"""Every registered root solver x every gradient x dtype x batch size: right, or refused with a
reason."""

from __future__ import annotations

import pytest
import torch

import implicitcore as ic
from implicitcore.registry.registry import REGISTRY
from implicitcore.testing.dense import fixed_point, implicit_gradient
from implicitcore.testing.problems import Cell, inputs

SOLVERS = sorted(
    part.name for part in REGISTRY.parts("root_solver") if part.provider == "implicitcore"
)
GRADIENTS = sorted(
    part.name for part in REGISTRY.parts("gradient") if part.provider == "implicitcore"
)
# How far the gradient may be from the dense one, relative, at the tolerances below; the
# approximations are checked elsewhere.
EXACT = {"implicit": 1e-3, "unrolled": 2e-2, "reversible": 2e-2}


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("batch", [0, 1, 33])
def test_every_pair_is_right_or_refused(name, gradient, dtype, batch):
    cell, x = Cell(contraction=0.4, dtype=dtype), inputs(batch, dtype=dtype).requires_grad_()
    z0 = torch.zeros_like(x)
    solver, strategy = ic.create("root_solver", name), ic.create("gradient", gradient)
    if gradient in ("adjoint", "checkpointed"):
        with pytest.raises(ic.GradientError, match="Implicit"):
            ic.fixed_point(cell, z0, x, solver=solver, gradient=strategy)
        return
    if gradient == "shine" and name != "broyden":
        with pytest.raises(ic.GradientError, match="Broyden"):
            ic.fixed_point(cell, z0, x, solver=solver, gradient=strategy)
        return
    if gradient == "reversible" and name != "reversible":
        with pytest.raises(ic.GradientError, match=r"Reversible\(\)"):
            ic.fixed_point(cell, z0, x, solver=solver, gradient=strategy)
        return
    solution = ic.fixed_point(cell, z0, x, solver=solver, gradient=strategy).raise_if_failed()
    if not batch and gradient == "unrolled":
        assert solution.z.shape == x.shape  # no step was taken, and none is differentiated
        return
    wrt = [*cell.parameters(), x]
    found = torch.autograd.grad(solution.z.square().sum(), wrt)
    assert all(g.dtype == dtype and bool(g.isfinite().all()) for g in (solution.z, *found))
    if not batch:
        assert solution.z.shape == x.shape
        assert not any(g.any() for g in found)
        return
    exact = Cell(contraction=0.4)
    point = x.detach().double().requires_grad_()
    z = fixed_point(lambda z: exact(z, point), torch.zeros_like(point))
    assert torch.allclose(solution.z.double(), z, atol=2e-3)
    if gradient in EXACT:
        expected = implicit_gradient(
            lambda z: exact(z, point), z, 2 * z, [*exact.parameters(), point]
        )
        errors = [
            ((a.double() - b).norm() / b.norm()).item()
            for a, b in zip(found, expected, strict=True)
        ]
        assert max(errors) < EXACT[gradient]
