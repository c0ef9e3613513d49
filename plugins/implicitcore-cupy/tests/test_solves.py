"""Whole solves through the kernels: as with the torch backend, forward and backward."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from cpu_launcher import REVERSE, launches, on_cpu

import implicitcore as ic
from implicitcore.testing.dense import relative_error
from implicitcore.testing.problems import Cell, inputs
from implicitcore.testing.trajectories import logistic

REFERENCE = ic.TorchBackend()
ROOTS = [
    ic.Anderson(tol=1e-11),
    ic.Broyden(tol=1e-11),
    ic.Broyden(tol=1e-11, memory=3),
    ic.Broyden(tol=1e-11, variant="bad"),
    ic.Newton(tol=1e-11),
    ic.SteadyState(tol=1e-9),
]
TIMES = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
TIGHT = ic.Tsit5(rtol=1e-8, atol=1e-10)
name = lambda part: type(part).__name__  # noqa: E731


def trained(backend, solver, gradient, *, second=False):
    """The root of a cell and the gradients of its square, or of the square of those."""
    cell, x = Cell(contraction=0.7), inputs().requires_grad_()
    solution = ic.fixed_point(
        cell, torch.zeros(8, 6, dtype=x.dtype), x, solver=solver, gradient=gradient, backend=backend
    ).raise_if_failed()
    wrt = [*cell.parameters(), x]
    first = torch.autograd.grad(solution.z.square().sum(), wrt, create_graph=second)
    if second:
        first = torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), wrt)
    return solution, first


@pytest.mark.parametrize("solver", ROOTS, ids=repr)
@pytest.mark.parametrize(
    "gradient",
    [ic.Implicit(ic.GMRES(tol=1e-11)), ic.Implicit(ic.BiCGSTAB(tol=1e-11)), ic.Unrolled()],
    ids=name,
)
def test_a_root_and_its_gradient(solver, gradient):
    backend = on_cpu(REVERSE)
    solution, found = trained(backend, solver, gradient)
    reference, expected = trained(REFERENCE, solver, gradient)
    assert torch.allclose(solution.z, reference.z, rtol=0, atol=1e-9)
    assert solution.steps.tolist() == reference.steps.tolist()
    assert relative_error(found, expected) < 1e-8
    assert launches(backend) or isinstance(gradient, ic.Unrolled)


def test_a_second_derivative():
    backend = on_cpu()
    options = ic.Anderson(tol=1e-12), ic.Implicit(ic.GMRES(tol=1e-12))
    found, expected = (trained(part, *options, second=True)[1] for part in (backend, REFERENCE))
    assert launches(backend)
    assert relative_error(found, expected) < 1e-8


@pytest.mark.parametrize(
    "solver", [TIGHT, ic.DOP853(rtol=1e-8, atol=1e-10), ic.Adams(rtol=1e-6, atol=1e-8)], ids=name
)
@pytest.mark.parametrize("gradient", [ic.Unrolled(), ic.Adjoint(TIGHT)], ids=name)
def test_a_trajectory_and_its_gradient(solver, gradient):
    problem, backend = logistic(), on_cpu(REVERSE)

    def solve(part):
        options = {"times": TIMES, "solver": solver, "gradient": gradient, "backend": part}
        solution = ic.integrate(problem.field, problem.z0, problem.x, **options).raise_if_failed()
        return solution, torch.autograd.grad(solution.z.square().sum(), problem.leaves)

    (solution, found), (reference, expected) = solve(backend), solve(REFERENCE)
    assert torch.allclose(solution.z, reference.z, rtol=0, atol=1e-9)
    assert relative_error(found, expected) < 1e-6
    with torch.no_grad():
        again = ic.integrate(
            problem.field, problem.z0, problem.x, times=TIMES, solver=solver, backend=backend
        )
    assert torch.allclose(again.z, reference.z, rtol=0, atol=1e-9)
    assert launches(backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_root_in_a_lower_precision(dtype):
    cell, x = Cell(dtype=dtype), inputs(dtype=dtype)
    exact = Cell()
    for solver in (
        ic.Anderson(tol=3 * torch.finfo(dtype).eps),
        ic.Broyden(tol=3 * torch.finfo(dtype).eps),
    ):
        backend = on_cpu()
        with torch.no_grad():
            solution = ic.fixed_point(cell, torch.zeros_like(x), x, solver=solver, backend=backend)
            right = ic.fixed_point(
                exact,
                torch.zeros(8, 6, dtype=torch.float64),
                x.double(),
                solver=ic.Anderson(tol=1e-12),
            )
        assert solution.z.dtype == dtype
        assert relative_error([solution.z], [right.z]) < 40 * torch.finfo(dtype).eps
        assert launches(backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_limited_memory_apply_of_broyden_against_a_dense_inverse(dtype):
    """-B g by inner_products, a triangular product and mix, where B is built in float64 as the
    method's definition says, update by update."""
    n, draw = 300, lambda *shape: torch.randn(*shape, dtype=torch.float64)
    matrix, offset, backend = (
        (0.4 * draw(n, n) / n**0.5).to(dtype),
        draw(3, n).to(dtype),
        on_cpu(REVERSE),
    )
    z, inverse = torch.zeros(3, n, dtype=dtype), -torch.eye(n, dtype=torch.float64).expand(3, n, n)
    g = offset
    with torch.no_grad():
        state = ic.Broyden(memory=12).init(SimpleNamespace(backend=backend), z)  # pyright: ignore[reportArgumentType]
        for _ in range(12):
            step = state.step(g.unsqueeze(1))
            expected = -(inverse @ g.double().unsqueeze(2))
            assert relative_error([step.mT], [expected]) < 200 * torch.finfo(dtype).eps
            z = z + step.squeeze(1)
            last, g = g, z @ matrix.T + offset - z
            s, y = step.double().mT, (g - last).double().unsqueeze(2)
            inverse = inverse + (s - inverse @ y) @ (s.mT @ inverse) / (s.mT @ inverse @ y)
    assert (
        launches(backend) == 1 + 3 * 11
    )  # two to learn from a step and to apply, one to mix; the first step is -g
