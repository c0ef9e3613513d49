"""What GMRES does beside a product, in Triton.

A product is made orthogonal to the basis of its sample's Krylov space, twice, and the least
residual over the space is found, by the formulas of Krylov of implicitcore. A program has one chunk
of the columns of one sample. Where that is all of them, one kernel does it; else there are three,
and each program adds up for itself what all chunks handed in. So a kernel reads no number of a
sample that it writes: that of each product has a place of its own.

``partial [batch, 2 most + 2, chunks]``: the products of the rows with what was multiplied and the
square of its norm, then the same of what is left of it. The rest is that of
:class:`~implicitcore.extend.DeviceKrylov`.
"""

# Triton gives the arguments of a kernel their types, and the code a meaning that Python does not
# know.
# ruff: noqa: ANN001, ANN201, ANN202, PLR0913
# pyright: reportGeneralTypeIssues=false, reportInvalidTypeForm=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from implicitcore_triton.iteration_kernels import load

VARYING = ("rows", "batch", "most", "chunks")  # not worth a kernel of their own
BETA, BOUND, LENGTH = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _place(n, chunks, COLUMNS: tl.constexpr):
    """The sample of this program and its chunk, ``[1, 1]`` as all that is known of a sample.

    And the columns of it, ``[1, COLUMNS]``.
    """
    sample = (tl.program_id(0) // chunks + tl.zeros((1, 1), tl.int32)).to(tl.int64)
    chunk = tl.program_id(0) % chunks + tl.zeros((1, 1), tl.int32)
    column = chunk * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return sample, chunk, column, column < n


@triton.jit
def _total(tile):
    """The sum of all entries, ``[1, 1]``."""
    return tl.sum(tl.sum(tile, 1, keep_dims=True), 0, keep_dims=True)


@triton.jit
def _largest(a, b):
    """The larger, NaN where one is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _lines(first, LINES: tl.constexpr):
    return (first + tl.arange(0, LINES)).to(tl.int64)[:, None]


@triton.jit
def _goes(reals, sample, rows, batch):
    """Whether the sample needed the product."""
    length = tl.load(reals + (LENGTH + rows - 1) * batch + sample)
    return length < tl.load(reals + BOUND * batch + sample)


@triton.jit
def _measure(
    x, basis, partial, sample, chunk, column, mask, place, rows, batch, n, most, chunks,
    LINES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Hand in the products of the rows with x, and the square of its norm."""
    to = partial + (sample * (2 * most + 2) + place) * chunks + chunk
    for first in range(0, rows, LINES):
        line = _lines(first, LINES)
        q = load(basis, (line * batch + sample) * n + column, mask & (line < rows), ACC)
        tl.store(to + line * chunks, tl.sum(q * x, 1, keep_dims=True), line < rows)
    tl.store(to + rows * chunks, _total(x * x))


@triton.jit
def _gathered(partial, sample, slot, there, most, chunks, PARTS: tl.constexpr):
    """The sums at some slots ``[LINES, 1]`` over all chunks."""
    at = partial + (sample * (2 * most + 2) + slot) * chunks
    total = tl.zeros((slot.shape[0], PARTS), partial.dtype.element_ty)
    for start in range(0, chunks, PARTS):
        part = start + tl.arange(0, PARTS)[None, :]
        total += tl.load(at + part, there & (part < chunks), 0)
    return tl.sum(total, 1, keep_dims=True)


@triton.jit
def _one(partial, sample, slot, most, chunks, PARTS: tl.constexpr):
    """The sum at one slot."""
    line = tl.zeros_like(sample) + slot
    return _gathered(partial, sample, line, line >= 0, most, chunks, PARTS)


@triton.jit
def _reduced(
    x, basis, partial, sample, column, mask, place, rows, batch, n, most, chunks,
    LINES: tl.constexpr, PARTS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """X without its parts along the rows, and the sum of their squares."""
    squares = tl.zeros((1, 1), ACC)
    for first in range(0, rows, LINES):
        line = _lines(first, LINES)
        weight = _gathered(partial, sample, place + line, line < rows, most, chunks, PARTS)
        q = load(basis, (line * batch + sample) * n + column, mask & (line < rows), ACC)
        x -= tl.sum(weight * q, 0, keep_dims=True)
        squares += _total(weight * weight)
    return x, squares


@triton.jit
def _count(counter, event):
    """One more where it is so: a sum of whole numbers is the same in any order."""
    tl.atomic_add(counter, tl.sum(tl.sum(event.to(tl.int64), 1), 0))


@triton.jit
def _begin(square, limits, reals, counters, sample, chunk, batch, TINY: tl.constexpr):
    """Whether the sample needs a product, and what its first vector is divided by."""
    beta = tl.sqrt(square)
    share = beta / tl.load(limits + sample)
    bound = share * share
    goes, writes = bound > 1, chunk == 0
    tl.store(reals + BETA * batch + sample, beta, writes)
    tl.store(reals + BOUND * batch + sample, bound, writes)
    tl.store(reals + LENGTH * batch + sample, tl.full((1, 1), 1, square.dtype), writes)
    _count(counters + batch, writes & ~goes)
    return goes, _largest(beta, tl.full((), TINY, square.dtype))


@triton.jit
def _grow(
    below, columns, reals, counters, partial, sample, chunk, goes, rows, batch, most, chunks,
    LINES: tl.constexpr, PARTS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The column of the triangle and the entry of w that a product adds.

    A sample that is done gets none: its minimiser stays the one of its own dimension.
    """
    writes, newest = chunk == 0, rows - 1
    own = columns + sample * most * (most + 1)
    column, adds = own + newest * (most + 1), writes & goes
    w = tl.zeros((1, 1), ACC)
    for first in range(0, rows, LINES):
        line = _lines(first, LINES)
        inside = line < rows
        h = _gathered(partial, sample, line, inside, most, chunks, PARTS)
        h += _gathered(partial, sample, rows + 1 + line, inside, most, chunks, PARTS)
        above = inside & (line > 0)
        tl.store(column + line - 1, h, above & adds)
        past = tl.load(own + (line - 1) * (most + 1) + most, above & goes, 0)
        w += _total(tl.where(line == 0, h, -h * past))
    w /= below
    length = reals + (LENGTH + newest) * batch + sample
    before = tl.load(length)
    after = tl.where(goes, before + w * w, before)
    tl.store(column + newest, below, adds)
    tl.store(column + most, w, adds)
    tl.store(length + batch, after, writes)
    used = tl.load(counters + sample)
    tl.store(counters + sample, used + 1, adds)
    _count(counters + batch, adds & ~(after < tl.load(reals + BOUND * batch + sample)))


@triton.jit
def _settle(
    x, following, basis, columns, reals, limits, counters, partial, sample, chunk, column, mask,
    rows, batch, n, most, chunks, FIRST: tl.constexpr, LINES: tl.constexpr, PARTS: tl.constexpr,
    TINY: tl.constexpr, EPS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The next vector, and what is known of the sample."""
    square = _one(partial, sample, rows, most, chunks, PARTS)  # of what was multiplied
    if FIRST:
        goes, below = _begin(square, limits, reals, counters, sample, chunk, batch, TINY)
    else:
        goes = _goes(reals, sample, rows, batch)
        x, squares = _reduced(
            x, basis, partial, sample, column, mask, rows + 1, rows, batch, n, most, chunks,
            LINES, PARTS, ACC,
        )  # fmt: skip
        # By Pythagoras, for the second parts are small beside what is left, or both are rounding.
        # A zero is a lucky breakdown: solved.
        left = _one(partial, sample, 2 * rows + 1, most, chunks, PARTS) - squares
        below = tl.sqrt(_largest(left, tl.full((), 0, ACC)))
        below = _largest(below, tl.sqrt(square) * tl.full((), EPS, ACC))
        below = _largest(below, tl.full((), TINY, ACC))
        _grow(
            below, columns, reals, counters, partial, sample, chunk, goes, rows, batch, most,
            chunks, LINES, PARTS, ACC,
        )  # fmt: skip
    if following is not None:
        tl.store(following + sample * n + column, tl.where(goes, x / below, 0), mask)


@triton.jit(do_not_specialize=VARYING)
def project(
    product, basis, reals, partial, rows, batch, n, most, chunks,
    FIRST: tl.constexpr, LINES: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The inner products with the basis."""
    sample, chunk, column, mask = _place(n, chunks, COLUMNS)
    if not FIRST:
        mask = mask & _goes(reals, sample, rows, batch)
    x = load(product, sample * n + column, mask, ACC)
    _measure(
        x, basis, partial, sample, chunk, column, mask, 0, rows, batch, n, most, chunks, LINES, ACC
    )


@triton.jit(do_not_specialize=VARYING)
def reduce(
    product, rest, basis, reals, partial, rows, batch, n, most, chunks,
    LINES: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The product without its parts along the basis, and what parts are left."""
    sample, chunk, column, mask = _place(n, chunks, COLUMNS)
    mask = mask & _goes(reals, sample, rows, batch)
    x = load(product, sample * n + column, mask, ACC)
    x, _ = _reduced(
        x, basis, partial, sample, column, mask, 0, rows, batch, n, most, chunks, LINES, PARTS, ACC
    )
    tl.store(rest + sample * n + column, x, mask)
    _measure(
        x, basis, partial, sample, chunk, column, mask, rows + 1, rows, batch, n, most, chunks,
        LINES, ACC,
    )  # fmt: skip


@triton.jit(do_not_specialize=VARYING)
def settle(
    rest, following, basis, columns, reals, limits, counters, partial, rows, batch, n, most, chunks,
    FIRST: tl.constexpr, LINES: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr,
    TINY: tl.constexpr, EPS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The next vector, and what is known of the sample; the rest is g itself at first."""
    sample, chunk, column, mask = _place(n, chunks, COLUMNS)
    x = load(rest, sample * n + column, mask, ACC)
    _settle(
        x, following, basis, columns, reals, limits, counters, partial, sample, chunk, column, mask,
        rows, batch, n, most, chunks, FIRST, LINES, PARTS, TINY, EPS, ACC,
    )  # fmt: skip


@triton.jit(do_not_specialize=VARYING)
def expand(
    product, following, basis, columns, reals, limits, counters, partial, rows, batch, n, most,
    chunks, FIRST: tl.constexpr, LINES: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr,
    TINY: tl.constexpr, EPS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """All of it, for a sample of one chunk."""
    sample, chunk, column, mask = _place(n, chunks, COLUMNS)
    needed = mask
    if not FIRST:
        needed = mask & _goes(reals, sample, rows, batch)
    x = load(product, sample * n + column, needed, ACC)
    _measure(
        x, basis, partial, sample, chunk, column, needed, 0, rows, batch, n, most, chunks, LINES,
        ACC,
    )  # fmt: skip
    tl.debug_barrier()
    if not FIRST:
        x, _ = _reduced(
            x, basis, partial, sample, column, needed, 0, rows, batch, n, most, chunks, LINES,
            PARTS, ACC,
        )  # fmt: skip
        _measure(
            x, basis, partial, sample, chunk, column, needed, rows + 1, rows, batch, n, most,
            chunks, LINES, ACC,
        )  # fmt: skip
        tl.debug_barrier()
    _settle(
        x, following, basis, columns, reals, limits, counters, partial, sample, chunk, column, mask,
        rows, batch, n, most, chunks, FIRST, LINES, PARTS, TINY, EPS, ACC,
    )  # fmt: skip


@triton.jit(do_not_specialize=VARYING)
def minimise(
    out, basis, columns, reals, counters, rows, batch, n, most, chunks,
    LINE: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """``R y = beta w / length``, from the last column on, and the sum of the rows beside it."""
    sample, chunk, column, mask = _place(n, chunks, COLUMNS)
    own = columns + sample * most * (most + 1)
    used, beta = tl.load(counters + sample), tl.load(reals + BETA * batch + sample)
    scale = beta / tl.load(reals + (LENGTH + rows) * batch + sample)
    line = tl.arange(0, LINE)[None, :]
    y = tl.load(own + line * (most + 1) + most, line < used, 0) * scale
    total = tl.zeros((1, COLUMNS), ACC) + (beta - beta)  # a NaN where it is not finite
    for done in range(0, tl.load(counters + tl.program_id(0) // chunks)):
        k = used - 1 - done
        above = tl.load(own + k * (most + 1) + line, line <= k, 0)
        value = _total(tl.where(line == k, y, 0)) / _total(tl.where(line == k, above, 0))
        y -= tl.where(line < k, above * value, 0)
        total += value * load(basis, (k * batch + sample) * n + column, mask, ACC)
    tl.store(out + sample * n + column, total, mask)
