"""What a compiled layer does with CUDA graphs, as programs for any device: the suite runs them on a
GPU, and tests/graph/test_cuda_graphs.py on a CPU, where graphs are emulated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import implicitcore as ic
from implicitcore.testing.problems import Cell, inputs

N = 8
EQUILIBRIA: dict[str, tuple[Any, ...]] = {
    "picard": (ic.Picard(tol=1e-5, max_steps=200), ic.Picard(tol=1e-5, max_steps=200)),
    "anderson": (ic.Anderson(tol=1e-5), ic.Broyden(tol=1e-5)),
    "broyden": (ic.Broyden(tol=1e-5), ic.GMRES(tol=1e-5, restart=4)),
    "steady_state": (ic.SteadyState(ode_solver=ic.Tsit5(), tol=1e-4), ic.Anderson(tol=1e-5)),
}
TRAJECTORIES: dict[str, ic.ODESolver] = {
    "tsit5": ic.Tsit5(rtol=1e-4, atol=1e-6),
    "rk4": ic.RK4(dt=0.1),
}


class Field(nn.Module):
    """The velocity whose equilibrium is that of a cell."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, t: Tensor, z: Tensor, x: Tensor) -> Tensor:
        return self.cell(z, x) - z


def layer_of(name: str, device: str, dtype: torch.dtype) -> ic.ImplicitLayer:
    """A layer with one of the solvers above."""
    cell = Cell(N, contraction=0.8, dtype=dtype).to(device)
    if name in EQUILIBRIA:
        solver, adjoint = EQUILIBRIA[name]
        return ic.ImplicitLayer(ic.FixedPoint(cell), solver=solver, gradient=ic.Implicit(adjoint))
    options: dict[str, Any] = {"start": ic.Identity(), "gradient": ic.Checkpointed()}
    return ic.ImplicitLayer(ic.VectorField(Field(cell)), solver=TRAJECTORIES[name], **options)


def input_of(batch: int, device: str, dtype: torch.dtype) -> Tensor:
    return inputs(batch, N, dtype=dtype).to(device).requires_grad_()


def compare(eager: ic.ImplicitLayer, fast: Any, x: Tensor, times: Tensor | None) -> None:
    """One solve of both, and its gradient; one more of the compiled layer without."""
    wrt = [x, *eager.parameters()]
    found = []
    for module in (eager, fast):
        solution = module.solve(x, times=times)
        found.append((solution, torch.autograd.grad(solution.z.sin().sum(), wrt)))
    (expected, slopes), (solution, given) = found
    close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
    if x.dtype == torch.float32:
        close = {"rtol": 1e-3, "atol": 1e-4}
    with torch.no_grad():
        again = fast.solve(x, times=times)
    for each in (solution, again):
        assert torch.equal(each.status, expected.status), (each.status, expected.status)
        assert torch.equal(each.steps, expected.steps), (each.steps, expected.steps)
        torch.testing.assert_close(each.z, expected.z, **close)
    torch.testing.assert_close(given, slopes, **close)
    assert solution.backward.vjps == expected.backward.vjps


@torch.no_grad()
def trained(layer: nn.Module) -> None:
    """Each weight has another value where it is, as an optimizer leaves it."""
    for parameter in layer.parameters():
        parameter.mul_(0.9)


def as_the_layer(
    name: str, device: str, dtype: torch.dtype, times: Sequence[float] | None = None
) -> None:
    """Solves that are met once, recorded, and by graphs; other weights, another batch.

    The room for the steps of a trajectory shrinks in the first solves, which are of other sizes.
    """
    eager = layer_of(name, device, dtype)
    fast = ic.compile(eager)
    due = None if times is None else torch.tensor(times, dtype=dtype, device=device)
    for batch in (4, 3):
        x = input_of(batch, device, dtype)
        for _ in range(3 if name in EQUILIBRIA else 6):
            compare(eager, fast, x, due)
            trained(eager)
            x = (0.9 * x).detach().requires_grad_()


def solutions_stay(device: str) -> None:
    """What a solve gave is no memory of a graph."""
    fast = ic.compile(layer_of("picard", device, torch.float64))
    x = input_of(4, device, torch.float64)
    found = []
    for scale in (1.0, 0.5, -1.0, 2.0):
        z = fast(scale * x)
        found.append((z, z.detach().clone(), *torch.autograd.grad(z.sum(), x)))
        found[-1] = (*found[-1], found[-1][2].clone())
    for z, copy, slope, its_copy in found:
        assert torch.equal(z, copy) and torch.equal(slope, its_copy)
