"""A compiled solve at output times in a graph around it, with the gradient with respect to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.gradients.output_times import repeated
from implicitcore.graph.inside import inside, owned
from implicitcore.graph.operator import Operation, form_of
from implicitcore.graph.stop import Found
from implicitcore.graph.times import clock_of, distinct_times
from implicitcore.options.types import OnFailure
from implicitcore.solution import Status
from implicitcore.tensors.norms import real_dtype


def solved_at(operation: Operation, z0: object, times: Tensor, on_failure: OnFailure) -> Found:
    """The states at the output times ``[T]`` or ``[T, batch]``, which may be the same.

    Their gradient is that of :class:`~implicitcore.gradients.output_times.Moves`.
    """
    known = times.detach()
    apart, index = distinct_times(known)
    if not (times.requires_grad and torch.is_grad_enabled()):
        found = operation.solve(z0, apart)
        return found._replace(z=pytree.tree_map(lambda z: repeated(z, index), found.z))
    leaves, spec = pytree.tree_flatten(z0)
    by = (times - known).to(real_dtype(leaves[0]))
    tensors = [tensor.detach() for tensor in operation.tensors]
    fixed = operation.form, tensors, apart
    at_start = [leaf.detach().unsqueeze(0) for leaf in leaves]
    rates = torch.ops.implicitcore.rates(*fixed, known[:1], at_start, None)
    start = [leaf - _wide(by[:1], leaf)[0] * rate[0] for leaf, rate in _both(leaves, rates)]
    found = operation.solve(pytree.tree_unflatten(start, spec), apart)
    every = [repeated(leaf, index) for leaf in pytree.tree_leaves(found.z)]
    rates = torch.ops.implicitcore.rates(
        *fixed, known, [leaf.detach() for leaf in every], found.status
    )
    ended = found.status != 0
    failed = ended if on_failure == "mask" else found.status == int(Status.NON_FINITE)
    moved = []
    for first, z, rate in zip(leaves, every, rates, strict=True):
        rest = z[1:] + _wide(by[1:], first) * rate[1:]
        states = torch.cat([first.unsqueeze(0), rest])
        which = failed.reshape(-1, *(1,) * (first.ndim - 1))
        moved.append(torch.where(which, z.detach(), states))
    evaluations = found.evaluations + known.shape[0]
    return found._replace(z=pytree.tree_unflatten(moved, spec), evaluations=evaluations)


def _both(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(one, other, strict=True))


def _wide(by: Tensor, leaf: Tensor) -> Tensor:
    """``[T]`` or ``[T, batch]`` as what is multiplied with ``[T, batch, ...]``."""
    return by.reshape(by.shape[0], -1, *(1,) * (leaf.ndim - 1))


@torch.library.custom_op("implicitcore::rates", mutates_args=())
def rates(  # noqa: PLR0913 - an operation takes no tuples
    form: int,
    tensors: list[Tensor],
    times: Tensor,
    at: Tensor,
    z: list[Tensor],
    status: Tensor | None,
) -> list[Tensor]:
    """The velocities at states, zero where they are not finite.

    Arguments:
        form: the number of the call's form.
        tensors: those of x, then those that modules own.
        times: the output times of the solve.
        at: of the states, ``[T]`` or ``[T, batch]``.
        z: the leaves of the states, ``[T, batch, ...]``.
        status: of each sample; the last state of one that ended on its way has no velocity.
    """
    parts, owner = form_of(form)
    with inside():
        first = [leaf[0] for leaf in z]
        layout, plan, _ = owner.planned(parts, first, tensors, clock=clock_of(times))
        flat = layout.pack(pytree.tree_unflatten(z, parts.z), len(at))
        velocity = plan.velocity(tensors)
        batch = flat.shape[1]
        found = torch.stack([velocity(t.expand(batch), each) for t, each in _both([*at], [*flat])])
        found = torch.where(found.isfinite(), found, 0)
        if status is not None:
            ended = status[:batch] != 0
            stays = ended & (flat == flat[-1]).all(2)
            found = torch.where(stays.unsqueeze(2), 0, found)
        leaves = pytree.tree_leaves(layout.unpack(found))
    return [owned(leaf) for leaf in leaves]


@rates.register_fake
def _(  # noqa: PLR0913 - as above
    form: int,
    tensors: list[Tensor],
    times: Tensor,
    at: Tensor,
    z: list[Tensor],
    status: Tensor | None,
) -> list[Tensor]:
    del form, tensors, times, at, status
    return [torch.empty_like(leaf, memory_format=torch.contiguous_format) for leaf in z]
