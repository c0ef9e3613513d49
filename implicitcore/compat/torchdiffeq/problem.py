"""One integration that torchdiffeq's functions ask for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from implicitcore.compat.torchdiffeq.control import Control, mixed, rms, tolerance
from implicitcore.compat.torchdiffeq.methods import CALLBACKS, SHARES, Method, method_for
from implicitcore.compat.torchdiffeq.state import Field, Function, Layout
from implicitcore.compat.torchdiffeq.steps import (
    AdaptiveSequence,
    Callback,
    GridSequence,
    Piece,
    Run,
    StepSequence,
    is_adaptive,
)
from implicitcore.dynamics.vector_field import VectorField
from implicitcore.errors import InputError
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.ode_solvers.stepwise import StepwiseODESolver
from implicitcore.system.sharding import check_sharding
from implicitcore.system.system import System
from implicitcore.tensors.norms import real_dtype
from implicitcore.tensors.packing import Packing

_CONTROL = ("safety", "ifactor", "dfactor", "min_step", "max_step", "first_step")


@dataclass(frozen=True, eq=False, kw_only=True)
class Settings:
    """How to integrate: the keywords of torchdiffeq.

    Attributes:
        rtol: relative tolerance.
        atol: absolute tolerance.
        method: the name of a method, or a solver.
        options: of the method.
    """

    rtol: Any
    atol: Any
    method: str | ODESolver | None
    options: dict[str, Any]


class Problem:
    """A field with its state, ready to be integrated.

    Arguments:
        func: torchdiffeq's, of (t, y).
        y0: a tensor or a tuple of tensors.
        t: the times.
        settings: how.
        callbacks: called along the steps; those of func where None.

    Raises:
        InputError: one of these cannot be used.
    """

    def __init__(
        self,
        func: Function,
        y0: Any,
        t: Tensor,
        settings: Settings,
        callbacks: dict[str, Callback] | None = None,
    ) -> None:
        self.func, self.y0, self.layout = func, y0, Layout(y0)
        self.t = _checked(t, y0)
        self.forward = -1.0 if len(t) > 1 and bool(t[1] < t[0]) else 1.0
        self.z0 = self.layout.pack(y0, "y0")
        self.settings = settings
        self.method = method_for(
            settings.method, settings.options, settings.rtol, settings.atol, y0
        )
        self.field = Field(func, self.layout)
        if callbacks is None:  # not on the way back, whose func is made of one that was checked
            check_sharding(self.field, together=False)
        self.callbacks = callbacks_of(func) if callbacks is None else callbacks
        _check_callbacks(self.method, self.callbacks)

    @property
    def system(self) -> System:
        """The field on one packed sample."""
        return System.of(VectorField(self.field), None, Packing.of(self.z0))

    def trajectory(self) -> Tensor:
        """The states at the times, ``[T, n]``."""
        if len(self.t) == 1:
            return self.z0
        if not isinstance(self.method.solver, StepwiseODESolver):
            return self._black_box()
        steps, rows = self.steps(), [self.z0]
        piece = steps.advance()
        for t in self.t[1:].unbind():
            steps.tried = 0
            while bool((t - piece.end) * self.forward > 0):
                piece = steps.advance()
            rows.append(piece.at(_same(t.reshape(1), piece)))
        return torch.cat(rows)

    def _black_box(self) -> Tensor:
        """The states by a solver that does not show its steps, without a graph."""
        tensors = [self.z0, self.t, *getattr(self.func, "parameters", list)()]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            warnings.warn(
                f"{self.method.name} has no gradient, and the result none: odeint_adjoint with "
                "an adjoint_method goes back by another",
                stacklevel=4,
            )
        with torch.no_grad():
            found = self.method.solver.solve(self.system, self.z0.detach(), self.t.detach())
        return found.raise_if_failed().z[:, 0]

    def steps(self, *, endless: bool = False) -> StepSequence:
        """The steps from the first time on: to the last, or without an end."""
        solver = self.method.solver
        if not isinstance(solver, StepwiseODESolver):
            raise InputError(
                f"method: {self.method.name} does not show its steps, which events need; take "
                "another one"
            )
        run = Run(solver, self.system, self.field, self.callbacks)
        if is_adaptive(solver):
            return self._adaptive(run)
        return self._fixed(run, self.endless() if endless else self.grid())

    def _adaptive(self, run: Run) -> StepSequence:
        options, z0, settings = dict(self.method.options), self.z0, self.settings
        norm = options.pop("norm", None) or (rms if self.layout.single else mixed)
        clock = torch.promote_types(options.pop("dtype", torch.float64), real_dtype(z0))
        solver = run.solver
        own = isinstance(settings.method, ODESolver)
        rtol = getattr(solver, "rtol", settings.rtol) if own else settings.rtol
        atol = getattr(solver, "atol", settings.atol) if own else settings.atol
        sizes = {
            name: float(options.pop(name)) for name in _CONTROL if options.get(name) is not None
        }
        control = Control(
            rtol=tolerance("rtol", rtol, self.y0),
            atol=tolerance("atol", atol, self.y0),
            norm=norm,
            layout=self.layout,
            share=SHARES.get(self.method.name, 1.0),
            **sizes,
        )
        t = self.t[:1].to(z0.device, clock)
        most = int(options.get("max_num_steps", 2**31 - 1))
        stops = _stops(options, t, self.forward)
        return AdaptiveSequence(run, control, t, z0, self.forward, stops, most)

    def _fixed(self, run: Run, grid: Callable[[int], Tensor]) -> StepSequence:
        options = self.method.options
        interp = options.get("interp", "linear")
        if interp not in ("linear", "cubic"):
            raise InputError(f"interp: expected 'linear' or 'cubic', received {interp!r}")
        return GridSequence(run, self.z0, grid, interp, bool(options.get("perturb", False)))

    def grid(self) -> Callable[[int], Tensor]:
        """The times that fixed steps go to, by their index."""
        t, options = self.t, self.method.options
        size, constructor = options.get("step_size"), options.get("grid_constructor")
        if isinstance(self.settings.method, ODESolver) and size is None:
            size = getattr(self.settings.method, "dt", None)
        if size is not None and constructor is not None:
            raise InputError("step_size and grid_constructor are mutually exclusive")
        if constructor is not None:
            grid = constructor(self.func, self.y0, t).to(t)
            if not bool((grid[0] == t[0]) & (grid[-1] == t[-1])):
                raise InputError(
                    f"grid_constructor: expected times from {t[0].item():g} to {t[-1].item():g}, "
                    f"received {grid[0].item():g} to {grid[-1].item():g}"
                )
        elif size is None:
            grid = t
        else:
            count = int(torch.ceil((t[-1] - t[0]).abs().detach() / size + 1).item())
            inner = torch.arange(count - 1, dtype=t.dtype, device=t.device)
            grid = torch.cat((inner * (size * self.forward) + t[0], t[-1:]))
        rows = grid.unsqueeze(1).unbind()
        return lambda index: rows[index]

    def endless(self) -> Callable[[int], Tensor]:
        """The times of equal steps without an end.

        Raises:
            InputError: the steps have no size.
        """
        size = self.method.options.get("step_size")
        if size is None and isinstance(self.settings.method, ODESolver):
            size = getattr(self.settings.method, "dt", None)
        if size is None:
            raise InputError(
                f"options: {self.method.name} with an event needs a step_size: the time of its "
                "end is not known"
            )
        start, step = self.t[:1], self.forward * size
        return lambda index: start + index * step


def _same(t: Tensor, piece: Piece) -> Tensor:
    """The end of a piece itself, where t is that."""
    if t.dtype != piece.end.dtype:
        t = t.to(piece.end.dtype)
    return t


def callbacks_of(func: Any, suffix: str = "") -> dict[str, Callback]:
    """The callbacks that a function carries, by their short names."""
    names = {
        "step": "callback_step",
        "accept": "callback_accept_step",
        "reject": "callback_reject_step",
    }
    found = {name: getattr(func, names[name] + suffix, None) for name in CALLBACKS}
    return {name: callback for name, callback in found.items() if callback is not None}


def _check_callbacks(method: Method, callbacks: dict[str, Callback]) -> None:
    unused = sorted(callbacks.keys() - set(method.callbacks))
    if unused:
        warnings.warn(
            f"{method.name} does not support callbacks {', '.join(unused)}: they are not called",
            stacklevel=5,
        )


def _checked(t: Any, y0: Any) -> Tensor:
    """The times on the device of the state.

    Raises:
        InputError: they cannot be used.
    """
    if not isinstance(t, Tensor) or t.ndim != 1 or not len(t) or not t.is_floating_point():
        found = f"{t.dtype} of shape {list(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
        raise InputError(f"t: expected floating point times of shape [T], received {found}")
    steps = t.detach().diff()
    if not bool((steps > 0).all() | (steps < 0).all()):
        raise InputError(
            f"t: expected strictly increasing or decreasing times, received {t.tolist()}"
        )
    device = y0.device if isinstance(y0, Tensor) else y0[0].device
    if t.device != device:
        warnings.warn("t is not on the same device as y0. Coercing to y0.device.", stacklevel=5)
    return t.to(device)


def _stops(options: dict[str, Any], t: Tensor, forward: float) -> Sequence[tuple[Tensor, bool]]:
    """The times of ``step_t`` and ``jump_t`` in their order.

    Raises:
        InputError: a time is given twice.
    """
    found: dict[float, bool] = {}
    for name, jumps in (("step_t", False), ("jump_t", True)):
        given = options.get(name)
        for time in [] if given is None else torch.as_tensor(given).flatten().tolist():
            if time in found:
                raise InputError("step_t and jump_t must not have any repeated times between them")
            found[time] = jumps
    ordered = sorted(found, key=lambda time: time * forward)
    return [(t.new_tensor([time]), found[time]) for time in ordered]
