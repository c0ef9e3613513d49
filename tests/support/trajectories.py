"""A layer that integrates, and samples for it that take steps of different sizes."""

from __future__ import annotations

import torch
from torch import nn

import implicitcore as ic


class Field(nn.Module):
    """(1 + t) net(z) + U x, where U is made of parameters, and read with its transpose."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
        self.u = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, t, z, x):
        weight = self.u.weight
        assert isinstance(weight, torch.Tensor)
        return self.net(z) * (1 + t) + self.u(x) - 0.1 * z @ (weight @ weight.T)


def layer(solver, field=None, **options) -> ic.ImplicitLayer:
    options = {"on_failure": "ignore", "gradient": ic.Checkpointed(), **options}
    options = {"start": ic.Identity(), "horizon": 2.0, **options}
    return ic.ImplicitLayer(ic.VectorField(field or Field()), solver=solver, **options).double()


def inputs(batch: int) -> torch.Tensor:
    """Samples that take steps of different sizes."""
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 4, dtype=torch.float64, generator=generator)
    return x * torch.tensor([0.1, 1, 5, 30, 2], dtype=torch.float64)[:batch, None]


def same(one, other, **tolerances) -> None:
    for expected, gradient in zip(one, other, strict=True):
        torch.testing.assert_close(gradient, expected, **tolerances)
