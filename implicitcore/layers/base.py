"""The implicit layer."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from implicitcore.backends.base import Backend
from implicitcore.backends.torch import TorchBackend
from implicitcore.dynamics.base import Dynamics
from implicitcore.errors import ConvergenceWarning, SolveError
from implicitcore.functional import run
from implicitcore.gradients.base import GradientStrategy, Solve
from implicitcore.gradients.implicit import Implicit
from implicitcore.gradients.unrolled import Unrolled
from implicitcore.layers.start import Start, Zeros
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.root_solvers.base import RootSolver
from implicitcore.solution import Solution, Status


class ImplicitLayer(nn.Module):
    """Dynamics, a solver, a gradient strategy and a start, as one module.

    With a root solver the output is an equilibrium of the dynamics; with an ODE solver it is the state at ``horizon``,
    integrated from time 0. Nothing is remembered on the layer between calls.

    Arguments:
        dynamics: what is solved.
        solver: a root solver or an ODE solver.
        gradient: default ``Implicit()`` with a root solver, ``Unrolled()`` with an ODE solver.
        start: where z0 comes from; default zeros shaped like x.
        horizon: the end time of an ODE solver.
        backend: the kernels of the inner loop; default torch.
        strict: raise where a sample does not converge, rather than warn.

    Example:
        >>> import torch, implicitcore as ic
        >>> weight = torch.nn.Linear(4, 4)
        >>> layer = ic.ImplicitLayer(ic.FixedPoint(lambda z, x: torch.tanh(0.5 * weight(z) + x)), solver=ic.Anderson(tol=1e-5))
        >>> layer(torch.ones(3, 4)).shape
        torch.Size([3, 4])
    """

    kind: ClassVar[str] = "layer"

    def __init__(  # noqa: PLR0913 - keyword options
        self,
        dynamics: Dynamics,
        *,
        solver: RootSolver | ODESolver,
        gradient: GradientStrategy | None = None,
        start: Start | None = None,
        horizon: float = 1.0,
        backend: Backend | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__()
        self.dynamics = dynamics
        self.solver = solver
        self.gradient = gradient or (Implicit() if isinstance(solver, RootSolver) else Unrolled())
        self.start = start or Zeros()
        self.horizon = horizon
        self.backend = backend or TorchBackend()
        self.strict = strict

    def forward(self, x: Any, z0: Any = None) -> Any:
        """The solution's z, differentiable.

        Arguments:
            x: the input, any pytree.
            z0: begin from here and not from the layer's start.

        Raises:
            SolveError: a sample is not finite; or, where ``strict``, has not converged (else a ConvergenceWarning).
        """
        solution = self.solve(x, z0)
        self._check(solution)
        return solution.z

    def solve(self, x: Any, z0: Any = None, *, trace: bool = False) -> Solution:
        """The whole solution: z, residual and status per sample, evaluations; it neither warns nor raises on a failed sample.

        Arguments:
            x: the input, any pytree.
            z0: begin from here and not from the layer's start.
            trace: keep the residual after each step.
        """
        start = self.start(x) if z0 is None else z0
        spent = self.start.evaluations if z0 is None else 0
        begin = pytree.tree_map(torch.detach, start) if z0 is None and self.start.detached else start
        solve = Solve(self.solver, self._times(begin))
        solution = run(self.dynamics, begin, x, solve, self.gradient, backend=self.backend, trace=trace)
        end = solution.z if solve.times is None else pytree.tree_map(lambda z: z[-1], solution.z)
        return replace(solution, z=end, start=start, evaluations=solution.evaluations + spent)

    def regularizer(self, solution: Solution) -> Tensor:
        """The layer's own loss term, a scalar: 0 here."""
        return pytree.tree_leaves(solution.z)[0].new_zeros(())

    @property
    def config(self) -> dict[str, Any]:
        """The layer as data: ``implicitcore.build(layer.config, cell)`` builds its equal.

        Raises:
            ConfigError: a part of the layer is not registered.
        """
        from implicitcore.config import describe  # the one step up: names are the registry's to know

        return describe(self)

    def extra_repr(self) -> str:
        """The parts that are not modules."""
        return f"solver={self.solver}, gradient={self.gradient}, backend={type(self.backend).__name__}"

    def _times(self, z0: Any) -> Tensor | None:
        if isinstance(self.solver, RootSolver):
            return None
        like = pytree.tree_leaves(z0)[0]
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        return torch.tensor([0.0, self.horizon], dtype=dtype, device=like.device)

    def _check(self, solution: Solution) -> None:
        if bool(solution.converged.all()):
            return
        if self.strict or bool((solution.status == Status.NON_FINITE).any()):
            raise SolveError(f"{type(self).__name__} failed: {solution.summary()}", solution)
        warnings.warn(f"{type(self).__name__}: {solution.summary()}", ConvergenceWarning, stacklevel=3)
