"""The residual of a returned z, measured apart: in float64, with none of the library's code.

Rounding of the problem's own dtype is allowed, and nothing else. What it is, is seen and not
bounded by a formula: how far f in the dtype, at the returned z and at ``NEAR`` points whose numbers
and parameters are within two units of rounding of the true ones, is from f in float64 at z;
``ROUNDING`` times the farthest of them, and as many units of the size of f(z) and of z, of which a
residual may be the difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from honesty.problems import WIDE, Problem

NEAR, ROUNDING = 3, 4.0


@dataclass(frozen=True)
class Measured:
    """What is so at a z, per sample, in float64.

    Attributes:
        residual: ``|f(z) - z|``, or ``|g(z)|``.
        scale: what a relative tolerance is relative to.
        start: the residual at the start.
        start_scale: the scale there.
        rounding: how far a residual in the problem's dtype may be from this one.
    """

    residual: Tensor
    scale: Tensor
    start: Tensor
    start_scale: Tensor
    rounding: Tensor

    def limit(self, tol: float, atol: float) -> Tensor:
        """Above which no sample has converged."""
        return tol * self.scale + atol + self.rounding

    def clear(self, tol: float, atol: float) -> Tensor:
        """Below which a sample has converged beyond doubt, whatever it was compared with."""
        scale = torch.minimum(self.scale, self.start_scale)
        return 0.5 * (tol * scale + atol) - self.rounding


def size(v: Tensor) -> Tensor:
    """2-norm of each row, whatever the size of its entries."""
    largest = v.abs().amax(1)
    unit = torch.where((largest > 0) & largest.isfinite(), largest, 1)
    # Absolute values first: a complex quotient by a subnormal number is NaN.
    return (v.abs() / unit[:, None]).square().sum(1).sqrt() * unit


def measure(problem: Problem, z: Tensor) -> Measured:
    """What is so at ``z``, ``[batch, n]`` in the problem's dtype."""
    exact = problem.wide()
    start, start_scale = _residual(problem, exact, problem.z0, None)
    residual, scale = _residual(problem, exact, z, start)
    return Measured(residual, scale, start, start_scale, rounding(problem, exact, z))


def _residual(
    problem: Problem, exact: Problem, z: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The residual at z, and the scale of its tolerance."""
    wide = z.to(exact.z0.dtype)
    value = _value(problem, exact, z)
    if exact.call == "fixed_point":
        return size(value - wide), size(value)
    residual = size(value)
    reach = torch.minimum(residual if start is None else start, size(wide + value))
    return residual, reach.clamp(min=1)


def _value(problem: Problem, exact: Problem, z: Tensor) -> Tensor:
    """f(z) in float64; at the edge of the domain of f, where rounding leaves it, as it is there."""
    wide = z.to(exact.z0.dtype)
    value = exact.f(wide, exact.parameters)
    rounded = problem.f(z, problem.parameters).to(wide.dtype)
    return torch.where(value.isfinite().all(1, keepdim=True), value, rounded)


def rounding(problem: Problem, exact: Problem, z: Tensor) -> Tensor:
    """How far a residual at z in the problem's dtype may be from the exact one."""
    generator = torch.Generator().manual_seed(0)
    info, wide = torch.finfo(z.dtype), z.to(exact.z0.dtype)
    right = _value(problem, exact, z)
    worst = torch.zeros(len(z), dtype=torch.float64)
    for number in range(NEAR + 1):
        share = 2 * info.eps if number else 0.0
        parameters = tuple(_near(each, share, generator) for each in problem.parameters)
        found = problem.f(_near(z, share, generator), parameters).to(wide.dtype)
        worst = torch.maximum(worst, size(found - right).nan_to_num(0, 0, 0))
    reach = size(right) + size(wide) if problem.call == "fixed_point" else size(right)
    tiny = info.tiny * info.eps * z.shape[1]
    return ROUNDING * (worst + info.eps * reach.nan_to_num(0, 0, 0) + tiny)


def _near(tensor: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The tensor with each number changed by at most this share of it."""
    draw = 2 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 1
    wide = tensor.to(WIDE[tensor.is_complex()])
    return (wide * (1 + share * draw)).to(tensor.dtype)
