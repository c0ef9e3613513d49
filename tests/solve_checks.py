"""Whole solves with a backend, on any device, against the torch backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from dense import Cell, inputs, relative_error
from torch import Tensor

import implicitcore as ic

REFERENCE = ic.TorchBackend()


@dataclass(frozen=True)
class Solves:
    """Whole solves and training gradients with a backend on a device, in float64: the torch
    backend's."""

    backend: ic.Backend
    device: str = "cpu"

    def equilibrium(self, solver: ic.RootSolver) -> None:
        gradient = ic.Implicit(ic.GMRES(tol=1e-11))
        self._compare(
            lambda cell, x, backend: ic.fixed_point(
                cell, torch.zeros_like(x), x, solver=solver, gradient=gradient, backend=backend
            )
        )

    def trajectory(self, solver: ic.ODESolver, gradient: ic.GradientStrategy) -> None:
        times = torch.tensor([0.0, 0.5], dtype=torch.float64, device=self.device)

        def integrate(cell: Cell, x: Tensor, backend: ic.Backend) -> Any:
            field = lambda t, z, x: cell(z, x) - z  # noqa: E731
            return ic.integrate(
                field,
                torch.zeros_like(x),
                x,
                times=times,
                solver=solver,
                gradient=gradient,
                backend=backend,
            )

        self._compare(integrate)

    def bfloat16(self, solver: ic.RootSolver) -> None:
        cell, x = (
            Cell(contraction=0.5, dtype=torch.bfloat16).to(self.device),
            inputs(dtype=torch.bfloat16).to(self.device),
        )
        with torch.no_grad():
            z, expected = (
                ic.fixed_point(cell, torch.zeros_like(x), x, solver=solver, backend=one).z
                for one in (self.backend, REFERENCE)
            )
        assert torch.allclose(z.float(), expected.float(), atol=0.05)

    def second_derivatives(self) -> None:
        cell, x = Cell(contraction=0.5).to(self.device), inputs(2).to(self.device).requires_grad_()
        solver, gradient = ic.Anderson(tol=1e-12), ic.Implicit(ic.GMRES(tol=1e-11))
        found = []
        for backend in (self.backend, REFERENCE):
            z = ic.fixed_point(
                cell, torch.zeros_like(x), x, solver=solver, gradient=gradient, backend=backend
            ).z
            (first,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
            found.append(torch.autograd.grad(first.square().sum(), x))
        assert relative_error(*found) < 1e-8

    def _compare(self, solve: Callable[[Cell, Tensor, ic.Backend], Any]) -> None:
        cell, x = Cell(contraction=0.5).to(self.device), inputs().to(self.device).requires_grad_()
        ours, reference = (solve(cell, x, backend) for backend in (self.backend, REFERENCE))
        assert torch.equal(ours.steps, reference.steps)
        assert torch.allclose(ours.z, reference.z, rtol=1e-9, atol=1e-12)
        gradients = [
            torch.autograd.grad(solution.z.square().sum(), [*cell.parameters(), x])
            for solution in (ours, reference)
        ]
        assert relative_error(*gradients) < 1e-9
