"""A solve from the start to its result: the one edge between pytrees and packed states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.backends.base import Backend
from implicitcore.backends.torch import TORCH
from implicitcore.dynamics.base import Dynamics
from implicitcore.errors import ConfigError
from implicitcore.gradients.base import GradientStrategy, Solve
from implicitcore.gradients.failures import without_failed
from implicitcore.gradients.implicit import Implicit
from implicitcore.gradients.output_times import run_from
from implicitcore.gradients.unrolled import Unrolled
from implicitcore.ode_solvers.times import packed_times
from implicitcore.options.types import OnFailure
from implicitcore.solution import Solution, Trajectory
from implicitcore.system.context import Context, Recorder
from implicitcore.system.memory import apart
from implicitcore.system.problem import Problem
from implicitcore.system.random_modules import check_random
from implicitcore.system.scope import scope_of
from implicitcore.system.sharding import check_sharding
from implicitcore.system.system import System
from implicitcore.tensors.amended import amended
from implicitcore.tensors.autocast import ambient, promoted, suspended
from implicitcore.tensors.packing import Packing
from implicitcore.tensors.transforms import check_transforms, eager, usable


class RunOptions(TypedDict, total=False):
    """What :func:`run` is told beside its parts: ``**options: Unpack[RunOptions]``.

    Attributes:
        backend: the kernels that the solvers use; default torch.
        trace: keep the residual after each step of a root solver.
        coupled: the batch is one sample.
        on_failure: ``"mask"`` gives failed samples their start; the other words are for the caller.
    """

    backend: Backend | None
    trace: bool
    coupled: bool
    on_failure: OnFailure


@eager
def run(
    dynamics: Dynamics,
    z0: Any,
    x: Any,
    solve: Solve,
    gradient: GradientStrategy,
    **options: Unpack[RunOptions],
) -> Solution | Trajectory:
    """Pack the start, solve with the gradient attached, and unpack."""
    return packed(dynamics, z0, x, solve, gradient, options)


def packed(  # noqa: PLR0913 - as run
    dynamics: Dynamics,
    z0: Any,
    x: Any,
    solve: Solve,
    gradient: GradientStrategy,
    options: RunOptions,
) -> Solution | Trajectory:
    """:func:`run` inside a call that is out of reach of ``torch.compile`` already."""
    backend, coupled = options.get("backend") or TORCH, options.get("coupled", False)
    check_transforms(type(gradient).__name__, gradient.transforms)
    if backend is not TORCH:
        _check_backend(backend)
    autocast = ambient()
    begin, x = promoted(usable(z0), autocast) if autocast else usable(z0), usable(x)
    real = not getattr(solve.solver, "complex_states", True)
    packing = Packing.of(begin, coupled=coupled, real=real)
    if solve.times is not None:
        times = packed_times(solve.times, packing.batch, coupled=coupled)
        solve = solve if times is solve.times else replace(solve, times=times)
    scope = scope_of(dynamics)
    check_sharding(dynamics, together=scope.group is not None and type(gradient) is Implicit)
    if scope.random:
        noise = solve.times is not None and isinstance(gradient, Unrolled)
        check_random(dynamics, scope.random, required=not noise)
    problem = Problem.of(dynamics, x, packing)
    recorder = Recorder(residuals=[]) if options.get("trace") else None
    context = Context(
        backend, scope, autocast, recorder=recorder, batch=packing.batch, dtypes=packing.dtypes
    )
    system = System(problem, context)
    if torch.is_grad_enabled():
        system = system.with_function_state()
    on_failure = options.get("on_failure", "ignore")
    asked = solve, gradient, system, begin, on_failure
    if autocast:
        with suspended():
            solution = scope.call(_solved, *asked)
    else:
        solution = scope.call(_solved, *asked)
    system.context.end()
    kept = packing if solve.save is None else solve.save.known
    parts = {"z": kept.unpack(apart(solution.z, begin, problem.x)), "start": z0}
    if isinstance(solution, Trajectory):
        parts |= _of_trajectory(solution, system, begin)
    elif solution.iterates is not None:
        parts["iterates"] = packing.unpack(solution.iterates)
    found = amended(solution, **parts)
    return found.of_each(len(pytree.tree_leaves(begin)[0])) if coupled else found


def _of_trajectory(solution: Trajectory, system: System, begin: Any) -> dict[str, Any]:
    """What a trajectory has beside its states as the user gets it."""
    parts: dict[str, Any] = {"event_velocity": None}  # it was for the gradient strategies
    if solution.end is not None:
        parts["end"] = system.packing.unpack(apart(solution.end, begin, system.x))
    parts["times"] = solution.times.T if solution.times.ndim > 1 else solution.times
    return parts


def _solved(
    solve: Solve, gradient: GradientStrategy, system: System, begin: Any, on_failure: OnFailure
) -> Solution | Trajectory:
    """The packed result, without a graph through what is not finite."""
    z0 = system.problem.packing.pack(begin)

    def again(system: System, z0: Tensor, rows: Tensor | None = None) -> Solution | Trajectory:
        part = solve if rows is None else solve.of_samples(rows)
        return run_from(gradient, part, system, z0)

    return without_failed(run_from(gradient, solve, system, z0), again, system, z0, on_failure)


def _check_backend(backend: Backend) -> None:
    reason = backend.unavailable_reason()
    if reason is not None:
        raise ConfigError(
            [f"backend: {type(backend).__name__} cannot run here: {reason}; use 'auto' or 'torch'"]
        )
