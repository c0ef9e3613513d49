"""Compiled layers whose iterations are operations of a backend: as the layer in plain torch."""

from __future__ import annotations

import pytest
import torch
from graph.test_compile import Cell
from torch import nn

import implicitcore as ic
from implicitcore.extend import FusedBackend
from implicitcore.registry.registry import REGISTRY

PAIRS = [
    (ic.Picard(tol=1e-9, max_steps=100), ic.Picard(tol=1e-10, max_steps=100)),
    (ic.Anderson(tol=1e-9), ic.GMRES(tol=1e-10)),
    (ic.Anderson(tol=1e-9, damping=0.7, plain_rate=0.5), ic.GMRES(tol=1e-10, restart=3)),
    (ic.Broyden(tol=1e-9), ic.Broyden(tol=1e-10)),
]


@pytest.fixture
def cpp() -> FusedBackend:
    """The backend of C++, where it is installed and can be built."""
    for part in REGISTRY.parts("backend"):
        backend = part.load()() if part.name == "cpp" else None
        if backend is not None and backend.unavailable_reason() is None:
            return backend
    pytest.skip("implicitcore-cpp is not installed, or cannot be built")


def layer(solver, adjoint, **options) -> ic.ImplicitLayer:
    cell = ic.FixedPoint(Cell())
    gradient, start = ic.Implicit(adjoint), ic.Zeros((8,))
    return ic.ImplicitLayer(cell, solver=solver, gradient=gradient, start=start, **options).double()


def compare(solver, adjoint, cpp, batches=(5,)) -> None:
    """Solutions and gradients of the compiled layer with those of plain torch."""
    eager, other = layer(solver, adjoint), layer(solver, adjoint, backend=cpp)
    compiled = ic.compile(other)
    for batch in batches:
        generator = torch.Generator().manual_seed(batch)
        x = torch.randn(batch, 8, generator=generator, dtype=torch.float64)
        # The samples need unlike numbers of steps.
        x = (x * torch.logspace(-2, 1, batch, dtype=torch.float64)[:, None]).requires_grad_()
        scale = torch.rand(8, generator=generator, dtype=torch.float64, requires_grad=True)
        v = torch.randn(batch, 8, generator=generator, dtype=torch.float64)
        found = []
        for module, of in ((eager, eager), (compiled, other)):
            solution = module.solve((x, ic.shared(scale)))
            gradients = torch.autograd.grad(solution.z, [x, scale, *of.parameters()], v)
            found.append((solution, gradients))
        (one, gradients), (two, others) = found
        assert two.status.tolist() == one.status.tolist() == [0] * batch
        assert two.steps.tolist() == one.steps.tolist()
        assert two.evaluations == one.evaluations - 1  # the one for the gradient
        torch.testing.assert_close(two.z, one.z, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(two.residual, one.residual, rtol=1e-3, atol=1e-12)
        torch.testing.assert_close(others, gradients, rtol=1e-6, atol=1e-8)
    (known,) = compiled.plans.values()
    assert {"forward", "backward"} <= vars(known).keys()


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize(("solver", "adjoint"), PAIRS, ids=str)
def test_iterations_of_a_backend_give_the_same_solution_and_gradient(cpp, solver, adjoint):
    compare(solver, adjoint, cpp, batches=(5, 1, 8))


@pytest.mark.usefixtures("only_for_any_size")
@pytest.mark.slow(25)
@pytest.mark.filterwarnings("ignore")  # of torch, about its own parts
def test_they_are_compiled_for_any_size_of_the_batch(cpp):
    solver, adjoint = PAIRS[1]
    compare(solver, adjoint, cpp, batches=(3, 8, 5))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch, about its own parts
def test_they_are_compiled_in_single_precision(cpp):
    weight = (
        0.9 * torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    )
    cell = nn.Linear(64, 64)
    cell.load_state_dict({"weight": weight, "bias": torch.zeros(64)})
    f = ic.FixedPoint(lambda z, x: torch.tanh(cell(z) + x))
    options = {"solver": ic.Broyden(tol=1e-6), "gradient": ic.Implicit(ic.Anderson(tol=1e-6))}
    compiled = ic.compile(ic.ImplicitLayer(f, backend=cpp, **options))
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    z0, v = torch.zeros(16, 64), torch.ones(16, 64)

    def solved():
        solution = compiled.solve(x, z0)
        return solution, torch.autograd.grad(solution.z, x, v)[0]

    solved()
    solution, found = solved()  # by what the first has learnt
    assert bool(solution.converged.all())
    assert not z0.any()
    z = solution.z.detach().double()
    slope = 1 - torch.tanh(z @ weight.double().T + x.detach().double()).square()
    jacobian = slope.unsqueeze(2) * weight.double()
    u = torch.linalg.solve(torch.eye(64).double() - jacobian.mT, v.double().unsqueeze(2)).squeeze(2)
    expected = slope * u
    assert (found.double() - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.usefixtures("plainly")
def test_what_has_no_operation_keeps_its_loop(cpp):
    compiled = ic.compile(layer(ic.Broyden(tol=1e-9, variant="bad"), ic.GMRES(), backend=cpp))
    x, scale = torch.randn(3, 8, dtype=torch.float64), torch.rand(8, dtype=torch.float64)
    solution = compiled.solve((x, ic.shared(scale)))
    assert bool(solution.converged.all())
    (known,) = compiled.plans.values()
    assert "forward" not in vars(known)


@pytest.mark.usefixtures("plainly")
def test_another_backend_is_another_graph(cpp):
    compiled = ic.compile(layer(PAIRS[1][0], PAIRS[1][1], backend=cpp))
    x, scale = torch.randn(3, 8, dtype=torch.float64), torch.rand(8, dtype=torch.float64)
    first = compiled((x, ic.shared(scale)))
    compiled.layer.backend = "torch"
    second = compiled((x, ic.shared(scale)))
    assert len(compiled.plans) == 2
    torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures("plainly")
def test_a_result_is_no_memory_of_what_f_reads(cpp):
    f = ic.FixedPoint(lambda z, x: x.detach())
    compiled = ic.compile(ic.ImplicitLayer(f, solver=ic.Picard(), backend=cpp))
    x, z0 = torch.randn(2, 3), torch.zeros(2, 3)
    with torch.no_grad():
        z = compiled(x, z0)
    assert torch.equal(z, x)
    assert z.data_ptr() not in (x.data_ptr(), z0.data_ptr())
