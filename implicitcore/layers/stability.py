"""How contractive f is at an equilibrium: a loss term and a diagnostic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from implicitcore.dynamics.base import Dynamics
from implicitcore.dynamics.fixed_point import FixedPoint
from implicitcore.errors import InputError
from implicitcore.layers.base import ImplicitLayer
from implicitcore.solution import Solution
from implicitcore.system.scope import frozen_randomness
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, norm, real_dtype
from implicitcore.tensors.packing import Packing
from implicitcore.tensors.transforms import eager

Function = ImplicitLayer | Dynamics | Callable[[Any, Any], Any]
"""A layer, its dynamics, or f(z, x) itself."""


@eager
def jacobian_regularizer(
    f: Function, z: Any, x: Any = None, *, samples: int = 1, generator: Generator | None = None
) -> Tensor:
    """Hutchinson's estimate of ``|J|_F^2`` / n, averaged over the batch, J = df/dz.

    E ``|v^T J|^2`` = ``|J|_F^2`` for random signs v. Added to the loss with a weight of 0.1 to 2,
    it keeps f contractive during training: solves take fewer steps, and the backward system stays
    well-conditioned. Unbiased, and differentiable in the parameters and x; z is a constant. It
    costs one evaluation of f and ``samples`` vector-Jacobian products.

    Arguments:
        f: a layer, its dynamics, or a function of (z, x).
        z: the point of J: a :class:`Solution`, or a state ``[batch, ...]``.
        x: the input of the solve.
        samples: the number of random vectors.
        generator: of the signs, on the device of z.

    Returns:
        A scalar of the dtype of z, float32 at least.

    Raises:
        InputError: samples is not positive.

    Reference:
        Bai, Koltun, Kolter, Stabilizing Equilibrium Models by Jacobian Regularization, arXiv
        2106.14342.
    """
    if samples < 1:
        raise InputError(f"samples: expected at least 1, received {samples}")
    system, point = _bind(f, z, x)
    with frozen_randomness(system.dynamics):
        jacobian = system.linearize(point)
        products = [jacobian.vjp(_signs(point, generator)) for _ in range(samples)]
        total = torch.stack(
            [product.abs().to(real_dtype(point)).square().sum() for product in products]
        ).sum()
    return total / max(samples * point.numel(), 1)


@eager
@torch.no_grad()
def spectral_radius(
    f: Function, z: Any, x: Any = None, *, steps: int = 40, generator: Generator | None = None
) -> Tensor:
    """The spectral radius of J = df/dz of each sample, by power iteration.

    It is the linear rate of convergence of Picard's iteration, which converges where it is below 1.
    With w_k = (J^T)^k w_0 the radius is the growth of ``|w_k|`` over the second half of the steps:
    the slope of a least squares line through log ``|w_k|``. With a complex pair of dominant
    eigenvalues ``|w_k|`` oscillates; the line averages over it, with an error of a few per cent at
    40 steps that falls as steps^-2. It costs one evaluation of f and ``steps`` vector-Jacobian
    products.

    Arguments:
        f: a layer, its dynamics, or a function of (z, x). It must not mix samples.
        z: the point of J: a :class:`Solution`, or a state ``[batch, ...]``.
        x: the input of the solve.
        steps: the number of products, at least 4.
        generator: of w_0, on the device of z.

    Returns:
        ``[batch]``, float32 or float64.

    Raises:
        InputError: there are fewer than 4 steps.

    Reference:
        Golub, Van Loan, Matrix Computations (2013), section 7.3.
    """
    if steps < 4:
        raise InputError(f"steps: expected at least 4, received {steps}")
    system, point = _bind(f, z, x)
    with frozen_randomness(system.dynamics):
        jacobian = system.linearize(point)
        w, growth = _signs(point, generator), []
        tiny = torch.finfo(real_dtype(point)).tiny
        w = w / max(point.shape[1], 1) ** 0.5
        for _ in range(steps):
            w = jacobian.vjp(w)
            growth.append(norm(w).clamp(min=tiny))
            w = w / column(growth[-1]).to(w.dtype)
    # log |w_k| over the second half, up to a constant.
    logs = torch.stack(growth[steps // 2 :]).log().cumsum(0)
    times = torch.arange(len(logs), dtype=logs.dtype, device=logs.device)
    times = times - times.mean()
    return (times @ logs / times.square().sum()).exp()


def _bind(f: Function, z: Any, x: Any) -> tuple[System, Tensor]:
    """The system of f at x, and the packed point."""
    if isinstance(f, ImplicitLayer):
        f = f.dynamics
    dynamics = f if isinstance(f, Dynamics) else FixedPoint(f)
    state = z.z if isinstance(z, Solution) else z
    packing = Packing.of(state)
    return System.of(dynamics, x, packing), packing.pack(state).detach()


def _signs(point: Tensor, generator: Generator | None) -> Tensor:
    signs = torch.randint(0, 2, point.shape, generator=generator, device=point.device)
    return signs.mul_(2).sub_(1).to(point.dtype)
