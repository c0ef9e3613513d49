"""Trajectories in closed form. Their gradients are autograd's, taken through the formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """dz/dt = field(t, z, x), and ``exact(t, z0, x)`` with z(0) = z0.

    Every tensor that the solution depends on is a leaf that requires a gradient.
    """

    name: str
    field: Callable[[Tensor, Tensor, Tensor], Tensor]
    exact: Callable[[Tensor, Tensor, Tensor], Tensor]
    z0: Tensor
    x: Tensor
    captured: tuple[Tensor, ...] = ()

    @property
    def leaves(self) -> list[Tensor]:
        return [self.z0, self.x, *self.captured]

    def trajectory(self, times: Tensor, z0: Tensor | None = None) -> Tensor:
        """[T, batch, n]."""
        return torch.stack([self.exact(t, self.z0 if z0 is None else z0, self.x) for t in times])

    def __str__(self) -> str:
        return self.name


def logistic(batch: int = 8, fastest: float = 4.0) -> Problem:
    """dz/dt = x z (1 - z / K): each sample has a rate of its own, K is captured."""
    draw = _draws(batch)
    ceiling = torch.tensor([1.5, 2.0, 3.0], dtype=torch.float64).requires_grad_()
    rate = torch.logspace(-1, 0, batch, dtype=torch.float64)[:, None].mul(fastest).requires_grad_()
    return Problem(
        "logistic",
        lambda t, z, x: x * z * (1 - z / ceiling),
        lambda t, z, x: ceiling / (1 + (ceiling / z - 1) * torch.exp(-x * t)),
        draw(batch, 3).sigmoid().add(0.1).requires_grad_(),  # below K: else the way back blows up
        rate,
        (ceiling,),
    )


def driven(batch: int = 8) -> Problem:
    """dz/dt = theta cos(t) z + x: the time matters, and going back is as easy as going on."""
    draw = _draws(batch)
    theta = draw(1, 4).requires_grad_()
    return Problem(
        "driven",
        lambda t, z, x: theta * torch.cos(t) * z + x * torch.exp(theta * torch.sin(t)),
        lambda t, z, x: torch.exp(theta * torch.sin(t)) * (z + x * t),
        draw(batch, 4).requires_grad_(),
        draw(batch, 4).requires_grad_(),
        (theta,),
    )


def linear(batch: int = 8) -> Problem:
    """dz/dt = W z + x: the matrix exponential."""
    draw = _draws(batch)
    weight = draw(3, 3).mul(0.7).requires_grad_()

    def exact(t: Tensor, z: Tensor, x: Tensor) -> Tensor:
        top = torch.cat((weight.expand(len(z), 3, 3), x[:, :, None]), 2)
        flow = torch.matrix_exp(torch.cat((top, torch.zeros(len(z), 1, 4, dtype=z.dtype)), 1) * t)
        return (flow @ torch.cat((z, torch.ones(len(z), 1, dtype=z.dtype)), 1)[:, :, None])[
            :, :3, 0
        ]

    z0, x = draw(batch, 3).requires_grad_(), draw(batch, 3).requires_grad_()
    return Problem("linear", lambda t, z, x: z @ weight.T + x, exact, z0, x, (weight,))


def trajectories() -> list[Problem]:
    """All of them."""
    return [logistic(), driven(), linear()]


def _draws(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
