"""Trajectories in closed form.

The reference gradients are autograd's, taken through the formula.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from implicitcore.testing.problems import Driven, draws


@dataclass(frozen=True)
class ClosedForm:
    """dz/dt = field(t, z, x) with a known solution.

    Every tensor that the solution depends on is a leaf that requires a gradient.

    Attributes:
        name: in test ids.
        field: the velocity.
        exact: ``exact(t, z0, x)`` is z(t) with z(0) = z0, ``[batch, n]``.
        z0: ``[batch, n]``, float64.
        x: the input, batch first.
        captured: the other tensors that the field depends on.
    """

    name: str
    field: Callable[[Tensor, Tensor, Tensor], Tensor]
    exact: Callable[[Tensor, Tensor, Tensor], Tensor]
    z0: Tensor
    x: Tensor
    captured: tuple[Tensor, ...] = ()

    @property
    def leaves(self) -> list[Tensor]:
        """z0, x and the captured tensors."""
        return [self.z0, self.x, *self.captured]

    def trajectory(self, times: Tensor, z0: Tensor | None = None) -> Tensor:
        """The states at the times, ``[T, batch, n]``, differentiable."""
        return torch.stack([self.exact(t, self.z0 if z0 is None else z0, self.x) for t in times])

    def __str__(self) -> str:
        return self.name


def logistic(batch: int = 8, fastest: float = 4.0) -> ClosedForm:
    """dz/dt = x z (1 - z / K): the rate x differs between samples, K is captured."""
    draw = draws(batch)
    capacity = torch.tensor([1.5, 2.0, 3.0], dtype=torch.float64).requires_grad_()
    rate = torch.logspace(-1, 0, batch, dtype=torch.float64)[:, None].mul(fastest).requires_grad_()
    # Below K, where backward integration is bounded.
    z0 = draw(batch, 3).sigmoid().add(0.1).requires_grad_()
    return ClosedForm(
        "logistic",
        lambda t, z, x: x * z * (1 - z / capacity),
        lambda t, z, x: capacity / (1 + (capacity / z - 1) * torch.exp(-x * t)),
        z0,
        rate,
        (capacity,),
    )


def driven(batch: int = 8) -> ClosedForm:
    """:class:`~implicitcore.testing.problems.Driven`: the field depends on the time."""
    draw, field = draws(batch), Driven(4, seed=batch)
    draw(*field.theta.shape)  # theta is the first draw of this seed
    z0, x = draw(batch, 4).requires_grad_(), draw(batch, 4).requires_grad_()
    return ClosedForm("driven", field, field.state, z0, x, (field.theta,))


def linear(batch: int = 8) -> ClosedForm:
    """dz/dt = W z + x, solved by the matrix exponential."""
    draw = draws(batch)
    weight = draw(3, 3).mul(0.7).requires_grad_()

    def exact(t: Tensor, z: Tensor, x: Tensor) -> Tensor:
        ones = torch.ones(len(z), 1, dtype=z.dtype)
        top = torch.cat((weight.expand(len(z), 3, 3), x[:, :, None]), 2)
        flow = torch.matrix_exp(torch.nn.functional.pad(top, (0, 0, 0, 1)) * t)
        return (flow @ torch.cat((z, ones), 1)[:, :, None])[:, :3, 0]

    z0, x = draw(batch, 3).requires_grad_(), draw(batch, 3).requires_grad_()
    return ClosedForm("linear", lambda t, z, x: z @ weight.T + x, exact, z0, x, (weight,))


def trajectories() -> list[ClosedForm]:
    """All of them."""
    return [logistic(), driven(), linear()]
