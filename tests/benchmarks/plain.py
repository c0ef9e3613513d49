"""The loops that a careful user writes by hand: no history of residuals, no best iterate, no
status.

Anderson and the backward hook follow the tutorial of Kolter, Duvenaud and Johnson, Deep Implicit
Layers (2020), chapter 4; the stop test is that of the other contenders, the worst sample's relative
residual.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.problem import Outcome, Problem, sample_norm

Solve = Callable[[Callable[[Tensor], Tensor], Tensor, float, int], Tensor]


def picard(f: Callable[[Tensor], Tensor], z: Tensor, tol: float, limit: int) -> Tensor:
    for _ in range(limit):
        z, last = f(z), z
        if (sample_norm(z - last) <= tol * sample_norm(z)).all():
            break
    return z


def anderson(
    f: Callable[[Tensor], Tensor],
    z: Tensor,
    tol: float,
    limit: int,
    depth: int = 5,
    ridge: float = 1e-4,
) -> Tensor:
    batch, shape = len(z), z.shape
    points = z.new_zeros(batch, depth, z[0].numel())
    values = torch.zeros_like(points)
    matrix = z.new_zeros(batch, depth + 1, depth + 1)
    matrix[:, 0, 1:] = matrix[:, 1:, 0] = 1
    right = z.new_zeros(batch, depth + 1, 1)
    right[:, 0] = 1
    points[:, 0], values[:, 0] = z.flatten(1), f(z).flatten(1)
    points[:, 1], values[:, 1] = values[:, 0], f(values[:, 0].view(shape)).flatten(1)
    slot = 1
    for k in range(2, limit):
        used, slot = min(k, depth), k % depth
        g = values[:, :used] - points[:, :used]
        matrix[:, 1 : used + 1, 1 : used + 1] = torch.bmm(g, g.transpose(1, 2)) + ridge * torch.eye(
            used, dtype=z.dtype, device=z.device
        )
        alpha = torch.linalg.solve(matrix[:, : used + 1, : used + 1], right[:, : used + 1])[
            :, 1:, 0
        ]
        points[:, slot] = torch.bmm(alpha[:, None], values[:, :used])[:, 0]
        values[:, slot] = f(points[:, slot].view(shape)).flatten(1)
        if (
            sample_norm(values[:, slot] - points[:, slot]) <= tol * sample_norm(values[:, slot])
        ).all():
            break
    return values[:, slot].view(shape)


def implicit(solve: Solve, problem: Problem, tol: float) -> Callable[[], Outcome]:
    """The step: solve without a graph, one evaluation with it, and the adjoint solved by the same
    loop in a hook."""
    f, x, budget = problem.f, problem.x, problem.budget

    def step() -> Outcome:
        with torch.no_grad():
            z = solve(lambda z: f(z, x), problem.z0, tol, budget)
        z = f(z, x)
        point = z.detach().requires_grad_()
        fz = f(point, x)
        z.register_hook(
            lambda v: solve(
                lambda u: torch.autograd.grad(fz, point, u, retain_graph=True)[0] + v,
                v,
                tol,
                budget,
            ),
        )
        return Outcome(z, problem.gradients(z))

    return step
