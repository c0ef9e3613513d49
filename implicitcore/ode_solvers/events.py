"""Events: where a function of the state changes its sign."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from implicitcore.errors import GradientError, InputError, show
from implicitcore.ode_solvers.dense import StepStart, evaluate
from implicitcore.system.system import System
from implicitcore.tensors.norms import column

Event = Callable[[Tensor, Any, Any], Tensor]
"""e(t, z, x) -> ``[batch]``; t comes as ``[batch, 1, ..., 1]``."""

_MOST = 100  # evaluations of e in a search: halving alone needs some fifty
_POLISH = 2  # Newton steps in the graph: each doubles the number of derivatives that are exact


def check_event(event: Any) -> None:
    """Refuse what is no function.

    Raises:
        InputError: it cannot be called.
    """
    if event is not None and not callable(event):
        raise InputError(
            f"event: expected a function of (t, z, x) that returns [batch], received {show(event)}"
        )


class Crossings:
    """Watches e along the steps, and finds the first change of its sign of each sample.

    The root is found on the continuous extension of the step. Newton's steps from it, in the graph,
    give it the derivative of the implicit function: dt*/dp = -(de/dp) / (de/dt) at e(t*, z(t*; p),
    x) = 0. A zero at the start is no event, and two changes within one step are not seen.

    Arguments:
        event: e.
        system: gives x and the layout of the state.
        t: the first time, ``[batch]``.
        z: the state there, ``[batch, n]``.

    Attributes:
        times: when it happened, ``[batch]``, NaN where it has not.
        sign: of e until then, ``[batch]``; zero where e was zero from the start, NaN where e became
            NaN.
    """

    def __init__(self, event: Event, system: System, t: Tensor, z: Tensor) -> None:
        self.event, self.system = event, system
        self.times = torch.full_like(t, torch.nan)
        with torch.no_grad():
            self.sign = _sign(self.value(t, z))

    def value(self, t: Tensor, z: Tensor) -> Tensor:
        """e, ``[batch]``.

        Raises:
            InputError: e returns something else.
        """
        packing = self.system.packing
        time = self.system.problem.time(t)
        found = self.system.scope.call(self.event, time, packing.unpack(z), self.system.x)
        if (
            not isinstance(found, Tensor)
            or found.shape != (packing.batch,)
            or not found.is_floating_point()
        ):
            kind = (
                f"{found.dtype} of shape {list(found.shape)}"
                if isinstance(found, Tensor)
                else f"a {type(found).__name__}"
            )
            raise InputError(
                f"event: expected it to return real numbers of shape [{packing.batch}], "
                f"received {kind}"
            )
        return found

    @torch.no_grad()
    def update(self, t: Tensor, z: Tensor, accept: Tensor) -> Tensor | None:
        """Which of the samples that accepted a step to (t, z) changed their sign in it.

        None where none did.
        """
        now = _sign(self.value(t, z))
        crossed = accept & (now * self.sign <= 0) & (self.sign != 0)
        # A zero at the start waits for the first sign, and what is NaN stays so.
        self.sign = torch.where(accept & ((self.sign == 0) | now.isnan()), now, self.sign)
        return crossed if bool(crossed.any()) else None

    def locate(
        self, start: StepStart, piece: Sequence[Tensor], crossed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The time and the state of the crossing, ``[batch]`` and ``[batch, n]``.

        Meaningful for the samples that ``crossed``.

        Raises:
            GradientError: the derivative of e along the trajectory is zero, and a gradient is
                wanted.
        """
        t, dt, keep = start.t, start.dt, column(crossed)
        piece = [
            piece[0],
            *(torch.where(keep, c, 0) for c in piece[1:]),
        ]  # what was rejected may hold a NaN

        def along(s: Tensor) -> Tensor:
            return self.value(t + s * dt, evaluate(piece, column(s).to(piece[0].dtype))).to(t.dtype)

        s = self._search(along, crossed)
        wanted = torch.is_grad_enabled() and (
            any(c.requires_grad for c in piece) or along(s).requires_grad
        )
        for _ in range(_POLISH if wanted else 0):
            s = _newton(along, s, crossed)
        at = t + s * dt
        self.times = torch.where(crossed, at, self.times)
        return at.detach(), evaluate(piece, column(s).to(piece[0].dtype))

    @torch.no_grad()
    def _search(self, along: Callable[[Tensor], Tensor], crossed: Tensor) -> Tensor:
        """The root in [0, 1] by the Illinois variant of regula falsi.

        One where nothing ``crossed``.
        """
        a, b = torch.where(crossed, 0, torch.ones_like(self.times)), torch.ones_like(self.times)
        at_a, at_b = along(a), along(b)
        at_a = torch.where(at_a * at_b > 0, -at_a, at_a)  # rounding: the sign is known
        eps, move = 4 * torch.finfo(self.system.packing.real_dtype).eps, torch.ones_like(b)
        for _ in range(_MOST):
            going = crossed & (at_b != 0) & (move > eps)
            if not bool(going.any()):
                break
            s = b - at_b * (b - a) / (at_b - at_a)
            s = torch.where(
                torch.minimum(a, b) <= s, torch.minimum(s, torch.maximum(a, b)), (a + b) / 2
            )
            found = along(s)
            passed = found * at_b < 0
            a, at_a = torch.where(going & passed, b, a), torch.where(passed, at_b, at_a / 2)
            move = torch.where(going, (s - b).abs(), move)
            b, at_b = torch.where(going, s, b), torch.where(going, found, at_b)
        return b


def _sign(e: Tensor) -> Tensor:
    """The sign, and NaN of NaN: torch says zero."""
    return torch.where(e.isnan(), e, e.sign())


def _newton(along: Callable[[Tensor], Tensor], s: Tensor, crossed: Tensor) -> Tensor:
    """One step of Newton's method, differentiable."""
    found, pull, *_ = torch.func.vjp(along, s)
    slope = pull(torch.ones_like(found))[0]
    if bool((crossed & (slope == 0)).any()):
        raise GradientError(
            "the event does not change along the trajectory where it is zero, so that its "
            "time has no derivative"
        )
    return s - torch.where(crossed, found, 0) / torch.where(crossed, slope, 1)
