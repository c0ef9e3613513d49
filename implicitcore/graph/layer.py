"""An implicit layer whose solve is part of a graph: for inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from implicitcore.errors import ConfigError
from implicitcore.graph.solvers import check_solver, follows_field, run
from implicitcore.graph.stop import Found
from implicitcore.graph.system import Layout, graph_field, graph_system
from implicitcore.layers.base import ImplicitLayer
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.solution import FinalState, Solution, Status
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

    def forward(self, x: Any, z0: Any = None) -> Any:
        """The solution's z; see :meth:`ImplicitLayer.forward`."""
        found, start = self._found(x, z0)
        return found.z if self.on_failure == "ignore" else self._answers(found, start)

    def solve(self, x: Any, z0: Any = None) -> Solution | FinalState:
        """The whole result; ``evaluations`` is a tensor. See :meth:`ImplicitLayer.solve`."""
        found, start = self._found(x, z0)
        return result(self.solver, self.horizon, found, start=start)

    def _found(self, x: Any, z0: Any) -> tuple[Found, Any]:
        """What was found, unpacked and of each sample, and where it began."""
        x = unwrapped(x)
        start = self.start(x) if z0 is None else z0
        layout = Layout.of(start, coupled=self.coupled)
        flat = layout.pack(start)
        system = graph_field if follows_field(self.solver) else graph_system
        dynamics = system(self.dynamics, x, layout, flat.dtype)
        found = run(self.solver, dynamics, flat, self.horizon)
        spent = self.start.evaluations if z0 is None else 0
        z, residual, status, steps, evaluations = found
        if self.coupled:
            batch = pytree.tree_leaves(start)[0].shape[0]
            residual, status, steps = (each.expand(batch) for each in (residual, status, steps))
        return Found(layout.unpack(z), residual, status, steps, evaluations + spent), start

    def _answers(self, found: Found, start: Any) -> Any:
        """z where it may be taken for an answer."""
        by_value = self.on_failure == "warn"
        bad = found.status == int(Status.NON_FINITE) if by_value else found.status != 0
        leaves, spec = pytree.tree_flatten(found.z)
        instead = (
            pytree.tree_leaves(start) if self.on_failure == "mask" else [torch.nan] * len(leaves)
        )
        chosen = [
            torch.where(bad.reshape(-1, *(1,) * (z.ndim - 1)), value, z)
            for z, value in zip(leaves, instead, strict=True)
        ]
        return pytree.tree_unflatten(chosen, spec)


def result(solver: Any, horizon: float, found: Found, **more: Any) -> Solution | FinalState:
    """What was found, as the layer gives it."""
    parts = {**found._asdict(), **more}
    if not isinstance(solver, ODESolver):
        return Solution(**parts)
    residual = parts.pop("residual")
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
