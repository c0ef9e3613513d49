"""What a compiled solve is for autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import GradientError
from implicitcore.graph.compiled import CompiledFunction, Kinds
from implicitcore.graph.plan import Plan
from implicitcore.graph.stop import Found
from implicitcore.graph.times import OutputTimes, of_samples
from implicitcore.graph.trace import Kind
from implicitcore.graph.trajectory import TrajectoryPlan
from implicitcore.options.types import OnFailure
from implicitcore.solution import Backward, Status
from implicitcore.tensors.autocast import without_autocast
from implicitcore.tensors.norms import column
from implicitcore.tensors.transforms import check_gradient, without_graph


class Call(NamedTuple):
    """A call of a compiled layer.

    Attributes:
        plan: what was compiled.
        on_failure: see :class:`~implicitcore.layers.base.ImplicitLayer`.
        record: of the backward pass.
        kinds: of the start and the tensors, where they are known.
        due: the output times of a trajectory, ``[T, batch]``; None: it ends at the horizon.
    """

    plan: Any
    on_failure: OnFailure
    record: Backward
    kinds: Kinds | None = None
    due: Tensor | None = None

    def forward(self, z0: Tensor, tensors: Sequence[Tensor]) -> Found:
        """What the plan finds from z0."""
        function, known = self.plan.forward, self.kinds
        if known is None or not isinstance(function, CompiledFunction):
            return Found(*function(z0, *tensors))
        return Found(*function.of_kinds(known, z0, *tensors))


class Replaced(NamedTuple):
    """The samples that have no gradient, and which one is differentiated in the place of each.

    A factor of zero does not stop the NaN of a derivative at a value that is not finite.
    """

    left_out: Tensor  # [batch] bool
    rows: Tensor  # [batch] int64

    @classmethod
    def of(cls, status: Tensor, on_failure: OnFailure) -> Replaced | None:
        """Those that are not finite, or all that failed where it masks; None where none is."""
        if not int(status.count_nonzero()):  # one look, and as a rule the only one
            return None
        left_out = status != 0 if on_failure == "mask" else status == int(Status.NON_FINITE)
        if not bool(left_out.any()):
            return None
        rows = torch.arange(len(left_out), device=left_out.device)
        return cls(left_out, torch.where(left_out, (~left_out).int().argmax(), rows))

    @property
    def all(self) -> bool:
        """Whether there is no other sample."""
        return bool(self.left_out.all())

    def inputs(self, tensors: Sequence[Tensor], kinds: Sequence[Kind]) -> list[Tensor]:
        """The same tensors with the other samples."""
        return [
            tensor.index_select(0, self.rows) if kind.has_batch else tensor
            for tensor, kind in zip(tensors, kinds, strict=True)
        ]

    def due(self, times: Tensor | None) -> Tensor | None:
        """The output times ``[T, batch]`` of the other samples."""
        return None if times is None else times.index_select(1, self.rows)

    def cotangent(self, v: Tensor) -> Tensor:
        """Zero for what is not differentiated."""
        return torch.where(column(self.left_out), 0, v)


def masked(z: Tensor, z0: Tensor, replaced: Replaced | None, on_failure: OnFailure) -> Tensor:
    """The state, with the start of those that failed where that is asked for."""
    if replaced is None or on_failure != "mask":
        return z
    return torch.where(column(replaced.left_out), z0.nan_to_num(0.0, 0.0, 0.0), z)


def pulled(
    plan: Plan,
    replaced: Replaced | None,
    v: Tensor,
    z: Tensor,
    tensors: Sequence[Tensor],
    due: Tensor | None = None,
) -> tuple[Tensor, Sequence[Tensor]]:
    """The cotangents of the start and of the tensors, where nothing but these was kept.

    Arguments:
        plan: what was compiled.
        replaced: the samples that have no gradient.
        v: of the result.
        z: the equilibrium; of a trajectory its start, and its steps are taken again.
        tensors: as the plan takes them.
        due: see :class:`Call`.
    """
    at_start, saved = torch.zeros_like(z), [z, *tensors]
    if replaced is not None:
        if replaced.all:
            return at_start, [torch.zeros_like(tensors[place]) for place in plan.differentiated]
        saved, v = replaced.inputs(saved, plan.kinds), replaced.cotangent(v)
        due = replaced.due(due)
    if isinstance(plan, TrajectoryPlan):
        kept = plan.integrated(due, saved[0], saved[1:], training=True)[1]
        at_start, *found = plan.pulled_back(v, due, saved[0], kept, saved[1:])
        return at_start, found
    return at_start, plan.pull(v, *saved)[3:]


def _given(ctx: Any, call: Call, found: Found, z0: Tensor, replaced: Replaced | None) -> Any:
    """What a call gives, once it has saved what its backward pass needs."""
    z, *others = found
    z = masked(z, z0, replaced, call.on_failure)
    ctx.call, ctx.replaced = call, replaced
    ctx.mark_non_differentiable(*others)
    ctx.set_materialize_grads(False)
    return z, *others


def _check_first(v: Tensor) -> None:
    check_gradient(v)
    if torch.is_grad_enabled():
        raise GradientError(
            "a compiled layer has first derivatives; use the layer itself for a second"
        )


def _spread(plan: Plan, found: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients at the places of their tensors."""
    gradients: list[Tensor | None] = [None] * (len(plan.kinds) - 1)
    for place, gradient in zip(plan.differentiated, found, strict=True):
        gradients[place] = gradient
    return gradients


def _none(plan: Plan, tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """Zeros, as a data-parallel module requires where no sample has a gradient."""
    return _spread(plan, [torch.zeros_like(tensors[place]) for place in plan.differentiated])


class Equilibrium(torch.autograd.Function):
    """The equilibrium of a plan, with its implicit gradient."""

    @staticmethod
    def forward(ctx: Any, call: Call, z0: Tensor, *tensors: Tensor) -> Any:
        found = call.forward(z0, tensors)
        replaced = Replaced.of(found.status, call.on_failure)
        saved = found.z, *tensors
        if replaced is not None:
            saved = replaced.inputs(saved, call.plan.kinds)
        ctx.save_for_backward(*saved)
        return _given(ctx, call, found, z0, replaced)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        v, plan, record = grad_outputs[0], ctx.call.plan, ctx.call.record
        saved = ctx.saved_tensors
        if v is None:
            return None, None, *([None] * (len(saved) - 1))
        _check_first(v)
        if ctx.replaced is not None:
            if ctx.replaced.all:
                return None, None, *_none(plan, saved[1:])
            v = ctx.replaced.cotangent(v)
        residual, status, products, *found = without_autocast(plan.pull, v.contiguous(), *saved)
        record.vjps += int(products)
        record.residual, record.status = residual, status
        return None, None, *_spread(plan, found)


class KeptTrajectory(torch.autograd.Function):
    """A trajectory of a plan, with the gradient of its steps: its end, or its output times."""

    @staticmethod
    def forward(ctx: Any, call: Call, z0: Tensor, *tensors: Tensor) -> Any:
        plan: TrajectoryPlan = call.plan
        found, kept = plan.integrated(call.due, z0, tensors, training=True)
        replaced = Replaced.of(found.status, call.on_failure)
        saved = z0, *tensors
        if replaced is not None:
            saved = replaced.inputs(saved, plan.kinds)
            kept = kept.of_samples(replaced.rows)
            call = call._replace(due=replaced.due(call.due))
        steps, ctx.structure = pytree.tree_flatten(kept)
        ctx.many = len(steps)
        ctx.save_for_backward(saved[0], *steps, *saved[1:])
        return _given(ctx, call, found, z0, replaced)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        v, (z0, *saved) = grad_outputs[0], ctx.saved_tensors
        call: Call = ctx.call
        plan, record = call.plan, call.record
        kept, tensors = saved[: ctx.many], saved[ctx.many :]
        if v is None:
            return None, None, *([None] * len(tensors))
        _check_first(v)
        if ctx.replaced is not None:
            if ctx.replaced.all:
                return None, torch.zeros_like(z0), *_none(plan, tensors)
            v = ctx.replaced.cotangent(v)
        steps = pytree.tree_unflatten(kept, ctx.structure)
        at_start, *found = without_autocast(
            plan.pulled_back, v.contiguous(), call.due, z0, steps, tensors
        )
        products, evaluations = plan.cost(steps)
        record.vjps += products
        record.evaluations += evaluations
        return None, at_start, *_spread(plan, found)


def applied(call: Call, z0: Tensor, tensors: Sequence[Tensor], *, training: bool) -> Found:
    """What a call of a compiled layer finds from z0 ``[batch, n]``, with its gradient."""
    keeps = isinstance(call.plan, TrajectoryPlan) and (training or call.due is not None)
    if not training:
        return without_graph(_found, call, z0, tensors, keeps)
    function = KeptTrajectory if keeps else Equilibrium
    return Found(*function.apply(call, z0, *tensors))


def _found(call: Call, z0: Tensor, tensors: Sequence[Tensor], keeps: bool) -> Found:
    """The same where nothing has a gradient."""
    if keeps:
        found = call.plan.integrated(call.due, z0, tensors, training=False)[0]
    else:
        found = call.forward(z0, tensors)
    if call.on_failure != "mask":
        return found
    replaced = Replaced.of(found.status, call.on_failure)
    return found._replace(z=masked(found.z, z0, replaced, call.on_failure))


def applied_at(
    call: Call, times: OutputTimes, z0: Tensor, tensors: Sequence[Tensor], *, training: bool
) -> Found:
    """:func:`applied` at output times, with the gradient with respect to them."""
    call = call._replace(due=of_samples(times.distinct, z0))
    moves = times.moves
    if moves is None:
        found = applied(call, z0, tensors, training=training)
        return found._replace(z=times.states(found.z))
    known = [tensor.detach() for tensor in tensors]
    velocity = call.plan.velocity(known)
    start = moves.start(z0, velocity, times.all)
    found = applied(call, start, tensors, training=training)
    ended = found.status != Status.CONVERGED
    states = times.states(found.z)
    z = moves.states(z0, states, velocity, times.all, ended)
    replaced = Replaced.of(found.status, call.on_failure)
    if replaced is not None:  # also where it starts, which may be masked
        z = torch.where(column(replaced.left_out), states.detach(), z)
    return found._replace(z=z, evaluations=found.evaluations + len(times.all))
