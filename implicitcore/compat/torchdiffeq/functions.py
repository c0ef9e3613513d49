"""The functions of torchdiffeq."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from implicitcore.compat.torchdiffeq import adjoint
from implicitcore.compat.torchdiffeq.events import find_event, link, signed
from implicitcore.compat.torchdiffeq.methods import smallest
from implicitcore.compat.torchdiffeq.problem import Problem, Settings
from implicitcore.compat.torchdiffeq.state import Field, Function, Layout
from implicitcore.errors import InputError
from implicitcore.ode_solvers.base import ODESolver

Options = Mapping[str, Any]


def odeint(  # noqa: PLR0913 - torchdiffeq's signature
    func: Function,
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | ODESolver | None = None,
    options: Options | None = None,
    event_fn: Function | None = None,
) -> Any:
    """Integrate dy/dt = func(t, y) from y(t[0]) = y0; the gradient is that of the steps taken.

    Arguments:
        func: a module or function of t (a scalar tensor) and y; returns dy/dt shaped like y.
        y0: a tensor of any shape, or a tuple of tensors.
        t: output times ``[T]``, strictly increasing or decreasing; they may require a gradient.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.
        method: default ``dopri5``; see the module.
        options: torchdiffeq's of the method, and those of the solver of ours that it is; others
            are named in a warning.
        event_fn: a function of t and y whose sign, or that of one of its entries, changes at the
            event; t is then ``[2]``, and its second entry only says which way to go.

    Returns:
        y at the times, ``[T, *y0.shape]``, a tuple where y0 is one. With ``event_fn`` the time of
        the event, without a gradient, and y at t[0] and there, ``[2, *y0.shape]``, as at a fixed
        time; :func:`odeint_event` adds the gradient of the time.

    Raises:
        InputError: y0, t or the method cannot be used, or func returns another shape.
        SolveError: the integration failed.

    Example:
        >>> import torch
        >>> from implicitcore.compat.torchdiffeq import odeint
        >>> times = torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> y = odeint(lambda t, y: -y, torch.ones(2, 3, dtype=torch.float64), times)
        >>> y.shape, round(y[-1, 0, 0].item(), 6)
        (torch.Size([2, 2, 3]), 0.367879)
    """
    settings = _settings(rtol, atol, method, options)
    problem = Problem(func, y0, t, settings)
    if event_fn is None:
        return problem.layout.unpack(problem.trajectory())
    at, z = find_event(problem, event_fn)
    return at.to(t), problem.layout.unpack(z)


def odeint_adjoint(  # noqa: PLR0913 - torchdiffeq's signature
    func: Function,
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | ODESolver | None = None,
    options: Options | None = None,
    event_fn: Function | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | ODESolver | None = None,
    adjoint_options: Options | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """The same, differentiated by the adjoint, whose memory does not grow with the steps.

    Arguments:
        func: as in :func:`odeint`; it need not be a module.
        y0: as in :func:`odeint`.
        t: as in :func:`odeint`.
        rtol: as in :func:`odeint`.
        atol: as in :func:`odeint`.
        method: as in :func:`odeint`.
        options: as in :func:`odeint`.
        event_fn: as in :func:`odeint`.
        adjoint_rtol: default rtol.
        adjoint_atol: default atol.
        adjoint_method: default method.
        adjoint_options: default options.
        adjoint_params: those that steer the steps back. The gradient reaches all that func depends
            on, captured tensors too, whether or not it is named here.

    Returns:
        As :func:`odeint`.

    Raises:
        InputError: as from :func:`odeint`.
        SolveError: the integration failed.
    """
    settings = _settings(rtol, atol, method, options)
    back = _backward_settings(settings, adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options)
    solved = adjoint.Differentiated(func, y0, t, settings, back, adjoint_params)
    if event_fn is None:
        return solved.unpack(solved.states())
    states, at = solved.until(event_fn)
    event = signed(event_fn, solved.problem.layout, y0, t[0])
    at, _ = link(solved.problem.field, event, at, states[1].reshape(1, -1))
    return at.to(t), solved.unpack(states)


def odeint_event(  # noqa: PLR0913 - torchdiffeq's signature
    func: Function,
    y0: Any,
    t0: Tensor,
    *,
    event_fn: Function,
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """Integrate until an event, with the gradient of its time.

    Dt* = -de / (de/dt) at e(t*, y(t*)) = 0.

    Arguments:
        func: as in :func:`odeint`.
        y0: as in :func:`odeint`.
        t0: the time of y0, a scalar; it may require a gradient.
        event_fn: a function of t and y; the event is the first change of its sign, or of that of
            one of its entries. A zero at the start counts.
        reverse_time: go back in time.
        odeint_interface: :func:`odeint` or :func:`odeint_adjoint`.
        **kwargs: for the interface.

    Returns:
        The time of the event, a scalar, and y at t0 and there, ``[2, *y0.shape]``.

    Raises:
        InputError: as from :func:`odeint`.
        SolveError: the integration failed, or no event happened in 20000 steps
            (``options={"max_num_steps": ...}`` for fewer).
    """
    start = t0.reshape(1)
    times = torch.cat((start, start.detach() + (-1 if reverse_time else 1)))
    t, solution = odeint_interface(func, y0, times, event_fn=event_fn, **kwargs)
    layout = Layout(y0)
    event = signed(event_fn, layout, y0, start[0])
    both = torch.stack([layout.pack(_row(solution, i), "y")[0] for i in (0, 1)])
    t, end = link(Field(func, layout), event, t, both[1:])
    return t, layout.unpack(torch.cat((both[:1], end)))


def odeint_dense(  # noqa: PLR0913 - torchdiffeq's signature
    func: Function,
    y0: Any,
    t0: Tensor,
    t1: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | ODESolver | None = None,
    options: Options | None = None,
) -> Callable[[Tensor], Any]:
    """Integrate from t0 to t1, and keep the trajectory.

    Arguments:
        func: as in :func:`odeint`.
        y0: as in :func:`odeint`.
        t0: the time of y0, a scalar.
        t1: the last time, a scalar.
        rtol: as in :func:`odeint`.
        atol: as in :func:`odeint`.
        method: as in :func:`odeint`.
        options: as in :func:`odeint`.

    Returns:
        A function of times between t0 and t1, a scalar or ``[T]``, to the states there, shaped
        like y0 or ``[T, *y0.shape]``; by the continuous extension of the method.

    Raises:
        InputError: as from :func:`odeint`.
        SolveError: the integration failed.
    """
    times = torch.stack([torch.as_tensor(t).reshape(()) for t in (t0, t1)])
    problem = Problem(func, y0, times, _settings(rtol, atol, method, options))
    steps, pieces = problem.steps(), []
    while not pieces or bool((problem.t[1] - pieces[-1].end) * problem.forward > 0):
        pieces.append(steps.advance())
    ends = torch.cat([piece.end.detach() for piece in pieces]) * problem.forward

    def states(t: Tensor) -> Any:
        asked = torch.as_tensor(t).to(ends)
        first, last = (problem.t.detach().to(ends) * problem.forward).tolist()
        ahead = (asked.detach() * problem.forward).reshape(-1)
        if not bool(((ahead >= first) & (ahead <= last)).all()):
            raise InputError(
                f"t: expected times from {times[0].item():g} to {times[1].item():g}, received "
                f"{asked.tolist()}"
            )
        which = torch.searchsorted(ends, ahead).tolist()
        rows = [
            pieces[i].at(time) for i, time in zip(which, asked.reshape(-1, 1).unbind(), strict=True)
        ]
        return problem.layout.unpack(torch.cat(rows).reshape(*asked.shape, -1))

    return states


def _settings(
    rtol: Any, atol: Any, method: str | ODESolver | None, options: Options | None
) -> Settings:
    return Settings(rtol=rtol, atol=atol, method=method, options=dict(options or {}))


def _backward_settings(
    forward: Settings,
    rtol: Any,
    atol: Any,
    method: str | ODESolver | None,
    options: Options | None,
) -> Settings:
    """Those of the way back, which are the forward's where they are not given.

    Raises:
        InputError: the options are those of another method.
    """
    if options is None:
        if method not in (None, forward.method) and forward.options:
            raise InputError(
                "adjoint_options: with an adjoint_method of its own they do not follow from the "
                "options; give them too"
            )
        options = {name: value for name, value in forward.options.items() if name != "norm"}
    return _settings(
        smallest(forward.rtol) if rtol is None else rtol,
        smallest(forward.atol) if atol is None else atol,
        forward.method if method is None else method,
        options,
    )


def _row(solution: Any, i: int) -> Any:
    return solution[i] if isinstance(solution, Tensor) else tuple(part[i] for part in solution)
