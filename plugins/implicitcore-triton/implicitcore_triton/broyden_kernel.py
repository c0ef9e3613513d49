"""An iteration of the good Broyden in Triton."""

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
    residual_at,
    row_sum,
    stay,
)


@triton.jit
def _line(matrix, sample, row, length, mask, DEPTH: tl.constexpr, LINE: tl.constexpr):
    """The first so many entries of a row of the matrix, ``[SAMPLES, LINE]``."""
    entry = tl.arange(0, LINE)[None, :]
    return tl.load(matrix + (sample * DEPTH + row) * DEPTH + entry, mask & (entry < length), 0)


@triton.jit
def _coefficients(
    z, fz, g, rows, sums, matrix, coefficients, at, row_at, sample, there, moves, newest, n,
    EPS: tl.constexpr, DEPTH: tl.constexpr, LINE: tl.constexpr, COLUMNS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Those of the steps, from their products with the residual; the factor of the next step."""
    entry = tl.arange(0, LINE)[None, :]
    for k in range(0, newest):
        total = tl.zeros((at.shape[0], COLUMNS), ACC)
        for start in range(0, n, COLUMNS):
            column = start + tl.arange(0, COLUMNS)[None, :]
            mask = moves & (column < n)
            row = load(rows, row_at + k * n + column, mask, ACC)
            total += row * residual_at(z, fz, g, at + column, mask, ACC)
        tl.store(sums + sample * DEPTH + k, row_sum(total), there)
    tl.debug_barrier()
    products = tl.load(sums + sample * DEPTH + entry, there & (entry < newest), 0)
    last = tl.zeros((at.shape[0], 1), ACC)
    for j in range(1, newest + 1):
        last = row_sum(_line(matrix, sample, j, j, moves, DEPTH, LINE) * products)
        tl.store(coefficients + sample * DEPTH + j, last, there)
    tl.debug_barrier()
    safe = tl.abs(1 - last) > 10 * EPS
    line = (sample * DEPTH + newest) * DEPTH + entry
    nothing = tl.zeros((at.shape[0], LINE), ACC)
    tl.store(matrix + line, nothing, moves & ~safe & (entry < newest))
    return 1 / tl.where(safe, 1 - last, 1)


@triton.jit
def _step(
    z, fz, g, z_next, rows, coefficients, at, row_at, sample, there, moves, scale, newest, n,
    DEPTH: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The next step and iterate."""
    for start in range(0, n, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        mask = moves & (column < n)
        step = residual_at(z, fz, g, at + column, mask, ACC)
        for k in range(1, newest):
            part = tl.load(coefficients + sample * DEPTH + k, there, 0)
            step += part * load(rows, row_at + k * n + column, mask, ACC)
        step = (step * scale).to(fz.dtype.element_ty).to(ACC)
        tl.store(rows + row_at + newest * n + column, step, mask)
        tl.store(z_next + at + column, load(z, at + column, mask, ACC) + step, mask)
    tl.debug_barrier()


@triton.jit
def _take_in(
    rows, sums, matrix, row_at, sample, there, moves, newest, n, TINY: tl.constexpr,
    DEPTH: tl.constexpr, LINE: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The row of the matrix that the newest step adds, from its products with all steps."""
    entry = tl.arange(0, LINE)[None, :]
    for k in range(0, newest + 1):
        products = tl.zeros((row_at.shape[0], COLUMNS), ACC)
        for start in range(0, n, COLUMNS):
            column = start + tl.arange(0, COLUMNS)[None, :]
            mask = moves & (column < n)
            row = load(rows, row_at + k * n + column, mask, ACC)
            products += row * load(rows, row_at + newest * n + column, mask, ACC)
        tl.store(sums + sample * DEPTH + k, row_sum(products), there)
    tl.debug_barrier()
    total = tl.zeros((row_at.shape[0], LINE), ACC) + tl.where(entry == newest, 1, 0)
    for i in range(1, newest + 1):
        product = tl.load(sums + sample * DEPTH + i, there, 0)
        total += product * _line(matrix, sample, i, i, moves, DEPTH, LINE)
    square = tl.load(sums + sample * DEPTH + newest, there, 0) + TINY
    line = (sample * DEPTH + newest + 1) * DEPTH + entry
    tl.store(matrix + line, total / tl.where(moves, square, 1), moves & (entry <= newest))


@triton.jit(do_not_specialize=VARYING[:-3])
def broyden(
    z, fz, g, before, z_next, best, reals, counters, floors, fixed, origin,
    rows, sums, matrix,
    batch, n, min_steps, floor: tl.float64, tol: tl.float64, rounding: tl.float64,
    divergence: tl.float64, trust: tl.float64, growth: tl.float64, 
    SCALE: tl.constexpr, SAMPLES: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
    SMALL: tl.constexpr, BY: tl.constexpr, DEPTH: tl.constexpr, LINE: tl.constexpr,
    TINY: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """The good method: its steps s_0, s_1, ... since all were forgotten, in ``rows``.

    Those are ``[batch, DEPTH, n]``. The ``matrix [batch, DEPTH, DEPTH]``, which gains a row a step,
    takes the products of the steps with the residual to their coefficients: see Broyden of
    implicitcore. ``sums [2, batch, DEPTH]`` are those products, then those with the newest step;
    and the coefficients.
    """
    sample, there, at, count, size, moves, retreats, restarts = begin(
        z, fz, g, before, best, reals, counters, floors, fixed, origin, batch, n, min_steps,
        floor, tol, rounding, divergence, trust, growth, SCALE, SAMPLES, COLUMNS, ACC, SMALL, BY,
    )  # fmt: skip
    if z_next is not None:
        newest = ((count - 1) % DEPTH).to(tl.int32)  # steps so far
        row_at, coefficients = sample * DEPTH * n, sums + batch.to(tl.int64) * DEPTH
        scale = _coefficients(
            z, fz, g, rows, sums, matrix, coefficients, at, row_at, sample, there, moves, newest,
            n, EPS, DEPTH, LINE, COLUMNS, ACC,
        )  # fmt: skip
        _step(
            z, fz, g, z_next, rows, coefficients, at, row_at, sample, there, moves, scale, newest,
            n, DEPTH, COLUMNS, ACC,
        )  # fmt: skip
        if newest + 1 < DEPTH:  # else all is forgotten before the next step
            _take_in(
                rows, sums, matrix, row_at, sample, there, moves, newest, n, TINY, DEPTH, LINE,
                COLUMNS, ACC,
            )  # fmt: skip
        stay(z, z_next, at, there & ~moves, n, COLUMNS)
