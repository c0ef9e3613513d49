"""Whole solves with a backend, on any device, against the torch backend in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.backends.torch import TorchBackend
from implicitcore.functional import fixed_point, integrate
from implicitcore.gradients.base import GradientStrategy
from implicitcore.gradients.implicit import Implicit
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.root_solvers.anderson import Anderson
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.gmres import GMRES
from implicitcore.testing.dense import relative_error
from implicitcore.testing.problems import Cell, inputs

REFERENCE = TorchBackend()


@dataclass(frozen=True)
class SolveChecks:
    """Solutions and gradients with a backend are those of the torch backend.

    Each method raises an ``AssertionError`` where they are not.

    Attributes:
        backend: what is checked.
        device: of all tensors.
    """

    backend: Backend
    device: str = "cpu"

    def equilibrium(self, solver: RootSolver) -> None:
        """The root, and its gradient by ``Implicit``."""
        gradient = Implicit(GMRES(tol=1e-11))
        self._compare(
            lambda cell, x, backend: fixed_point(
                cell,
                torch.zeros_like(x),
                x,
                solver=solver,
                gradient=gradient,
                backend=backend,
                on_failure="ignore",
            )
        )

    def trajectory(self, solver: ODESolver, gradient: GradientStrategy) -> None:
        """The state at t = 0.5, and its gradient."""
        times = torch.tensor([0.0, 0.5], dtype=torch.float64, device=self.device)

        def solve(cell: Cell, x: Tensor, backend: Backend) -> Any:
            field = lambda t, z, x: cell(z, x) - z  # noqa: E731
            return integrate(
                field,
                torch.zeros_like(x),
                x,
                times=times,
                solver=solver,
                gradient=gradient,
                backend=backend,
                on_failure="ignore",
            )

        self._compare(solve)

    def bfloat16(self, solver: RootSolver) -> None:
        """The root in bfloat16."""
        cell, x = (
            Cell(contraction=0.5, dtype=torch.bfloat16).to(self.device),
            inputs(dtype=torch.bfloat16).to(self.device),
        )
        with torch.no_grad():
            z, expected = (
                fixed_point(
                    cell, torch.zeros_like(x), x, solver=solver, backend=one, on_failure="ignore"
                ).z
                for one in (self.backend, REFERENCE)
            )
        assert torch.allclose(z.float(), expected.float(), atol=0.05)

    def second_derivatives(self) -> None:
        """The derivative of the squared gradient of a root."""
        cell, x = Cell(contraction=0.5).to(self.device), inputs(2).to(self.device).requires_grad_()
        solver, gradient = Anderson(tol=1e-12), Implicit(GMRES(tol=1e-11))
        found = []
        for backend in (self.backend, REFERENCE):
            z = fixed_point(
                cell,
                torch.zeros_like(x),
                x,
                solver=solver,
                gradient=gradient,
                backend=backend,
                on_failure="ignore",
            ).z
            (first,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
            found.append(torch.autograd.grad(first.square().sum(), x))
        assert relative_error(*found) < 1e-8

    def _compare(self, solve: Callable[[Cell, Tensor, Backend], Any]) -> None:
        cell, x = Cell(contraction=0.5).to(self.device), inputs().to(self.device).requires_grad_()
        ours, reference = (solve(cell, x, backend) for backend in (self.backend, REFERENCE))
        assert torch.equal(ours.steps, reference.steps)
        assert torch.allclose(ours.z, reference.z, rtol=1e-9, atol=1e-12)
        gradients = [
            torch.autograd.grad(solution.z.square().sum(), [*cell.parameters(), x])
            for solution in (ours, reference)
        ]
        assert relative_error(*gradients) < 1e-9
