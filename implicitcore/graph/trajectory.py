"""A trajectory and its gradient as two compiled functions: the steps are kept, and pulled back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop
from torch.utils import _pytree as pytree

from implicitcore.graph.integration import Moving, Span, Taken, arrived, evaluations_of, started
from implicitcore.graph.kept import Kept, stacked_loop
from implicitcore.graph.outputs import Passed
from implicitcore.graph.plan import compiled
from implicitcore.graph.pullback import Pullback
from implicitcore.graph.stepped import SteppedPlan
from implicitcore.graph.stop import Found


@dataclass(frozen=True, eq=False)
class TrajectoryPlan(SteppedPlan):
    """The states of an ODE solver, with the gradient of its steps.

    At the horizon, or at output times: the graph has only the first and the last of these, and
    gives the continuous extension of each step, of which the states between are evaluated.

    The way there keeps what each step began with, and the way back takes the same steps again, from
    the last to the first: the vector-Jacobian product of one at a time. That is the gradient of the
    discrete integration, as ``Checkpointed`` with every step kept gives it. The choice of the steps
    has no gradient.
    """

    @cached_property
    def recorded(self) -> Callable[..., list[Tensor]]:
        """The first and last time ``[batch]``, z0 and the tensors -> the steps.

        The statuses and the counts of the samples, as a :class:`Found` of each iteration, the
        evaluations, the kept steps, and the coefficients of their extensions after the first.
        """
        system, solver, between = self._as_field(), self.solver, self.between
        is_coarse, many = self.clock is not None, max(self.coefficients - 1, 0)

        def recorded(start: Tensor, end: Tensor, z0: Tensor, *tensors: Tensor) -> list[Tensor]:
            span = Span.between(start, end) if is_coarse else Span(start, end)
            steps, begin = started(solver, system(*tensors), z0, span, between=between)
            piece = [torch.zeros_like(z0) for _ in range(many)]
            none = Taken(torch.zeros_like(begin.t), torch.zeros_like(begin.active), piece)

            def step(now: Moving, last: Taken) -> tuple[Moving, Taken]:
                del last
                return steps.advance(now)

            def going(now: Moving, last: Taken) -> Tensor:
                del last
                return steps.going(now)

            now, taken = stacked_loop(going, step, (begin, none))
            states = pytree.tree_leaves(now.state)
            kept = Kept([], now.t, now.z, taken.dt, taken.accept, states)
            first = [leaf.clone() for leaf in pytree.tree_leaves(begin.state)]
            found = now.active, now.failure, now.steps, now.evaluations
            return [*found, *first, *kept.flat(), *taken.piece]

        return compiled(recorded)

    def integrated(
        self, due: Tensor | None, z0: Tensor, tensors: Sequence[Tensor]
    ) -> tuple[Found, Kept]:
        """What the integration came to, and its steps.

        Arguments:
            due: the output times ``[T, batch]``, for the states ``[T, batch, n]``; None: that at
                the horizon.
            z0: ``[batch, n]``.
            tensors: as the plan takes them.
        """
        recorded = self.recorded(*self._ends(due, z0), z0, *tensors)
        size = 2 * len(self.state) + 4
        kept = Kept.of(recorded[4 : 4 + size], len(self.state))
        active, failure, steps, evaluations = (stack[-1] for stack in recorded[:4])
        z, t = kept.z[-1].clone(), kept.t[-1]
        now = Moving(t, z, (), t, t, active, failure, steps.clone(), evaluations)
        found = arrived(now)
        if due is None:
            return found, kept
        states = [z0[None], z[None]]
        if self.between:
            states.insert(1, Passed.of(due, kept).states(z0, kept, recorded[4 + size :]))
        return found._replace(z=torch.cat(states)), kept

    def _ends(self, due: Tensor | None, z0: Tensor) -> tuple[Tensor, Tensor]:
        if due is not None:
            return due[0], due[-1]
        span = Span.of(z0, self.horizon)
        return span.start, span.end

    def pulled_back(
        self,
        v: Tensor,
        due: Tensor | None,
        z0: Tensor,
        kept: Kept,
        tensors: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """The cotangents of z0 and of the tensors, of those of what :meth:`integrated` gave."""
        start, _ = self._ends(due, z0)
        if due is None:
            return self.pulled(v, start, z0, *kept.flat(), *tensors)
        first, last, between = v[0], v[-1], []
        if self.between:
            late, between = Passed.of(due, kept).cotangents(v[1:-1], kept, self.coefficients)
            last = last + late
        found = self.pulled(last.contiguous(), start, z0, *kept.flat(), *between, *tensors)
        return found[0] + first, *found[1:]

    def cost(self, kept: Kept) -> int:
        """The evaluations of the way back, and as many vector-Jacobian products."""
        cost = evaluations_of(self.solver, between=self.between)
        return len(kept.t) * (cost + self.anew) + (not self.anew)

    @cached_property
    def pulled(self) -> Callable[..., tuple[Tensor, ...]]:
        """v, the first time, z0, the kept steps, cotangents of their extensions, and the tensors.

        To the cotangents of z0 and of the tensors. Those of the extensions are one ``[steps, batch,
        n]`` for each coefficient.
        """
        count, many, coefficients = len(self.state), len(self.carried), self.coefficients
        pullback, size = Pullback(self), 2 * count + 4
        pulled, start = pullback.steps
        settled, varied = pullback.settled, pullback.varied

        def backward(v: Tensor, t0: Tensor, z0: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
            kept = Kept.of(given[:size], count)
            between, tensors = given[size : size + coefficients], given[size + coefficients :]
            known = pulled.before(*tensors)

            def going(index: Tensor, *cotangents: Tensor) -> Tensor:
                del cotangents
                return index >= 0

            def step(index: Tensor, *cotangents: Tensor) -> tuple[Tensor, ...]:
                begins = index == 0

                def before(first: Tensor, after: Tensor) -> Tensor:
                    return torch.where(begins, first, _at(after, (index - 1).clamp(min=0)))

                state = [before(*pair) for pair in zip(kept.first, kept.states, strict=True)]
                found = pulled.inside(
                    before(t0, kept.t),
                    _at(kept.dt, index),
                    _at(kept.accept, index),
                    _at(kept.t, index),
                    before(z0, kept.z),
                    *state,
                    *cotangents[: 1 + many],
                    *(_at(stack, index) for stack in between),
                    *known,
                )
                shares = zip(cotangents[1 + many :], found[1 + many :], strict=True)
                return index - 1, *found[: 1 + many], *(a + b for a, b in shares)

            last = torch.full((), kept.t.shape[0] - 1, dtype=torch.int64, device=v.device)
            none = [torch.zeros_like(kept.first[i]) for i in self.carried]
            sums = [torch.zeros_like(tensor) for tensor in varied(*tensors)]
            _, v, *rest = while_loop(going, step, (last, v.clone(), *none, *sums))
            sums = rest[many:]
            if start is not None:
                more, *shares = start.inside(t0, z0, *rest[:many], *start.before(*tensors))
                v, sums = v + more, [a + b for a, b in zip(sums, shares, strict=True)]
            return v, *settled(*tensors, *sums)

        return compiled(backward)


def _at(stack: Tensor, index: Tensor) -> Tensor:
    return stack.index_select(0, index.view(1)).squeeze(0)
