"""The adjoint of an integration, as torchdiffeq integrates it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from implicitcore.compat.torchdiffeq.control import Norm, mixed, rms
from implicitcore.compat.torchdiffeq.events import find_event
from implicitcore.compat.torchdiffeq.problem import Problem, Settings, callbacks_of
from implicitcore.compat.torchdiffeq.state import Function, Layout
from implicitcore.compat.torchdiffeq.steps import Callback
from implicitcore.tensors.graph_leaves import graph_leaves, union


@dataclass(frozen=True, eq=False)
class Backward:
    """The integration back.

    Attributes:
        func: of t and y, where y is one tensor: a tuple is a row ``[n]``.
        settings: how; its options are torchdiffeq's ``adjoint_options``, with a norm of (t, y,
            adj_y, *adj_params).
        given: how many of the parameters the norm sees.
        callbacks: called along the steps.
    """

    func: Function
    settings: Settings
    given: int
    callbacks: dict[str, Callback]

    def span(self, state: tuple[Tensor, ...], t: Tensor, dynamics: Function) -> list[Tensor]:
        """The augmented state at t[1], from that at t[0]."""
        problem = Problem(dynamics, state, t, self.settings, self.callbacks)
        return [part[1] for part in problem.layout.unpack(problem.trajectory())]

    def seeing(self, norm: Norm) -> Backward:
        """With this norm, which sees what it is to see and no more."""
        seen = 3 + self.given
        options = {**self.settings.options, "norm": lambda parts: norm(parts[:seen])}
        return dataclasses.replace(
            self, settings=dataclasses.replace(self.settings, options=options)
        )


class Differentiated:
    """An integration that is differentiated by its adjoint.

    Arguments:
        func: torchdiffeq's, of (t, y).
        y0: a tensor or a tuple of tensors.
        t: the times.
        settings: how to integrate.
        back: and how to go back.
        params: what func depends on, as far as the user says.

    Attributes:
        problem: the integration, without a graph.
    """

    def __init__(  # noqa: PLR0913 - torchdiffeq's arguments
        self, func: Function, y0: Any, t: Tensor, settings: Settings, back: Settings, params: Any
    ) -> None:
        layout = Layout(y0)
        self.layout, self.t = layout, t
        self.y = y0 if layout.single else layout.pack(y0, "y0")[0]
        here = layout.unpack(layout.pack(y0, "y0").detach()[0])
        self.problem = Problem(func, here, t.detach(), settings)

        def flat(t: Tensor, y: Tensor) -> Tensor:
            value = func(t, y if layout.single else layout.unpack(y))
            return value if layout.single else layout.pack(value, "func")[0]

        self.params, given = parameters_of(func, params, t, self.y, flat)
        of_state = state_norm(settings.options.get("norm"), layout)
        norm = adjoint_norm(back.options.get("norm"), of_state, layout)
        back = dataclasses.replace(back, options={**back.options, "norm": norm})
        self.backward = Backward(flat, back, given, callbacks_of(func, "_adjoint"))

    def states(self) -> Tensor:
        """At the times, ``[T, *y.shape]``."""
        return self._apply(lambda: (self.problem.t, self._shaped(self.problem.trajectory())))

    def until(self, event_fn: Function) -> tuple[Tensor, Tensor]:
        """At the first time and at an event, ``[2, *y.shape]``, and the time of that.

        The time has no gradient, and the state that at a fixed time.
        """
        at = self.problem.t[0]

        def solve() -> tuple[Tensor, Tensor]:
            nonlocal at
            at, z = find_event(self.problem, event_fn)
            return torch.stack((self.problem.t[0], at.to(self.problem.t))), self._shaped(z)

        states = self._apply(solve)
        return states, at

    def unpack(self, states: Tensor) -> Any:
        """In the shapes of y0."""
        return states if self.layout.single else self.layout.unpack(states)

    def _shaped(self, z: Tensor) -> Tensor:
        return z.reshape(len(z), *self.y.shape)

    def _apply(self, solve: Callable[[], tuple[Tensor, Tensor]]) -> Tensor:
        return _Adjoint.apply(solve, self.backward, self.y, self.t, *self.params)


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, solve: Any, back: Backward, y: Tensor, t: Tensor, *params: Any) -> Any:
        del y
        times, states = solve()
        ctx.back, ctx.like = back, t
        ctx.adjoint_options = dict(back.settings.options)
        ctx.save_for_backward(times, states, *params)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        t, y, *params = ctx.saved_tensors
        (v,), moves = grad_outputs, ctx.needs_input_grad[3]
        back = ctx.back.seeing(ctx.adjoint_options["norm"])
        dynamics = _augmented(back.func, params, moves)
        by_time = torch.zeros_like(t)
        state = [y.new_zeros(()), y[-1], v[-1], *map(torch.zeros_like, params)]
        for i in range(len(t) - 1, 0, -1):
            if moves:
                velocity = back.func(t[i].to(y.real.dtype), y[i])
                by_time[i] = (velocity.conj() * v[i]).real.sum()
                state[0] = state[0] - by_time[i].to(state[0])
            state = back.span(tuple(state), t[i - 1 : i + 1].flip(0), dynamics)
            state[1] = y[i - 1]
            state[2] = state[2] + v[i - 1]
        by_time[0] = state[0].real
        if len(t) == 1:
            by_time[0] = 0
        if moves and len(t) != len(ctx.like):
            by_time = by_time[:1]
        of_times = by_time.to(ctx.like) if moves else None
        return None, None, state[2], of_times, *state[3:]


def _augmented(func: Function, params: Sequence[Tensor], moves: bool) -> Function:
    """The dynamics of (vjp_t, y, adj_y, *vjp_params); with a graph where one is asked for."""

    def dynamics(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        _, y, a, *_ = state
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            t = t.detach().requires_grad_(moves)
            point = y if graph and y.requires_grad else y.detach().requires_grad_()
            value = func(t, point)
            wrt = (*((t,) if moves else ()), point, *params)
            found = [None] * len(wrt)
            if value.requires_grad:
                found = torch.autograd.grad(
                    value, wrt, -a, allow_unused=True, retain_graph=True, create_graph=graph
                )
        found = [
            torch.zeros_like(tensor) if one is None else one
            for one, tensor in zip(found, wrt, strict=True)
        ]
        by_t = found.pop(0).to(y) if moves else y.new_zeros(())
        return (by_t, value if graph else value.detach(), *found)

    return dynamics


def parameters_of(
    func: Function, given: Any, t: Tensor, y: Tensor, flat: Function
) -> tuple[list[Tensor], int]:
    """What func depends on, those that were given first, and how many these are.

    Found in the graph of one evaluation: so is what a function captured.
    """
    if given is None:
        listed = _listed(func) if isinstance(func, nn.Module) else []
    else:
        listed = list(given)
    listed = union(param for param in listed if param.requires_grad)
    if not torch.is_grad_enabled():
        return listed, len(listed)
    first, last = (t.detach()[i].to(y.real.dtype) for i in (0, -1))
    value = flat(torch.nextafter(first, last), y.detach())  # the field may jump at the first
    return union(listed, graph_leaves(value, listed)), len(listed)


def _listed(func: nn.Module) -> list[Tensor]:
    """The parameters; those of a replica of ``DataParallel`` are plain attributes."""
    if not getattr(func, "_is_replica", False):
        return list(func.parameters())
    return [
        value
        for module in func.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and value.requires_grad
    ]


def state_norm(norm: Norm | None, layout: Layout) -> Norm:
    """The norm of a forward state as a norm of one tensor."""
    if layout.single:
        return norm or rms
    return lambda y: (norm or mixed)(layout.unpack(y))


def adjoint_norm(asked: Any, of_state: Norm, layout: Layout) -> Norm:
    """The norm of (t, y, adj_y, *adj_params) that ``adjoint_options`` ask for.

    Arguments:
        asked: None, ``"seminorm"`` without the parameters, or a function; of a tuple y it receives
            each part.
        of_state: of y.
        layout: of y.
    """
    if callable(asked):
        if layout.single:
            return asked

        def with_parts(parts: Sequence[Tensor]) -> Any:
            t, y, a, *params = parts
            return asked((t, *layout.unpack(y), *layout.unpack(a), *params))

        return with_parts

    def default(parts: Sequence[Tensor]) -> Any:
        t, y, a, *params = parts
        most = max(t.abs(), of_state(y), of_state(a))
        return most if asked == "seminorm" else max(most, mixed(tuple(params)))

    return default
