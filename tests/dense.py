"""Dense float64 computations that the tests compare with: Jacobians as matrices, linear systems by LU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Cell(nn.Module):
    """f(z, x) = tanh(W z + U x + b) with |W| = ``contraction`` in the 2-norm: one fixed point, known to exist."""

    def __init__(self, n: int = 6, contraction: float = 0.6, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        weight = draw(n, n)
        self.weight = nn.Parameter((contraction * weight / torch.linalg.matrix_norm(weight, 2)).to(dtype))
        self.inject = nn.Parameter((draw(n, n) / n**0.5).to(dtype))
        self.bias = nn.Parameter(draw(n).mul(0.1).to(dtype))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ self.weight.T + x @ self.inject.T + self.bias)


def inputs(batch: int = 8, n: int = 6, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def fixed_point(f: Callable[[Tensor], Tensor], z: Tensor, steps: int = 50) -> Tensor:
    """Newton's method with the dense Jacobian, one sample at a time."""
    rows = []
    for i in range(z.shape[0]):
        point = z[i].detach()
        for _ in range(steps):
            single = lambda p, i=i: f(torch.cat((z[:i], p[None], z[i + 1 :])))[i]  # noqa: E731
            jacobian = torch.func.jacrev(single)(point)
            step = torch.linalg.solve(torch.eye(len(point), dtype=point.dtype) - jacobian, single(point) - point).detach()
            point = point + step
            if step.norm() <= 1e-15 * point.norm():
                break
        rows.append(point)
    return torch.stack(rows)


def jacobians(f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """df/dz of each sample, [batch, n, n]."""
    full = torch.func.jacrev(f)(z)
    return torch.stack([full[i, :, i] for i in range(z.shape[0])]).detach()


def implicit_gradient(f: Callable[[Tensor], Tensor], z: Tensor, v: Tensor, wrt: Sequence[Tensor]) -> list[Tensor]:
    """u^T df with (I - J)^T u = v, at the fixed point z."""
    identity = torch.eye(z.shape[1], dtype=z.dtype)
    u = torch.linalg.solve((identity - jacobians(f, z)).transpose(1, 2), v)
    return list(torch.autograd.grad(f(z), wrt, u, retain_graph=True))


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative error of any tensor, in the 2-norm."""
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True))
