"""What an adaptive step is beside its evaluations: its control, and both halves of a step of Adams.

A program has some samples, and goes through the columns of each in tiles. What the threads of a
program write they see behind a barrier; no two programs write the same sample. In which order a
sample is added up depends on n alone. Masks are uint8.
"""

# Triton gives the arguments of a kernel their types, and the code a meaning that Python does not
# know.
# ruff: noqa: ANN001, ANN201, ANN202, PLR0913, PLR0915
# pyright: reportGeneralTypeIssues=false, reportInvalidTypeForm=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from implicitcore_triton.iteration_kernels import load, row_sum

BOUNDS = ("rtol", "atol", "safety", "shrink", "grow", "min_step", "max_step", "move_bound")
VARYING = (
    *("batch", "order", "forward", "memory_step", *BOUNDS, "first", "second", "third"),
    *("least", "tiny"),
)
"""Not worth a kernel of their own."""


@triton.jit
def _samples(batch, SAMPLES: tl.constexpr):
    """The samples of this program, ``[SAMPLES, 1]``, and which of them there are."""
    sample = (tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)).to(tl.int64)[:, None]
    return sample, sample < batch


@triton.jit
def _most(a, b):
    """The larger, NaN where one is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _power(base, exponent):
    return tl.exp2(exponent * tl.log2(base))


@triton.jit
def _error(
    z, z_next, error, at, there, n, rtol, atol, move_bound, tiny,
    SAMPLES: tl.constexpr, COLUMNS: tl.constexpr, BOUNDED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The error in units of what is allowed, ``[SAMPLES, 1]``."""
    scaled = tl.zeros((SAMPLES, COLUMNS), ACC)
    moves = tl.zeros((SAMPLES, COLUMNS), ACC)
    misses = tl.zeros((SAMPLES, COLUMNS), ACC)
    for start in range(0, n, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        mask = there & (column < n)
        before = load(z, at + column, mask, ACC)
        after = load(z_next, at + column, mask, ACC)
        # An infinite end would divide an error by infinity; zero times it is a NaN.
        miss = load(error, at + column, mask, ACC) + after * 0
        allowed = _most(tl.abs(before), tl.abs(after)) * rtol + atol
        ratio = miss / tl.where(mask, allowed, 1)  # atol may be zero
        scaled += ratio * ratio
        moves += (after - before) * (after - before)
        misses += miss * miss
    found = tl.sqrt(row_sum(scaled) / n)
    if BOUNDED:
        move = _most(tl.sqrt(row_sum(moves)), tl.zeros((SAMPLES, 1), ACC) + tiny)
        found = _most(found, tl.sqrt(row_sum(misses)) / (move_bound * move))
    return found


@triton.jit(do_not_specialize=VARYING)
def control(
    z, z_next, error, t, dt, end, target, due, memory, arrives, active, done, forwards, orders,
    reals, flags, counts, batch, n, order, forward, memory_step,
    rtol: tl.float64, atol: tl.float64, safety: tl.float64, shrink: tl.float64, grow: tl.float64,
    min_step: tl.float64, max_step: tl.float64, move_bound: tl.float64,
    first: tl.float64, second: tl.float64, third: tl.float64, least: tl.float64, tiny: tl.float64,
    SAMPLES: tl.constexpr, COLUMNS: tl.constexpr, EXPONENTS: tl.constexpr,
    BOUNDED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Who accepts a step, the size of the next, the clocks, and what the host is told.

    ``reals``, ``flags`` and ``counts`` as :class:`~implicitcore.extend.DeviceControl` has them.
    """
    sample, there = _samples(batch, SAMPLES)
    time = t.dtype.element_ty
    found = _error(
        z, z_next, error, sample * n, there, n, tl.full((), rtol, ACC), tl.full((), atol, ACC),
        tl.full((), move_bound, ACC), tl.full((), tiny, ACC), SAMPLES, COLUMNS, BOUNDED, ACC,
    ).to(time)  # fmt: skip
    goes = tl.load(active + sample, there, 0) != 0
    accept = goes & (found <= 1)
    follows = there & (accept | (tl.load(done + sample, there, 0) != 0))

    root = tl.zeros((SAMPLES, 1), time) + order
    if orders is not None:
        root = tl.load(orders + sample, there, 1).to(time)
    last = tl.load(memory + sample, there, 1)
    before = tl.load(memory + memory_step + sample, there, 1)
    factor = _power(found, -tl.full((), first, time) / root)
    floor = tl.zeros((SAMPLES, 1), time) + tl.full((), least, time)
    if EXPONENTS > 1:
        factor *= _power(_most(last, floor), -tl.full((), second, time) / root)
    if EXPONENTS > 2:
        factor *= _power(_most(before, floor), -tl.full((), third, time) / root)
    factor = tl.where(accept, factor, _power(found, -1 / root)) * tl.full((), safety, time)
    low, high = tl.full((), shrink, time), tl.full((), grow, time)
    factor = tl.where(factor >= low, tl.minimum(factor, high), low)  # a NaN shrinks too
    size = tl.abs(tl.load(dt + sample, there, 0)) * factor
    shortest = tl.maximum(size, tl.full((), min_step, time))
    size = tl.minimum(tl.where(accept, shortest, size), tl.full((), max_step, time))

    till = tl.load(end + sample, there, 0)
    now = tl.where(accept, till, tl.load(t + sample, there, 0))
    passes = accept & (sample < 0)
    if due is not None:
        output = tl.load(due + sample, there, 0)
        ahead = tl.zeros((SAMPLES, 1), tl.int32) + forward != 0
        if forwards is not None:
            ahead = tl.load(forwards + sample, there, 1) != 0
        passes = accept & tl.where(ahead, till > output, till < output)
    real, flag = reals + sample, flags + sample
    tl.store(real, found, there)
    tl.store(real + batch, size, there)
    tl.store(real + 2 * batch, now, there)
    tl.store(real + 5 * batch, tl.where(accept, found, last), there)
    if EXPONENTS > 2:
        tl.store(real + 6 * batch, tl.where(accept, last, before), there)
    tl.store(flag, accept.to(tl.uint8), there)
    tl.store(flag + batch, follows.to(tl.uint8), there)
    tl.store(flag + 2 * batch, passes.to(tl.uint8), there)
    if target is not None:
        stop = tl.load(target + sample, there, 0)
        remaining = stop - now
        step = tl.minimum(tl.maximum(remaining, -size), size)
        there_then = step == remaining
        tl.store(real + 3 * batch, step, there)
        tl.store(real + 4 * batch, tl.where(there_then, stop, now + step), there)
        tl.store(flag + 3 * batch, there_then.to(tl.uint8), there)
    arrived = accept & (tl.load(arrives + sample, there, 0) != 0)
    _count(counts, there & ~follows)
    _count(counts + 1, arrived)
    _count(counts + 2, goes & ~accept)
    _count(counts + 3, passes)


@triton.jit
def _count(target, which):
    """Add how many there are: a sum of whole numbers is the same in any order."""
    tl.atomic_add(target, tl.sum(tl.sum(which.to(tl.int64), 1), 0))


@triton.jit(do_not_specialize=["batch", "max_order", "longer"])
def predict(
    z, phi, end, dt, gaps, next_gaps, known, order, orders, nodes, batch, n,
    sample_stride, row_stride, max_order, longer: tl.float64,
    ROWS: tl.constexpr, NODES: tl.constexpr,
    SAMPLES: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """``end = z + dt sum_{j<k} g_j beta_j phi_j``, the coefficients, gaps and orders of the step.

    ``nodes [2, NODES]`` are those of Gauss on [0, 1] and their weights, at last of no weight.
    """
    sample, there = _samples(batch, SAMPLES)
    step, last = tl.load(dt + sample, there, 0), tl.load(gaps + sample * ROWS, there, 1)
    size = tl.where(step == 0, last, tl.abs(step))
    given = tl.load(order + sample, there, 1)
    k = tl.where(size / last > tl.full((), longer, ACC), tl.minimum(given, 1), given)
    highest = tl.minimum(k + 1, max_order)
    k = tl.maximum(k, 1)
    tl.store(orders + sample, k + 1, there)
    tl.store(orders + batch + sample, highest, there)

    node = tl.arange(0, NODES)[None, :]
    lever = (1 - tl.load(nodes + node)) * size
    product = tl.load(nodes + NODES + node) + tl.zeros((SAMPLES, NODES), ACC)
    beta, g = tl.full((SAMPLES, 1), 1, ACC), tl.full((SAMPLES, 1), 1, ACC)
    own = known + sample * (2 * ROWS + 1)
    gap = size
    for j in tl.static_range(ROWS):
        tl.store(own + j, beta, there)
        tl.store(own + ROWS + j, g, there)
        tl.store(next_gaps + sample * ROWS + j, gap, there)
        before = tl.load(gaps + sample * ROWS + j, there, 1)
        beta *= gap / before
        product *= 1 - lever / gap
        g = row_sum(product)
        gap = size + before
    tl.store(own + 2 * ROWS, g, there)
    tl.debug_barrier()  # the coefficients are read by every thread

    at, rows = sample * n, phi + sample * sample_stride
    for start in range(0, n, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        mask = there & (column < n)
        total = load(z, at + column, mask, ACC)
        for j in tl.static_range(ROWS):
            used = there & (j < k)
            weight = tl.load(own + j, used, 0) * tl.load(own + ROWS + j, used, 0) * step
            total += weight * load(rows, j * row_stride + column, mask & used, ACC)
        tl.store(end + at + column, total, mask)


@triton.jit(do_not_specialize=["batch", "rtol", "atol"])
def correct(
    velocity, phi, z, end, following, error, dt, known, orders, batch, n, sample_stride, row_stride,
    rtol: tl.float64, atol: tl.float64,
    ROWS: tl.constexpr, SAMPLES: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """``following_j = velocity - sum_{i<j} beta_i phi_i``, the error, and the next order."""
    sample, there = _samples(batch, SAMPLES)
    k = tl.load(orders + sample, there, 2) - 1
    own, at = known + sample * (2 * ROWS + 1), sample * n
    g = own + ROWS + k
    share = tl.load(g, there, 0) * tl.load(dt + sample, there, 0)
    rows, to = phi + sample * sample_stride, following + at * ROWS
    below = tl.zeros((SAMPLES, COLUMNS), ACC)
    same = tl.zeros((SAMPLES, COLUMNS), ACC)
    above = tl.zeros((SAMPLES, COLUMNS), ACC)
    for start in range(0, n, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        mask = there & (column < n)
        value = load(velocity, at + column, mask, ACC)
        before = load(z, at + column, mask, ACC)
        after = load(end, at + column, mask, ACC)
        most = _most(tl.abs(before), tl.abs(after))
        unit = tl.where(mask, most * tl.full((), rtol, ACC) + tl.full((), atol, ACC), 1)
        for j in tl.static_range(ROWS + 1):
            scaled = value / unit
            square = scaled * scaled
            below += tl.where(k - 1 == j, square, 0)
            same += tl.where(k == j, square, 0)
            above += tl.where(k + 1 == j, square, 0)
            tl.store(error + at + column, share * value, mask & (k == j))
            if j < ROWS:
                tl.store(to + j * n + column, value, mask)
                beta = tl.load(own + j, there, 0)
                value -= beta * load(rows, j * row_stride + column, mask, ACC)
    lower, higher = there & (k > 1), there & (k < ROWS)
    least = tl.sqrt(row_sum(same)) * tl.load(g, there, 0)
    at_lower = tl.sqrt(row_sum(below)) * tl.load(g - 1, lower, 0)
    at_higher = tl.sqrt(row_sum(above)) * tl.load(g + 1, higher, 0)
    falls = lower & (at_lower <= least)
    best = tl.where(falls, k - 1, k)
    best = tl.where(higher & (at_higher < tl.where(falls, at_lower, least)), k + 1, best)
    highest = tl.load(orders + batch + sample, there, 1)
    tl.store(orders + 2 * batch + sample, tl.minimum(best, highest), there)
