"""An integration in the hands of the caller: one step at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from implicitcore.dynamics.vector_field import VectorField
from implicitcore.errors import ConfigError, InputError, show
from implicitcore.ode_solvers.base import ODESolver, Step
from implicitcore.ode_solvers.runge_kutta import Tsit5
from implicitcore.ode_solvers.samples import chosen
from implicitcore.ode_solvers.step_size import StepDecision, StepSize
from implicitcore.ode_solvers.stepwise import StepwiseODESolver
from implicitcore.options.annotations import PartType
from implicitcore.options.option import read_part
from implicitcore.options.types import Spec
from implicitcore.system.scope import scope_of
from implicitcore.system.system import System
from implicitcore.tensors.autocast import ambient, promoted, suspended
from implicitcore.tensors.like import check_like
from implicitcore.tensors.norms import all_finite, clock_dtype, column, real_dtype
from implicitcore.tensors.packing import Packing
from implicitcore.tensors.transforms import check_transforms, eager, usable

_TSIT5 = Tsit5()


@dataclass(frozen=True, eq=False, kw_only=True)
class Stepping:
    """Where the samples of an integration are, between two steps; see :func:`stepping`.

    Nothing of it changes: a step gives another one, and an earlier one can be gone on from.

    Attributes:
        t: the time of each sample, ``[batch]``, without a graph.
        flat: the state, ``[batch, n]``.
        accepted: which samples took the last step, ``[batch]`` bool: the others stayed, for their
            error was too large, their end not finite, or their step zero.
        error: the estimated error of the last step in units of the tolerances, ``[batch]``, at most
            one where it is accepted; one for a solver that estimates none.
        size: of the step that the solver would try next, ``[batch]``, positive; None before the
            first step.
        solver: makes the steps.
        system: the vector field.
        state: the solver's, carried from step to step; None where it is to be made.
        memory: what the control of the step size remembers.
    """

    t: Tensor
    flat: Tensor
    accepted: Tensor
    error: Tensor
    size: Tensor | None
    solver: StepwiseODESolver[Any]
    system: System
    state: Any
    memory: Tensor

    @property
    def z(self) -> Any:
        """The state, shaped like z0, with the graph of all steps so far."""
        return self.system.packing.unpack(self.flat)

    @property
    def evaluations(self) -> int:
        """Evaluations of v so far, those of all steps from one start together."""
        return self.system.evaluations

    @eager
    def step(
        self,
        dt: Tensor | float | None = None,
        *,
        until: Tensor | float | None = None,
        control: bool = True,
    ) -> Stepping:
        """One step of each sample.

        Arguments:
            dt: how far, ``[batch]`` or one number for all, with a sign; a sample stays at zero.
            until: in place of ``dt`` the time to go to, ``[batch]`` or one number for all: the
                solver chooses how far, as :func:`integrate` does, and arrives there exactly.
            control: a sample whose error is above the tolerances, or whose end is not finite,
                stays. False takes the step whatever its error.

        Raises:
            InputError: neither or both of ``dt`` and ``until``, or of another shape.
        """
        if (dt is None) == (until is None):
            raise InputError("step: expected either dt or until")
        system, solver = self.system, self.solver
        with system.scope.entered(), suspended() if system.context.autocast else nullcontext():
            state = self.state
            if state is None:
                state = solver.init(system, self.t, self.flat)
            with torch.no_grad():
                size, end = self._way(dt, until, state)
            step = self._take(size, state)
            with torch.no_grad():
                decision, accept = self._decide(step, size, control)
                sound = accept | (all_finite(step.z) & decision.error.isfinite())
            if torch.is_grad_enabled() and not bool(sound.all()):
                # Chosen away it would still meet, with a cotangent of zero, an infinite derivative.
                step = self._take(torch.where(accept, size, 0), state)
            return self._after(step, state, end, decision, accept)

    def _take(self, size: Tensor, state: Any) -> Step:
        dt = size.to(real_dtype(self.flat))
        step = self.solver.step(self.system, self.t, dt, self.flat, state)
        check_like(step.z, self.flat, self.solver, "step")
        return step

    def _way(
        self, dt: Tensor | float | None, until: Tensor | float | None, state: Any
    ) -> tuple[Tensor, Tensor]:
        """How far each sample goes, and to which time."""
        if until is None:
            size = self._per_sample("dt", dt)
            return size, self.t + size
        target, steps = self._per_sample("until", until), self._steps
        remaining, size = target - self.t, self.size
        if size is None:
            velocity = self.solver.velocity(state)
            size = steps.first(self.system, self.t, self.flat, velocity, remaining)
        size, arrives = steps.fit(size, remaining)
        return size, torch.where(arrives, target, self.t + size)

    def _decide(self, step: Step, size: Tensor, control: bool) -> tuple[StepDecision, Tensor]:
        """What the control of the step size says, and which samples accept the step."""
        steps = self._steps if step.order is None else self._steps.with_order(step.order)
        found = steps.accept(self.system, self.flat, step.z, step.error, size.abs(), self.memory)
        moves = size != 0
        return found, moves & found.accept & all_finite(step.z) if control else moves

    def _after(
        self, step: Step, state: Any, end: Tensor, found: StepDecision, accept: Tensor
    ) -> Stepping:
        """At the end of the step, where it was accepted."""
        before = torch.zeros_like(self.t) if self.size is None else self.size
        moved = accept | (end != self.t)  # who had no way to go learns nothing of the next size
        return replace(
            self,
            t=torch.where(accept, end, self.t),
            flat=torch.where(column(accept), step.z, self.flat),
            accepted=accept,
            error=found.error,
            size=torch.where(moved, found.size, before),
            state=None if step.state is None else chosen(accept, step.state, state),
            memory=self._steps.remember(accept, found.error, self.memory),
        )

    @property
    def _steps(self) -> StepSize:
        return self.solver.step_size

    def _per_sample(self, name: str, value: Any) -> Tensor:
        """A number of each sample, like t.

        Raises:
            InputError: it has another shape.
        """
        try:
            found = torch.as_tensor(value, dtype=self.t.dtype, device=self.t.device).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{name}: expected a number or a tensor of shape [{len(self.t)}], received "
                f"{show(value)}"
            ) from error
        if found.shape not in ((), self.t.shape):
            raise InputError(
                f"{name}: expected a number or a tensor of shape [{len(self.t)}], received shape "
                f"{list(found.shape)}"
            )
        return found.expand_as(self.t)


@eager
def stepping(  # noqa: PLR0913 - keyword options
    v: Callable[..., Any],
    z0: Any,
    x: Any = None,
    *,
    t: Tensor | float = 0.0,
    solver: ODESolver | Spec | None = None,
    exact_time: bool = False,
    coupled: bool = False,
) -> Stepping:
    """Integrate dz/dt = v(t, z, x) by a loop of your own: the state before the first step.

    For what :func:`integrate` does not do between two steps: a change of z, a control of your own,
    a simulation beside others. The gradient is that of ``Unrolled``, through the steps taken. A
    loop of your own has a limit of its own: nothing here gives up, and no sample is said to have
    failed. Nor is it looked for whether v mixes samples.

    Arguments:
        v: the vector field, as :func:`integrate` takes it.
        z0: the start, any pytree of tensors ``[batch, ...]``.
        x: the input, any pytree; tensors in it have the batch first, or are marked by
            :func:`shared`.
        t: the time of the start, a number or ``[batch]``.
        solver: one that shows its steps: a name, a mapping or an object; default ``Tsit5()``.
        exact_time: v receives t in its own dtype.
        coupled: the samples depend on each other: one step and one error for all.

    Returns:
        A :class:`Stepping`, whose ``step`` gives the next.

    Raises:
        ConfigError: the solver cannot be made.
        InputError: it shows no steps; z0, x or t cannot be used.

    Example:
        >>> import torch, implicitcore as ic
        >>> z0 = torch.ones(1, 1, dtype=torch.float64)
        >>> now = ic.stepping(lambda t, z, x: -z, z0, solver=ic.RK4())
        >>> for _ in range(10):
        ...     now = now.step(0.1)
        >>> round(now.t.item(), 6), round(now.z.item(), 6)
        (1.0, 0.36788)
        >>> now = ic.stepping(lambda t, z, x: -z, z0, solver=ic.Tsit5(rtol=1e-9, atol=1e-9))
        >>> while bool((now.t < 1).any()):
        ...     now = now.step(until=1.0)
        >>> round(now.z.item(), 8)
        0.36787944
    """
    chosen_solver, problems = read_part(solver, PartType(("ode_solver",), optional=True), "solver")
    if problems:
        raise ConfigError(problems)
    made = _TSIT5 if chosen_solver is None else chosen_solver
    if not isinstance(made, StepwiseODESolver):
        raise InputError(f"{type(made).__name__} shows no steps; use a solver that does (Tsit5)")
    check_transforms("stepping", ("grad", "jvp"))
    dynamics, begin = VectorField(v, exact_time=exact_time), promoted(usable(z0), ambient())
    packing = Packing.of(begin, coupled=coupled, real=not made.complex_states)
    with scope_of(dynamics).entered():
        system = System.of(dynamics, usable(x), packing)
    flat = packing.pack(begin)
    clock = t.detach() if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
    none = torch.zeros(len(flat), dtype=clock_dtype(clock, flat), device=flat.device)
    now = Stepping(
        t=none,
        flat=flat,
        accepted=none != 0,
        error=torch.ones_like(none),
        size=None,
        solver=made,
        system=system,
        state=None,
        memory=torch.ones_like(none),
    )
    return replace(now, t=now._per_sample("t", t))
