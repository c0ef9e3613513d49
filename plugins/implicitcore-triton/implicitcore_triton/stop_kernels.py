"""The stop test of a root solver in Triton: what each sample does with an iterate.

What is known of a sample is ``[SAMPLES, 1]``, and that of all samples of a program is computed at
once: what does not apply to one is chosen away. The layout of ``reals`` and ``counters`` is that of
:class:`~implicitcore.extend.DeviceIteration`.
"""

# Triton gives the arguments of a kernel their types, and the code a meaning that Python does not
# know.
# ruff: noqa: ANN001, ANN201, ANN202, PLR0913
# pyright: reportGeneralTypeIssues=false, reportInvalidTypeForm=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

# Triton's kernels see no other kind of global.
SIZE, UPDATE, NORM, LIMIT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
START, CEILING, REACH = tl.constexpr(4), tl.constexpr(5), tl.constexpr(6)
COUNT, STOPPED, STEPS, STATUS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
DOUBTED, PENDING, PLAIN = tl.constexpr(4), tl.constexpr(5), tl.constexpr(6)
COUNTERS = tl.constexpr(8)
DIVERGED, NON_FINITE = tl.constexpr(2), tl.constexpr(3)
OF_UPDATE, OF_ROOT, FIXED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _most(a, b):
    """The larger, NaN where one is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _least(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _finite(a):
    return tl.abs(a) < float("inf")


@triton.jit
def _scale(update, start, fixed, SCALE: tl.constexpr):
    """What the tolerance is relative to."""
    if SCALE == OF_UPDATE:
        return update
    elif SCALE == OF_ROOT:
        return _most(_least(start, update), tl.full((), 1, update.dtype))
    else:
        return fixed


@triton.jit
def norms_of(squares, update_squares, magnified, update_magnified, fixed, SCALE: tl.constexpr,
             SMALL: tl.constexpr, BY: tl.constexpr):  # fmt: skip
    """The residual's norm and that of f(z), where squares underflow from the magnified ones."""
    size = tl.sqrt(squares)
    low = size < SMALL
    size = tl.where(low, tl.sqrt(magnified) / BY, size)
    if SCALE == FIXED:
        return size, fixed
    else:
        update = tl.sqrt(update_squares)
        update_low = low & (size > 0) & (update < SMALL)
        return size, tl.where(update_low, tl.sqrt(update_magnified) / BY, update)


@triton.jit
def judge(
    size, update, count, sample, there, reals, counters, batch, floors, fixed, origin,
    min_steps, floor, tol, rounding, divergence, trust, growth, SCALE: tl.constexpr,
):  # fmt: skip
    """Test an iterate: which samples move, keep the iterate before, go back, and begin again."""
    real, counter = reals + sample, counters + sample
    count = tl.zeros_like(sample) + count
    first = count == 1
    active = there & (tl.load(counter + STOPPED * batch, there, 1) == 0)
    known = active & (count > 1)
    last, best = tl.load(real + SIZE * batch, known, 0), tl.load(real + NORM * batch, known, 0)
    start, ceiling = (
        tl.load(real + START * batch, known, 0),
        tl.load(real + CEILING * batch, known, 0),
    )
    reach = tl.load(real + REACH * batch, known, 0)
    doubted = tl.load(counter + DOUBTED * batch, there, 0)
    pending = tl.load(counter + PENDING * batch, there, 0) != 0
    plain = tl.load(counter + PLAIN * batch, there, 0) != 0
    tl.debug_barrier()  # a sample's numbers are read by several threads, and written by one

    # Where the solve began, or another solver.
    if origin is None:
        start_here = tl.where(_finite(size), size, float("nan"))
        ceiling_here = _most(start_here, update) * divergence
    else:
        start_here = tl.load(origin + sample, active, 0)
        ceiling_here = tl.load(origin + batch + sample, active, 0)
    start, ceiling = tl.where(first, start_here, start), tl.where(first, ceiling_here, ceiling)
    if floors is None:
        least = tl.zeros_like(size) + floor
    else:
        least = tl.load(floors + sample, there, 0)
    limit = least + tol * _scale(update, start, fixed, SCALE)
    bar = limit
    if origin is not None:
        bar = _least(bar, least + tol * _scale(ceiling / divergence, start, fixed, SCALE))
    reach = tl.where(first, _most(bar, start * trust), reach)

    # Where the residual is the least so far and above its limit, there is nothing to test.
    lower = first | (size <= best)
    always = tl.zeros_like(sample) + min_steps > 1
    looks = active & (always | ~((limit <= size) & lower))
    met = looks & (count >= min_steps) & (size <= limit)
    reach = tl.where(met & (doubted == 0), _most(reach, size * trust), reach)
    doubted = tl.where(met, 1, doubted)
    # Whether a limit that was met is not owed to a growth of |f(z)|; else it may run away.
    hidden = update * rounding
    bound = _most(reach, ceiling * (128 * rounding / divergence))
    owed = ~(_most(size, hidden) <= bound)
    away = met & owed & ((hidden > bound) | (update > ceiling))
    met = met & ~owed
    lost = looks & ~(size <= ceiling)
    failure = tl.where(away, DIVERGED, 0)
    failure = tl.where(lost, tl.where(_finite(size), DIVERGED, NON_FINITE), failure)
    stops = looks & (met | (failure != 0))
    improved = met | lower
    grown = ~first & (size > growth * last)

    better, one = active & improved, tl.full(sample.shape, 1, tl.int64)
    tl.store(real + SIZE * batch, size, there)
    tl.store(real + UPDATE * batch, update, there)
    tl.store(real + NORM * batch, tl.where(_finite(size), size, float("inf")), better)
    tl.store(real + LIMIT * batch, tl.where(_finite(size), limit, least), better)
    tl.store(real + START * batch, start, active & first)
    tl.store(real + CEILING * batch, ceiling, active & first)
    tl.store(real + REACH * batch, reach, active)
    tl.store(counter + COUNT * batch, count, there)
    tl.store(counter + STOPPED * batch, one, stops)
    tl.store(counter + STEPS * batch, count, stops)
    tl.store(counter + STATUS * batch, failure.to(tl.int64), stops)
    tl.store(counter + DOUBTED * batch, doubted, active)
    tl.store(counter + PENDING * batch, improved.to(tl.int64), active)
    tl.store(counter + PLAIN * batch, (first | grown).to(tl.int64), active)
    # A sum of whole numbers is the same in any order.
    tl.atomic_add(counters + COUNTERS * batch, tl.sum(tl.sum(stops.to(tl.int64), 1), 0))
    return active & ~stops, active & ~improved & pending, grown & ~plain, grown
