"""What follows the stages of an adaptive step as data: what a backend may do in one call."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from implicitcore.tensors.norms import norm

if TYPE_CHECKING:
    from implicitcore.backends.base import Backend

# The least error that a later step remembers.
LEAST = 1e-4


class StepRule(NamedTuple):
    """How a step is judged, and how long the next is, as ``Adaptive`` says.

    The error is at most one in units of atol + rtol max(``|z|``, ``|z_next|``), and the next size
    is this one times safety prod_i e_i^(-exponent_i / order), after a refusal safety
    e^(-1 / order), within [shrink, grow].

    Attributes:
        rtol: relative tolerance.
        atol: absolute tolerance.
        exponents: of the scaled errors of this step and of those before, over the order.
        safety: the next step is this share of what the errors allow.
        shrink: it is at least so many times this one.
        grow: and at most so many times.
        min_step: it is no shorter after an accepted step.
        max_step: it is no longer.
        move_bound: the error is below this share of the step's own move.
        order: the power of dt that the error goes with, where a step does not say its own.
    """

    rtol: float
    atol: float
    exponents: tuple[float, ...]
    safety: float
    shrink: float
    grow: float
    min_step: float
    max_step: float
    move_bound: float
    order: Tensor | int


class StepClock(NamedTuple):
    """Where a step goes in time."""

    t: Tensor  # [batch]
    dt: Tensor  # [batch], zero for a sample that is not active
    end: Tensor  # [batch], t + dt; the stop itself where the step arrives there
    arrives: Tensor  # [batch] bool
    target: Tensor | None  # [batch], the stop; None where dt is to be rounded to what t moves by
    due: Tensor | None  # [batch], the next output time; None where none lies between stops
    forward: bool | Tensor  # time increases; [batch] bool where samples differ


class StepTaken(NamedTuple):
    """A step of each sample, before it is known who accepts it; nothing of it is in a graph."""

    z: Tensor  # [batch, n]
    z_next: Tensor  # [batch, n], the end of the step
    error: Tensor  # [batch, n], an estimate of the local error
    order: Tensor | int  # the power of dt that the error goes with, one or [batch]
    memory: Tensor  # [batch], the error of the last accepted step; [2, batch] those of two
    clock: StepClock
    active: Tensor  # [batch] bool, who takes steps
    done: Tensor  # [batch] bool, who is at the last time
    whole: bool  # every sample is active
    # [batch], the scaled error, where the method knows it: NaN where the step ends at none that is
    # finite
    scaled: Tensor | None = None


class Look(NamedTuple):
    """What the host knows of a step."""

    follows: Tensor  # [batch] bool, what takes its end over
    alike: bool  # all do
    arrived: bool  # a sample reached a stop
    refused: bool  # a sample did not accept it
    passed: Tensor | None = None  # [batch] bool, which pass output times; None where none does
    all_pass: bool = False


class StepOutcome(NamedTuple):
    """What becomes of a step of each sample, and where the next may go."""

    accept: Tensor  # [batch] bool
    error: Tensor  # [batch], the scaled error; NaN where the step ends at none that is finite
    size: Tensor  # [batch], of the next step, positive
    memory: Tensor  # like that of the step
    t: Tensor  # [batch], the end where the step was accepted
    look: Look
    # dt, end and arrives of the next step [batch], where no sample arrived and no output is passed;
    # None: they are still to be found.
    ahead: tuple[Tensor, Tensor, Tensor] | None = None


def control_step(backend: Backend, rule: StepRule, taken: StepTaken) -> StepOutcome:
    """The reference: what :meth:`Backend.step_control` gives, with the backend's error norm."""
    clock, (found, size) = taken.clock, _measured(backend, rule, taken)
    if taken.whole and clock.due is None:
        accept, look = looked_at_once(found, clock.arrives)
    else:
        accept = found <= 1
        if not taken.whole:
            accept = accept & taken.active
        passes = None if clock.due is None else later(clock.end, clock.due, clock.forward)
        apart = (None, None) if taken.whole else (taken.active, taken.done)
        look = looked(accept, clock.arrives, passes, *apart)
    if look.alike and taken.whole:
        following = next_size(rule, found, size, taken.memory, taken.order)
        memory = remembered(rule, None, found, taken.memory)
        return StepOutcome(accept, found, following, memory, clock.end, look)
    following = next_size(rule, found, size, taken.memory, taken.order, accept)
    memory = remembered(rule, accept, found, taken.memory)
    t = torch.where(accept, clock.end, clock.t)
    return StepOutcome(accept, found, following, memory, t, look)


class StepJudgement(NamedTuple):
    """What becomes of a step of each sample, as far as the host need not know."""

    accept: Tensor  # [batch] bool
    error: Tensor  # [batch], as that of StepOutcome
    size: Tensor  # [batch], of the next step, positive for a sample that is active
    memory: Tensor  # like that of the step


def judge_step(backend: Backend, rule: StepRule, taken: StepTaken) -> StepJudgement:
    """What :func:`control_step` finds, without its look at the device."""
    found, size = _measured(backend, rule, taken)
    accept = (found <= 1) & taken.active
    following = next_size(rule, found, size, taken.memory, taken.order, accept)
    return StepJudgement(accept, found, following, remembered(rule, accept, found, taken.memory))


def _measured(backend: Backend, rule: StepRule, taken: StepTaken) -> tuple[Tensor, Tensor]:
    """The scaled errors of a step and its sizes, ``[batch]``."""
    clock = taken.clock
    size = clock.dt if clock.forward is True else clock.dt.abs()
    error, found = taken.error, taken.scaled
    if found is None:
        # Zero times a state that is not finite is a NaN: the norm would divide by an infinity.
        error = torch.add(error, taken.z_next, alpha=0)
        found = backend.error_norm(error, taken.z, taken.z_next, rule.rtol, rule.atol)
    return beside_move(rule, found, taken.z, taken.z_next, error).to(size), size


def beside_move(rule: StepRule, found: Tensor, z: Tensor, z_next: Tensor, error: Tensor) -> Tensor:
    """The scaled error ``[batch]``, and that in units of the step's move where it is bounded."""
    if rule.move_bound < torch.inf:
        move = norm(z_next - z).clamp(min=torch.finfo(found.dtype).tiny)
        found = torch.maximum(found, norm(error) / (rule.move_bound * move))
    return found


def next_size(  # noqa: PLR0913 - a formula
    rule: StepRule,
    found: Tensor,
    size: Tensor,
    memory: Tensor,
    order: Tensor | int,
    accept: Tensor | None = None,
) -> Tensor:
    """The size of the next step, ``[batch]``; every sample accepted this one where that is None."""
    # One root in place of several where samples differ in their order.
    root = 1 if isinstance(order, Tensor) else order
    first, *others = rule.exponents
    factor = found ** (-first / root)
    for exponent, past in zip(others, memory if memory.ndim > 1 else (memory,), strict=False):
        factor = factor * past.clamp(min=LEAST) ** (-exponent / root)
    if accept is not None:
        factor = torch.where(accept, factor, found ** (-1 / root))
    if isinstance(order, Tensor):
        factor = factor ** order.reciprocal()
    factor = (factor * rule.safety).clamp(rule.shrink, rule.grow)
    if accept is not None:
        factor = factor.nan_to_num(rule.shrink)
    following = size * factor
    if rule.min_step > 0:  # tried before the sample is given up
        longer = following.clamp(min=rule.min_step)
        following = longer if accept is None else torch.where(accept, longer, following)
    return following.clamp(max=rule.max_step) if rule.max_step < torch.inf else following


def remembered(rule: StepRule, accept: Tensor | None, error: Tensor, last: Tensor) -> Tensor:
    """The errors of the last accepted steps, as many as the rule looks at."""
    if len(rule.exponents) > 2:
        last = last if last.ndim > 1 else last.expand(2, -1)
        error = torch.stack((error, last[0]))
    return error if accept is None else torch.where(accept, error, last)


def looked(
    accept: Tensor,
    arrives: Tensor,
    passes: Tensor | None,
    active: Tensor | None,
    done: Tensor | None,
) -> Look:
    """The one look at the device in a step where nothing happens.

    Arguments:
        accept: ``[batch]`` bool, who accepts the step.
        arrives: who would arrive at a stop.
        passes: who would pass output times; None where none lies between stops.
        active: who takes steps; None where all do.
        done: who is at the last time; None where nobody is.
    """
    batch = len(accept)
    # A sample at its last time may follow the others: its dt is zero.
    follows = accept if done is None else accept | done
    rows = [follows, accept & arrives]
    passed = None if passes is None else accept & passes
    if passed is not None:
        rows.append(passed)
    if active is not None:
        rows.append(active & ~accept)
    following, arrived, *rest = torch.stack(rows).sum(1).tolist()
    refused = following < batch if active is None else rest[-1] > 0
    passing = 0 if passed is None else rest[0]
    return Look(
        follows,
        following == batch,
        arrived > 0,
        refused,
        passed if passing else None,
        passing == batch,
    )


def looked_at_once(found: Tensor, arrives: Tensor) -> tuple[Tensor, Look]:
    """Who accepts a step that all samples take, and the look, where no output lies between stops.

    Arguments:
        found: the scaled errors, ``[batch]``, not negative.
        arrives: ``[batch]`` bool, who would arrive at a stop.
    """
    # One comparison in place of one and its conjunction: an error is never below a negative bound.
    one, bounds = _bounds(found.dtype, found.device)
    rows = found <= torch.where(arrives, one, bounds)
    following, arrived = rows.sum(1).tolist()
    alike = following == len(found)
    return rows[0], Look(rows[0], alike, arrived > 0, not alike)


@cache
def _bounds(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """One, and ``[2, 1]``: one and minus one."""
    with torch.inference_mode(False):
        both = torch.tensor([[1.0], [-1.0]], dtype=dtype, device="cpu").to(device)
        return both[0, 0], both


def later(t: Tensor, than: Tensor, forward: bool | Tensor) -> Tensor:
    """Whether a time comes later than another one, bool."""
    if isinstance(forward, Tensor):
        return torch.where(forward, t > than, t < than)
    return t > than if forward else t < than
