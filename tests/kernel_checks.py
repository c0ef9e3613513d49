"""A backend's kernels and whole solves against the torch backend, on any device: what the tests of each backend share.

Kernels agree entry by entry, relative to the sum of the magnitudes of what is added up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from dense import Cell, inputs, relative_error
from torch import Tensor

import implicitcore as ic

REFERENCE = ic.TorchBackend()
DTYPES = {torch.float32: 2e-6, torch.float64: 4e-15, torch.bfloat16: 2**-6}
"""Rounding that is allowed: of the reference too, which rounds each intermediate bfloat16, and of an interpreter that cuts it off."""
RTOL, ATOL = 1e-3, 1e-6


def agree(found: Tensor, expected: Tensor, size: Tensor, added: int = 1) -> None:
    """Both sum up so many numbers, whose roundings add up as a random walk."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    rounding = DTYPES[found.dtype] * size.double() * max(1.0, (added / 1000) ** 0.5)
    assert bool(((found.double() - expected.double()).abs() <= rounding).all())


@dataclass(frozen=True)
class Kernels:
    """The kernels of a backend on a device."""

    backend: ic.Backend
    device: str = "cpu"

    def draw(self, *shape: int, dtype: torch.dtype, aligned: bool = True) -> Tensor:
        """Contiguous; unaligned, it begins one entry after a multiple of 16 bytes."""
        entries = torch.randn(torch.Size(shape).numel() + 1, device=self.device).to(dtype)
        return entries[:-1].view(shape) if aligned else entries[1:].view(shape)

    def lines(self, batch: int, depth: int, n: int, dtype: torch.dtype) -> Tensor:
        """A history that is a part of a larger one, in every dimension."""
        return self.draw(batch, depth + 2, 2 * n + 3, dtype=dtype)[:, 1:-1, n + 1 : 2 * n + 1]

    def residual(self, batch: int, n: int, dtype: torch.dtype, aligned: bool = True) -> None:
        fz, z, out = (self.draw(batch, n, dtype=dtype, aligned=aligned) for _ in range(3))
        found, expected = self.backend.residual(fz, z, out), REFERENCE.residual(fz, z)
        assert found.value is out
        agree(out, expected.value, fz.abs() + z.abs())
        agree(found.norm, out.to(found.norm.dtype).norm(dim=1), expected.norm, n)
        agree(found.update_norm, expected.update_norm, expected.update_norm, n)

    def gram_row(self, batch: int, n: int, dtype: torch.dtype, depth: int = 5) -> None:
        history, row = self.lines(batch, depth, n, dtype), self.lines(batch, 1, n, dtype)
        size = REFERENCE.gram_row(history.abs(), row.abs())
        agree(self.backend.gram_row(history, row), REFERENCE.gram_row(history, row), size, n)

    def mix(self, batch: int, n: int, dtype: torch.dtype, depth: int = 5) -> None:
        history, weights, row = self.lines(batch, depth, n, dtype), self.draw(batch, 1, depth, dtype=dtype), self.lines(batch, 1, n, dtype)
        scale = -0.3
        size = REFERENCE.mix(row.abs(), weights.abs(), history.abs(), -scale)
        expected = REFERENCE.mix(row, weights, history, scale)
        agree(self.backend.mix(row, weights, history, scale), expected, size)
        agree(self.backend.mix(None, weights, history, scale), REFERENCE.mix(None, weights, history, scale), size)
        found = self.backend.mix(row, weights, history, scale, out=row)
        assert found is row
        agree(row, expected, size)

    def combine(self, batch: int, n: int, dtype: torch.dtype, count: int = 7, aligned: bool = True) -> None:
        z, *stages = (self.draw(batch, n, dtype=dtype, aligned=aligned) for _ in range(count + 1))
        dt = torch.rand(batch, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=self.device)
        weights = [(-1) ** i / (i + 3) for i in range(count)]
        magnitudes = [stage.abs() for stage in stages], [abs(weight) for weight in weights]
        for base in (z, None):
            size = REFERENCE.combine(None if base is None else base.abs(), dt, *magnitudes)
            agree(self.backend.combine(base, dt, stages, weights), REFERENCE.combine(base, dt, stages, weights), size)

    def error_norm(self, batch: int, n: int, dtype: torch.dtype, aligned: bool = True) -> None:
        z, z_next, error = (self.draw(batch, n, dtype=dtype, aligned=aligned) for _ in range(3))
        for atol in (ATOL, 0.0):  # without it, what lies beyond a sample is zero over zero
            expected = REFERENCE.error_norm(error, z, z_next, RTOL, atol)
            agree(self.backend.error_norm(error, z, z_next, RTOL, atol), expected, expected, n)

    def not_a_number(self, n: int) -> None:
        """It reaches its own sample, and no other."""
        only = [False, True, False]
        for place in range(3):
            tensors = [self.draw(3, n, dtype=torch.float64) for _ in range(3)]
            tensors[place][1, -1] = torch.nan
            assert self.backend.error_norm(*tensors, RTOL, ATOL).isnan().tolist() == only
        z = self.draw(3, n, dtype=torch.float64)
        fz = z.clone()
        fz[1, 0] = torch.nan
        assert self.backend.residual(fz, z).norm.isnan().tolist() == only


@dataclass(frozen=True)
class Solves:
    """Whole solves and training gradients with a backend on a device, in float64: the torch backend's."""

    backend: ic.Backend
    device: str = "cpu"

    def equilibrium(self, solver: ic.RootSolver) -> None:
        gradient = ic.Implicit(ic.GMRES(tol=1e-11))
        self._compare(
            lambda cell, x, backend: ic.fixed_point(cell, torch.zeros_like(x), x, solver=solver, gradient=gradient, backend=backend)
        )

    def trajectory(self, solver: ic.ODESolver, gradient: ic.GradientStrategy) -> None:
        times = torch.tensor([0.0, 0.5], dtype=torch.float64, device=self.device)

        def integrate(cell: Cell, x: Tensor, backend: ic.Backend) -> Any:
            field = lambda t, z, x: cell(z, x) - z  # noqa: E731
            return ic.integrate(field, torch.zeros_like(x), x, times=times, solver=solver, gradient=gradient, backend=backend)

        self._compare(integrate)

    def bfloat16(self, solver: ic.RootSolver) -> None:
        cell, x = Cell(contraction=0.5, dtype=torch.bfloat16).to(self.device), inputs(dtype=torch.bfloat16).to(self.device)
        with torch.no_grad():
            z, expected = (ic.fixed_point(cell, torch.zeros_like(x), x, solver=solver, backend=one).z for one in (self.backend, REFERENCE))
        assert torch.allclose(z.float(), expected.float(), atol=0.05)

    def second_derivatives(self) -> None:
        cell, x = Cell(contraction=0.5).to(self.device), inputs(2).to(self.device).requires_grad_()
        solver, gradient = ic.Anderson(tol=1e-12), ic.Implicit(ic.GMRES(tol=1e-11))
        found = []
        for backend in (self.backend, REFERENCE):
            z = ic.fixed_point(cell, torch.zeros_like(x), x, solver=solver, gradient=gradient, backend=backend).z
            (first,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
            found.append(torch.autograd.grad(first.square().sum(), x))
        assert relative_error(*found) < 1e-8

    def _compare(self, solve: Callable[[Cell, Tensor, ic.Backend], Any]) -> None:
        cell, x = Cell(contraction=0.5).to(self.device), inputs().to(self.device).requires_grad_()
        ours, reference = (solve(cell, x, backend) for backend in (self.backend, REFERENCE))
        assert torch.equal(ours.steps, reference.steps)
        assert torch.allclose(ours.z, reference.z, rtol=1e-9, atol=1e-12)
        gradients = [torch.autograd.grad(solution.z.square().sum(), [*cell.parameters(), x]) for solution in (ours, reference)]
        assert relative_error(*gradients) < 1e-9
