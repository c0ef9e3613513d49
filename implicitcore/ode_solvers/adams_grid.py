"""The coefficients of a step of an Adams method, from the distances of the last times."""

from __future__ import annotations

import functools
from math import prod
from operator import index
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from implicitcore.backends.adams_step import AdamsPast as Past
from implicitcore.backends.adams_step import gauss
from implicitcore.tensors.norms import column

# A step so many times as long as the last is of order 1: the differences over a step that was cut
# short to arrive at an output time are mostly rounding, and would be magnified.
LONGER = 1e3


class StepGrid:
    """The coefficients of one step from the distances of the last times, per sample.

    Arguments:
        dt: ``[batch]``; zero where a sample is done, for which any coefficients will do.
        past: the state.

    Attributes:
        gaps: those of the next state.
        sums: ``[batch, rows + 1, rows]``, beta_i where i < j: the factors that make differences of
            the last grid those of this.
        g: ``[batch, rows + 1]``, g_0 .., the integrals over the step of the polynomials of Newton's
            form, over dt.
        moves: dt g.
        order: ``[batch]``, of this step.
        newton: ``[batch, rows]``, beta_j below the order, else zero.
        weights: ``[batch, rows]``, those of the differences.
        window: ``[batch, rows + 1]``, zero where the next order may be, else infinite.
    """

    def __init__(self, dt: Tensor, past: Past) -> None:
        known = index(past.gaps.shape[1]), dt.dtype, dt.device
        constants = _traced_constants if torch.compiler.is_compiling() else _constants
        lever, weights, lower, orders, one = constants(*known)
        cumprod = _traced_cumprod if torch.compiler.is_compiling() else _cumprod
        pad = torch.nn.functional.pad
        step = column(torch.where(dt == 0, past.gaps[:, 0], dt.abs()))
        self.gaps = torch.cat((step, past.gaps[:, :-1] + step), 1)
        ratio = self.gaps / past.gaps
        beta = cumprod(pad(ratio[:, :-1], (1, 0), value=1.0))
        # g_j is the integral over [0, 1] of prod_{i<j} (1 - (1 - u) dt / gap_i): the nodes of Gauss
        # are exact.
        products = cumprod(torch.addcdiv(one, lever * step, self.gaps, value=-1))
        self.g = pad((weights @ products.flatten(1)).view_as(self.gaps), (1, 0), value=1.0)
        self.moves = self.g * column(dt)
        known_order = torch.where(ratio[:, 0] > LONGER, past.order.clamp(max=1), past.order)
        self.order = known_order.clamp(min=1)
        below, self.window = orders.index_select(0, known_order).split(
            [self.gaps.shape[1], self.g.shape[1]], 1
        )
        self.sums = beta.unsqueeze(1) * lower
        self.newton = beta * below
        self.weights = self.moves[:, :-1] * self.newton

    def choose(self, sizes: Tensor) -> Tensor:
        """The next order: of this, one less and one more, that with the smallest error.

        ``sizes`` are those of the differences.
        """
        return torch.addcmul(self.window, sizes, self.g).argmin(1)


def _cumprod(factors: Tensor) -> Tensor:
    """The products of the first, the first two, .. along the last dimension."""
    return factors.cumprod(-1)


def _traced_cumprod(factors: Tensor) -> Tensor:
    """The same in a graph: product by product, for ONNX has no other, and a compiler fuses them."""
    products = [factors[..., 0]]
    for place in range(1, index(factors.shape[-1])):
        products.append(products[-1] * factors[..., place])
    return torch.stack(products, -1)


class _Constants(NamedTuple):
    """What the coefficients of all steps are made with.

    Attributes:
        lever: 1 - u ``[nodes, 1, 1]`` at the nodes of Gauss' quadrature on [0, 1], exact for degree
            ``rows``.
        weights: of the quadrature.
        lower: ``[rows + 1, rows]``, row k has k ones.
        orders: ``[rows + 1, 2 rows + 1]``, of each order, 0 before the first step: what is below
            it, as the row of ``lower``, then the window of the next.
        one: 1.
    """

    lever: Tensor
    weights: Tensor
    lower: Tensor
    orders: Tensor
    one: Tensor


@functools.cache
def _constants(size: int, dtype: torch.dtype, device: torch.device) -> _Constants:
    """Those for so many rows."""
    with torch.inference_mode(False):
        nodes, weights = (
            torch.tensor(of, dtype=torch.float64, device="cpu") for of in gauss(size // 2 + 1)
        )
        lever = (1 - nodes)[:, None, None]
        lower = torch.ones(size + 1, size, device="cpu").tril(-1)
        place = torch.arange(size + 1, device="cpu")
        order = place[:, None].clamp(min=1)
        near = ((place - order).abs() <= 1) & (place > 0) & (place <= place[:, None] + 1)
        orders = torch.cat((lower[order[:, 0]], torch.where(near, 0.0, torch.inf)), 1)
        one = torch.ones((), device="cpu")
        return _Constants(
            *(each.to(device, dtype) for each in (lever, weights, lower, orders, one))
        )


def _traced_constants(size: int, dtype: torch.dtype, device: torch.device) -> _Constants:
    """The same constants in a graph."""
    nodes, rows = size // 2 + 1, size + 1
    shapes = (nodes, 1, 1), (nodes,), (rows, size), (rows, size + rows), ()
    flat = _flat_constants(size, dtype, device).split([prod(shape) for shape in shapes])
    return _Constants(*(part.view(shape) for part, shape in zip(flat, shapes, strict=True)))


@torch.compiler.assume_constant_result
def _flat_constants(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """All of them in one tensor, which a graph takes as it is."""
    with unset_fake_temporarily():
        return torch.cat([constant.flatten() for constant in _constants(size, dtype, device)])


@functools.cache
def integrals(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """What makes a piece of a polynomial of degree ``size`` - 1 on [0, 1]: of its integral from 0.

    1 - u at ``size`` nodes ``[nodes, 1, 1]``, and the matrix ``[size, nodes]`` that takes its
    values there to c_1, c_2, .. of :func:`~implicitcore.ode_solvers.dense.evaluate`.
    """
    with torch.inference_mode(False):
        angles = torch.arange(size, dtype=torch.float64, device="cpu").add(0.5) * (torch.pi / size)
        nodes = (1 - angles.cos()) / 2  # Chebyshev's
        fine, weights = _constants(2 * size, torch.float64, torch.device("cpu"))[:2]
        inner = nodes * (1 - fine.flatten()[:, None])  # [fine, nodes]
        away = inner[..., None, None] - nodes
        apart = nodes[:, None] - nodes + torch.eye(size, dtype=torch.float64, device="cpu")
        same = torch.eye(size, dtype=torch.bool, device="cpu")
        lagrange = torch.where(same, 1, away / apart).prod(-1)  # [fine, nodes, size]
        sums = (weights[:, None, None] * lagrange).sum(0) * nodes[:, None]
        factors = [nodes if k % 2 == 0 else 1 - nodes for k in range(size)]
        basis = torch.stack(factors).cumprod(0).T
        matrix = torch.linalg.solve(basis, sums)
        return (1 - nodes)[:, None, None].to(device, dtype), matrix.to(device, dtype)
