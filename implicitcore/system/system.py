"""Dynamics bound to one input: what a solver sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from implicitcore.backends.base import Backend, Residual
from implicitcore.backends.torch import TORCH
from implicitcore.dynamics.base import Dynamics
from implicitcore.errors import InputError
from implicitcore.solution import Origin
from implicitcore.system.context import Context, Recorder
from implicitcore.system.current import running
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.explain import explain, suspect_part
from implicitcore.system.linearization import Linearization
from implicitcore.system.memory import Beside, Memory, versions_of
from implicitcore.system.problem import Problem, stop_scale
from implicitcore.system.scope import SolveContext
from implicitcore.tensors import restrict
from implicitcore.tensors.amended import amended
from implicitcore.tensors.autocast import restored
from implicitcore.tensors.norms import norm, real_dtype
from implicitcore.tensors.packing import Packing
from implicitcore.tensors.transforms import check_products, with_graph


@dataclass(eq=False)
class System:
    """Dynamics bound to one x, as functions of a packed state ``[batch, n]``; evaluations count.

    Attributes:
        problem: the dynamics, x and the layout of the state.
        context: backend, scope, counter and recorder.
        momenta: which halves of the packed state are momenta, where it is positions and momenta.
    """

    momenta: ClassVar[tuple[bool, ...]] = (False, True)
    problem: Problem
    context: Context

    @classmethod
    def of(
        cls,
        dynamics: Dynamics,
        x: Any,
        packing: Packing,
        *,
        backend: Backend | None = None,
        recorder: Recorder | None = None,
    ) -> System:
        """The system of some dynamics at x.

        Arguments:
            dynamics: what is solved.
            x: the input, any pytree; tensors in it have the batch first or are marked as shared
                (:func:`implicitcore.shared`).
            packing: how the state is laid out.
            backend: the kernels that the solvers use; None is torch.
            recorder: what is kept of the iterates.

        Raises:
            InputError: a tensor in x is neither per sample nor shared.
        """
        context = Context(
            backend or TORCH, recorder=recorder, batch=packing.batch, dtypes=packing.dtypes
        )
        return System(Problem.of(dynamics, x, packing), context)

    @property
    def is_field(self) -> bool:
        """Whether it evaluates the dynamics themselves, and nothing that is made of them."""
        return type(self) is System

    @property
    def dynamics(self) -> Dynamics:
        """What is solved."""
        return self.problem.dynamics

    @property
    def x(self) -> Any:
        """The input, as the dynamics receive it."""
        return self.problem.x

    @property
    def packing(self) -> Packing:
        """How the state is laid out."""
        return self.problem.packing

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Of the tensors of the state, where they differ; else empty."""
        return self.context.dtypes

    @property
    def backend(self) -> Backend:
        """The kernels that the solvers use."""
        return self.context.backend

    @property
    def scope(self) -> SolveContext:
        """What is drawn or computed once a solve."""
        return self.context.scope

    @property
    def evaluations(self) -> int:
        """Evaluations of the dynamics so far; Jacobian products count as one each."""
        return self.context.counter.evaluations

    @evaluations.setter
    def evaluations(self, count: int) -> None:
        self.context.counter.evaluations = count

    def update(self, z: Tensor) -> Tensor:
        """The fixed-point map f(z), ``[batch, n]``: one evaluation."""
        return self.map(z)[0]

    def evaluate(self, z: Tensor, out: Tensor | None = None) -> Evaluation:
        """f(z) with its residual: one evaluation.

        Arguments:
            z: ``[batch, n]``.
            out: a buffer for the residual, where it has to be computed (without a graph).
        """
        problem = self.problem
        if type(self) is not System or problem.takes_time:
            fz, g = self.map(z)
        elif problem.is_map:  # as map does, with no call of our own between
            fz, g = self.value(problem.update, z), None
        else:
            g = self.value(problem.velocity, z)
            fz = z + g
        return Evaluation(z, fz, self.residual(z, fz, g, out))

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """The vector field g(t, z), ``[batch, n]``, at the times t ``[batch]``: one evaluation."""
        problem = self.problem
        if problem.subtracts:  # here: f may have written into the z that it was given
            return self.value(problem.update, z) - z
        time = (problem.time(t),) if problem.takes_time else ()
        return self.value(problem.velocity, z, *time)

    def scale(self, update_norm: Tensor, start_norm: Tensor) -> Tensor:
        """What the relative tolerance is relative to, ``[batch]`` (see :meth:`Dynamics.scale`)."""
        return self.problem.dynamics.scale(update_norm, start_norm)

    def stop_scale(self) -> Literal["update", "root"] | Tensor | None:
        """:meth:`scale` as data (see :class:`~implicitcore.extend.StopRule`).

        None where it is a function of its own.
        """
        return stop_scale(self.problem.dynamics) if type(self) is System else None

    def tolerance(self, tol: float) -> float:
        """The relative tolerance that a solver is to meet where it was asked for ``tol``.

        No less than f can: under autocast its values are rounded to the lower dtype, and a quarter
        of a unit there was seen to be met where a hundredth is not; a unit, of a mixed state.
        """
        context = self.context
        return context.tolerance(tol, 1 / 4) if context.autocast or context.dtypes else tol

    def absolute(self, atol: float) -> Tensor | float:
        """The absolute tolerance, in the units of the packed state."""
        return atol

    def compacts(self, active: int, batch: int) -> bool:
        """Whether ``active`` samples of a batch are so few that the others should leave it.

        At most 7/8: evaluations cost then at most a seventh more than the samples need, and the
        copies are few.
        """
        return 8 * active <= 7 * batch

    def with_function_state(self) -> System:
        """The same system, with what f reads now: for backward passes that evaluate f again."""
        problem, scope = self.problem, self.context.scope
        function = scope.function_state(problem.dynamics, problem.x)
        return System(problem, amended(self.context, function=function))

    def check_function(self) -> None:
        """Require, before a backward pass evaluates f again, that f is still what was solved.

        Raises:
            GradientError: a tensor or a mode that f reads has changed since.
        """
        if self.context.function is not None:
            self.context.function.check()

    def bind(self, x: Any) -> System:
        """The same dynamics at another x, counting by itself.

        What is shared in it is in the same places as in the x of this system.
        """
        return System(self.problem.bind(x), self.context.recounted())

    def recorded(self, recorder: Recorder) -> System:
        """The same system, whose root solvers leave their iterates in a recorder."""
        return amended(self, context=amended(self.context, recorder=recorder))

    def started(self, origin: Origin) -> Self:
        """The same system, of a solve that has started: the next stop test goes on from there."""
        context = self.context
        if context.origin is not None:
            return self
        return amended(self, context=amended(context, origin=origin, range_checked=False))

    def restrict(self, rows: Tensor) -> Self:
        """The system of some samples ``[k]``, counting with this one."""
        return restrict.of_fields(self, rows)

    def restarted(self) -> Self:
        """The same system before its first evaluation, counting with this one."""
        return amended(self, context=amended(self.context, memory=Memory()))

    def linearize(self, z: Tensor) -> Linearization:
        """The Jacobian J of f at z, as products.

        One evaluation, whose graph every product reuses.
        """
        check_products()
        attached = torch.is_grad_enabled() and z.requires_grad  # see value
        point = z if attached else z.detach().requires_grad_()
        fz, g = with_graph(self.map, point)
        return Linearization(self, point, fz, g)

    def map(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """f(z), and g(z) where f is z + g: the residual is then what the dynamics give.

        Taken from z + g, it would be lost in the rounding of a large z.
        """
        if self.problem.is_map:
            return self.value(self.problem.update, z), None
        g = self.velocity(z.new_zeros(z.shape[0], dtype=real_dtype(z)), z)
        return z + g, g

    def residual(
        self, z: Tensor, fz: Tensor, g: Tensor | None = None, out: Tensor | None = None
    ) -> Residual:
        """f(z) - z with its norms, from fz = f(z): g itself, where the dynamics gave it."""
        if g is None:
            return self.context.backend.residual(fz, z, out)
        return Residual(g, norm(g), norm(fz))

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """f under the conditions that the solve began with, also in a backward pass."""
        context = self.context
        if not context.autocast:
            return context.scope.call(function, *arguments)
        with restored(context.autocast):
            value = context.scope.call(function, *arguments)
        return self.packing.converted(value)

    def value(self, function: Callable[..., Any], z: Tensor, *time: Tensor) -> Tensor:
        """A function of the dynamics at z, packed: one evaluation."""
        context, problem = self.context, self.problem
        context.counter.evaluations += 1
        if z.requires_grad and not torch.is_grad_enabled():
            # Without a graph a view of a leaf still says that it requires a gradient, and autograd
            # does not know it: an f that differentiates inside would fail.
            z = z.detach()
        point, beside = z, []
        if context.memory.copies_state is not False:
            point = z.clone()
            beside = [("x", problem.x, versions_of(problem.x))]
            if time:
                beside.append(("t", time, versions_of(time)))
        version, given = point._version, (*time, problem.packing.unpack(point), problem.x)
        try:
            if context.autocast or running.context is not context.scope:
                value = self._call(function, *given)
            else:
                value = function(*given)
        except Exception as error:
            self.failed(error)
            raise
        return self.accepted(value, point, version, beside)

    def failed(self, error: Exception) -> None:
        """Say of an exception of f what can be said."""
        explain(error, self.problem)
        suspect_part(error, self.problem, self.context.batch)

    def accepted(self, value: Any, point: Tensor, version: int, beside: Beside = ()) -> Tensor:
        """What f gave at a point that had this version, and at t and x, checked and packed."""
        problem, memory, packing = self.problem, self.context.memory, self.problem.packing
        if point._version != version or memory.copies_state is None:
            memory.note_state(point._version != version, beside)
        if not packing.fits(value):
            try:
                packing.check(value, type(problem.dynamics).__name__)
            except InputError as error:
                suspect_part(error, self.problem, self.context.batch)
                raise
        return memory.own(packing.pack(value))
