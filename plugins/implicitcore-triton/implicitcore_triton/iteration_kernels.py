"""Whole iterations of Picard, Anderson and good Broyden, each one kernel.

A program has some samples, and goes through the columns of each in tiles: the norms, the stop test
(:mod:`implicitcore_triton.stop_kernels`), the products with the history, and the next iterate. What
the threads of a program write they see behind a barrier; no two programs write the same sample. In
which order a sample is added up depends on n alone.
"""

# Triton gives the arguments of a kernel their types, and the code a meaning that Python does not
# know.
# ruff: noqa: ANN001, ANN201, ANN202, PLR0913, PLR0915
# pyright: reportGeneralTypeIssues=false, reportInvalidTypeForm=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from implicitcore_triton.stop_kernels import judge, norms_of


_VARYING = (
    *("batch", "min_steps", "floor", "tol", "rounding", "divergence", "trust", "growth"),
    *("damping", "ridge", "period"),
)
"""Not worth a kernel of their own."""


@triton.jit
def _row_sum(tile):
    return tl.sum(tile, 1, keep_dims=True)


@triton.jit
def _load(source, where, mask, ACC: tl.constexpr):
    return tl.load(source + where, mask, 0).to(ACC)


@triton.jit
def _residual(z, fz, g, where, mask, ACC: tl.constexpr):
    """The residual as it is stored, in ACC."""
    if g is None:
        difference = _load(fz, where, mask, ACC) - _load(z, where, mask, ACC)
        return difference.to(fz.dtype.element_ty).to(ACC)
    else:
        return _load(g, where, mask, ACC)


@triton.jit
def _plain(z, fz, where, mask, damping, ACC: tl.constexpr):
    """The plain step, as torch.lerp has it."""
    f, here = _load(fz, where, mask, ACC), _load(z, where, mask, ACC)
    mixed = tl.where(damping < 0.5, here + damping * (f - here), f + (damping - 1) * (f - here))
    return tl.where(damping == 1, f, mixed).to(fz.dtype.element_ty).to(ACC)


@triton.jit
def _begin(
    z, fz, g, before, best, reals, counters, floors, fixed, origin,
    batch, n, min_steps, floor, tol, rounding, divergence, trust, growth,
    SCALE: tl.constexpr, SAMPLES: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
    SMALL: tl.constexpr, BY: tl.constexpr,
):  # fmt: skip
    """Norms, stop test and best iterate; what each sample does, its first entry, and the count."""
    sample = (tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)).to(tl.int64)[:, None]
    there, at = sample < batch, sample * n
    count = tl.load(counters + tl.program_id(0) * SAMPLES) + 1  # that of all samples
    squares, update_squares = (
        tl.zeros((SAMPLES, COLUMNS), ACC),
        tl.zeros((SAMPLES, COLUMNS), ACC),
    )
    magnified, update_magnified = (
        tl.zeros((SAMPLES, COLUMNS), ACC),
        tl.zeros((SAMPLES, COLUMNS), ACC),
    )
    for start in range(0, n, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        mask = there & (column < n)
        residual = _residual(z, fz, g, at + column, mask, ACC)
        value = _load(fz, at + column, mask, ACC)
        squares += residual * residual
        update_squares += value * value
        magnified += (residual * BY) * (residual * BY)
        update_magnified += (value * BY) * (value * BY)
    own = tl.zeros((SAMPLES, 1), ACC)
    if fixed is not None:
        own = tl.load(fixed + sample, there, 0)
    size, update = norms_of(
        _row_sum(squares), _row_sum(update_squares), _row_sum(magnified),
        _row_sum(update_magnified), own, SCALE, SMALL, BY,
    )  # fmt: skip
    moves, keeps, retreats, restarts = judge(
        size, update, count, sample, there, reals, counters, batch, floors, own, origin, min_steps,
        tl.full((), floor, ACC), tl.full((), tol, ACC), tl.full((), rounding, ACC),
        tl.full((), divergence, ACC), tl.full((), trust, ACC), tl.full((), growth, ACC), SCALE,
    )  # fmt: skip
    for start in range(0, n, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        mask = keeps & (column < n)
        tl.store(best + at + column, tl.load(before + at + column, mask, 0), mask)
    return sample, there, at, count, size, moves, retreats, restarts


@triton.jit
def _stay(z, z_next, at, stays, n, COLUMNS: tl.constexpr):
    """A sample that has stopped stays where it is."""
    for start in range(0, n, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        mask = stays & (column < n)
        tl.store(z_next + at + column, tl.load(z + at + column, mask, 0), mask)


@triton.jit(do_not_specialize=_VARYING[:-2])
def picard(
    z, fz, g, before, z_next, best, reals, counters, floors, fixed, origin,
    batch, n, min_steps, floor: tl.float64, tol: tl.float64, rounding: tl.float64,
    divergence: tl.float64, trust: tl.float64, growth: tl.float64, damping: tl.float64,
    SCALE: tl.constexpr, SAMPLES: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
    SMALL: tl.constexpr, BY: tl.constexpr,
):  # fmt: skip
    """``z_next = (1 - damping) z + damping f(z)``."""
    sample, there, at, count, size, moves, retreats, restarts = _begin(
        z, fz, g, before, best, reals, counters, floors, fixed, origin, batch, n, min_steps,
        floor, tol, rounding, divergence, trust, growth, SCALE, SAMPLES, COLUMNS, ACC, SMALL, BY,
    )  # fmt: skip
    if z_next is not None:
        weight = tl.full((), damping, ACC)
        for start in range(0, n, COLUMNS):
            column = start + tl.arange(0, COLUMNS)[None, :]
            mask = moves & (column < n)
            step = _plain(z, fz, at + column, mask, weight, ACC)
            tl.store(z_next + at + column, step, mask)
        _stay(z, z_next, at, there & ~moves, n, COLUMNS)


@triton.jit(do_not_specialize=_VARYING)
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
    sample, there, at, count, size, moves, retreats, restarts = _begin(
        z, fz, g, before, best, reals, counters, floors, fixed, origin, batch, n, min_steps,
        floor, tol, rounding, divergence, trust, growth, SCALE, SAMPLES, COLUMNS, ACC, SMALL, BY,
    )  # fmt: skip
    if z_next is not None:
        weight = tl.full((), damping, ACC)
        # Directions since all were forgotten, before this one; the first iterate has none.
        directions = tl.where(count < 2, 0, (count - 2) % period)
        used, newest = tl.minimum(directions, DEPTH), directions % DEPTH
        row_at, parts = sample * DEPTH * n, sums + DEPTH * batch
        learning = tl.zeros_like(sample) + count > 1
        for k in range(0, used):
            kept, taken = tl.zeros((SAMPLES, COLUMNS), ACC), tl.zeros((SAMPLES, COLUMNS), ACC)
            for start in range(0, n, COLUMNS):
                column = start + tl.arange(0, COLUMNS)[None, :]
                mask = moves & (column < n)
                residual = _residual(z, fz, g, at + column, mask, ACC)
                q = _load(rows, row_at + k * n + column, mask, ACC)
                kept += q * (residual - _load(last_g, at + column, mask, ACC))
                taken += q * residual
            # The row that is written over has no part in the next iterate.
            row = tl.zeros_like(sample) + k
            alive = tl.load(in_use + k * batch + sample, there, 0)
            takes = (alive != 0) & ~restarts
            tl.store(sums + k * batch + sample, tl.where(takes, _row_sum(kept), 0), there)
            share = tl.where(takes & (row != newest), _row_sum(taken), 0)
            tl.store(parts + k * batch + sample, share, there)
        tl.debug_barrier()
        for k in range(0, DEPTH):
            row = tl.zeros_like(sample) + k
            alive = tl.load(in_use + k * batch + sample, there, 0)
            alive = tl.where(restarts, 0, alive)
            alive = tl.where(learning & (row == newest), tl.where(restarts, 0, 1), alive)
            tl.debug_barrier()
            tl.store(in_use + k * batch + sample, alive, there)
        # The new difference without its parts along the rows, over the oldest of them.
        squares, products = tl.zeros((SAMPLES, COLUMNS), ACC), tl.zeros((SAMPLES, COLUMNS), ACC)
        for start in range(0, n, COLUMNS):
            column = start + tl.arange(0, COLUMNS)[None, :]
            mask = moves & (column < n)
            residual = _residual(z, fz, g, at + column, mask, ACC)
            learns = mask & learning
            q = residual - _load(last_g, at + column, learns, ACC)
            for k in range(0, used):
                part = tl.load(sums + k * batch + sample, there, 0)
                q -= part * _load(rows, row_at + k * n + column, mask & (part != 0), ACC)
            q = tl.where(learns, q, 0).to(fz.dtype.element_ty).to(ACC)
            tl.debug_barrier()
            tl.store(rows + row_at + newest * n + column, q, learns)
            tl.store(last_g + at + column, residual, mask & ~retreats)
            squares += q * q
            products += q * residual
        length = TINY + tl.full((), ridge, ACC) * size
        norm = tl.sqrt(_row_sum(squares))
        larger, smaller = tl.maximum(norm, length), tl.minimum(norm, length)
        ratio = smaller / tl.where(larger > 0, larger, 1)
        scale = 1 / tl.where(moves, larger * tl.sqrt(1 + ratio * ratio), 1)
        share = tl.where(restarts, 0, scale * _row_sum(products))
        tl.debug_barrier()
        for start in range(0, n, COLUMNS):
            column = start + tl.arange(0, COLUMNS)[None, :]
            mask = moves & (column < n)
            here = _plain(z, fz, at + column, mask, weight, ACC)
            learns = mask & learning
            last = _load(last_plain, at + column, learns, ACC)
            p, step = here - last, tl.where(retreats, last, here)
            for k in range(0, used):
                old = tl.load(sums + k * batch + sample, there, 0)
                part = tl.load(parts + k * batch + sample, there, 0)
                wanted = mask & ((old != 0) | (part != 0))
                plain = _load(plain_rows, row_at + k * n + column, wanted, ACC)
                p -= old * plain
                step -= part * plain
            p = tl.where(learns, p * scale, 0).to(fz.dtype.element_ty).to(ACC)
            q = _load(rows, row_at + newest * n + column, learns, ACC) * scale
            tl.debug_barrier()
            tl.store(rows + row_at + newest * n + column, q, learns)
            tl.store(plain_rows + row_at + newest * n + column, p, learns)
            tl.store(last_plain + at + column, here, mask & ~retreats)
            tl.store(z_next + at + column, tl.where(learns, step - share * p, step), mask)
        _stay(z, z_next, at, there & ~moves, n, COLUMNS)


@triton.jit
def _line(matrix, sample, row, length, mask, DEPTH: tl.constexpr, LINE: tl.constexpr):
    """The first so many entries of a row of the matrix, ``[SAMPLES, LINE]``."""
    entry = tl.arange(0, LINE)[None, :]
    return tl.load(matrix + (sample * DEPTH + row) * DEPTH + entry, mask & (entry < length), 0)


@triton.jit(do_not_specialize=_VARYING[:-3])
def broyden(
    z, fz, g, before, z_next, best, reals, counters, floors, fixed, origin,
    rows, sums, matrix,
    batch, n, min_steps, floor: tl.float64, tol: tl.float64, rounding: tl.float64,
    divergence: tl.float64, trust: tl.float64, growth: tl.float64, 
    SCALE: tl.constexpr, SAMPLES: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
    SMALL: tl.constexpr, BY: tl.constexpr, DEPTH: tl.constexpr, LINE: tl.constexpr,
    TINY: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """The good method: its steps s_0, s_1, ... since all were forgotten, ``rows [batch, DEPTH, n]``.

    The ``matrix [batch, DEPTH, DEPTH]``, which gains a row a step, takes the products of the steps
    with the residual to their coefficients: see Broyden of implicitcore. ``sums [2, batch, DEPTH]``
    are those products, then those with the newest step; and the coefficients.
    """
    sample, there, at, count, size, moves, retreats, restarts = _begin(
        z, fz, g, before, best, reals, counters, floors, fixed, origin, batch, n, min_steps,
        floor, tol, rounding, divergence, trust, growth, SCALE, SAMPLES, COLUMNS, ACC, SMALL, BY,
    )  # fmt: skip
    if z_next is not None:
        newest = (count - 1) % DEPTH  # steps so far
        row_at, coefficients = sample * DEPTH * n, sums + batch.to(tl.int64) * DEPTH
        entry = tl.arange(0, LINE)[None, :]
        for k in range(0, newest):
            total = tl.zeros((SAMPLES, COLUMNS), ACC)
            for start in range(0, n, COLUMNS):
                column = start + tl.arange(0, COLUMNS)[None, :]
                mask = moves & (column < n)
                row = _load(rows, row_at + k * n + column, mask, ACC)
                total += row * _residual(z, fz, g, at + column, mask, ACC)
            tl.store(sums + sample * DEPTH + k, _row_sum(total), there)
        tl.debug_barrier()
        products = tl.load(sums + sample * DEPTH + entry, there & (entry < newest), 0)
        last = tl.zeros((SAMPLES, 1), ACC)
        for j in range(1, newest + 1):
            last = _row_sum(_line(matrix, sample, j, j, moves, DEPTH, LINE) * products)
            tl.store(coefficients + sample * DEPTH + j, last, there)
        tl.debug_barrier()
        denominator = 1 - last
        safe = tl.abs(denominator) > 10 * EPS
        scale = 1 / tl.where(safe, denominator, 1)
        drops = moves & ~safe & (entry < newest)
        line = (sample * DEPTH + newest) * DEPTH + entry
        tl.store(matrix + line, tl.zeros((SAMPLES, LINE), ACC), drops)
        for start in range(0, n, COLUMNS):
            column = start + tl.arange(0, COLUMNS)[None, :]
            mask = moves & (column < n)
            step = _residual(z, fz, g, at + column, mask, ACC)
            for k in range(1, newest):
                part = tl.load(coefficients + sample * DEPTH + k, there, 0)
                step += part * _load(rows, row_at + k * n + column, mask, ACC)
            step = (step * scale).to(fz.dtype.element_ty).to(ACC)
            tl.store(rows + row_at + newest * n + column, step, mask)
            here = _load(z, at + column, mask, ACC)
            tl.store(z_next + at + column, here + step, mask)
        tl.debug_barrier()
        if newest + 1 < DEPTH:  # else all is forgotten before the next step
            for k in range(0, newest + 1):
                total = tl.zeros((SAMPLES, COLUMNS), ACC)
                for start in range(0, n, COLUMNS):
                    column = start + tl.arange(0, COLUMNS)[None, :]
                    mask = moves & (column < n)
                    row = _load(rows, row_at + k * n + column, mask, ACC)
                    total += row * _load(rows, row_at + newest * n + column, mask, ACC)
                tl.store(sums + sample * DEPTH + k, _row_sum(total), there)
            tl.debug_barrier()
            total = tl.zeros((SAMPLES, LINE), ACC) + tl.where(entry == newest, 1, 0)
            for i in range(1, newest + 1):
                product = tl.load(sums + sample * DEPTH + i, there, 0)
                total += product * _line(matrix, sample, i, i, moves, DEPTH, LINE)
            square = tl.load(sums + sample * DEPTH + newest, there, 0) + TINY
            line = (sample * DEPTH + newest + 1) * DEPTH + entry
            tl.store(matrix + line, total / square, moves & (entry <= newest))
        _stay(z, z_next, at, there & ~moves, n, COLUMNS)
