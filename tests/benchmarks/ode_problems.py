"""The trajectories, and one equilibrium that is found as a steady state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import log10, prod
from typing import ClassVar

import torch
from torch import Tensor, nn

import implicitcore as ic
from benchmarks import root_problems
from benchmarks.problem import Problem, Reference, sample_norm

MLP, CONV = "MLP field, batch 256", "conv field, batch 32"
HETEROGENEOUS, STEADY = "heterogeneous field, batch 256", "steady state, batch 256"
FASTEST = 30
HORIZON = 20.0
DESCRIPTIONS = {
    MLP: "dz/dt = W2 tanh(W1 z + b), 64 - 128 - 64 units, t from 0 to 1.",
    CONV: "dz/dt = tanh(conv(z)) - z, 3x3, 32 channels of 16x16, t from 0 to 1.",
    HETEROGENEOUS: "dz/dt = r (W2 tanh(W1 z + b) - z), 64 - 128 - 64 units, t from 0 to 1; each "
    f"sample has its r, 1 to {FASTEST}.",
    STEADY: "z = tanh(W z + x), 128 units, |W| = 0.9 in the 2-norm, from z = 0; who integrates "
    "takes dz/dt = tanh(W z + x) - z.",
}


@dataclass(frozen=True)
class Trajectory(Problem):
    """Integrate dz/dt = f(z, x) from z0 over one unit of time, and pull v at its end back to the
    leaves, z0 among them.

    A tolerance is the relative and the absolute one of a step.
    """

    compared: ClassVar[str] = "final state error"

    budget: int = 10_000
    tolerances: tuple[float, ...] = (1e-5,)

    @cached_property
    def reference(self) -> Reference:
        return Endpoint.of(self)


@dataclass(frozen=True)
class Endpoint(Reference):
    """The last state and its gradients: Tsit5 in float64 at 1e-10, unrolled."""

    @classmethod
    def of(cls, problem: Problem) -> Endpoint:
        exact = problem.double()
        solver = ic.Tsit5(rtol=1e-10, atol=1e-10, max_steps=100_000)
        solution = ic.integrate(
            lambda t, z, x: exact.f(z, x),
            exact.z0,
            exact.x,
            times=torch.tensor([0.0, 1.0]),
            solver=solver,
            on_failure="ignore",
        )
        z = solution.raise_if_failed().z[-1]
        return cls(exact, z.detach(), exact.gradients(z))

    def residual(self, z: Tensor) -> float:
        """The worst sample's error, relative to the state."""
        return (sample_norm(z.double() - self.z) / sample_norm(self.z)).max().item()


class Perceptron(nn.Module):
    """W2 tanh(W1 z + b)."""

    def __init__(self, inner: Tensor, outer: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.inner, self.outer, self.bias = map(nn.Parameter, (inner, outer, bias))

    def forward(self, z: Tensor, x: tuple[()] = ()) -> Tensor:
        del x
        return torch.tanh(nn.functional.linear(z, self.inner, self.bias)) @ self.outer.T


class Relaxation(nn.Module):
    """r (g(z) - z), r the rate of each sample."""

    def __init__(self, g: nn.Module) -> None:
        super().__init__()
        self.g = g

    def forward(self, z: Tensor, rate: Tensor) -> Tensor:
        return rate * (self.g(z) - z)


class Conv(nn.Module):
    """tanh(conv(z)) - z."""

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.kernel = nn.Parameter(kernel)

    def forward(self, z: Tensor, x: tuple[()]) -> Tensor:
        del x
        return torch.tanh(nn.functional.conv2d(z, self.kernel, padding=1)) - z


def problems(quick: bool = False) -> list[Problem]:
    """The four; ``quick`` makes them tiny and keeps their names."""
    n, width, small, large, channels, side = (
        (4, 8, 3, 6, 2, 4) if quick else (64, 128, 32, 256, 32, 16)
    )
    rates = torch.logspace(0, log10(3 if quick else FASTEST), large)[:, None]
    trajectories = [
        _trajectory(MLP, perceptron(n, width, 1.5), (large, n)),
        _trajectory(
            CONV,
            Conv(_weight(_draws(), 1.5, channels, channels, 3, 3)),
            (small, channels, side, side),
        ),
        _trajectory(HETEROGENEOUS, Relaxation(perceptron(n, width, 0.8)), (large, n), rates),
    ]
    if quick:
        trajectories = [replace(problem, tolerances=(1e-3,)) for problem in trajectories]
    return [*trajectories, _steady(quick)]


def _steady(quick: bool) -> Problem:
    found = {problem.name: problem for problem in root_problems.problems(quick)}
    return replace(found[root_problems.MLP_256], name=STEADY, budget=100, tolerances=(1e-4,))


def _trajectory(
    name: str, f: nn.Module, shape: tuple[int, ...], x: Tensor | tuple[()] = ()
) -> Trajectory:
    draw = _draws(1)
    return Trajectory(name, f, x, draw(*shape).requires_grad_(), draw(*shape))


def perceptron(n: int, width: int, gain: float) -> Perceptron:
    draw = _draws()
    return Perceptron(_weight(draw, gain, width, n), _weight(draw, gain, n, width), draw(width))


def _weight(draw: Callable[..., Tensor], gain: float, *shape: int) -> Tensor:
    return gain * draw(*shape) / prod(shape[1:]) ** 0.5


def _draws(seed: int = 0) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)
