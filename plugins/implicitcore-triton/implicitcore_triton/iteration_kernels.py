"""Whole iterations of a root solver, each one kernel: what those have in common, and Picard.

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

VARYING = (
    *("batch", "min_steps", "floor", "tol", "rounding", "divergence", "trust", "growth"),
    *("damping", "ridge", "period"),
)
"""Not worth a kernel of their own."""


@triton.jit
def row_sum(tile):
    """The sums of the rows, ``[SAMPLES, 1]``."""
    return tl.sum(tile, 1, keep_dims=True)


@triton.jit
def load(source, where, mask, ACC: tl.constexpr):
    """Entries in ACC, zero where there are none."""
    return tl.load(source + where, mask, 0).to(ACC)


@triton.jit
def residual_at(z, fz, g, where, mask, ACC: tl.constexpr):
    """The residual as it is stored, in ACC."""
    if g is None:
        difference = load(fz, where, mask, ACC) - load(z, where, mask, ACC)
        return difference.to(fz.dtype.element_ty).to(ACC)
    else:
        return load(g, where, mask, ACC)


@triton.jit
def plain_at(z, fz, where, mask, damping, ACC: tl.constexpr):
    """The plain step, as torch.lerp has it."""
    f, here = load(fz, where, mask, ACC), load(z, where, mask, ACC)
    mixed = tl.where(damping < 0.5, here + damping * (f - here), f + (damping - 1) * (f - here))
    return tl.where(damping == 1, f, mixed).to(fz.dtype.element_ty).to(ACC)


@triton.jit
def begin(
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
        residual = residual_at(z, fz, g, at + column, mask, ACC)
        value = load(fz, at + column, mask, ACC)
        squares += residual * residual
        update_squares += value * value
        magnified += (residual * BY) * (residual * BY)
        update_magnified += (value * BY) * (value * BY)
    own = tl.zeros((SAMPLES, 1), ACC)
    if fixed is not None:
        own = tl.load(fixed + sample, there, 0)
    size, update = norms_of(
        row_sum(squares), row_sum(update_squares), row_sum(magnified),
        row_sum(update_magnified), own, SCALE, SMALL, BY,
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
def stay(z, z_next, at, stays, n, COLUMNS: tl.constexpr):
    """A sample that has stopped stays where it is."""
    for start in range(0, n, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        mask = stays & (column < n)
        tl.store(z_next + at + column, tl.load(z + at + column, mask, 0), mask)


@triton.jit(do_not_specialize=VARYING[:-2])
def picard(
    z, fz, g, before, z_next, best, reals, counters, floors, fixed, origin,
    batch, n, min_steps, floor: tl.float64, tol: tl.float64, rounding: tl.float64,
    divergence: tl.float64, trust: tl.float64, growth: tl.float64, damping: tl.float64,
    SCALE: tl.constexpr, SAMPLES: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
    SMALL: tl.constexpr, BY: tl.constexpr,
):  # fmt: skip
    """``z_next = (1 - damping) z + damping f(z)``."""
    sample, there, at, count, size, moves, retreats, restarts = begin(
        z, fz, g, before, best, reals, counters, floors, fixed, origin, batch, n, min_steps,
        floor, tol, rounding, divergence, trust, growth, SCALE, SAMPLES, COLUMNS, ACC, SMALL, BY,
    )  # fmt: skip
    if z_next is not None:
        weight = tl.full((), damping, ACC)
        for start in range(0, n, COLUMNS):
            column = start + tl.arange(0, COLUMNS)[None, :]
            mask = moves & (column < n)
            step = plain_at(z, fz, at + column, mask, weight, ACC)
            tl.store(z_next + at + column, step, mask)
        stay(z, z_next, at, there & ~moves, n, COLUMNS)
