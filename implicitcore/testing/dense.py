"""Dense float64 references: Jacobians as matrices, linear systems by LU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def jacobians(f: Map, z: Tensor) -> Tensor:
    """df/dz of each sample of an f that does not mix them, ``[batch, n, n]``, with a graph."""
    # The sum over the samples has the gradient of each.
    return torch.autograd.functional.jacobian(
        lambda point: f(point).sum(0), z, create_graph=True
    ).transpose(0, 1)  # pyright: ignore


def newton_step(f: Map, z: Tensor) -> Tensor:
    """z + (I - J)^-1 (f(z) - z), differentiable."""
    identity = torch.eye(z.shape[1], dtype=z.dtype)
    return z + torch.linalg.solve(identity - jacobians(f, z), f(z) - z)


def fixed_point(f: Map, z: Tensor, steps: int = 50) -> Tensor:
    """The root of z = f(z) near z, by Newton's method, without a graph."""
    for _ in range(steps):
        before, z = z, newton_step(f, z).detach()
        if bool(((z - before).norm(dim=1) <= 1e-15 * z.norm(dim=1)).all()):
            break
    return z


def differentiable_root(f: Map, z: Tensor) -> Tensor:
    """The root near z, with derivatives of the first and the second order.

    Two steps from the root have them exactly.
    """
    return newton_step(f, newton_step(f, fixed_point(f, z)))


def implicit_gradient(f: Map, z: Tensor, v: Tensor, wrt: Sequence[Tensor]) -> list[Tensor]:
    """The implicit gradient by LU: u^T df/d(wrt) with (I - J)^T u = v, at the fixed point z."""
    identity = torch.eye(z.shape[1], dtype=z.dtype)
    u = torch.linalg.solve((identity - jacobians(f, z).detach()).transpose(1, 2), v)
    return list(torch.autograd.grad(f(z), wrt, u, retain_graph=True))


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative error of any tensor, in the 2-norm."""
    return max(
        ((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)
    )
