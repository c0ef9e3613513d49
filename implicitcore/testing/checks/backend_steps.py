"""What every backend promises of the steps of ODE solvers that it does as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from implicitcore.backends.adams_step import AdamsAttempt, AdamsPast
from implicitcore.backends.base import Backend
from implicitcore.backends.step_control import StepClock, StepOutcome, StepRule, StepTaken
from implicitcore.backends.torch import TorchBackend
from implicitcore.ode_solvers.adams import Adams, PredictedStep
from implicitcore.tensors.norms import column
from implicitcore.testing.check import contract
from implicitcore.testing.expect import expect, expect_close
from implicitcore.testing.kernels import Draw, device_of, widest

REFERENCE = TorchBackend()
EXPONENTS = {"i": (1.0,), "pi": (0.7, -0.4), "pid": (0.49, -0.34, 0.1)}
RTOL, ATOL = 1e-2, 1e-3

# The scaled errors of the samples of a step, and what becomes of it.
ERRORS = {
    "a step that all accept": (0.01, 0.5, 0.9, 0.3, 1e-6),
    "a step that two refuse": (0.01, 1.5, 0.9, 40.0, 0.2),
    "a step of which one is exact": (0.01, 0.5, 0.0, 0.3, 2.0),
}


@contract("backend")
def controls_steps_as_the_reference_does(backend: Backend) -> None:
    """Of a step the same samples accept, and the next size, memory, time and look are the same.

    With every controller, an order of each sample, samples that are done or have failed, and ends
    that are not finite: ``step_control``, whether it is the backend's own or not.
    """
    device, dtype = device_of(backend), widest(backend)
    bound = 1e-7 if dtype == torch.float64 else 1e-4  # the root of each order is in float32
    for name, rule, taken in _steps(dtype, device):
        found, expected = (each.step_control(rule, taken) for each in (backend, REFERENCE))
        _compare(found, expected, taken, f"controlled {name}", bound)


def _steps(dtype: torch.dtype, device: str) -> Iterator[tuple[str, StepRule, StepTaken]]:
    for (name, errors), controller in product(ERRORS.items(), EXPONENTS):
        for whole, forward in product((True, False), (True, False)):
            rule = StepRule(RTOL, ATOL, EXPONENTS[controller], 0.9, 0.2, 10.0, 0.0, torch.inf,
                            torch.inf, 5)  # fmt: skip
            taken = _taken(errors, dtype, device, whole=whole, forward=forward)
            if controller == "pid":
                taken = taken._replace(memory=torch.stack((taken.memory, 0.5 * taken.memory)))
            yield f"{name} ({controller})", rule, taken
            limits = rule._replace(min_step=0.11, max_step=0.3, move_bound=0.01)
            clock = taken.clock._replace(due=None)
            orders = torch.tensor([2, 3, 4, 5, 3], device=device)
            yield (
                f"{name}, with limits",
                limits,
                taken._replace(order=orders, clock=clock),
            )
            wild = taken.z_next.clone()
            wild[1, 0], wild[3, 1] = torch.inf, torch.nan
            yield f"{name}, with ends that are not finite", rule, taken._replace(z_next=wild)


def _taken(
    errors: tuple[float, ...], dtype: torch.dtype, device: str, *, whole: bool, forward: bool
) -> StepTaken:
    draw, sign = Draw(dtype, device), 1.0 if forward else -1.0

    def each(*values: float) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    def flags(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.bool, device=device)

    z, z_next = draw(5, 129), draw(5, 129)
    scale = ATOL + RTOL * torch.maximum(z.abs(), z_next.abs())
    active = flags(1, 1, 1, 1, 1) if whole else flags(1, 1, 0, 1, 0)
    done = flags(0, 0, 0, 0, 0) if whole else flags(0, 0, 1, 0, 0)
    size = each(0.1, 0.2, 0.3, 0.25, 0.15)
    dt, t = sign * size * active, sign * each(0.0, 0.2, 0.4, 0.1, 0.3)
    due, target = sign * each(0.05, 0.6, 0.9, 0.9, 0.5), sign * each(0.9, 0.4, 0.4, 0.9, 0.9)
    arrives = flags(0, 1, 0, 0, 0) | done
    end = torch.where(arrives, target, t + dt)
    error = scale * column(each(*errors) * active)
    memory = each(0.4, 1.0, 1e-6, 0.8, 0.1)
    clock = StepClock(t, dt, end, arrives, target, due, forward)
    return StepTaken(z, z_next, error, 5, memory, clock, active, done, whole)


def _compare(
    found: StepOutcome, expected: StepOutcome, taken: StepTaken, did: str, bound: float
) -> None:
    for name in ("accept", "error", "size", "memory", "t"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        expect(mine.dtype == theirs.dtype, f"{did}: {name}", mine.dtype, theirs.dtype)
        if name in ("size", "memory"):  # of who takes no step they mean nothing
            mine, theirs = mine[..., taken.active], theirs[..., taken.active]
        _same(mine, theirs, f"{did}: {name}", bound)
    for name in ("follows", "alike", "arrived", "refused", "passed", "all_pass"):
        mine, theirs = getattr(found.look, name), getattr(expected.look, name)
        if isinstance(mine, Tensor) and isinstance(theirs, Tensor):
            mine, theirs = mine.tolist(), theirs.tolist()
        expect(mine == theirs, f"{did}: {name}", mine, theirs)
    if found.ahead is None or taken.clock.target is None:
        return
    expect(not expected.look.arrived, f"{did}: ahead", "a next step", "None: a sample arrived")
    remaining, size = taken.clock.target - found.t, found.size
    dt = remaining.clamp(-size, size)
    arrives = dt == remaining
    end = torch.where(arrives, taken.clock.target, found.t + dt)
    for name, mine, theirs in zip(
        ("dt", "end", "arrives"), found.ahead, (dt, end, arrives), strict=True
    ):
        _same(mine[taken.active], theirs[taken.active], f"{did}: {name} of the next", bound)


def _same(found: Tensor, expected: Tensor, did: str, bound: float) -> None:
    """Equal, NaN and infinity included."""
    alike = torch.equal(found.isfinite(), expected.isfinite())
    expect(alike, did, found.tolist(), expected.tolist())
    rows = expected.isfinite()
    expect_close(found[rows].double(), expected[rows].double(), did, bound)


@contract("backend")
def takes_adams_steps_as_the_reference_does(backend: Backend) -> None:
    """``adams_step``, where the backend has one: end, error, differences and the next order.

    At every order, at the first step, after a step that was cut short, and where no step is taken.
    """
    device, dtype = device_of(backend), widest(backend)
    bound = 1e-9 if dtype == torch.float64 else 1e-3
    for max_order, rows in ((1, 4), (3, 4), (5, 5), (12, 12)):
        z, dt, velocity, past = _adams(dtype, device, max_order, rows)
        with torch.no_grad():
            found = backend.adams_step(AdamsAttempt(max_order, z, dt, past, (RTOL, ATOL)))
            solver = Adams(max_order=max_order, rtol=RTOL, atol=ATOL)
            expected = PredictedStep(REFERENCE, solver, z, dt, past)
            if found is None:
                return
            did = f"took a step of Adams of order {max_order} at most, compared"
            _same(found.z, expected.z, f"{did} z", bound)
            parts = "the error", "the differences", "the gaps", "the next order", "the order"
            both = zip(parts, found.correct(velocity), expected.correct(velocity), strict=True)
        for name, mine, theirs in both:
            moves = dt != 0 if name == "the next order" else slice(None)
            _same(mine[moves], theirs[moves], f"{did} {name}", bound)


def _adams(
    dtype: torch.dtype, device: str, max_order: int, rows: int
) -> tuple[Tensor, Tensor, Tensor, AdamsPast]:
    draw, n = Draw(dtype, device), 129
    z, velocity, history = draw(6, n), draw(6, n), draw(6, rows, n)
    # Differences of a smooth velocity fall with their order.
    shrinking = 0.3 ** torch.arange(rows, dtype=dtype, device=device)
    history = history * shrinking[:, None]
    gaps = 0.1 * torch.arange(1, rows + 1, dtype=dtype, device=device).expand(6, -1)
    dt = torch.tensor([0.1, -0.08, 0.15, 0.0, 200.0, 0.05], dtype=dtype, device=device)
    order = torch.tensor([0, 1, 2, 3, 4, 5], device=device).clamp(max=max_order)
    return z, dt, velocity, AdamsPast(history, gaps, order)
