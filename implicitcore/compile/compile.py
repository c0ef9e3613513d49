"""Layers whose solve and whose gradient are one compiled graph each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from implicitcore.compile.layer import check_layer
from implicitcore.compile.loop import SOLVERS
from implicitcore.compile.plan import Inputs, Plan
from implicitcore.compile.system import Layout
from implicitcore.errors import ConfigError, GradientError
from implicitcore.gradients.failures import report
from implicitcore.gradients.implicit import Implicit
from implicitcore.layers.base import ImplicitLayer
from implicitcore.root_solvers.gmres import GMRES
from implicitcore.solution import Backward, Solution, Status
from implicitcore.system.captured_modules import captured_modules
from implicitcore.tensors.norms import column
from implicitcore.tensors.shared import Shared, check_batch, unwrapped


class CompiledLayer(nn.Module):
    """See :func:`compile`.

    Arguments:
        layer: the layer; it stays what it was, and shares its parameters with this module.
    """

    def __init__(self, layer: ImplicitLayer) -> None:
        super().__init__()
        check_layer(layer)
        _check_gradient(layer.gradient)
        self.layer = layer
        self.plans: dict[Any, Plan] = {}

    def forward(self, x: Any, z0: Any = None) -> Any:
        """See :meth:`ImplicitLayer.forward`."""
        solution = self.solve(x, z0)
        report(solution, self.layer.on_failure, type(self.layer).__name__, self.layer)
        return solution.z

    def solve(self, x: Any, z0: Any = None) -> Solution:
        """See :meth:`ImplicitLayer.solve`."""
        layer = self.layer
        begin = layer.start(unwrapped(x)) if z0 is None else z0
        layout = Layout.of(begin, coupled=layer.coupled)
        flat = layout.pack(begin).detach()
        check_batch(x, len(pytree.tree_leaves(begin)[0]))
        plan, tensors = self._plan(x, layout, flat)
        record = Backward()
        z, residual, status, steps, evaluations = _Solve.apply(
            plan, record, layer.on_failure, flat, *tensors
        )
        spent = layer.start.evaluations if z0 is None else 0
        found = Solution(
            z=layout.unpack(z),
            start=begin,
            residual=residual,
            status=status,
            steps=steps,
            evaluations=int(evaluations) + spent,
            backward=record,
        )
        return found.of_each(len(pytree.tree_leaves(begin)[0])) if layer.coupled else found

    def regularizer(self, solution: Solution) -> Tensor:
        """See :meth:`ImplicitLayer.regularizer`."""
        return self.layer.regularizer(solution)

    def _plan(self, x: Any, layout: Layout, flat: Tensor) -> tuple[Plan, list[Tensor]]:
        layer, dynamics = self.layer, self.layer.dynamics
        leaves, spec = pytree.tree_flatten(unwrapped(x))
        marked = pytree.tree_leaves(x, is_leaf=lambda leaf: isinstance(leaf, Shared))
        shared = {id(t) for m in marked if isinstance(m, Shared) for t in pytree.tree_leaves(m)}
        fixed = {i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        per_sample = tuple(t.ndim > 0 and id(t) not in shared for t in given)
        owned = tuple(_owned(dynamics))
        tensors = [*given, *(getattr(module, name) for module, name in owned)]
        modes = tuple(module.training for module in dynamics.modules())
        key = (layer.solver, layer.gradient, layout.shapes, str(spec), str(fixed), per_sample, modes)
        kinds = tuple((t.dtype, t.device, t.requires_grad, t.shape[1:]) for t in (flat, *tensors))
        found = self.plans.get((key, kinds))
        if found is None:
            inputs = Inputs(spec, fixed, per_sample, owned)
            adjoint = layer.gradient.solver
            example = (flat, *tensors)
            found = Plan(dynamics, layer.solver, adjoint, layout, inputs, example)
            self.plans[key, kinds] = found
        return found, tensors


def compile(layer: ImplicitLayer) -> CompiledLayer:  # noqa: A001 - as torch.compile
    """The layer with its solve, and its implicit gradient, as one compiled graph each."""
    return CompiledLayer(layer)


def _check_gradient(gradient: Any) -> None:
    known = (*SOLVERS, GMRES)
    if not isinstance(gradient, Implicit) or gradient.clip is not None:
        raise ConfigError(
            [f"gradient: a compiled layer takes Implicit without a clip; received {gradient}"]
        )
    if not isinstance(gradient.solver, known):
        names = ", ".join(kind.__name__ for kind in known)
        raise ConfigError(
            [
                f"gradient.solver: {type(gradient.solver).__name__} has no loop in a graph; "
                f"use {names}"
            ]
        )


def _owned(dynamics: nn.Module) -> Any:
    """The parameters and buffers that f may read: of the dynamics and of what it captured."""
    seen: set[nn.Module] = set()
    for part in (dynamics, *captured_modules(dynamics)):
        for module in part.modules():
            if module in seen:
                continue
            seen.add(module)
            for tensors in (module._parameters, module._buffers):
                yield from ((module, name) for name, t in tensors.items() if t is not None)


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: Plan, record: Backward, on_failure: str, z0: Tensor, *tensors: Tensor
    ) -> Any:
        z, residual, status, steps, evaluations = plan.forward(z0, *tensors)
        ctx.plan, ctx.record, ctx.left_out = plan, record, None
        failed = status if on_failure == "mask" else status == Status.NON_FINITE
        saved = z, *tensors
        if bool(failed.any()):
            ctx.left_out = left_out = failed != 0
            saved = _without(left_out, plan, saved)
            if on_failure == "mask":
                z = torch.where(column(left_out), z0.nan_to_num(0.0, 0.0, 0.0), z)
        ctx.save_for_backward(*saved)
        ctx.mark_non_differentiable(residual, status, steps, evaluations)
        ctx.set_materialize_grads(False)
        return z, residual, status, steps, evaluations

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        v, plan, saved = grad_outputs[0], ctx.plan, ctx.saved_tensors
        gradients: list[Tensor | None] = [None] * (len(saved) - 1)
        if v is None:
            return None, None, None, None, *gradients
        if torch.is_grad_enabled():
            raise GradientError(
                "a compiled layer has first derivatives; use the layer itself for a second"
            )
        if ctx.left_out is not None:
            v = torch.where(column(ctx.left_out), 0, v)
        residual, status, products, *found = plan.backward(v.contiguous(), *saved)
        record = ctx.record
        record.vjps += int(products)
        record.residual, record.status = residual, status
        for place, gradient in zip(plan.differentiated, found, strict=True):
            gradients[place] = gradient
        return None, None, None, None, *gradients


def _without(left_out: Tensor, plan: Plan, saved: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same tensors, with a sample that has not failed in place of each that has.

    A factor of zero does not stop the NaN of its derivative.
    """
    rows = torch.arange(len(left_out), device=left_out.device)
    rows = torch.where(left_out, (~left_out).int().argmax(), rows)
    batched = plan._batched
    return tuple(
        tensor.index_select(0, rows) if per_sample else tensor
        for tensor, per_sample in zip(saved, batched, strict=True)
    )
