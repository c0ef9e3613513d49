"""How many evaluations plain steps cost Anderson before it accelerates (``make bench-plain-rate``).

40 maps that no other benchmark has, from easy to hard; each in turn is solved with every
``plain_rate``. Evaluations alone are counted, so the table is the same on every machine.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

import implicitcore as ic
from benchmarks.markdown import table
from implicitcore.testing.problems import draws

Map = Callable[[Tensor, Tensor], Tensor]
N, BATCH = 96, 24
RATES = (0.2, 0.3, 0.4, 0.5, 0.6)
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-6)
RADII = (0.5, 0.7, 0.85, 0.95, 0.98)


def _draws(seed: int) -> Callable[..., Tensor]:
    draw = draws(seed)
    return lambda *shape: draw(*shape).float()


def _linear(matrix: Tensor, z: Tensor, x: Tensor) -> Tensor:
    return z @ matrix.T + x


def _spectrum(basis: Tensor, eigenvalues: Tensor) -> Tensor:
    return basis @ torch.diag(eigenvalues) @ basis.T


def _rotations(radius: float) -> Tensor:
    angles = torch.linspace(0.1, 3, N // 2).tolist()
    turns = ([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]] for a in angles)
    return torch.block_diag(*(radius * torch.tensor(turn) for turn in turns))


def maps(radius: float, seed: int) -> list[Map]:
    """Eight kinds, with Jacobians up to about that radius."""
    draw = _draws(seed)
    basis, first, second = torch.linalg.qr(draw(N, N))[0], draw(N, N), draw(N, N)
    norm, spread = torch.linalg.matrix_norm, torch.linspace(-radius, radius, N)
    few = torch.full((N,), 0.2)
    few[:4] = radius * torch.tensor([1.0, -1.0, 0.9, 0.8])
    widest = torch.linalg.eigvals(first).abs().max()
    narrow, residual = first / norm(first, 2), radius * second / norm(second, 2)
    return [
        partial(_linear, _spectrum(basis, spread)),
        partial(_linear, _spectrum(basis, radius ** (1 + torch.arange(N) / 4))),
        partial(_linear, _rotations(radius)),
        lambda z, x: torch.tanh(_linear(radius * first / widest, z, x)),
        lambda z, x: torch.tanh(_linear(1.2 * radius * narrow, z, x)),
        lambda z, x: torch.relu(_linear(narrow, z, x)) @ residual.T + 0.3 * x,
        lambda z, x: torch.sin(_linear(_spectrum(basis, few), z, x)),
        lambda z, x: (
            radius
            * functional.layer_norm(
                torch.relu(_linear(radius * second / N**0.5, z, x)) + 0.5 * x, (N,)
            )
        ),
    ]


def evaluations(tol: float, rate: float, radii: tuple[float, ...] = RADII) -> list[int]:
    """Those of each map."""
    solver = ic.Anderson(tol=tol, max_steps=200, plain_rate=rate)
    counts = []
    for seed, radius in enumerate(radii):
        for f in maps(radius, seed):
            x = _draws(100 + seed)(BATCH, N) * torch.logspace(-1, 0.3, BATCH)[:, None]
            solution = ic.fixed_point(
                f, torch.zeros(BATCH, N), x, solver=solver, on_failure="ignore"
            )
            counts.append(solution.evaluations)
    return counts


def measure(tolerances: tuple[float, ...], radii: tuple[float, ...]) -> Iterator[tuple[str, ...]]:
    """A line for each tolerance and rate: all maps together, and the map with the most."""
    for tol in tolerances:
        known = evaluations(tol, 0.0, radii)
        for rate in RATES:
            found = evaluations(tol, rate, radii)
            ratios = [new / old for new, old in zip(found, known, strict=True)]
            more = sum(ratio > 1.05 for ratio in ratios)
            total = sum(found) / sum(known)
            yield f"{tol:.0e}", f"{rate}", f"{total:.3f}", f"{more}", f"{max(ratios):.2f}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plain_rate", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the easiest maps: does it run?")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    header = ("tol", "plain_rate", "evaluations, all maps", "maps above 1.05", "the worst map")
    part = slice(0, 1) if options.quick else slice(None)
    print(*table(header, measure(TOLERANCES[part], RADII[part])), sep="\n")


if __name__ == "__main__":
    main()
