"""An iteration of Anderson in Triton."""

# Triton gives the arguments of a kernel their types, and the code a meaning that Python does not
# know.
# ruff: noqa: ANN001, ANN201, ANN202, PLR0913
# pyright: reportGeneralTypeIssues=false, reportInvalidTypeForm=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from implicitcore_triton.iteration_kernels import (
    VARYING,
    begin,
    load,
    plain_at,
    residual_at,
    row_sum,
    stay,
)


@triton.jit
def _weigh(
    z, fz, g, last_g, rows, sums, in_use, at, row_at, sample, there, moves, restarts, learning,
    used, newest, batch, n, DEPTH: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The coefficients of the new difference and of the next iterate, and which rows are in use."""
    for k in range(0, used):
        kept = tl.zeros((at.shape[0], COLUMNS), ACC)
        taken = tl.zeros((at.shape[0], COLUMNS), ACC)
        for start in range(0, n, COLUMNS):
            column = start + tl.arange(0, COLUMNS)[None, :]
            mask = moves & (column < n)
            residual = residual_at(z, fz, g, at + column, mask, ACC)
            q = load(rows, row_at + k * n + column, mask, ACC)
            kept += q * (residual - load(last_g, at + column, mask, ACC))
            taken += q * residual
        alive = tl.load(in_use + k * batch + sample, there, 0)
        takes = (alive != 0) & ~restarts
        tl.store(sums + k * batch + sample, tl.where(takes, row_sum(kept), 0), there)
        # The row that is written over has no part in the next iterate.
        takes = takes & (tl.zeros_like(sample) + k != newest)
        share = tl.where(takes, row_sum(taken), 0)
        tl.store(sums + (DEPTH + k) * batch + sample, share, there)
    for k in range(0, DEPTH):
        alive = tl.load(in_use + k * batch + sample, there, 0)
        begins = learning & (tl.zeros_like(sample) + k == newest)
        alive = tl.where(restarts, 0, tl.where(begins, 1, alive))
        tl.debug_barrier()
        tl.store(in_use + k * batch + sample, alive, there)
    tl.debug_barrier()


@triton.jit
def _extend(
    z, fz, g, last_g, rows, sums, at, row_at, sample, there, moves, retreats, learning, size, low,
    ridge, used, newest, batch, n, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The new difference without its parts along the rows, over the oldest of them.

    The factor that makes it a unit, and its part of the next iterate.
    """
    squares = tl.zeros((at.shape[0], COLUMNS), ACC)
    products = tl.zeros((at.shape[0], COLUMNS), ACC)
    for start in range(0, n, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        mask = moves & (column < n)
        residual = residual_at(z, fz, g, at + column, mask, ACC)
        learns = mask & learning
        q = residual - load(last_g, at + column, learns, ACC)
        for k in range(0, used):
            part = tl.load(sums + k * batch + sample, there, 0)
            q -= part * load(rows, row_at + k * n + column, mask & (part != 0), ACC)
        q = tl.where(learns, q, 0).to(fz.dtype.element_ty).to(ACC)
        tl.debug_barrier()
        tl.store(rows + row_at + newest * n + column, q, learns)
        tl.store(last_g + at + column, residual, mask & ~retreats)
        squares += q * q
        products += q * residual
    length, norm = low + ridge * size, tl.sqrt(row_sum(squares))
    larger, smaller = tl.maximum(norm, length), tl.minimum(norm, length)
    ratio = smaller / tl.where(larger > 0, larger, 1)
    scale = 1 / tl.where(moves, larger * tl.sqrt(1 + ratio * ratio), 1)
    tl.debug_barrier()
    return scale, scale * row_sum(products)


@triton.jit
def _move(
    z, fz, z_next, last_plain, rows, plain_rows, sums, at, row_at, sample, there, moves, retreats,
    learning, scale, share, weight, used, newest, batch, n, DEPTH: tl.constexpr,
    COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The next iterate, and the partner of the new direction."""
    for start in range(0, n, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        mask = moves & (column < n)
        here = plain_at(z, fz, at + column, mask, weight, ACC)
        learns = mask & learning
        last = load(last_plain, at + column, learns, ACC)
        p, step = here - last, tl.where(retreats, last, here)
        for k in range(0, used):
            old = tl.load(sums + k * batch + sample, there, 0)
            part = tl.load(sums + (DEPTH + k) * batch + sample, there, 0)
            wanted = mask & ((old != 0) | (part != 0))
            plain = load(plain_rows, row_at + k * n + column, wanted, ACC)
            p -= old * plain
            step -= part * plain
        p = tl.where(learns, p * scale, 0).to(fz.dtype.element_ty).to(ACC)
        q = load(rows, row_at + newest * n + column, learns, ACC) * scale
        tl.debug_barrier()
        tl.store(rows + row_at + newest * n + column, q, learns)
        tl.store(plain_rows + row_at + newest * n + column, p, learns)
        tl.store(last_plain + at + column, here, mask & ~retreats)
        tl.store(z_next + at + column, tl.where(learns, step - share * p, step), mask)


@triton.jit(do_not_specialize=VARYING)
def anderson(
    z, fz, g, before, z_next, best, reals, counters, floors, fixed, origin,
    last_g, last_plain, rows, plain_rows, sums, in_use,
    batch, n, min_steps, floor: tl.float64, tol: tl.float64, rounding: tl.float64,
    divergence: tl.float64, trust: tl.float64, growth: tl.float64, damping: tl.float64,
    ridge: tl.float64, period,
    SCALE: tl.constexpr, SAMPLES: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
    SMALL: tl.constexpr, BY: tl.constexpr, DEPTH: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """The rows (q_i, p_i), ``[batch, DEPTH, n]``.

    A difference of residuals, orthonormal, and of the plain steps beside it. ``sums [2, DEPTH,
    batch]``: the coefficients of a new difference, and those of the next iterate, zero for rows
    that are not ``in_use [DEPTH, batch]``.
    """
    sample, there, at, count, size, moves, retreats, restarts = begin(
        z, fz, g, before, best, reals, counters, floors, fixed, origin, batch, n, min_steps,
        floor, tol, rounding, divergence, trust, growth, SCALE, SAMPLES, COLUMNS, ACC, SMALL, BY,
    )  # fmt: skip
    if z_next is not None:
        # Directions since all were forgotten, before this one; the first iterate has none.
        directions = tl.where(count < 2, 0, (count - 2) % period).to(tl.int32)
        used, newest = tl.minimum(directions, DEPTH), directions % DEPTH
        row_at, learning = sample * DEPTH * n, tl.zeros_like(sample) + count > 1
        _weigh(
            z, fz, g, last_g, rows, sums, in_use, at, row_at, sample, there, moves, restarts,
            learning, used, newest, batch, n, DEPTH, COLUMNS, ACC,
        )  # fmt: skip
        scale, share = _extend(
            z, fz, g, last_g, rows, sums, at, row_at, sample, there, moves, retreats, learning,
            size, tl.full((), TINY, ACC), tl.full((), ridge, ACC), used, newest, batch, n, COLUMNS,
            ACC,
        )  # fmt: skip
        _move(
            z, fz, z_next, last_plain, rows, plain_rows, sums, at, row_at, sample, there, moves,
            retreats, learning, scale, tl.where(restarts, 0, share), tl.full((), damping, ACC),
            used, newest, batch, n, DEPTH, COLUMNS, ACC,
        )  # fmt: skip
        stay(z, z_next, at, there & ~moves, n, COLUMNS)
