"""The kernels, in Triton.

A state is ``[batch, n]`` and contiguous. What sums over n works on tiles: some samples, some of
their columns. A sample with more columns than a chunk is summed by several programs, each of which
leaves its part for ``finish``: no atomic addition, so the same tensors give the same bits, and how
a sample is cut depends on n alone, so a batch gives what single samples give. Sums and products are
in ACC, which is float32 at least.

Sizes that change from step to step (``batch``, ``depth``, ``chunks``) are not specialised; n and
the strides are, for whether 16 divides them decides how wide a load may be.
"""

# Triton gives the arguments of a kernel their types, and the code a meaning that Python does not
# know.
# ruff: noqa: ANN001, ANN201, ANN202, PLR0913
# pyright: reportGeneralTypeIssues=false, reportInvalidTypeForm=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(batch, n, chunks, CHUNK: tl.constexpr, SAMPLES: tl.constexpr):
    """The samples of this program, ``[SAMPLES, 1]``, and which of them there are; its columns.

    Of the columns the first, and the one after the last.
    """
    program = tl.program_id(0)
    sample = (program // chunks * SAMPLES + tl.arange(0, SAMPLES)).to(tl.int64)[:, None]
    first = program % chunks * CHUNK
    return sample, sample < batch, first, tl.minimum(n, first + CHUNK)


@triton.jit(do_not_specialize=["batch", "chunks"])
def residual(
    fz, z, out, norms, batch, n, chunks,
    CHUNK: tl.constexpr, SAMPLES: tl.constexpr, COLUMNS: tl.constexpr,
    ROOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """``out = fz - z``; ``norms [2, batch, chunks]``.

    The sums of squares of ``out`` and of fz, or their roots (ROOT).
    """
    sample, there, first, end = _tile(batch, n, chunks, CHUNK, SAMPLES)
    differences = tl.zeros((SAMPLES, COLUMNS), ACC)
    values = tl.zeros((SAMPLES, COLUMNS), ACC)
    for start in range(first, end, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        where = sample * n + column
        mask = there & (column < end)
        value = tl.load(fz + where, mask, 0).to(ACC)
        difference = (value - tl.load(z + where, mask, 0).to(ACC)).to(out.dtype.element_ty)
        tl.store(out + where, difference, mask)
        rounded = difference.to(ACC)  # the norm is that of what was written
        differences += rounded * rounded
        values += value * value
    place = sample * chunks + tl.program_id(0) % chunks
    _put(norms + place, differences, there, ROOT)
    _put(norms + batch.to(tl.int64) * chunks + place, values, there, ROOT)


@triton.jit(do_not_specialize=["batch", "chunks", "rtol", "atol"])
def error_norm(
    error, z, z_next, norms, batch, n, chunks, rtol: tl.float64, atol: tl.float64,
    CHUNK: tl.constexpr, SAMPLES: tl.constexpr, COLUMNS: tl.constexpr,
    ROOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """``norms [batch, chunks]``.

    The sums of the squares of ``error / (atol + rtol max(|z|, |z_next|))``, or the root of the
    mean.
    """
    sample, there, first, end = _tile(batch, n, chunks, CHUNK, SAMPLES)
    total = tl.zeros((SAMPLES, COLUMNS), ACC)
    for start in range(first, end, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        where = sample * n + column
        mask = there & (column < end)
        before = tl.load(z + where, mask, 0).to(ACC)
        after = tl.load(z_next + where, mask, 0).to(ACC)
        size = tl.maximum(tl.abs(before), tl.abs(after), propagate_nan=tl.PropagateNan.ALL)
        allowed = size * tl.full((), rtol, ACC) + tl.full((), atol, ACC)
        scale = tl.where(mask, allowed, 1)  # atol may be zero
        ratio = tl.load(error + where, mask, 0).to(ACC) / scale
        total += ratio * ratio
    _put(norms + sample * chunks + tl.program_id(0) % chunks, total, there, ROOT, n)


@triton.jit
def _put(target, squares, mask, ROOT: tl.constexpr, count=1):
    """Store the sums of the rows ``[SAMPLES, 1]``, or the roots of their means over ``count``."""
    total = tl.sum(squares, 1, keep_dims=True)
    tl.store(target, tl.sqrt(total / count) if ROOT else total, mask)


@triton.jit(do_not_specialize=["rows", "chunks", "count"])
def finish(
    parts,
    out,
    rows,
    chunks,
    count,
    ROOT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACC: tl.constexpr,
):
    """``out [rows]``: the sums of ``parts [rows, chunks]``.

    With ROOT the roots of their means over ``count``.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    total = tl.zeros((ROWS, COLUMNS), ACC)
    for start in range(0, chunks, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        total += tl.load(parts + row * chunks + column, (row < rows) & (column < chunks), 0)
    _put(out + row, total, row < rows, ROOT, count)


@triton.jit(do_not_specialize=["depth", "chunks"])
def inner_products(
    history, row, products, depth, n, chunks, sample_stride, line_stride, row_stride,
    CHUNK: tl.constexpr, LINES: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """``products [batch, depth, chunks]``: of the row with LINES lines of the history."""
    sample, chunk = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    line = (tl.program_id(1) * LINES + tl.arange(0, LINES)).to(tl.int64)[:, None]
    history += sample * sample_stride + line * line_stride
    row += sample * row_stride
    end = tl.minimum(n, (chunk + 1) * CHUNK)
    total = tl.zeros((LINES, COLUMNS), ACC)
    for start in range(chunk * CHUNK, end, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        lines = tl.load(history + column, (line < depth) & (column < end), 0).to(ACC)
        total += lines * tl.load(row + column, column < end, 0).to(ACC)
    place = (sample * depth + line) * chunks + chunk
    tl.store(products + place, tl.sum(total, 1, keep_dims=True), line < depth)


@triton.jit(do_not_specialize=["depth", "blocks", "scale"])
def axpy_history(
    row, weights, history, out, scale: tl.float64, depth, n, blocks,
    row_stride, sample_stride, line_stride, out_stride,
    LINES: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """``out = row + scale sum_i weights_i history_i`` in one block of columns; no row is zero."""
    sample, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    column = block * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    history += sample * sample_stride + column
    total = tl.zeros((LINES, COLUMNS), ACC)
    for start in range(0, depth, LINES):
        line = (start + tl.arange(0, LINES)).to(tl.int64)[:, None]
        weight = tl.load(weights + sample * depth + line, line < depth, 0).to(ACC)
        mask = (line < depth) & (column < n)
        total += weight * tl.load(history + line * line_stride, mask, 0).to(ACC)
    mixed = tl.sum(total, 0, keep_dims=True) * tl.full((), scale, ACC)
    if row is not None:
        mixed += tl.load(row + sample * row_stride + column, column < n, 0).to(ACC)
    tl.store(out + sample * out_stride + column, mixed, column < n)


@triton.jit(do_not_specialize=["weights", "batch", "blocks"])
def stage_combination(
    out,
    z,
    dt,
    stages,
    weights,
    batch,
    n,
    blocks,
    SAMPLES: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACC: tl.constexpr,
):
    """``out = z + dt sum_i weights_i stages_i`` in one block of columns; no z is zero.

    The weights come as the bits of float64 numbers, in int64: Triton would make a Python float a
    float32.
    """
    sample, there, first, end = _tile(batch, n, blocks, COLUMNS, SAMPLES)
    column = first + tl.arange(0, COLUMNS)[None, :]
    where = sample * n + column
    mask = there & (column < end)
    moved = tl.zeros((SAMPLES, COLUMNS), ACC)
    for i in tl.static_range(len(stages)):
        weight = weights[i].to(tl.float64, bitcast=True).to(ACC)
        moved += weight * tl.load(stages[i] + where, mask, 0).to(ACC)
    moved *= tl.load(dt + sample, there, 0).to(ACC)
    if z is not None:
        moved += tl.load(z + where, mask, 0).to(ACC)
    tl.store(out + where, moved, mask)
