"""Strict checks of kernels that do what an adaptive step is beside its evaluations.

As those of :mod:`implicitcore.testing.kernel_checks`, at the same sizes, for ``step_control`` and
``adams_step``. A backend that has no such kernels passes: the reference is compared with itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle, islice

import torch
from torch import Tensor

from implicitcore.backends.adams_step import AdamsAttempt, AdamsPast
from implicitcore.backends.step_control import StepClock, StepOutcome, StepRule, StepTaken
from implicitcore.ode_solvers.adams import Adams, PredictedStep
from implicitcore.tensors.norms import column, real_dtype
from implicitcore.testing.kernel_checks import ATOL, LONG, REFERENCE, RTOL, KernelProblem

ERRORS = (0.01, 1.5, 0.9, 40.0, 0.3, 1e-6, 0.2)
USUAL = StepRule(RTOL, ATOL, (0.7, -0.4), 0.9, 0.2, 10.0, 0.0, torch.inf, torch.inf, 5)
LIMITS = {"min_step": 0.11, "max_step": 0.3, "move_bound": 2e-4}
ROWS = ((1, 4), (3, 4), (5, 5), (12, 12))  # the highest order, and the differences that are kept


def check_step_control(problem: KernelProblem) -> None:
    """``step_control`` with every controller, order, kind of clock, limit and direction."""
    if not problem.batch or not problem.n:
        return
    every = list(_steps(problem))
    for rule, taken in every if problem.n <= LONG else every[1:4]:
        found = problem.backend.step_control(rule, taken)
        _compare(problem, found, REFERENCE.step_control(rule, _double(taken)), rule, taken)


def _steps(problem: KernelProblem) -> Iterator[tuple[StepRule, StepTaken]]:
    narrow, wide = real_dtype(problem.state()), torch.float64
    pid = USUAL._replace(exponents=(0.49, -0.34, 0.1))
    orders = _cycled(problem, (2, 3, 4, 5), torch.int64)
    forward = _cycled(problem, (True, False, False), torch.bool)
    yield USUAL._replace(exponents=(1.0,)), _taken(problem, narrow, errors=(1e-6, 0.3))
    yield USUAL, _taken(problem, wide, forward=False)
    taken = _taken(problem, narrow, forward=forward)
    yield USUAL._replace(**LIMITS), taken._replace(order=orders)
    taken = _taken(problem, wide, errors=(0.01, 0.3), whole=True)
    clock = taken.clock._replace(due=taken.clock.t + 0.01 * taken.clock.dt)  # all pass it
    two = torch.stack((taken.memory, 0.5 * taken.memory))
    yield pid, taken._replace(memory=two, clock=clock)
    taken = taken._replace(memory=torch.ones_like(taken.memory))  # as at first
    yield pid, taken._replace(clock=taken.clock._replace(due=None, target=None))
    wild = taken.z_next.clone()
    wild[0, -1] = torch.inf
    wild[-1, 0] = torch.nan
    yield USUAL, taken._replace(z_next=wild)
    unknown = taken.z.clone()
    unknown[0, 0] = torch.nan
    yield USUAL, taken._replace(z=unknown)


def _cycled(problem: KernelProblem, values: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    found = list(islice(cycle(values), problem.batch))
    return torch.tensor(found, dtype=dtype, device=problem.device)


def _taken(
    problem: KernelProblem,
    dtype: torch.dtype,
    *,
    errors: tuple[float, ...] = ERRORS,
    whole: bool = False,
    forward: bool | Tensor = True,
) -> StepTaken:
    """A step whose clock has a dtype."""

    def each(*values: float, dtype: torch.dtype = dtype) -> Tensor:
        return _cycled(problem, values, dtype)

    def flags(*values: int) -> Tensor:
        return each(*values, dtype=torch.bool)

    z, z_next, error = (problem.state() for _ in range(3))
    active = flags(1) if whole else flags(1, 1, 0, 1, 0)
    done = flags(0) if whole else flags(0, 0, 1, 0, 0)
    scale = ATOL + RTOL * torch.maximum(z.double().abs(), z_next.double().abs())
    wanted = column(each(*errors, dtype=torch.float64) * active)
    error.copy_(torch.where(error > 0, scale, -scale) * wanted)
    sign = torch.where(forward, 1.0, -1.0) if isinstance(forward, Tensor) else 2.0 * forward - 1
    size, t = each(0.1, 0.2, 0.3, 0.25, 0.15), sign * each(0.0, 0.2, 0.4, 0.1, 0.3)
    dt, target = sign * size * active, sign * each(0.9, 0.4, 0.4, 0.9, 0.9)
    arrives = flags(0, 0, 0, 0, 1, 0, 0) | done
    end = torch.where(arrives, target, t + dt)
    times = t.to(dtype), dt.to(dtype), end.to(dtype)
    due = (sign * each(0.05, 0.6, 0.9)).to(dtype)
    clock = StepClock(*times, arrives, target.to(dtype), due, forward)
    memory = each(0.4, 1.0, 1e-6, 0.8, 0.1)
    return StepTaken(z, z_next, error, 5, memory, clock, active, done, whole)


def _double(taken: StepTaken) -> StepTaken:
    """The same numbers in float64."""

    def wide(value: object) -> object:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.double()
        return value

    clock = StepClock._make(map(wide, taken.clock))
    order = taken.order.double() if isinstance(taken.order, Tensor) else taken.order
    return StepTaken._make(map(wide, taken))._replace(clock=clock, order=order)


def _compare(
    problem: KernelProblem,
    found: StepOutcome,
    expected: StepOutcome,
    rule: StepRule,
    taken: StepTaken,
) -> None:
    clock, did = taken.clock, f"{problem}, {rule}"
    assert torch.equal(found.accept, expected.accept), did
    for name in ("follows", "alike", "arrived", "refused", "passed", "all_pass"):
        mine, theirs = (getattr(each.look, name) for each in (found, expected))
        mine, theirs = (
            each.tolist() if isinstance(each, Tensor) else each for each in (mine, theirs)
        )
        assert mine == theirs, f"{did}: {name}"
    moves, real = taken.active, torch.finfo(real_dtype(taken.z)).eps
    for name in ("error", "size"):
        mine, theirs = (getattr(each, name)[moves] for each in (found, expected))
        assert mine.dtype == clock.t.dtype
        bound = 20 * real + problem.n**0.5 * torch.finfo(torch.float64).eps
        close = torch.allclose(mine.double(), theirs, rtol=bound, atol=0, equal_nan=True)
        assert close, f"{did}: {name} {mine.tolist()}, expected {theirs.tolist()}"
    last = taken.memory.expand(2, -1) if len(rule.exponents) > 2 else taken.memory
    new = torch.stack((found.error, last[0])) if len(rule.exponents) > 2 else found.error
    assert torch.equal(found.memory, torch.where(found.accept, new, last)), did
    assert torch.equal(found.t, torch.where(found.accept, clock.end, clock.t)), did
    if found.ahead is None or clock.target is None:
        return
    assert not found.look.arrived, did
    remaining = clock.target - found.t
    dt = remaining.clamp(-found.size, found.size)
    arrives = dt == remaining
    end = torch.where(arrives, clock.target, found.t + dt)
    for mine, theirs in zip(found.ahead, (dt, end, arrives), strict=True):
        assert torch.equal(mine[moves], theirs[moves]), f"{did}: the next step"


def check_adams_step(problem: KernelProblem) -> None:
    """``adams_step`` for few and for many differences, in either direction, cut short and not."""
    if not problem.batch or not problem.n:
        return
    for max_order, rows in ROWS if problem.n <= LONG else ROWS[1:2]:
        flips = rows == max_order  # then the differences alone are aligned, or are not
        of = replace(problem, aligned=problem.aligned != flips)
        z, velocity, dt, past = _adams(problem, of.rows(rows), max_order)
        with torch.no_grad():
            found = problem.backend.adams_step(AdamsAttempt(max_order, z, dt, past, (RTOL, ATOL)))
            if found is None:
                return
            exact = AdamsPast(past.differences.double(), past.gaps.double(), past.order)
            solver = Adams(max_order=max_order, rtol=RTOL, atol=ATOL)
            expected = PredictedStep(REFERENCE, solver, z.double(), dt.double(), exact)
            _compare_steps(problem, found.z, found.correct(velocity), expected, velocity)


def _adams(
    problem: KernelProblem, history: Tensor, max_order: int
) -> tuple[Tensor, Tensor, Tensor, AdamsPast]:
    """A step of Adams: z, the velocity at its end, dt, and the steps before."""
    z, velocity, rows = problem.state(), problem.state(), history.shape[1]
    real = real_dtype(z)
    for row in range(rows):  # differences of a smooth velocity fall with their order
        history[:, row] *= 0.4**row
    velocity[1::2] = history[1::2, 0] + 0.01 * velocity[1::2]  # where a lower order is the best
    first = _cycled(problem, (0.1, 0.07, 0.2), real)
    gaps = column(first) * torch.arange(1, rows + 1, device=z.device) ** 1.1
    dt = _cycled(problem, (0.1, -0.08, 0.0, 0.15, 300.0, 0.05), real)
    order = _cycled(problem, (0, 2, 3, 1, 5, 4, 12), torch.int64).clamp(max=max_order)
    return z, velocity, dt, AdamsPast(history, gaps.to(real), order)


def _compare_steps(
    problem: KernelProblem,
    z: Tensor,
    found: tuple[Tensor, ...],
    expected: PredictedStep,
    velocity: Tensor,
) -> None:
    grid, past = expected.grid, expected.past.differences
    # The coefficients are products of a dozen rounded numbers each.
    moved = torch.einsum("br,brn->bn", grid.weights.abs(), past.abs())
    problem.agree(z, expected.z, 8 * (expected.z.abs() + moved))
    error, differences, gaps, following, power = found
    exact = expected.correct(velocity.double())
    terms = velocity.double().abs().unsqueeze(1) + grid.sums.abs() @ past.abs()
    place = torch.arange(len(terms), device=terms.device)
    share = column(grid.moves[place, grid.order].abs())
    problem.agree(error, exact[0], 8 * share * terms[place, grid.order])
    problem.agree(differences, exact[1], 8 * terms[:, :-1])
    problem.agree(gaps, exact[2], exact[2])
    assert torch.equal(power, exact[4]), f"{problem}: the power of dt"
    moves = grid.moves[:, 0] != 0
    assert torch.equal(following[moves], exact[3][moves]), f"{problem}: the next order"


STEP_CHECKS: dict[str, Callable[[KernelProblem], None]] = {
    "step_control": check_step_control,
    "adams_step": check_adams_step,
}
