"""The states at output times between the ends of steps, and their cotangents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from implicitcore.graph.integration import Moving, Span, arrived, started
from implicitcore.graph.kept import Kept
from implicitcore.graph.stop import Found
from implicitcore.graph.system import GraphField
from implicitcore.ode_solvers.dense import evaluate
from implicitcore.tensors.norms import column


class Passed(NamedTuple):
    """Where the output times between the first and the last lie in the steps of each sample.

    Each ``[times, batch]``.
    """

    step: Tensor  # int64, the one that came to it or beyond
    share: Tensor  # of that step, where it lies
    late: Tensor  # bool, no step came so far: the state is the last

    @classmethod
    def of(cls, due: Tensor, kept: Kept) -> Passed:
        """Of all output times ``[T, batch]`` and the steps."""
        sign, count = torch.where(due[-1] > due[0], 1, -1).to(due.dtype), int(kept.steps)
        ends, inner = (kept.t[:count] * sign).T.contiguous(), due[1:-1]
        # The first that ends there or behind: a step that was refused ends where it began.
        step = torch.searchsorted(ends, (inner * sign).T.contiguous()).T
        late = step == count
        step = step.clamp(max=count - 1)
        start = torch.cat((due[:1], kept.t[: count - 1])).gather(0, step)
        share = (inner - start) / kept.dt.gather(0, step)
        return cls(step, torch.where(late, 0, share), late)

    def states(self, z0: Tensor, kept: Kept, pieces: Sequence[Tensor]) -> Tensor:
        """``[times, batch, n]``.

        Arguments:
            z0: the first state, ``[batch, n]``.
            kept: the steps.
            pieces: the coefficients of their extensions after the first, ``[steps, batch, n]``.
        """
        last = int(kept.steps) - 1
        before = torch.cat((z0[None], kept.z[:last]))
        rows = self._rows(len(z0))
        parts = [stack.flatten(0, 1).index_select(0, rows) for stack in (before, *pieces)]
        share = self.share.flatten().unsqueeze(1).to(z0.dtype)
        found = evaluate(parts, share).view(*self.step.shape, -1)
        return torch.where(self.late.unsqueeze(2), kept.z[last], found)

    def cotangents(self, v: Tensor, kept: Kept, coefficients: int) -> tuple[Tensor, list[Tensor]]:
        """Of those of the states ``[times, batch, n]``: of the last state, and of each coefficient.

        The former ``[batch, n]``, the latter ``[steps, batch, n]``.
        """
        late, n = self.late.unsqueeze(2), v.shape[2]
        share, value = self.share.unsqueeze(2).to(v.dtype), torch.where(late, 0, v)
        values = []
        for place in range(coefficients):
            values.append(value)
            value = value * (share if place % 2 == 0 else 1 - share)
        # One scatter of all coefficients: the times of a step are added in their order.
        joined = torch.cat(values, 2).flatten(0, 1)
        rows = self._rows(v.shape[1]).unsqueeze(1).expand_as(joined)
        total = v.new_zeros(kept.t.numel(), joined.shape[1]).scatter_add(0, rows, joined)
        stacks = [part.contiguous() for part in total.view(*kept.t.shape, -1).split(n, 2)]
        return torch.where(late, v, 0).sum(0), stacks

    def _rows(self, batch: int) -> Tensor:
        """Each time's row among those of all steps and samples, ``[times * batch]``."""
        return (self.step * batch + torch.arange(batch, device=self.step.device)).flatten()


def integrate_over(solver: Any, field: GraphField, z0: Tensor, due: Tensor) -> Found:
    """The states ``[T, batch, n]`` at the output times ``[T, batch]``, in one loop.

    It carries them, and each step writes those that it passes: a graph has no list that grows. Its
    steps are those of an integration from the first time to the last. Nothing can be raised here:
    where the times of a sample are not in order, or not finite, its states are NaN.
    """
    count, between = due.shape[0], due.shape[0] > 2
    # Of their own: a loop takes no two views of one tensor.
    span = Span.between(due[0].clone(), due[-1].clone())
    steps, begin = started(solver, field, z0, span, between=between)
    forward = due[-1] > due[0]
    ahead = torch.where(forward, due, -due)

    def going(now: Moving, states: Tensor) -> Tensor:
        del states
        return steps.going(now)

    def step(now: Moving, states: Tensor) -> tuple[Moving, Tensor]:
        moved, taken = steps.advance(now)
        before, after = (torch.where(forward, t, -t) for t in (now.t, moved.t))
        passes = (ahead > before) & (ahead <= after)
        if not between:
            return moved, torch.where(passes.unsqueeze(2), moved.z, states)
        share = (due - now.t) / torch.where(taken.dt == 0, 1, taken.dt)
        found = evaluate([now.z, *taken.piece], share.unsqueeze(2).to(z0.dtype))
        found = torch.where((ahead == after).unsqueeze(2), moved.z, found)
        return moved, torch.where(passes.unsqueeze(2), found, states)

    states = z0.unsqueeze(0).repeat(count, 1, 1)
    now, states = while_loop(going, step, (begin, states))
    late = ahead > torch.where(forward, now.t, -now.t)
    states = torch.where(late.unsqueeze(2), now.z, states)
    ordered = (ahead[1:] >= ahead[:-1]).all(0) & due.isfinite().all(0)
    return arrived(now)._replace(z=torch.where(column(ordered), states, torch.nan))
