"""The stage combinations of a step by the kernel of a backend, in a graph and outside of one.

A combination point_i = z + dt sum_j a_ij k_j is linear in z and in the stages. So its derivative is
the same kernel, with a column of the tableau in the place of a row,

    grad k_j = dt sum_i a_ij grad point_i,    grad z = sum_i grad point_i,

over all combinations of the step: one call for each stage, where a graph of torch has a product for
each weight and a sum for each but one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from implicitcore.backends.base import Backend, StageSums
from implicitcore.backends.torch import TORCH
from implicitcore.tensors import host
from implicitcore.tensors.norms import column, real_dtype
from implicitcore.tensors.transforms import ordinary

# Combinations of so many weights, in the mean, are torch's in a graph: those of RK4, RK38 and Bosh3
# took 1.0 to 1.4 of its time by implicitcore-cpp, forward and backward.
SHORT = 3.0

# And longer ones than this are the kernels' for states of any size: a training step of DOP853 took
# 0.82 to 0.96 of the time for 1 x 2 to 256 x 64.
LONG = 5.0

# Of those between, such as Tsit5's, states with so many entries in all, on a CPU: a training step
# took 0.97 to 0.99 of the time from here on, but 1.04 to 1.13 for 1 x 2 and 256 x 64.
LEAST = 2**16

if TYPE_CHECKING:
    from implicitcore.backends.fused import FusedBackend

Rows = tuple[tuple[float, ...], ...]
# z or None, dt [batch], the stages and their weights, none of them zero.
Combine = Callable[[Tensor | None, Tensor, Sequence[Tensor], Sequence[float]], Tensor]


class FusedSums:
    """See :class:`StageSums`.

    Arguments:
        backend: whose kernel it is.
        kernel: takes contiguous tensors like z that are not seen by autograd.
        rows: the weights of the stages so far in each combination.
        z: ``[batch, n]``, which the kernel takes.
        dt: ``[batch]`` or ``[]``.
    """

    def __init__(
        self, backend: FusedBackend, kernel: Combine, rows: Rows, z: Tensor, dt: Tensor
    ) -> None:
        self.kernel, self.table, self.z, self.dt = _Kernel(backend, kernel), table(rows), z, dt
        each = dt.detach() if dt.requires_grad else dt
        self._given = z.contiguous(), backend.of_each(each, len(z))
        self._stages: list[Tensor] = []
        self._torch: StageSums | None = None
        # Of the combinations in the graph: what depends on the last one, and their stages.
        self._linked: Tensor | None = None
        self._known = 0

    def __call__(self, stages: Sequence[Tensor], row: int, *, move: bool = False) -> Tensor:
        """See :class:`StageSums`."""
        if self._torch is not None or not self._takes(stages[len(self._stages) :]):
            return self._by_torch(stages, row, move)
        if not torch.is_grad_enabled() or not self._in_graph(stages):
            return self.value(row, move, self._given[1])
        if not self.table.pays(self.z):
            return self._by_torch(stages, row, move)
        if not self.dt.requires_grad:
            return self._linear(stages, row, move, self._given[1])
        # As torch has it: the gradient of dt needs the sum alone, and not each of the stages.
        total = self._linear(stages, row, True, None)
        scale = self.dt.to(self.z.dtype)
        scale = column(scale) if scale.ndim else scale
        return total * scale if move else torch.addcmul(self.z, total, scale)

    def value(self, row: int, move: bool, dt: Tensor | None) -> Tensor:
        """Without a graph, and without dt where that is None."""
        used, weights = self.table.used[row]
        z, stages = self._given[0], self._stages
        if dt is None:
            dt = torch.ones_like(self._given[1])
        call = self.kernel.call
        return call(None if move else z, dt, [stages[place] for place in used], weights)

    def _linear(self, stages: Sequence[Tensor], row: int, move: bool, dt: Tensor | None) -> Tensor:
        known, self._known = self._known, len(stages)
        z = self.z if self._linked is None else None
        what = self, row, move, known
        point, self._linked = _Combination.apply(what, dt, self._linked, z, *stages[known:])
        return point

    def _takes(self, fresh: Sequence[Tensor]) -> bool:
        z = self.z
        for stage in fresh:
            if stage.dtype is not z.dtype or stage.device != z.device:
                return False
            self._stages.append(stage.contiguous())
        return True

    def _in_graph(self, stages: Sequence[Tensor]) -> bool:
        if self._linked is not None or self.z.requires_grad or self.dt.requires_grad:
            return True
        return any(stage.requires_grad for stage in stages)

    def _by_torch(self, stages: Sequence[Tensor], row: int, move: bool) -> Tensor:
        if self._torch is None:
            self._torch = TORCH.stage_sums(self.table.rows, self.z, self.dt)
        return self._torch(stages, row, move=move)


class _Kernel(NamedTuple):
    """The kernel, and the backend whose it is."""

    backend: Backend
    call: Combine

    def differentiated(self, grads: Sequence[Tensor]) -> Combine:
        """What a backward pass calls, of which another graph may be recorded."""
        if not ordinary(grads):
            return TORCH.stage_combination
        return self.backend.stage_combination if torch.is_grad_enabled() else self.call


class _Reached(NamedTuple):
    """The combinations of a step that a backward pass has come to, the last one first."""

    rows: list[int]
    grads: list[Tensor]
    ends: list[Tensor]  # of those, the gradients of the ones that have z
    one: Tensor  # [batch], in the place of dt

    @classmethod
    def none(cls, grad: Tensor) -> _Reached:
        return cls([], [], [], grad.new_ones(len(grad), dtype=real_dtype(grad)))

    def add(self, row: int, grad: Tensor, move: bool) -> None:
        grad = grad.contiguous()
        self.rows.append(row)
        self.grads.append(grad)
        if not move:
            self.ends.append(grad)

    def total(self, combine: Combine) -> Tensor | None:
        """That of z."""
        if len(self.ends) < 2:
            return self.ends[0] if self.ends else None
        first, *others = self.ends
        return combine(first, self.one, others, [1.0] * len(others))


class _Combination(Function):
    """One combination, and a tensor without entries, which the next one of the step depends on.

    So a backward pass comes to a combination behind all later ones that it comes to at all, and
    finds their gradients with that tensor's. It can then give the gradient of the stages that the
    combination was the first to have, and the first of all that of z. What is kept is dt.
    """

    @staticmethod
    def forward(
        ctx: Any,
        what: Any,
        dt: Tensor | None,
        linked: Tensor | None,
        z: Tensor | None,
        *fresh: Tensor,
    ) -> tuple[Tensor, Tensor]:
        sums, row, move, known = what
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dt)
        ctx.what = sums.kernel, sums.table, row, move, known
        point = sums.value(row, move, dt)
        return point, point.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad, linked = grads
        kernel, table, row, move, known = ctx.what
        needs = ctx.needs_input_grad
        found: list[Tensor | None] = [None] * len(needs)
        if linked is None:
            if grad is None:
                return tuple(found)
            linked = grad.new_empty(0)
            linked.reached = _Reached.none(grad)
        reached = linked.reached
        if grad is not None:
            reached.add(row, grad, move)
        (dt,), known_grads = ctx.saved_tensors, reached.grads
        dt = reached.one if dt is None else dt
        combine = kernel.differentiated(known_grads)
        if needs[2]:
            found[2] = linked
        if needs[3]:
            found[3] = reached.total(combine)
        rows = tuple(reached.rows)
        for place in range(4, len(needs)):
            used, weights = table.column(known + place - 4, rows) if needs[place] else ((), ())
            if used:
                found[place] = combine(None, dt, [known_grads[i] for i in used], weights)
        return tuple(found)


class _Terms(NamedTuple):
    """Of a sum with weights those terms that have one, and these weights."""

    used: tuple[int, ...]
    weights: list[float]

    @classmethod
    def of(cls, weights: Sequence[float]) -> _Terms:
        used = tuple(place for place, weight in enumerate(weights) if weight)
        return cls(used, [weights[place] for place in used])


class Table:
    """The weights of a step.

    Attributes:
        rows: as they are.
        used: those that are not zero.
        single: no combination has more than one stage.
        length: weights that are not zero, in the mean over the combinations.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows, self.used = rows, [_Terms.of(row) for row in rows]
        sums = [len(terms.used) for terms in self.used]
        self.single, self.length = max(sums) == 1, sum(sums) / len(rows)
        self._columns: dict[tuple[int, tuple[int, ...]], _Terms] = {}

    def pays(self, z: Tensor) -> bool:
        """Whether a graph of these combinations by kernels is faster than one of torch."""
        if self.length <= SHORT:
            return False
        return self.length > LONG or z.numel() >= LEAST or not host.on_host(z)

    def column(self, stage: int, rows: tuple[int, ...]) -> _Terms:
        """The weights of a stage in these combinations."""
        found = self._columns.get((stage, rows))
        if found is None:
            among = [self.rows[row] for row in rows]
            found = _Terms.of([row[stage] if stage < len(row) else 0.0 for row in among])
            self._columns[stage, rows] = found
        return found


table = cache(Table)
"""Made ready once."""
