"""The coefficients of a step of an Adams method, from the distances of the last times."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from math import prod
from operator import index
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from implicitcore.backends.adams_step import AdamsPast as Past
from implicitcore.backends.adams_step import gauss
from implicitcore.tensors.norms import column
from implicitcore.tensors.products import MATMUL

# A step so many times as long as the last is of order 1: the differences over a step that was cut
# short to arrive at an output time are mostly rounding, and would be magnified.
LONGER = 1e3


class StepGrid:
    """The coefficients of one step from the distances of the last times, per sample.

    Arguments:
        dt: ``[batch]``; zero where a sample is done, for which any coefficients will do.
        past: the state.
        constants: those of all steps, where they are known.

    Attributes:
        gaps: those of the next state.
        sums: ``[batch, rows + 1, rows]``, beta_i where i < j: the factors that make differences of
            the last grid those of this.
        moves: ``[batch, rows + 1]``, the integrals over the step of the polynomials of Newton's
            form: times the differences, the errors of all orders.
        order: ``[batch]`` int64, of this step.
        power: ``[batch]`` int64, that of dt that the error goes with: one more.
        newton: ``[batch, rows]``, beta_j below the order, else zero.
        weights: ``[batch, rows]``, those of the differences.
        window: ``[batch, rows + 1]``, zero where the next order may be, else infinite.
    """

    def __init__(self, dt: Tensor, past: Past, constants: _Constants | None = None) -> None:
        batch, rows = past.gaps.shape[0], index(past.gaps.shape[1])
        known = constants or _constants_of(rows, dt.dtype, dt.device)
        step = column(torch.where(dt == 0, past.gaps[:, 0], dt.abs()))
        # One, the time itself, and the last times: at each node how far it is from those before.
        before = torch.cat((known.lead.expand(batch, -1), past.gaps), 1)
        away = torch.addcmul(before[:, :-1], known.nodes, step)
        self.gaps = away[0, :, 1:]
        # beta is a product of gap_j over that before; g_j is the integral over [0, 1] of
        # prod_{i<j} (1 - (1 - u) dt / gap_i): the nodes of Gauss are exact.
        factors = away / torch.where(known.last, before[:, 1:], away[0])
        products = cumprod_of(factors)
        beta = products[0, :, :-1]
        moves = MATMUL[dt.is_cpu](known.weights, products[1:].flatten(1))
        self.moves = moves.view(batch, -1) * column(dt)
        # What is said of each order, and behind it of each after a step that was cut short.
        place = torch.add(past.order, factors[0, :, 1] > LONGER, alpha=rows + 1)
        self.order, self.power = known.orders.index_select(0, place).unbind(1)
        factors_of, self.window = known.choices.index_select(0, place).split(
            [(rows + 2) * rows, rows + 1], 1
        )
        sums = beta.unsqueeze(1) * factors_of.view(batch, rows + 2, rows)
        self.sums, self.newton = sums[:, :-1], sums[:, -1]
        self.weights = self.moves[:, :-1] * self.newton


def cumprod_of(factors: Tensor) -> Tensor:
    """The products of the first, the first two, .. along the last dimension.

    In a graph product by product, for ONNX has no other, and a compiler fuses them.
    """
    if not torch.compiler.is_compiling():
        return factors.cumprod(-1)
    products = [factors[..., 0]]
    for place in range(1, index(factors.shape[-1])):
        products.append(products[-1] * factors[..., place])
    return torch.stack(products, -1)


class _Constants(NamedTuple):
    """What the coefficients of all steps are made with.

    Attributes:
        lead: ``[1, 2]``, 1 and 0: what is before the distances of the last times.
        nodes: ``[1 + nodes, 1, rows + 1]``, the end of the step and the nodes of Gauss' quadrature
            on [0, 1], exact for degree ``rows``; 0 in the first column, which stays.
        last: bool, where the distances are divided by those of the last grid: first row, and not
            in the first column.
        weights: ``[1, nodes]``, of the quadrature.
        choices: ``[2 rows + 2, (rows + 2) rows + rows + 1]``, of each order, 0 before the first
            step, then of each where the step is much longer than the last: the factors of beta in
            ``sums`` and then in ``newton``, and the window of the next order.
        orders: ``[2 rows + 2, 2]`` int64, of each the order of the step, and one more.
    """

    lead: Tensor
    nodes: Tensor
    last: Tensor
    weights: Tensor
    choices: Tensor
    orders: Tensor


@functools.cache
def _constants(size: int, dtype: torch.dtype, device: torch.device) -> _Constants:
    """Those for so many rows."""
    with torch.inference_mode(False), torch.device("cpu"):
        nodes, weights = (torch.tensor([of], dtype=torch.float64) for of in gauss(size // 2 + 1))
        nodes = torch.cat((torch.ones(1, 1), nodes), 1).T.unsqueeze(2).repeat(1, 1, size + 1)
        nodes[..., 0] = 0
        last = torch.zeros(nodes.shape, dtype=torch.bool)
        last[0, :, 1:] = True
        lower = torch.ones(size + 1, size).tril(-1)
        place = torch.arange(size + 1)
        known = torch.cat((place, place.clamp(max=1)))[:, None]
        order = known.clamp(min=1)
        near = ((place - order).abs() <= 1) & (place > 0) & (place <= known + 1)
        parts = lower.flatten().expand(len(order), -1), lower[order[:, 0]]
        choices = torch.cat((*parts, torch.where(near, 0.0, torch.inf)), 1)
        lead = torch.tensor([[1.0, 0.0]])
        real = (each.to(device, dtype) for each in (lead, nodes, weights, choices))
        lead, nodes, weights, choices = real
        orders = torch.cat((order, order + 1), 1).to(device)
        return _Constants(lead, nodes, last.to(device), weights, choices, orders)


def _constants_of(size: int, dtype: torch.dtype, device: torch.device) -> _Constants:
    """The same, which a graph takes as one constant."""
    if not torch.compiler.is_compiling():
        return _constants(size, dtype, device)
    return _parted(_flat_constants(size, dtype, device), _shapes(size))[0]


def _shapes(size: int) -> list[tuple[int, ...]]:
    nodes, both = size // 2 + 1, 2 * size + 2
    along = (nodes + 1, 1, size + 1)
    return [(1, 2), along, along, (1, nodes), (both, (size + 2) * size + size + 1), (both, 2)]


def _parted(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> tuple[_Constants, list[Tensor]]:
    """Those of all steps, and what is behind them.

    By one split: a loop in a graph takes no two slices of one tensor, and makes them before it.
    """
    parts = flat.split([prod(shape) for shape in shapes])
    views = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    count = len(_Constants._fields)
    found = _Constants(*views[:count])
    found = found._replace(last=found.last != 0, orders=found.orders.to(torch.int64))
    return found, views[count:]


@torch.compiler.assume_constant_result
def _flat_constants(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """All of them in one tensor, which a graph takes as it is."""
    with unset_fake_temporarily():
        return _flat(_constants(size, dtype, device), dtype)


def _flat(every: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([constant.flatten().to(dtype) for constant in every])


def piece_constants(
    size: int, dtype: torch.dtype, device: torch.device
) -> tuple[_Constants, Tensor, Tensor]:
    """Those of :class:`StepGrid`, and what :func:`_integrals` gives."""
    if not torch.compiler.is_compiling():
        return _constants(size, dtype, device), *_integrals(size, dtype, device)
    flat, more = _flat_piece_constants(size, dtype, device), [(size, 1, 1), (size, size)]
    known, (lever, matrix) = _parted(flat, [*_shapes(size), *more])
    return known, lever, matrix


@torch.compiler.assume_constant_result
def _flat_piece_constants(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """All of them in one tensor: a graph asks a function for a constant once, by its name."""
    with unset_fake_temporarily():
        return _flat((*_constants(size, dtype, device), *_integrals(size, dtype, device)), dtype)


@functools.cache
def _integrals(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """What makes a piece of a polynomial of degree ``size`` - 1 on [0, 1]: of its integral from 0.

    1 - u at ``size`` nodes ``[nodes, 1, 1]``, and the matrix ``[size, nodes]`` that takes its
    values there to c_1, c_2, .. of :func:`~implicitcore.ode_solvers.dense.evaluate`.
    """
    with torch.inference_mode(False):
        angles = torch.arange(size, dtype=torch.float64, device="cpu").add(0.5) * (torch.pi / size)
        nodes = (1 - angles.cos()) / 2  # Chebyshev's
        quadrature = gauss(size + 1)
        fine, weights = (torch.tensor(of, dtype=torch.float64, device="cpu") for of in quadrature)
        inner = nodes * fine[:, None]  # [fine, nodes]
        away = inner[..., None, None] - nodes
        apart = nodes[:, None] - nodes + torch.eye(size, dtype=torch.float64, device="cpu")
        same = torch.eye(size, dtype=torch.bool, device="cpu")
        lagrange = torch.where(same, 1, away / apart).prod(-1)  # [fine, nodes, size]
        sums = (weights[:, None, None] * lagrange).sum(0) * nodes[:, None]
        factors = [nodes if k % 2 == 0 else 1 - nodes for k in range(size)]
        basis = torch.stack(factors).cumprod(0).T
        matrix = torch.linalg.solve(basis, sums)
        return (1 - nodes)[:, None, None].to(device, dtype), matrix.to(device, dtype)
