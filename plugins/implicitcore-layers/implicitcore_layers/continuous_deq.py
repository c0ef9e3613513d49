"""The Continuous Deep Equilibrium Model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack, final

from implicitcore import RootSolver, SteadyState
from implicitcore.extend import Spec
from implicitcore_layers.deq import DEQ, DEQOptions


@final
class ContinuousDEQ(DEQ):
    """The equilibrium as an infinite-time ODE.

    dz/dt = f(z, x) - z from z(0) = 0 until the velocity vanishes. Differentiated at the steady
    state (GMRES on (I - J)^T u = v), not along the trajectory. Robust where the fixed-point
    iteration oscillates: the flow needs Re(J's eigenvalues) < 1, the iteration ``|`` eigenvalues
    ``|`` < 1. ``DEQ`` with Anderson usually needs fewer evaluations where both converge.

    Arguments:
        cell: f, a module or function of (z, x) that returns a state shaped like z.
        root_solver: ``SteadyState`` with any ODE solver.
        **options: the others of :class:`DEQ`.

    Reference:
        Pal, Edelman, Rackauckas, Continuous Deep Equilibrium Models, arXiv 2201.12240.
    """

    def __init__(
        self,
        cell: Callable[[Any, Any], Any],
        *,
        root_solver: RootSolver | Spec = SteadyState(),
        **options: Unpack[DEQOptions],
    ) -> None:
        super().__init__(cell, root_solver=root_solver, **options)
