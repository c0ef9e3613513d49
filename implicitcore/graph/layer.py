"""An implicit layer whose solve is part of a graph: for inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from implicitcore.errors import ConfigError
from implicitcore.graph.loop import iteration_of, solve
from implicitcore.graph.system import Layout, graph_system
from implicitcore.layers.base import ImplicitLayer
from implicitcore.solution import Solution, Status
from implicitcore.system.captured_modules import captured_modules
from implicitcore.tensors.norms import column
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
        # As parts of this module, for what a function calls is no part of the dynamics.
        self.captured = nn.ModuleList(captured_modules(layer.dynamics))

    def forward(self, x: Any, z0: Any = None) -> Any:
        """The solution's z; see :meth:`ImplicitLayer.forward`."""
        solution = self.solve(x, z0)
        bad = self._refused(solution.status)
        if bad is None:
            return solution.z
        return pytree.tree_map(
            lambda z, start: _chosen(bad, start if self.on_failure == "mask" else torch.nan, z),
            solution.z,
            solution.start,
        )

    def solve(self, x: Any, z0: Any = None) -> Solution:
        """The whole result; ``evaluations`` is a tensor. See :meth:`ImplicitLayer.solve`."""
        x = unwrapped(x)
        start = self.start(x) if z0 is None else z0
        layout = Layout.of(start, coupled=self.coupled)
        flat = layout.pack(start)
        found = solve(self.solver, graph_system(self.dynamics, x, layout, flat.dtype), flat)
        spent = self.start.evaluations if z0 is None else 0
        evaluations: Any = found.evaluations + spent
        values = found._replace(z=layout.unpack(found.z), evaluations=evaluations)
        solution = Solution(start=start, **values._asdict())
        batch = pytree.tree_leaves(start)[0].shape[0]
        return solution.of_each(batch) if self.coupled else solution

    def _refused(self, status: Tensor) -> Tensor | None:
        """The samples ``[batch]`` whose z must not be taken for an answer."""
        if self.on_failure == "ignore":
            return None
        return status == Status.NON_FINITE if self.on_failure == "warn" else status != 0


def check_layer(layer: ImplicitLayer) -> None:
    """Refuse a layer whose solve a graph cannot take.

    Raises:
        ConfigError: says why, and what it can take.
    """
    iteration_of(layer.solver)
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


def _chosen(which: Tensor, value: Tensor | float, z: Tensor) -> Tensor:
    mask = column(which) if z.ndim == 2 else which.reshape(-1, *(1,) * (z.ndim - 1))
    return torch.where(mask, value, z)
