"""The functions of the hard systems: F of F(z) = 0, ``[batch, n] -> [batch, n]``.

A number in a docstring is that of the problem in More, Garbow, Hillstrom (1981).
"""

from __future__ import annotations

from collections.abc import Callable
from math import e, pi

import torch
from torch import Tensor


def columns(*components: Tensor) -> Tensor:
    """The components of a system as columns."""
    return torch.stack(components, 1)


def neighbours(z: Tensor) -> tuple[Tensor, Tensor]:
    """z_{i-1} and z_{i+1}, with zeros at the ends."""
    return torch.nn.functional.pad(z[:, :-1], (1, 0)), torch.nn.functional.pad(z[:, 1:], (0, 1))


def inner_points(z: Tensor) -> tuple[Tensor, float]:
    """The inner points i h of [0, 1] with h = 1 / (n + 1)."""
    h = 1 / (z.shape[1] + 1)
    return torch.arange(1, z.shape[1] + 1, dtype=z.dtype) * h, h


def rosenbrock(z: Tensor) -> Tensor:
    """Problem 1."""
    x, y = z.unbind(1)
    return columns(10 * (y - x**2), 1 - x)


def freudenstein_roth(z: Tensor) -> Tensor:
    """Problem 2."""
    x, y = z.unbind(1)
    return columns(-13 + x + ((5 - y) * y - 2) * y, -29 + x + ((y + 1) * y - 14) * y)


def powell_badly_scaled(z: Tensor) -> Tensor:
    """Problem 3."""
    x, y = z.unbind(1)
    return columns(1e4 * x * y - 1, torch.exp(-x) + torch.exp(-y) - 1.0001)


def helical_valley(z: Tensor) -> Tensor:
    """Problem 7."""
    x, y, w = z.unbind(1)
    angle = torch.atan(y / x) / (2 * pi) + torch.where(x > 0, 0.0, 0.5)
    return columns(10 * (w - 10 * angle), 10 * ((x**2 + y**2).sqrt() - 1), w)


def powell_singular(z: Tensor) -> Tensor:
    """Problem 13."""
    a, b, c, d = z.unbind(1)
    return columns(a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2)


def brown_almost_linear(z: Tensor) -> Tensor:
    """Problem 27."""
    n = z.shape[1]
    return torch.cat(
        ((z + z.sum(1, keepdim=True) - (n + 1))[:, :-1], z.prod(1, keepdim=True) - 1), 1
    )


def discrete_boundary_value(z: Tensor) -> Tensor:
    """Problem 28."""
    t, h = inner_points(z)
    left, right = neighbours(z)
    return 2 * z - left - right + h**2 * (z + t + 1) ** 3 / 2


def discrete_integral_equation(z: Tensor) -> Tensor:
    """Problem 29."""
    t, h = inner_points(z)
    cubes = (z + t + 1) ** 3
    kernel = torch.minimum(t[:, None], t) * (1 - torch.maximum(t[:, None], t))
    return z + h / 2 * cubes @ kernel


def trigonometric(z: Tensor) -> Tensor:
    """Problem 26."""
    n = z.shape[1]
    i = torch.arange(1, n + 1, dtype=z.dtype)
    return n - z.cos().sum(1, keepdim=True) + i * (1 - z.cos()) - z.sin()


def broyden_tridiagonal(z: Tensor) -> Tensor:
    """Problem 30."""
    left, right = neighbours(z)
    return (3 - 2 * z) * z - left - 2 * right + 1


def broyden_banded(z: Tensor) -> Tensor:
    """Problem 31."""
    n = z.shape[1]
    i = torch.arange(n)
    band = (
        (i[None, :] >= i[:, None] - 5) & (i[None, :] <= i[:, None] + 1) & (i[None, :] != i[:, None])
    ).to(z.dtype)
    return z * (2 + 5 * z**2) + 1 - (z * (1 + z)) @ band.T


def variably_dimensioned(z: Tensor) -> Tensor:
    """Problem 25, its gradient."""
    j = torch.arange(1, z.shape[1] + 1, dtype=z.dtype)
    total = (j * (z - 1)).sum(1, keepdim=True)
    return z - 1 + j * total * (1 + 2 * total**2)


def chebyquad(z: Tensor) -> Tensor:
    """Problem 35."""
    n = z.shape[1]
    y = 2 * z - 1
    previous, current, means = torch.ones_like(y), y, []
    for i in range(1, n + 1):
        integral = -1 / (i**2 - 1) if i % 2 == 0 else 0.0
        means.append(current.mean(1) - integral)
        previous, current = current, 2 * y * current - previous
    return torch.stack(means, 1)


def chandrasekhar(albedo: float) -> Callable[[Tensor], Tensor]:
    """The H-equation of radiative transfer, discretised at midpoints."""

    def g(z: Tensor) -> Tensor:
        n = z.shape[1]
        mu = (torch.arange(n, dtype=z.dtype) + 0.5) / n
        kernel = mu[:, None] / (mu[:, None] + mu) / (2 * n)
        return z - 1 / (1 - albedo * z @ kernel.T)

    return g


def boggs(z: Tensor) -> Tensor:
    """x^2 - y + 1 = 0, x = cos(pi y / 2): three roots."""
    x, y = z.unbind(1)
    return columns(x**2 - y + 1, x - torch.cos(pi * y / 2))


def powell_stalls(z: Tensor) -> Tensor:
    """A Jacobian that is singular on x_2 = 0, where exact line searches end, and at the root."""
    x, y = z.unbind(1)
    return columns(x, 10 * x / (x + 0.1) + 2 * y**2)


def exponential_cycle(z: Tensor) -> Tensor:
    """z_i exp(z_i) = z_{i+1} e: cyclic."""
    return z * torch.exp(z) - e * z.roll(-1, 1)


def ferraris_tronconi(z: Tensor) -> Tensor:
    """Two equations of sin and exp with several roots."""
    x, y = z.unbind(1)
    return columns(
        0.5 * torch.sin(x * y) - 0.25 * y / pi - 0.5 * x,
        (1 - 0.25 / pi) * (torch.exp(2 * x) - e) + e * y / pi - 2 * e * x,
    )


def cubic(z: Tensor) -> Tensor:
    """z^3 - 2 z + 2: Newton cycles between 0 and 1."""
    return z**3 - 2 * z + 2


def no_root(z: Tensor) -> Tensor:
    """x^2 + y^2 + 1 = 0 has no real solution."""
    x, y = z.unbind(1)
    return columns(x**2 + y**2 + 1, x - y)
