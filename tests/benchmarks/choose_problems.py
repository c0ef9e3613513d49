"""The problems of the page on choosing, small enough to be solved in a test."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import implicitcore as ic
from implicitcore_lab.memory import peak_bytes

CPU = torch.device("cpu")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


class Problem:
    """f(z, x) = tanh(W z + x) with x of a given size."""

    def __init__(self, weight: Tensor, scale: float = 1.0) -> None:
        self.weight, self.scale = weight, scale

    def inputs(self, batch: int) -> Tensor:
        return self.scale * normal(batch, len(self.weight))

    def __call__(self, weight: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda z, x: torch.tanh(z @ weight.T + x)


def symmetric(radius: float, n: int = 50) -> Problem:
    """W with eigenvalues from -radius to radius: as slow as its Lipschitz constant says."""
    q, _ = torch.linalg.qr(normal(n, n, seed=1))
    eigenvalues = torch.linspace(-radius, radius, n, dtype=torch.float64)
    return Problem(q @ eigenvalues.diag() @ q.T, 0.1)


def skew(norm: float, n: int = 50) -> Problem:
    """W = -W^T: f expands, and z' = f(z) - z is stable, since the eigenvalues are imaginary."""
    a = normal(n, n, seed=1)
    a = a - a.T
    return Problem(norm * a / torch.linalg.matrix_norm(a, 2))


def several_equilibria(n: int = 6) -> Problem:
    """Entries of deviation 3 / sqrt(n): several equilibria, many of which repel."""
    return Problem(3 * normal(n, n, seed=3) / n**0.5)


def solve(problem: Problem, solver: ic.RootSolver, batch: int) -> ic.Solution:
    x = problem.inputs(batch)
    return ic.fixed_point(
        problem(problem.weight), torch.zeros_like(x), x, solver=solver, on_failure="ignore"
    )


def gradient_error(
    problem: Problem, strategy: ic.GradientStrategy, solver: ic.RootSolver
) -> tuple[float, ic.Solution, float]:
    """The relative error of dL/dW, the solve, and the kB at its fullest moment."""
    x = problem.inputs(16)
    v = normal(*x.shape, seed=4)

    def gradient(
        strategy: ic.GradientStrategy, solver: ic.RootSolver
    ) -> tuple[Tensor, ic.Solution]:
        weight = problem.weight.clone().requires_grad_()
        f = problem(weight)
        found = ic.fixed_point(
            f, torch.zeros_like(x), x, solver=solver, gradient=strategy, on_failure="ignore"
        )
        (grad,) = torch.autograd.grad((found.z * v).sum(), weight)
        return grad, found

    exact, _ = gradient(ic.Implicit(ic.GMRES(tol=1e-12)), ic.Anderson(tol=1e-12, max_steps=1000))
    grad, found = gradient(strategy, solver)
    peak = peak_bytes(lambda: gradient(strategy, solver), CPU) / 1024
    return relative(grad, exact), found, peak


def cycle(t: Tensor, z: Tensor, p: Tensor) -> Tensor:
    """A spiral whose speed goes with z^3."""
    del t
    turn = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=z.dtype)
    return z**3 @ (p * turn).T


def kinetics(t: Tensor, z: Tensor, p: Tensor) -> Tensor:
    """Two rates, 1000 and 1."""
    del t
    fast, slow = z.unbind(-1)
    return torch.stack((-1000 * p.squeeze() * (fast - slow.cos()), -slow), -1)


Field = Callable[[Tensor, Tensor, Tensor], Tensor]


def flow(
    field: Field, solver: ic.ODESolver, strategy: ic.GradientStrategy
) -> tuple[ic.Trajectory, Tensor]:
    """A trajectory, and the gradient of |z(T)|^2 in the field's parameter."""
    z0, times = 0.7 * normal(8, 2), torch.tensor([0.0, 5.0], dtype=torch.float64)
    p = torch.ones(1, 1, dtype=z0.dtype, requires_grad=True)
    found = ic.integrate(
        lambda t, z, x: field(t, z, p),
        z0,
        times=times,
        solver=solver,
        gradient=strategy,
        on_failure="ignore",
    )
    (grad,) = torch.autograd.grad(found.z[-1].square().sum(), p)
    return found, grad


def end_error(field: Field, solver: ic.ODESolver) -> tuple[float, ic.Trajectory]:
    """The relative error of z(T), and the solve."""
    tight = ic.DOP853(rtol=1e-10, atol=1e-10, max_steps=20000)
    exact, found = (flow(field, each, ic.Checkpointed())[0] for each in (tight, solver))
    return relative(found.z[-1].detach(), exact.z[-1].detach()), found


def flow_gradient_error(
    solver: ic.ODESolver, strategy: ic.GradientStrategy
) -> tuple[float, ic.Trajectory, float]:
    """The relative error of the gradient, the solve, and the kB at its fullest moment."""
    tight = ic.DOP853(rtol=1e-10, atol=1e-10, max_steps=20000)
    _, exact = flow(cycle, tight, ic.Checkpointed())
    found, grad = flow(cycle, solver, strategy)
    peak = peak_bytes(lambda: flow(cycle, solver, strategy), CPU) / 1024
    return relative(grad, exact), found, peak


def relative(value: Tensor, exact: Tensor) -> float:
    return float((value - exact).norm() / exact.norm())
