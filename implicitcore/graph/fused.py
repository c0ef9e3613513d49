"""The loops whose iterations a backend puts into a graph as one operation each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from implicitcore.backends.base import Backend
from implicitcore.backends.graph import KrylovGraph, RootGraph
from implicitcore.backends.root_iteration import StopRule
from implicitcore.dynamics.base import Dynamics
from implicitcore.graph.stop import Found
from implicitcore.root_solvers.gmres import GMRES
from implicitcore.root_solvers.stepwise import StepwiseRootSolver
from implicitcore.root_solvers.stop_criterion import GROWTH
from implicitcore.root_solvers.stop_state import DIVERGENCE, TRUST, tiny
from implicitcore.system.problem import rounding_of, stop_scale
from implicitcore.tensors.norms import real_dtype


def root_graph(backend: Backend, solver: Any, dynamics: Dynamics, z: Tensor) -> RootGraph | None:
    """The backend's iterations of a solve of some dynamics; None where it has none.

    Arguments:
        backend: is asked.
        solver: its options.
        dynamics: what is solved.
        z: a state, of which nothing but its dtype, its device and its size is looked at.
    """
    scale = stop_scale(dynamics)
    if scale is None:
        return None
    return _root_graph(backend, solver, z, scale, rounding_of(dynamics.is_map(), z.dtype))


def adjoint_graph(backend: Backend, solver: Any, z: Tensor) -> RootGraph | KrylovGraph | None:
    """The same of the linear solve of a backward pass."""
    if isinstance(solver, GMRES):
        return backend.krylov_graph(z)
    return _root_graph(backend, solver, z, z.new_ones(len(z), dtype=real_dtype(z)), 0.0)


def _root_graph(
    backend: Backend, solver: Any, z: Tensor, scale: Any, rounding: float
) -> RootGraph | None:
    update = solver.update_rule(z) if isinstance(solver, StepwiseRootSolver) else None
    if update is None:
        return None
    rule = StopRule(
        tol=solver.tol,
        floor=solver.atol + tiny(real_dtype(z)),
        scale=scale,
        rounding=rounding,
        min_steps=getattr(solver, "min_steps", 1),
        origin=None,
        divergence=DIVERGENCE,
        trust=TRUST,
        growth=GROWTH,
    )
    return backend.root_graph(update, rule, z, solver.max_steps)


def solve_fused(
    root: RootGraph,
    function: Callable[[Tensor], tuple[Tensor, Tensor | None]],
    z0: Tensor,
    fz: Tensor | None = None,
    relative_to: Tensor | None = None,
) -> Found:
    """What the iterations find from z0, ``[batch, n]``.

    Arguments:
        root: the iterations.
        function: z -> f(z), and g(z) where the dynamics give it.
        z0: the start.
        fz: f(z0), where it is known.
        relative_to: what the tolerance is relative to, ``[batch]``, where the rule says so.
    """
    state = root.begin(z0, relative_to)
    z, going = z0, torch.ones((), dtype=torch.bool, device=z0.device)
    if fz is not None:
        z, going = root.advance(state, z0, fz, None, going)

    def goes_on(z: Tensor, going: Tensor) -> Tensor:
        del z
        return going.clone()  # a loop in a graph returns nothing that it was given

    def step(z: Tensor, going: Tensor) -> tuple[Tensor, Tensor]:
        fz, g = function(z)
        return root.advance(state, z, fz.clone(), g, going)

    z, going = while_loop(goes_on, step, (z, going))
    return Found(*root.result(state, z, going))


def correction(
    space: KrylovGraph,
    product: Callable[[Tensor], Tensor],
    g: Tensor,
    limit: Tensor,
    most: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The s of smallest ``|g - A s|`` in the Krylov space of g and A = I - J^T.

    With the products that each sample used, ``[batch]``, and all.
    """
    state, v, going = space.begin(g, limit, most)

    def goes_on(v: Tensor, going: Tensor) -> Tensor:
        del v
        return going.clone()

    def extend(v: Tensor, going: Tensor) -> tuple[Tensor, Tensor]:
        return space.extend(state, v - product(v), going)

    v, going = while_loop(goes_on, extend, (v, going))
    return space.minimise(state, v, going)
