"""The Jacobian of f at one point, as products."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.mixing import check_rows, precision
from implicitcore.tensors import host

if TYPE_CHECKING:
    from implicitcore.system.system import System

# What torch.autograd.grad calls. It checks its arguments for longer than the product of a small
# cell takes, and a backward solve asks for many with the same; where a torch has no such function,
# that is what they cost. The first, for a device, also keeps the context of this thread for those
# of the device; a host has none, and that of a backward pass around the product stays.
_engine = getattr(torch.autograd.Variable, "_execution_engine", None)
_ENGINES = (
    getattr(torch.autograd.graph, "_engine_run_backward", None),
    getattr(_engine, "run_backward", None),
)


class Linearization:
    """Products with the Jacobian J of f at one point; each counts as an evaluation of the system.

    Arguments:
        system: counts the products.
        point: ``[batch, n]``, requires a gradient.
        fz: f(point), with its graph.
        g: f(point) - point, where the dynamics gave it.
    """

    def __init__(self, system: System, point: Tensor, fz: Tensor, g: Tensor | None = None) -> None:
        self.system, self.point, self.fz, self.g = system, point, fz, g
        self.counter = system.context.counter
        self._engine = _ENGINES[host.on_host(fz)] if fz.requires_grad else None
        self._transposed: tuple[Tensor, Tensor] | None = None
        self._matrix: Tensor | None = None

    def vjp(self, v: Tensor) -> Tensor:
        """J^T v, ``[batch, n]``."""
        self.counter.evaluations += 1
        if self._engine is None or torch.is_grad_enabled():
            return self._product(self.fz, self.point, v, torch.is_grad_enabled())
        return _run(self._engine, self.fz, self.point, v)

    def jvp(self, v: Tensor) -> Tensor:
        """J v, ``[batch, n]``.

        The derivative of w -> J^T w, which needs no forward-mode rules from the cell.
        """
        self.counter.evaluations += 1
        if self._transposed is None:
            with torch.enable_grad():
                w = torch.zeros_like(self.fz).requires_grad_()
                self._transposed = w, self._product(self.fz, self.point, w, True)
        w, pulled = self._transposed
        if self._engine is None or not pulled.requires_grad or torch.is_grad_enabled():
            return self._product(pulled, w, v, torch.is_grad_enabled())
        return _run(self._engine, pulled, w, v)

    def matrix(self) -> Tensor:
        """J of each sample, ``[batch, n, n]``: n products, once."""
        if self._matrix is not None and not torch.is_grad_enabled():
            return self._matrix
        batch, n = self.point.shape
        self.system.evaluations += n
        units = (
            torch.eye(n, dtype=self.fz.dtype, device=self.fz.device)
            .unsqueeze(1)
            .expand(n, batch, n)
        )
        self._matrix = self._rows(units, torch.is_grad_enabled()).transpose(0, 1)
        return self._matrix

    def evaluation(self, z: Tensor) -> Evaluation:
        """What f gave at the point, whose values z has."""
        return Evaluation(z, self.fz, self.system.residual(z, self.fz, self.g))

    def residual(self, z: Tensor) -> Residual:
        """f(z) - z with its norms, without a graph, for a z that has the values of the point."""
        g = None if self.g is None else self.g.detach()
        return self.system.residual(z, self.fz.detach(), g)

    def restrict(self, rows: Tensor) -> Linearization:
        """The products for some samples.

        f is evaluated at them once more, so that a product costs no more than they do.

        Raises:
            InputError: f has other values there: it mixes samples.
        """
        self.system.check_function()
        system = self.system.restrict(rows)
        part = system.linearize(self.point.detach().index_select(0, rows))
        eps, x = precision(system.context, self.fz.dtype), system.problem.marked
        check_rows(part.fz, self.fz.index_select(0, rows), len(self.fz), x, eps)
        return part

    def _rows(self, units: Tensor, graph: bool) -> Tensor:
        """J^T v for each v of ``units``, ``[n, batch, n]``.

        All at once, where every operation of f has a batching rule.
        """
        if self.fz.requires_grad and len(units):
            options = {
                "retain_graph": True,
                "create_graph": graph,
                "materialize_grads": True,
                "is_grads_batched": True,
            }
            try:
                rows = torch.autograd.grad(self.fz, self.point, units, **options)[0]
                return rows.expand_as(units)  # one zero for all, where f does not depend on z
            except RuntimeError:
                return torch.stack(
                    [self._product(self.fz, self.point, unit, graph) for unit in units]
                )
        return torch.zeros_like(units)

    @staticmethod
    def _product(output: Tensor, point: Tensor, v: Tensor, graph: bool) -> Tensor:
        if not output.requires_grad:  # f does not depend on z
            return torch.zeros_like(point)
        return torch.autograd.grad(
            output, point, v, retain_graph=True, create_graph=graph, materialize_grads=True
        )[0]


def _run(engine: Callable[..., Any], output: Tensor, point: Tensor, v: Tensor) -> Tensor:
    """A product without a graph."""
    found = engine((output,), (v,), True, False, (point,), True, accumulate_grad=False)[0]
    return torch.zeros_like(point) if found is None else found
