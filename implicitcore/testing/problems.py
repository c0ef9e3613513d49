"""The problems that parts are checked on: every legitimate part of a kind solves them. And their solutions, computed densely in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from implicitcore.dynamics.fixed_point import FixedPoint
from implicitcore.packing import Packing
from implicitcore.system import System


class Cell(nn.Module):
    """f(z, x) = tanh(W z + U x + b) with ``|W|`` = ``contraction`` in the 2-norm: one fixed point, known to exist.

    Arguments:
        n: entries of z and of x.
        contraction: at most this much nearer to each other come the images of two states.
        seed: of the weights.
        dtype: of the weights.
    """

    def __init__(self, n: int = 6, contraction: float = 0.6, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        weight = draw(n, n)
        self.weight = nn.Parameter((contraction * weight / torch.linalg.matrix_norm(weight, 2)).to(dtype))
        self.inject = nn.Parameter((draw(n, n) / n**0.5).to(dtype))
        self.bias = nn.Parameter(draw(n).mul(0.1).to(dtype))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """f(z, x), ``[batch, n]``."""
        return torch.tanh(z @ self.weight.T + x @ self.inject.T + self.bias)


def inputs(batch: int = 8, n: int = 6, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Samples of the normal distribution, ``[batch, n]``."""
    return torch.randn(batch, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def system_of(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, z0: Tensor) -> System:
    """The fixed-point problem z = f(z, x) as solvers see it."""
    return System(FixedPoint(f), x, Packing.of(z0))


def fixed_point(f: Callable[[Tensor], Tensor], z: Tensor, steps: int = 50) -> Tensor:
    """The root of z = f(z) near z, by Newton's method with the dense Jacobian, one sample at a time."""
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
    """df/dz of each sample, ``[batch, n, n]``."""
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
