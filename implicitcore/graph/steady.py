"""An integration to a steady state as one operation of a graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from implicitcore.graph.integration import Moving, Span, Steps, begins_anew
from implicitcore.graph.stop import Found, GraphStop, Samples
from implicitcore.graph.system import GraphField
from implicitcore.root_solvers.steady_state import FALL, RISE, SteadyState
from implicitcore.solution import Status
from implicitcore.system.evaluation import Evaluation
from implicitcore.tensors.norms import column


class Watch(NamedTuple):
    """What tells whether the residual of a sample still falls; see ``SteadyStateTest``."""

    least: Tensor  # [batch]
    before: Tensor  # [batch]


def steady_state(options: SteadyState, field: GraphField, z0: Tensor) -> Found:
    """The state at which the velocity vanishes; see :class:`SteadyState`."""
    solver: Any = options.ode_solver
    steps = Steps.towards(solver, solver.step_size.steady_state(), field, Span.of(z0, torch.inf))
    moving = steps.renewed(steps.start(z0))
    first = field.evaluation(moving.z, solver.velocity(moving.state))
    by_norm = options.measure == "norm"
    test = options if by_norm else replace(options, tol=0.0, atol=0.0)
    stop = GraphStop.at(field, test, first)
    far = torch.full_like(first.residual.norm, torch.inf)

    def judged(samples: Samples, watch: Watch, now: Evaluation) -> tuple[Samples, Watch]:
        samples = samples if by_norm else _compare_entries(options, samples, now)
        return _watched(options, samples, watch, now)

    def going(moving: Moving, samples: Samples, watch: Watch) -> Tensor:
        del watch
        some = (moving.active & samples.active).any()
        return some & (samples.evaluations < options.max_steps)

    def step(moving: Moving, samples: Samples, watch: Watch) -> tuple[Moving, Samples, Watch]:
        moving, _ = steps.step(moving._replace(active=moving.active & samples.active))
        if begins_anew(solver):
            moving = steps.renewed(moving)
        now = field.evaluation(moving.z, solver.velocity(moving.state))
        return moving, *judged(stop.judge(samples, now), watch, now)

    samples, watch = judged(stop.first(first), Watch(far, far.clone()), first)
    moving = steps.sized(moving, solver.velocity(moving.state))
    moving, samples, _ = while_loop(going, step, (moving, samples, watch))
    # No step was short enough, or f had no value anywhere near.
    lost = samples.active & (moving.failure != 0)
    stalled = lost & (moving.failure == int(Status.DIVERGED))
    samples = _fail(samples, stalled, Status.STALLED)
    samples = _fail(samples, lost & ~stalled, Status.NON_FINITE)
    return stop.ended(samples)._replace(evaluations=moving.evaluations)


def _compare_entries(options: SteadyState, samples: Samples, now: Evaluation) -> Samples:
    """See ``SteadyStateTest``."""
    allowed = options.tol * now.fz.abs() + options.atol
    met = (now.residual.value.abs() <= allowed).all(1) & samples.active
    return samples._replace(
        best=torch.where(column(met), now.z, samples.best),
        best_norm=torch.where(met, now.residual.norm, samples.best_norm),
        steps=torch.where(met, samples.evaluations, samples.steps),
        active=samples.active & ~met,
    )


def _watched(
    options: SteadyState, samples: Samples, watch: Watch, now: Evaluation
) -> tuple[Samples, Watch]:
    """Stop the samples that have stalled."""
    if not options.patience:
        return samples, Watch(watch.least.clone(), watch.before.clone())
    least, due = torch.minimum(watch.least, now.residual.norm), samples.evaluations
    due = due % options.patience == 0
    before = watch.before
    stalled = samples.active & due & (least > FALL * before) & (least < RISE * before)
    samples = _fail(samples, stalled, Status.STALLED)
    return samples, Watch(torch.where(due, torch.inf, least), torch.where(due, least, before))


def _fail(samples: Samples, which: Tensor, status: Status) -> Samples:
    return samples._replace(
        active=samples.active & ~which,
        steps=torch.where(which, samples.evaluations, samples.steps),
        failure=torch.where(which, int(status), samples.failure).to(torch.int8),
    )
