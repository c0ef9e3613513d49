"""The equilibrium problems: small cells, where overhead shows, and a larger one, where it must
not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.problem import Problem

MLP_32, MLP_256, SLOW = "MLP, batch 32", "MLP, batch 256", "slow MLP, batch 256"
CONV, HETEROGENEOUS = "conv, batch 32", "heterogeneous, batch 256"
DESCRIPTIONS = {
    MLP_32: "tanh(W z + x), 128 units, |W| = 0.9 in the 2-norm.",
    MLP_256: "The same with a larger batch.",
    SLOW: "tanh(W z + x), 128 units, W symmetric with spectral radius 0.97, small inputs.",
    CONV: "tanh(conv(z) + x), 3x3, 32 channels of 16x16, a convolution of norm 0.9.",
    HETEROGENEOUS: "tanh(c W z + x), W symmetric with spectral radius 1; each sample has its c, "
    "from 0.3 to 0.97.",
}


class Dense(nn.Module):
    """tanh(W z + x)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.linear = _linear(weight)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(z) + x)


class Scaled(nn.Module):
    """tanh(c W z + x), with c and x of each sample."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.linear = _linear(weight)

    def forward(self, z: Tensor, x: tuple[Tensor, Tensor]) -> Tensor:
        rate, shift = x
        return torch.tanh(rate * self.linear(z) + shift)


class Conv(nn.Module):
    """tanh(conv(z) + x)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv2d(len(weight), len(weight), 3, padding=1)
        self.conv.load_state_dict({"weight": weight, "bias": torch.zeros(len(weight))})

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(z) + x)


def problems(quick: bool = False) -> list[Problem]:
    """The five; ``quick`` makes them tiny and keeps their names."""
    n, small, large, channels, side = (8, 4, 6, 2, 4) if quick else (128, 32, 256, 32, 16)
    return [
        posed(MLP_32, Dense(general(n, 0.9)), (small, n)),
        posed(MLP_256, Dense(general(n, 0.9)), (large, n)),
        posed(SLOW, Dense(_symmetric(n, 0.97)), (large, n), size=0.3, budget=100),
        posed(CONV, Conv(_kernel(channels, side, 0.9)), (small, channels, side, side)),
        posed(
            HETEROGENEOUS,
            Scaled(_symmetric(n, 1.0)),
            (large, n),
            size=0.1,
            budget=300,
            rates=torch.linspace(0.3, 0.97, large),
        ),
    ]


def posed(  # noqa: PLR0913 - keyword options
    name: str,
    f: nn.Module,
    shape: tuple[int, ...],
    *,
    size: float = 1.0,
    budget: int = 50,
    rates: Tensor | None = None,
) -> Problem:
    draw = _draws()
    shift = draw(*shape).mul(size).requires_grad_()
    x = shift if rates is None else (rates[:, None], shift)
    return Problem(name, f, x, torch.zeros(shape), draw(*shape), budget)


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[0], weight.shape[1])
    linear.load_state_dict({"weight": weight, "bias": torch.zeros(len(weight))})
    return linear


def general(n: int, size: float) -> Tensor:
    weight = _draws()(n, n)
    return size * weight / torch.linalg.matrix_norm(weight, 2)


def _symmetric(n: int, size: float) -> Tensor:
    weight = _draws()(n, n)
    return size * (weight + weight.T) / torch.linalg.matrix_norm(weight + weight.T, 2)


def _kernel(channels: int, side: int, size: float) -> Tensor:
    """A 3x3 kernel whose convolution has the norm ``size``, by power iteration."""
    draw = _draws()
    kernel, image = draw(channels, channels, 3, 3), draw(1, channels, side, side)
    for _ in range(100):
        image = torch.nn.functional.conv2d(image / image.norm(), kernel, padding=1)
        image = torch.nn.functional.conv_transpose2d(image, kernel, padding=1)
    return size * kernel / image.norm().sqrt()


def _draws() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)
