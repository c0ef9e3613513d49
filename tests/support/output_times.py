"""Output times for compiled layers, whose graphs run in a loop of Python."""

from __future__ import annotations

import torch

TIMES = torch.linspace(0, 2, 7, dtype=torch.float64)


def of_each(batch: int) -> torch.Tensor:
    """Times of each sample's own, ``[batch, 7]``, forward for one and backward for another."""
    index = torch.arange(batch, dtype=torch.float64)[:, None]
    return 1 + TIMES * (1 - 0.1 * index) * torch.where(index % 2 == 0, 1, -1)


def filled() -> torch.Tensor:
    """Of three samples: four times of their own, one alone, and seven, filled up with the last."""
    times = of_each(3)
    times[0, 3:], times[1] = times[0, 3], times[1, 0]
    return times


def cotangent(z: torch.Tensor) -> torch.Tensor:
    """Other numbers for each entry."""
    return torch.linspace(-1, 2, z.numel(), dtype=z.dtype).view_as(z)
