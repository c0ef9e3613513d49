"""Whole solves and training gradients, in Triton's interpreter: those of the torch backend."""

from __future__ import annotations

import pytest
import torch
from dense import Cell, inputs, relative_error

import implicitcore as ic
from implicitcore_triton import Triton, backend

pytest.importorskip("triton")
BACKENDS = [Triton(interpret=True), ic.TorchBackend()]
GMRES = ic.Implicit(ic.GMRES(tol=1e-11))


@pytest.fixture(autouse=True)
def _kernels_ran(monkeypatch):
    names, launch = set(), backend._launch
    monkeypatch.setattr(backend, "_launch", lambda name, *rest, **sizes: (names.add(name), launch(name, *rest, **sizes)))
    yield
    assert names


@pytest.mark.parametrize("solver", [ic.Anderson(tol=1e-11), ic.Broyden(tol=1e-11), ic.Newton(tol=1e-11)], ids=lambda s: type(s).__name__)
def test_an_equilibrium_and_its_gradient(solver):
    cell, x = Cell(contraction=0.5), inputs().requires_grad_()
    solutions = [ic.fixed_point(cell, torch.zeros_like(x), x, solver=solver, gradient=GMRES, backend=which) for which in BACKENDS]
    ours, reference = solutions
    assert torch.allclose(ours.z, reference.z, rtol=1e-9, atol=1e-12)
    assert torch.equal(ours.steps, reference.steps)
    gradients = [torch.autograd.grad(solution.z.square().sum(), [*cell.parameters(), x]) for solution in solutions]
    assert relative_error(*gradients) < 1e-9


@pytest.mark.parametrize("gradient", [ic.Adjoint(), ic.Unrolled(), ic.Checkpointed()], ids=lambda g: type(g).__name__)
def test_a_trajectory_and_its_gradient(gradient):
    cell, x = Cell(), inputs().requires_grad_()
    times = torch.tensor([0.0, 0.5], dtype=torch.float64)
    solver = ic.Tsit5(rtol=1e-6, atol=1e-8)
    with torch.no_grad():
        for which in BACKENDS:
            ic.integrate(lambda t, z, x: cell(z, x) - z, torch.zeros_like(x), x, times=times, solver=solver, backend=which)
    solutions = [
        ic.integrate(lambda t, z, x: cell(z, x) - z, torch.zeros_like(x), x, times=times, solver=solver, gradient=gradient, backend=which)
        for which in BACKENDS
    ]
    assert torch.equal(solutions[0].steps, solutions[1].steps)
    assert torch.allclose(solutions[0].z, solutions[1].z, rtol=1e-12, atol=1e-14)
    gradients = [torch.autograd.grad(solution.z.square().sum(), [*cell.parameters(), x]) for solution in solutions]
    assert relative_error(*gradients) < 1e-10


def test_a_steady_state_in_bfloat16():
    cell, x = Cell(contraction=0.5, dtype=torch.bfloat16), inputs(dtype=torch.bfloat16)
    with torch.no_grad():
        found = [ic.fixed_point(cell, torch.zeros_like(x), x, solver=ic.Anderson(tol=1e-2), backend=which) for which in BACKENDS]
    assert all(bool((solution.status == 0).all()) for solution in found)
    assert torch.allclose(found[0].z.float(), found[1].z.float(), atol=0.05)


def test_second_derivatives_are_the_torch_backends():
    cell, x = Cell(contraction=0.5), inputs(2).requires_grad_()
    found = []
    for which in BACKENDS:
        z = ic.fixed_point(cell, torch.zeros_like(x), x, solver=ic.Anderson(tol=1e-12), gradient=GMRES, backend=which).z
        (first,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x))
    assert relative_error(*found) < 1e-8
