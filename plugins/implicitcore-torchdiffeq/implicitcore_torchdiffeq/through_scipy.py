"""SciPy's solvers, as torchdiffeq calls them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from implicitcore import GradientError, InputError
from implicitcore.extend import ErrorTolerance, Positive
from implicitcore_torchdiffeq.base import TorchdiffeqSolver
from implicitcore_torchdiffeq.field import PATIENCE, Field, OutOfSteps

EACH_STEP = 20
"""Evaluations that a step may take, beside one for each entry of the state: more than any method of
SciPy does, with a Jacobian by differences."""

_NO_GRAPH = (
    "torchdiffeq's scipy_solver has no graph: use Adjoint(solver=Tsit5()) with it, or "
    "another solver with Unrolled()"
)


@final
@dataclass(frozen=True, kw_only=True)
class ScipySolver(ErrorTolerance, TorchdiffeqSolver):
    """torchdiffeq's ``scipy_solver``.

    One call of ``scipy.integrate.solve_ivp`` for the whole batch, as one system on the CPU. Without
    a graph: it trains through ``Adjoint(solver=Tsit5())``, and ``Unrolled`` is refused. It cannot
    tell which sample a failure belongs to, and it counts no steps: it ends as ``max_steps`` after
    more evaluations than those steps take, 20 each and one for each entry of the batch. The plugin
    ``implicitcore-scipy`` calls SciPy for each sample: prefer that. The default tolerances are
    torchdiffeq's.

    Attributes:
        solver: SciPy's method.

    Reference:
        Hindmarsh, ODEPACK, a systematized collection of ODE solvers (1983): LSODA.
    """

    method: ClassVar[str] = "scipy_solver"

    rtol: Positive = 1e-7
    atol: Positive = 1e-9
    solver: Literal["RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA"] = "LSODA"

    def settings(self, grid: Tensor | None) -> dict[str, Any]:
        """See :meth:`TorchdiffeqSolver.settings`."""
        return {"solver": self.solver}

    def tolerances(self) -> Mapping[str, float]:
        """See :meth:`TorchdiffeqSolver.tolerances`."""
        return {"rtol": self.rtol, "atol": self.atol}

    def odeint(self, field: Field, z0: Tensor, times: Tensor, **arguments: Any) -> Any:
        """See :meth:`TorchdiffeqSolver.odeint`."""
        if z0.is_complex():
            raise InputError(
                f"torchdiffeq's scipy_solver integrates real states, received {z0.dtype}: use "
                "another method, or give torch.view_as_real(z)"
            )
        if arguments:
            raise InputError(
                "torchdiffeq's scipy_solver cannot stop at a steady state: use another "
                "method of torchdiffeq, or scipy-bdf"
            )
        with warnings.catch_warnings():
            # torchdiffeq passes options that only LSODA has; a failure shows in how much SciPy
            # returns.
            warnings.filterwarnings("ignore", module=r"scipy\.|torchdiffeq\.")
            found = super().odeint(_Opaque(field, z0, times), z0, times)
        field.loose = len(found) < len(times)
        # SciPy interpolates at the first time too, and misses z0 by a rounding.
        return torch.cat((z0.unsqueeze(0), found[1:]))


class _Opaque(Field):
    """The vector field for code without a graph, which may never end where it meets a NaN."""

    def __init__(self, field: Field, z0: Tensor, times: Tensor) -> None:
        super().__init__(field.system, field.most)
        self.field, self.graph = field, torch.is_grad_enabled()
        self.left = field.most * (EACH_STEP + z0.numel())
        field.t = times[0]
        if self.graph and (
            z0.requires_grad or peek_interpreter_stack() is not None
        ):  # the latter: inside torch.func
            raise GradientError(_NO_GRAPH)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """See :meth:`Field.__call__`."""
        if not self.left:
            self.field.t = t
            raise OutOfSteps
        self.left -= 1
        with torch.set_grad_enabled(self.graph):
            velocity = self.field(t, y)
        if velocity.requires_grad:
            raise GradientError(_NO_GRAPH)
        finite = velocity.isfinite().all(1)
        self.bad = 0 if bool(finite.all()) else self.bad + 1
        if self.bad > PATIENCE:
            self.field.errors = torch.where(finite, 0.0, torch.nan)
            raise AssertionError("the vector field is not finite")
        return velocity
