"""An implicit layer whose solve is part of a graph: for inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from implicitcore.errors import ConfigError
from implicitcore.graph.solvers import check_solver, follows_field, run
from implicitcore.graph.stop import Found
from implicitcore.graph.system import Layout, graph_field, graph_system
from implicitcore.graph.times import of_samples, refuse_gradient, times_in_graph
from implicitcore.layers.base import ImplicitLayer
from implicitcore.layers.call import refuse_options
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.ode_solvers.times import Times
from implicitcore.solution import FinalState, Solution, Status, Trajectory
from implicitcore.system.captured_modules import captured_modules
from implicitcore.tensors.shared import unwrapped


class GraphLayer(nn.Module):
    """The solve of a layer as operations that ``torch.export`` can trace.

    Nothing can be raised or warned of in a graph: where the layer would raise, the output of that
    sample is NaN. That is every sample that failed with ``on_failure="raise"``, and one whose value
    is not finite with ``"warn"``; ``"mask"`` gives the start of a failed sample.

    Arguments:
        layer: with a solver that has a loop in a graph.

    Raises:
        ConfigError: it has another solver.
    """

    def __init__(self, layer: ImplicitLayer) -> None:
        super().__init__()
        check_layer(layer)
        self.dynamics, self.start = layer.dynamics, layer.start
        self.solver, self.coupled, self.on_failure = layer.solver, layer.coupled, layer.on_failure
        self.horizon = layer.horizon
        # As parts of this module, for what a function calls is no part of the dynamics.
        self.captured = nn.ModuleList(captured_modules(layer.dynamics))

    def forward(self, x: Any, z0: Any = None, *, times: Times = None, **options: Any) -> Any:
        """The solution's z; see :meth:`ImplicitLayer.forward`, whose ``options`` are refused."""
        refuse_options(options)
        found, start, _ = self._found(x, z0, times)
        return found.z if self.on_failure == "ignore" else self._answers(found, start)

    def solve(
        self, x: Any, z0: Any = None, *, times: Times = None, **options: Any
    ) -> Solution | FinalState | Trajectory:
        """The whole result; ``evaluations`` is a tensor. See :meth:`ImplicitLayer.solve`."""
        refuse_options(options)
        found, start, grid = self._found(x, z0, times)
        return result(self.solver, self.horizon, found, start=start, times=grid)

    def _found(self, x: Any, z0: Any, times: Times) -> tuple[Found, Any, Tensor | None]:
        """What was found, unpacked and of each sample, where it began, and at which times."""
        x = unwrapped(x)
        start = self.start(x) if z0 is None else z0
        layout = Layout.of(start, coupled=self.coupled)
        flat = layout.pack(start)
        system = graph_field if follows_field(self.solver) else graph_system
        dynamics = system(self.dynamics, x, layout, flat.dtype)
        refuse_gradient(times)
        grid = times_in_graph(self.solver, times, start, coupled=self.coupled)
        found = run(self.solver, dynamics, flat, self.horizon, of_samples(grid, flat))
        spent = self.start.evaluations if z0 is None else 0
        z, residual, status, steps, evaluations = found
        if self.coupled:
            batch = pytree.tree_leaves(start)[0].shape[0]
            residual, status, steps = (each.expand(batch) for each in (residual, status, steps))
        found = Found(layout.unpack(z), residual, status, steps, evaluations + spent)
        return found, start, grid

    def _answers(self, found: Found, start: Any) -> Any:
        """z where it may be taken for an answer."""
        by_value = self.on_failure == "warn"
        bad = found.status == int(Status.NON_FINITE) if by_value else found.status != 0
        leaves, spec = pytree.tree_flatten(found.z)
        instead = (
            pytree.tree_leaves(start) if self.on_failure == "mask" else [torch.nan] * len(leaves)
        )
        shapes = (leaf.ndim - 1 for leaf in pytree.tree_leaves(start))
        chosen = [
            torch.where(bad.reshape(-1, *(1,) * shape), value, z)
            for z, value, shape in zip(leaves, instead, shapes, strict=True)
        ]
        return pytree.tree_unflatten(chosen, spec)


class AtTimes(nn.Module):
    """A layer in a graph at output times that belong to it.

    Arguments:
        layer: the layer.
        times: ``[T]``.
    """

    def __init__(self, layer: nn.Module, times: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("times", times)

    def forward(self, x: Any, z0: Any = None) -> Any:
        """The states ``[T, batch, ...]``."""
        return self.layer(x, z0, times=self.times)


def result(
    solver: Any, horizon: float, found: Found, *, times: Tensor | None = None, **more: Any
) -> Solution | FinalState | Trajectory:
    """What was found, as the layer gives it.

    At output ``times``, ``[T]`` or ``[T, batch]``, where there are any.
    """
    z, residual, status, steps, evaluations = found
    parts = {"z": z, "status": status, "steps": steps, "evaluations": evaluations, **more}
    if not isinstance(solver, ODESolver):
        return Solution(residual=residual, **parts)
    if times is not None:
        return Trajectory(times=times.T if times.ndim > 1 else times, **parts)
    times = torch.tensor([0.0, horizon], dtype=residual.dtype, device=residual.device)
    return FinalState(times=times, **parts)


def check_layer(layer: ImplicitLayer) -> None:
    """Refuse a layer whose solve a graph cannot take.

    Raises:
        ConfigError: says why, and what it can take.
    """
    check_solver(layer.solver)
    if layer.sync_steps:
        raise ConfigError(["sync_steps: a graph stops by itself; expected False"])


def in_graph(model: nn.Module) -> nn.Module:
    """The model with its implicit layers as parts of a graph; its modules are changed in place."""
    if isinstance(model, ImplicitLayer):
        return GraphLayer(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, ImplicitLayer):
                setattr(parent, name, GraphLayer(child))
    return model
