"""The equilibrium problems: small cells, where overhead shows, and a larger one, where it must
not."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, nn

from benchmarks.problem import Problem

MLP_32, MLP_256, SLOW = "MLP, batch 32", "MLP, batch 256", "slow MLP, batch 256"
CONV, HETEROGENEOUS = "conv, batch 32", "heterogeneous, batch 256"
TRANSFORMER, GRAPH = "transformer, batch 8", "graph, 2000 nodes"
RESOLUTIONS = "two resolutions, batch 8"
DESCRIPTIONS = {
    MLP_32: "tanh(W z + x), 128 units, |W| = 0.9 in the 2-norm.",
    MLP_256: "The same with a larger batch.",
    SLOW: "tanh(W z + x), 128 units, W symmetric with spectral radius 0.97, small inputs.",
    CONV: "tanh(conv(z) + x), 3x3, 32 channels of 16x16, a convolution of norm 0.9.",
    HETEROGENEOUS: "tanh(c W z + x), W symmetric with spectral radius 1; each sample has its c, "
    "from 0.3 to 0.97.",
    TRANSFORMER: "tanh(W z + O attention(z) + x), 32 tokens of 256 features, 4 heads, |W| = 0.6 in "
    "the 2-norm.",
    GRAPH: "tanh(A z W + x), one graph of 2,000 nodes with 32 features, A sparse with 8 neighbours "
    "of each node and rows of sum 1, |W| = 0.9 in the 2-norm.",
    RESOLUTIONS: "Two maps in one equilibrium, as in a multiscale DEQ: 32 channels of 16x16 and of "
    "8x8, each tanh(conv(z) + mix(the other, resized) + x); convolutions of norm 0.5, exchanges of "
    "norm 0.3.",
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


class Transformer(nn.Module):
    """tanh(W z + O attention(z) + x), of states ``[batch, tokens, features]``."""

    def __init__(self, weight: Tensor, projections: Tensor, out: Tensor, heads: int) -> None:
        super().__init__()
        self.linear, self.projections, self.out = map(_linear, (weight, projections, out))
        self.heads = heads

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        parts = self.projections(z).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts)
        return torch.tanh(self.linear(z) + self.out(mixed.transpose(1, 2).flatten(2)) + x)


class Graph(nn.Module):
    """tanh(A z W + x), of states ``[1, nodes, features]``: a graph is one sample."""

    adjacency: Tensor

    def __init__(self, weight: Tensor, adjacency: Tensor) -> None:
        super().__init__()
        self.linear = _linear(weight)
        self.register_buffer("adjacency", adjacency)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(torch.sparse.mm(self.adjacency, self.linear(z[0]))[None] + x)


class Resolutions(nn.Module):
    """tanh of a convolution of each of two maps, the other one, resized, and x; the state is
    ``[batch, entries of both]``.

    Arguments:
        kernels: of the fine and of the coarse map.
        mixes: ``[channels, channels]``, what the fine map takes of the coarse one, and the coarse
            one of the fine.
        side: of the fine map; that of the coarse one is half of it.
    """

    def __init__(
        self, kernels: tuple[Tensor, Tensor], mixes: tuple[Tensor, Tensor], side: int
    ) -> None:
        super().__init__()
        self.fine, self.coarse = map(nn.Parameter, kernels)
        self.up, self.down = (nn.Parameter(mix[:, :, None, None]) for mix in mixes)
        self.shapes = [(len(mixes[0]), side // scale, side // scale) for scale in (1, 2)]

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        sizes = [prod(shape) for shape in self.shapes]
        parts = zip(z.split(sizes, 1), self.shapes, strict=True)
        fine, coarse = (part.unflatten(1, shape) for part, shape in parts)
        lifted = nn.functional.interpolate(nn.functional.conv2d(coarse, self.up), scale_factor=2)
        pooled = nn.functional.conv2d(nn.functional.avg_pool2d(fine, 2), self.down)
        maps = (
            nn.functional.conv2d(fine, self.fine, padding=1) + lifted,
            nn.functional.conv2d(coarse, self.coarse, padding=1) + pooled,
        )
        return torch.tanh(torch.cat([part.flatten(1) for part in maps], 1) + x)


def problems(quick: bool = False) -> list[Problem]:
    """All of them; ``quick`` makes them tiny and keeps their names."""
    n, small, large, channels, side = (8, 4, 6, 2, 4) if quick else (128, 32, 256, 32, 16)
    tokens, features, nodes, width = (3, 8, 10, 4) if quick else (32, 256, 2000, 32)
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
        posed(TRANSFORMER, _transformer(features), (2 if quick else 8, tokens, features)),
        posed(GRAPH, Graph(general(width, 0.9), _adjacency(nodes, 8)), (1, nodes, width)),
        posed(
            RESOLUTIONS,
            _resolutions(channels, side),
            (2 if quick else 8, channels * side**2 * 5 // 4),
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
    linear = nn.Linear(weight.shape[1], weight.shape[0])
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


def _transformer(features: int) -> Transformer:
    draw = _draws()
    projections = draw(3 * features, features) / features**0.5
    out = 0.3 * draw(features, features) / features**0.5
    return Transformer(general(features, 0.6), projections, out, heads=4)


def _resolutions(channels: int, side: int) -> Resolutions:
    """Copying each entry four times has the norm 2, a mean of four 1/2."""
    kernels = _kernel(channels, side, 0.5), _kernel(channels, side // 2, 0.5)
    return Resolutions(kernels, (general(channels, 0.15), general(channels, 0.6)), side)


def _adjacency(nodes: int, neighbours: int) -> Tensor:
    """Sparse ``[nodes, nodes]``, the mean over some nodes drawn for each."""
    generator = torch.Generator().manual_seed(0)
    columns = torch.randint(nodes, (nodes, neighbours), generator=generator).flatten()
    rows = torch.arange(nodes).repeat_interleave(neighbours)
    values = torch.full((nodes * neighbours,), 1 / neighbours)
    indices = torch.stack((rows, columns))
    return torch.sparse_coo_tensor(
        indices, values, (nodes, nodes), check_invariants=False
    ).coalesce()


def _draws() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)
