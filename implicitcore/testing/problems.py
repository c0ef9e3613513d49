"""The problems that parts are checked on.

Mild ones, which every legitimate part of a kind solves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from torch import Tensor, nn

from implicitcore.dynamics.fixed_point import FixedPoint
from implicitcore.dynamics.vector_field import VectorField
from implicitcore.gradients.base import GradientStrategy, Solve
from implicitcore.gradients.unrolled import Unrolled
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.root_solvers.base import RootSolver
from implicitcore.solution import Solution, Trajectory
from implicitcore.system.system import System
from implicitcore.tensors.packing import Packing
from implicitcore.testing.dense import differentiable_root


class Cell(nn.Module):
    """f(z, x) = tanh(W z + U x + b) with ``|W|`` = ``contraction`` in the 2-norm.

    One fixed point, known to exist.

    Arguments:
        n: entries of z and of x.
        contraction: at most this much nearer to each other come the images of two states.
        seed: of the weights.
        dtype: of the weights.
    """

    def __init__(
        self,
        n: int = 6,
        contraction: float = 0.6,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        draw = draws(seed)
        weight = draw(n, n)
        self.weight = nn.Parameter(
            (contraction * weight / torch.linalg.matrix_norm(weight, 2)).to(dtype)
        )
        self.inject = nn.Parameter((draw(n, n) / n**0.5).to(dtype))
        self.bias = nn.Parameter(draw(n).mul(0.1).to(dtype))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """f(z, x), ``[batch, n]``."""
        return torch.tanh(z @ self.weight.T + x @ self.inject.T + self.bias)


class Linear(nn.Module):
    """f(z, x) = W z + x with ``|W|`` = 1/2 in the 2-norm."""

    def __init__(self, n: int = 6, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        weight = draws(3)(n, n)
        self.weight = nn.Parameter((0.5 * weight / torch.linalg.matrix_norm(weight, 2)).to(dtype))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """f(z, x), ``[batch, n]``."""
        return z @ self.weight.T + x


class ClosedField(nn.Module, ABC):
    """A vector field v(t, z, x) whose trajectories have a closed form."""

    @abstractmethod
    def forward(self, t: Tensor, z: Tensor, x: Tensor) -> Tensor:
        """The velocity, ``[batch, n]``."""

    @abstractmethod
    def state(self, t: Tensor, z0: Tensor, x: Tensor, t0: Tensor | float = 0.0) -> Tensor:
        """z(t) with z(t0) = z0; t broadcasts with the state."""

    def exact(self, times: Tensor, z0: Tensor, x: Tensor) -> Tensor:
        """The states at the times, the first of which has z0, ``[T, batch, n]``."""
        return self.state(times[:, None, None], z0, x, times[0])


class Driven(ClosedField):
    """dz/dt = theta cos(t) z + x exp(theta sin(t)).

    It depends on the time, and backward integration is as stable as forward.
    """

    def __init__(self, n: int = 6, dtype: torch.dtype = torch.float64, seed: int = 4) -> None:
        super().__init__()
        self.theta = nn.Parameter(draws(seed)(1, n).to(dtype))

    def forward(self, t: Tensor, z: Tensor, x: Tensor) -> Tensor:
        """The velocity, ``[batch, n]``."""
        return self.theta * torch.cos(t) * z + x * torch.exp(self.theta * torch.sin(t))

    def state(self, t: Tensor, z0: Tensor, x: Tensor, t0: Tensor | float = 0.0) -> Tensor:
        """z(t) with z(t0) = z0; t broadcasts with the state."""
        start = z0 * torch.exp(-self.theta * torch.sin(torch.as_tensor(t0)))
        return torch.exp(self.theta * torch.sin(t)) * (start + x * (t - t0))


class Oscillators(ClosedField):
    """dq/dt = w(t) (p - x_p), dp/dt = -w(t) (q - x_q), w = theta cos(t): turned about x.

    A separable field, of the halves q and p of z; it depends on the time, and x has two halves too.
    """

    def __init__(self, n: int = 6, dtype: torch.dtype = torch.float64, seed: int = 4) -> None:
        super().__init__()
        self.theta = nn.Parameter(draws(seed)(1, n // 2).add(2).to(dtype))

    def forward(self, t: Tensor, z: Tensor, x: Tensor) -> Tensor:
        """The velocity, ``[batch, n]``."""
        (q, p), rate = (z - x).tensor_split(2, 1), self.theta * torch.cos(t)
        return torch.cat((rate * p, -rate * q), 1)

    def state(self, t: Tensor, z0: Tensor, x: Tensor, t0: Tensor | float = 0.0) -> Tensor:
        """z(t) with z(t0) = z0; t broadcasts with the state."""
        (q, p) = (z0 - x).tensor_split(2, -1)
        angle = self.theta * (torch.sin(t) - torch.sin(torch.as_tensor(t0)))
        cos, sin = angle.cos(), angle.sin()
        return x + torch.cat((q * cos + p * sin, p * cos - q * sin), -1)


def inputs(batch: int = 8, n: int = 6, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Samples of the normal distribution, ``[batch, n]``."""
    return draws(seed)(batch, n).to(dtype)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something to solve: a root where there are no times, else a trajectory.

    Attributes:
        f: f(z, x) of a root, the velocity v(t, z, x) of a trajectory.
        z0: ``[batch, n]``.
        x: ``[batch, n]``.
        times: of a trajectory.
    """

    f: Callable[..., Tensor]
    z0: Tensor
    x: Tensor
    times: Tensor | None = None

    @property
    def system(self) -> System:
        """As solvers see it."""
        dynamics = FixedPoint(self.f) if self.times is None else VectorField(self.f)
        return System.of(dynamics, self.x, Packing.of(self.z0))

    @overload
    def solve(self, solver: RootSolver) -> Solution: ...

    @overload
    def solve(self, solver: ODESolver) -> Trajectory: ...

    @overload
    def solve(self, solver: RootSolver | ODESolver) -> Solution | Trajectory: ...

    def solve(self, solver: RootSolver | ODESolver) -> Solution | Trajectory:
        """Without a graph, and as the solver itself says: nothing that it claims is overruled."""
        with torch.no_grad():
            if isinstance(solver, RootSolver):
                return solver.solve(self.system, self.z0)
            return Solve(solver, self.times)(self.system, self.z0)

    def attach(
        self, solver: RootSolver | ODESolver, gradient: GradientStrategy | None = None
    ) -> Solution | Trajectory:
        """With the gradient of a strategy."""
        return (gradient or Unrolled()).run(Solve(solver, self.times), self.system, self.z0)

    def states(self, solution: Solution | Trajectory) -> Tensor:
        """What was found, with the batch first."""
        return solution.z if self.times is None else solution.z.transpose(0, 1)

    def rows(self, index: Any) -> Problem:
        """Some of the samples."""
        return replace(self, z0=self.z0[index], x=self.x[index])

    def exact(self) -> Tensor:
        """The solution, differentiable twice: by Newton's method, or in closed form."""
        if self.times is None:
            return differentiable_root(lambda z: self.f(z, self.x), self.z0.detach())
        assert isinstance(self.f, ClosedField), "a trajectory in closed form"
        return self.f.exact(self.times, self.z0, self.x)


def root(batch: int = 8, dtype: torch.dtype = torch.float64, contraction: float = 0.4) -> Problem:
    """The fixed point of a contraction."""
    x = inputs(batch, dtype=dtype)
    return Problem(f=Cell(contraction=contraction, dtype=dtype), z0=torch.zeros_like(x), x=x)


def trajectory(
    batch: int = 8, dtype: torch.dtype = torch.float64, *, separable: bool = False
) -> Problem:
    """A trajectory in closed form, from t = 0.2 to 1."""
    times = torch.tensor([0.2, 0.5, 1.0], dtype=dtype)
    return Problem(
        f=(Oscillators if separable else Driven)(dtype=dtype),
        z0=inputs(batch, seed=5, dtype=dtype),
        x=inputs(batch, dtype=dtype),
        times=times,
    )


def problem_for(
    solver: RootSolver | ODESolver, batch: int = 8, dtype: torch.dtype = torch.float64
) -> Problem:
    """The one of these that the solver is for."""
    if isinstance(solver, RootSolver):
        return root(batch, dtype)
    return trajectory(batch, dtype, separable=solver.separable)


def draws(seed: int) -> Callable[..., Tensor]:
    """Samples of the normal distribution in float64, ``draws(seed)(*shape)``."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
