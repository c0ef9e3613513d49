"""Precision, autocast, memory formats, modes and empty batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import implicitcore as ic
from implicitcore.testing.dense import relative_error
from implicitcore.testing.problems import Cell, inputs

SOLVERS = [
    ic.Picard(tol=1e-2, max_steps=100),
    ic.Anderson(tol=1e-2),
    ic.Broyden(tol=1e-2),
    ic.Newton(tol=1e-2),
    ic.SteadyState(tol=1e-2, max_steps=200),
    ic.Chain((ic.Anderson(tol=1e-2), ic.Newton(tol=1e-2))),
]
GRADIENTS = [
    ic.Implicit(ic.GMRES(tol=1e-2)),
    ic.Implicit(ic.Anderson(tol=1e-2)),
    ic.Implicit(ic.BiCGSTAB(tol=1e-2)),
    ic.Phantom(steps=8),
    ic.Unrolled(),
]


def name(part):
    return type(part).__name__ + type(getattr(part, "solver", None)).__name__.replace(
        "NoneType", ""
    )


def values(layer, x):
    x = x.detach().requires_grad_()
    z = layer(x)
    return [z, *torch.autograd.grad(z.float().square().sum(), [*layer.parameters(), x])]


def exact(dtype=torch.float64, **options):
    layer = ic.ImplicitLayer(
        ic.FixedPoint(Cell(**options)),
        solver=ic.Newton(tol=1e-12),
        gradient=ic.Implicit(ic.GMRES(tol=1e-12)),
    )
    return values(layer, inputs())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("gradient", GRADIENTS, ids=name)
@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_every_floating_point_dtype(solver, gradient, dtype):
    layer = ic.ImplicitLayer(ic.FixedPoint(Cell(dtype=dtype)), solver=solver, gradient=gradient)
    found = values(layer, inputs(dtype=dtype))
    assert all(tensor.dtype == dtype for tensor in found)
    assert relative_error(found, exact()) < 0.06
    solution = layer.solve(inputs(dtype=dtype))
    assert isinstance(solution, ic.Solution)
    assert solution.residual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_half_precision_do_not_overflow(dtype):
    big = torch.full((2, 4096), 2000.0, dtype=dtype)  # |z| = 128000 is beyond float16
    solution = ic.fixed_point(
        lambda z, x: 0.5 * z + 0.5 * x,
        torch.zeros_like(big),
        big,
        solver=ic.Anderson(tol=1e-2),
        on_failure="ignore",
    )
    assert bool(solution.converged.all()) and bool(solution.residual.isfinite().all())
    assert torch.allclose(solution.z, big, rtol=0.05)


@pytest.mark.parametrize("gradient", GRADIENTS, ids=name)
@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_autocast(solver, gradient):
    layer = ic.ImplicitLayer(ic.FixedPoint(LinearCell()), solver=solver, gradient=gradient)
    expected = values(layer, inputs(dtype=torch.float32))
    x = inputs(dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        z = layer(x)
        inside = torch.autograd.grad(z.square().sum(), [*layer.parameters(), x], retain_graph=True)
    assert z.dtype == torch.float32
    found = torch.autograd.grad(z.square().sum(), [*layer.parameters(), x])
    assert all(tensor.dtype == torch.float32 for tensor in found)
    assert relative_error([z, *found], expected) < 0.06
    assert relative_error(inside, found) < 1e-2


class LinearCell(nn.Module):
    """f runs in the low precision throughout; it keeps the dtypes it saw."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.state, self.input = nn.Linear(6, 6), nn.Linear(6, 6)
        self.seen = []

    def forward(self, z, x):
        value = self.state(0.7 * z) + self.input(x)
        self.seen.append(value.dtype)
        return torch.tanh(value)


def test_autocast_keeps_the_state_between_low_precision_modules():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 6),
        ic.ImplicitLayer(ic.FixedPoint(LinearCell()), solver=SOLVERS[1]),
        nn.Linear(6, 2),
    )
    seen = []
    model[1].register_forward_hook(lambda module, args, z: seen.extend((args[0].dtype, z.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        model(inputs(dtype=torch.float32)).sum().backward()
    assert seen == [torch.bfloat16, torch.float32]
    assert all(
        parameter.grad is not None and parameter.grad.dtype == torch.float32
        for parameter in model.parameters()
    )


def test_autocast_masks_a_failed_sample_of_a_low_precision_input():
    x = inputs(dtype=torch.bfloat16)
    x[2] = torch.nan
    layer = ic.ImplicitLayer(ic.FixedPoint(LinearCell()), solver=SOLVERS[1], on_failure="mask")
    with torch.autocast("cpu", torch.bfloat16):
        z = layer(x)
    assert z.dtype == torch.float32 and not z[2].any() and bool(z.isfinite().all())


def test_autocast_is_for_f_alone_and_returns_in_backward():
    cell, x = LinearCell(), inputs(dtype=torch.float32).requires_grad_()
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=ic.Tsit5(), gradient=ic.Adjoint())
    with torch.autocast("cpu", torch.bfloat16):
        z = layer(x)
    count = len(cell.seen)
    z.sum().backward()
    assert len(cell.seen) > count and set(cell.seen) == {torch.bfloat16}
    tight = ic.Anderson(tol=1e-6, max_steps=100)
    with torch.autocast("cpu", torch.bfloat16):
        solution = ic.fixed_point(
            lambda z, x: 0.5 * z + x,
            torch.zeros(3, 6),
            x.detach()[:3],
            solver=tight,
            on_failure="ignore",
        )
    assert bool(solution.converged.all())


@pytest.mark.parametrize("gradient", GRADIENTS, ids=name)
@pytest.mark.parametrize("solver", [*SOLVERS, ic.Tsit5(), ic.ESDIRK(), ic.RadauIIA5()], ids=name)
def test_inference_mode(solver, gradient):
    if isinstance(solver, ic.ODESolver) and not isinstance(gradient, ic.Unrolled):
        pytest.skip("differentiates an equilibrium")
    layer, x = ic.ImplicitLayer(ic.FixedPoint(Cell()), solver=solver, gradient=gradient), inputs()
    with torch.no_grad():
        expected = layer(x)
    with torch.inference_mode():
        z = layer(x)
        assert torch.equal(z, expected) and not z.requires_grad
        assert torch.equal(layer(x.clone()), expected)  # an inference tensor as the input
    assert torch.allclose(layer(x), expected, rtol=1e-2)  # with a graph, afterwards


def test_the_jacobian_in_inference_mode():
    cell, x = Cell(), inputs()
    with torch.inference_mode():
        radius = ic.spectral_radius(
            cell, x.clone(), x.clone(), generator=torch.Generator().manual_seed(0)
        )
    assert torch.equal(
        radius, ic.spectral_radius(cell, x, x, generator=torch.Generator().manual_seed(0))
    )
    assert bool((radius > 0.1).all())


class ConvCell(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, z, x):
        return torch.tanh(0.5 * self.conv(z) + x)


@pytest.mark.parametrize("gradient", GRADIENTS, ids=name)
@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_channels_last(solver, gradient):
    layer = ic.ImplicitLayer(ic.FixedPoint(ConvCell()), solver=solver, gradient=gradient)
    x = torch.randn(3, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = values(layer, x)
    found = values(layer, x.to(memory_format=torch.channels_last))
    assert relative_error(found, expected) < 1e-3
    found = values(
        layer.to(memory_format=torch.channels_last),  # pyright: ignore[reportCallIssue] - not in torch's stub
        x.to(memory_format=torch.channels_last),
    )
    assert relative_error(found, expected) < 1e-3


@pytest.mark.parametrize(
    "gradient", [*GRADIENTS, ic.Neumann(), ic.Adjoint(), ic.Checkpointed()], ids=name
)
@pytest.mark.parametrize(
    "solver",
    [
        *SOLVERS,
        ic.Picard(compact=True),
        ic.Homotopy(),
        ic.PseudoTransient(),
        ic.Tsit5(),
        ic.ESDIRK(),
        ic.Kvaerno5(),
        ic.RadauIIA5(),
    ],
    ids=name,
)
def test_an_empty_batch(solver, gradient):
    trajectory = isinstance(solver, ic.ODESolver)
    if trajectory != isinstance(gradient, (ic.Adjoint, ic.Checkpointed)) and not isinstance(
        gradient, ic.Unrolled
    ):
        pytest.skip("no such pair")
    layer = ic.ImplicitLayer(ic.FixedPoint(Cell()), solver=solver, gradient=gradient)
    x = inputs(batch=0).requires_grad_()
    solution = layer.solve(x)
    assert solution.z.shape == (0, 6) and solution.status.shape == solution.steps.shape == (0,)
    layer(x).sum().backward()
    assert x.grad is None or x.grad.shape == (0, 6)
    assert all(p.grad is None or not p.grad.any() for p in layer.parameters())
