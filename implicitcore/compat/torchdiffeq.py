"""torchdiffeq's functions on our solvers: change the import, and the code runs.

torchdiffeq itself is not needed::

    from implicitcore.compat.torchdiffeq import odeint, odeint_adjoint, odeint_event

Signatures, shapes and meanings are torchdiffeq's: y0 is one system of any shape with one step size,
also where its first dimension is a batch. :func:`implicitcore.integrate` chooses steps for each
sample of a batch, says how each ended, and is the better tool in new code. What differs:

* A failed integration raises :class:`~implicitcore.SolveError`.
* Methods: those of torchdiffeq that have a counterpart here (``dopri8`` is our ``dop853``, ``rk4``
  the classical method and not the 3/8 rule, the Adams methods are our ``adams``), and the name of
  any registered ODE solver. Fixed steps arrive at the output times exactly; torchdiffeq
  interpolates.
* Tolerances: a tensor or tuple of them counts as its smallest, and rtol is at least the precision
  of y0; the norm is the root mean square of the whole state.
* Gradients reach all that ``func`` depends on, whether or not ``adjoint_params`` names it. The
  parameters never steer the steps of the adjoint (torchdiffeq's "seminorm"). Gradients with respect
  to t and to events are first derivatives.
* Callbacks are not called.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from implicitcore.compat.events import find_event
from implicitcore.compat.methods import solver_for
from implicitcore.compat.state import Field, Layout, moved
from implicitcore.errors import InputError
from implicitcore.functional import integrate
from implicitcore.gradients.adjoint import Adjoint
from implicitcore.gradients.base import GradientStrategy
from implicitcore.gradients.unrolled import Unrolled
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.tensors.norms import clock_dtype

__all__ = ["odeint", "odeint_adjoint", "odeint_event"]

Function = Callable[[Tensor, Any], Any]
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
        options: ``step_size``, ``first_step``, ``min_step``, ``max_step`` and ``max_num_steps``,
            where the method has them; others are named in a warning.
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
    return _integrate(
        func, y0, t, solver_for(method, options, rtol, atol, y0, t), Unrolled(), event_fn
    )


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
        adjoint_params: accepted and not needed: the parameters and captured tensors that func
            depends on are found.

    Returns:
        As :func:`odeint`.

    Raises:
        InputError: as from :func:`odeint`.
        SolveError: the integration failed.
    """
    del adjoint_params
    solver = solver_for(method, options, rtol, atol, y0, t)
    back = solver_for(
        method if adjoint_method is None else adjoint_method,
        options if adjoint_options is None else adjoint_options,
        rtol if adjoint_rtol is None else adjoint_rtol,
        atol if adjoint_atol is None else adjoint_atol,
        y0,
        t,
    )
    return _integrate(func, y0, t, solver, Adjoint(back), event_fn)


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
    event, field = _signed(event_fn, layout, y0, start[0]), Field(func, layout)
    both = torch.stack([layout.pack(_row(solution, i), "y")[0] for i in (0, 1)])
    with torch.enable_grad():
        at, z = t.detach().requires_grad_(), both[1:].detach().requires_grad_()
        by_t, by_z = torch.autograd.grad(
            event(at, z), (at, z), materialize_grads=True, allow_unused=True
        )
    velocity = field(at, z).detach()
    rate = by_t + (by_z.conj() * velocity).real.sum()
    t = moved(t, -1 / rate, event(t, both[1:]))
    end = moved(both[1:], velocity, t)
    return t, layout.unpack(torch.cat((both[:1], end)))


def _integrate(  # noqa: PLR0913 - the two functions' arguments
    func: Function,
    y0: Any,
    t: Tensor,
    solver: ODESolver,
    gradient: GradientStrategy,
    event_fn: Function | None,
) -> Any:
    layout = Layout(y0)
    field, z0 = Field(func, layout), layout.pack(y0, "y0")
    _warn_of_callbacks(func)
    if event_fn is None:
        return layout.unpack(_trajectory(field, z0, t, solver, gradient))
    if t.shape != (2,):
        raise InputError(f"t: expected [2] entries with event_fn, received shape {list(t.shape)}")
    onwards = 1.0 if bool(t[1] > t[0]) else -1.0
    start = t[0].detach().to(z0.device, clock_dtype(t, z0))
    event = _signed(event_fn, layout, y0, start)
    end = find_event(solver, field, event, z0.detach(), start, onwards).to(t)
    if bool(end == t[0]):
        return end, layout.unpack(z0.expand(2, -1))
    return end, layout.unpack(_trajectory(field, z0, torch.stack((t[0], end)), solver, gradient))


def _trajectory(
    field: Field, z0: Tensor, t: Tensor, solver: ODESolver, gradient: GradientStrategy
) -> Tensor:
    """``[T, n]``, differentiable with respect to t too.

    dz(t_i)/dt_i is the velocity there, and t_0 moves z0 by minus the velocity.
    """
    if t.shape == (1,):
        return z0
    start, moves = z0, t.requires_grad
    if moves:
        start = moved(z0, -_velocity(field, t[0], z0), t[0])
    z = (
        integrate(field, start, times=t.detach(), solver=solver, gradient=gradient)
        .raise_if_failed()
        .z[:, 0]
    )
    if not moves:
        return z
    rows = [
        moved(z[i : i + 1], _velocity(field, t[i], z[i : i + 1]), t[i]) for i in range(1, len(t))
    ]
    return torch.cat((z0, *rows))


@torch.no_grad()
def _velocity(field: Field, t: Tensor, z: Tensor) -> Tensor:
    return field(t.to(z.real.dtype), z)


def _signed(
    event_fn: Function, layout: Layout, y0: Any, t0: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """The event as a scalar of t and a row, positive before it.

    The first of the entries to change its sign.
    """
    with torch.no_grad():
        sign = torch.sign(event_fn(t0, y0))
    return lambda t, z: (event_fn(t, layout.unpack(z[0])) * sign).min()


def _row(solution: Any, i: int) -> Any:
    return solution[i] if isinstance(solution, Tensor) else tuple(part[i] for part in solution)


def _warn_of_callbacks(func: Function) -> None:
    """Say which of torchdiffeq's callbacks are there and are not called."""
    found = [
        name
        for name in ("callback_step", "callback_accept_step", "callback_reject_step")
        if hasattr(func, name)
    ]
    if found:
        warnings.warn(f"callbacks are not called: {', '.join(found)}", stacklevel=4)
