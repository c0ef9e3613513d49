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
from implicitcore.graph.kept import Kept, Room, one_room, stacking_loop, writing_loop
from implicitcore.graph.outputs import Passed
from implicitcore.graph.pullback import Pullback
from implicitcore.graph.saved import Saved, SavedLoop
from implicitcore.graph.stepped import SteppedPlan
from implicitcore.graph.stop import Found
from implicitcore.graph.trace import Kind

LARGE = 2**16
"""The bytes of a step above which its evaluations are the cost, and no longer the calls of it."""


@dataclass(frozen=True, eq=False)
class TrajectoryPlan(SteppedPlan):
    """The states of an ODE solver, with the gradient of its steps.

    At the horizon, or at output times: the graph has only the first and the last of these, and
    gives the continuous extension of each step, of which the states between are evaluated.

    The way there keeps what each step began with, and the way back takes the same steps again, from
    the last to the first: the vector-Jacobian product of one at a time. That is the gradient of the
    discrete integration, as ``Checkpointed`` with every step kept gives it. The choice of the steps
    has no gradient.

    Attributes:
        saves: large steps save what their products need, and none is taken again.
    """

    saves: bool = False

    def recorded(self, *, writes: bool) -> Callable[..., list[Tensor]]:
        """The first and last time ``[batch]``, z0, the stacks and the tensors -> what it came to.

        That is what was found, the number of the steps, whether there was no room for the next, the
        leaves of the solver's state before the first, and the stacks where none are written: of
        what :class:`Kept` has of each step, and the coefficients of its extension after the first.
        """
        system, solver, between = self.as_field(), self.solver, self.between
        is_coarse, many = self.clock is not None, self.pieces
        size = len(self.rows) if writes else 0

        def recorded(start: Tensor, end: Tensor, z0: Tensor, *given: Tensor) -> list[Tensor]:
            stacks, tensors = given[:size], given[size:]
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

            def kept(now: Moving, last: Taken) -> list[Tensor]:
                states = pytree.tree_leaves(now.state)
                return [now.t, now.z, last.dt, last.accept, *states, *last.piece]

            first = [leaf.clone() for leaf in pytree.tree_leaves(begin.state)]
            if writes:
                (now, _), count, full = writing_loop(going, step, (begin, none), kept, stacks)
                return [*arrived(now), count, full, *first]
            every = stacking_loop(going, step, (begin, none))
            now = pytree.tree_map(lambda stack: stack[-1].clone(), every[0])
            count = torch.full_like(now.evaluations, len(every[0].t))
            return [*arrived(now), count, count < 0, *first, *kept(*every)]

        return self.compiled(recorded, in_cpp=writes)

    @cached_property
    def _writing(self) -> Callable[..., list[Tensor]]:
        return self.recorded(writes=True)

    @cached_property
    def _stacking(self) -> Callable[..., list[Tensor]]:
        return self.recorded(writes=False)

    @property
    def pieces(self) -> int:
        """How many coefficients of the extension of a step are kept: not the first, its state."""
        return max(self.coefficients - 1, 0)

    @cached_property
    def rows(self) -> list[Kind]:
        """Of what is kept of a step."""
        t, z = self.clock_time, self.kinds[0]
        accept = t._replace(dtype=torch.bool)
        return [t, z, t, accept, *self.state, *[z] * self.pieces]

    @cached_property
    def _rooms(self) -> dict[int, Room | None]:
        """For small steps, by the size of the batch."""
        return {}

    def _room(self, z0: Tensor) -> Room | None:
        if (batch := len(z0)) not in self._rooms:
            size, graphs = self._size(batch), self.cuda_graphs
            self._rooms[batch] = Room.of_steps(size, z0.device, cuda_graphs=graphs)
        return self._rooms[batch]

    def _size(self, batch: int) -> int:
        """The bytes of what is kept of a step."""
        return sum(row.bytes(batch) for row in self.rows)

    @cached_property
    def pullback(self) -> Pullback:
        """What takes cotangents back over a step."""
        return Pullback(self)

    @cached_property
    def _loop(self) -> SavedLoop:
        return SavedLoop(self.pullback, coarse=self.clock is not None)

    def _saves(self, z0: Tensor) -> bool:
        """Whether the steps from z0 save what their products need."""
        return self.saves and self._size(len(z0)) > LARGE and self._loop.serves

    def integrated(
        self,
        due: Tensor | None,
        z0: Tensor,
        tensors: Sequence[Tensor],
        *,
        training: bool,
    ) -> tuple[Found, Kept | Saved]:
        """What the integration came to, and its steps.

        Arguments:
            due: the output times ``[T, batch]``, for the states ``[T, batch, n]``; None: that at
                the horizon.
            z0: ``[batch, n]``.
            tensors: as the plan takes them.
            training: they are to be pulled back.
        """
        ends = self._ends(due, z0)
        if training and self._saves(z0):
            found, kept, pieces = self._loop.integrated(ends, z0, tensors)
            times = kept.times
        else:
            many = len(self.state)
            found, (count, *kept) = self._kept(ends, z0, tensors)
            size = 4 + 2 * many
            kept, pieces = Kept.of([count, *kept[:size]], many), kept[size:]
            times = kept
        if due is None:
            return found, kept
        states = [z0[None], found.z[None]]
        if times is not None and self.between:
            states.insert(1, Passed.of(due, times).states(z0, times, pieces))
        return found._replace(z=torch.cat(states)), kept

    def _kept(
        self, ends: tuple[Tensor, Tensor], z0: Tensor, tensors: Sequence[Tensor]
    ) -> tuple[Found, list[Tensor]]:
        """What was found, the number of the steps, and what is kept of them.

        Where the room for them is too small they are taken anew.
        """
        if (room := self._room(z0)) is None:
            found, (count, _, *kept) = _cut(self._stacking(*ends, z0, *tensors))
            return found, [count, *kept]
        spent = []
        while True:
            steps = room.steps  # read once: another thread may have other steps to keep
            stacks = [row.stack(steps + 1, len(z0)) for row in self.rows]
            found, (count, full, *first) = _cut(self._writing(*ends, z0, *stacks, *tensors))
            if not full:
                break
            room.grow(steps)
            spent.append(found.evaluations)
        room.used(int(count))
        if spent:
            found = found._replace(evaluations=found.evaluations + sum(spent))
        return found, [count, *first, *stacks]

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
        kept: Kept | Saved,
        tensors: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """The cotangents of z0 and of the tensors, of those of what :meth:`integrated` gave."""
        if not z0.numel():  # no step was taken, and one is kept
            return torch.zeros_like(z0), *map(torch.zeros_like, tensors)
        start, _ = self._ends(due, z0)
        last, between = v if due is None else v[-1], []
        times = kept.times if isinstance(kept, Saved) else kept
        if due is not None and times is not None and self.between:
            late, between = Passed.of(due, times).cotangents(v[1:-1], times, self.coefficients)
            last = last + late
        last = last.contiguous()
        if isinstance(kept, Saved):
            found = self._loop.pulled_back(last, between, start, z0, kept, tensors)
        else:
            found = self.pulled(last, start, z0, *kept.flat(), *between, *tensors)
        return found if due is None else (found[0] + v[0], *found[1:])

    def cost(self, kept: Kept | Saved) -> tuple[int, int]:
        """The vector-Jacobian products of the way back, and its evaluations."""
        step = evaluations_of(self.solver, between=self.between) + self.anew
        first = not self.anew
        if isinstance(kept, Saved):
            return step * sum(each is not None for each in kept.steps) + first, int(first)
        products = int(kept.steps) * step + first
        return products, products

    @cached_property
    def pulled(self) -> Callable[..., tuple[Tensor, ...]]:
        """v, the first time, z0, the kept steps, cotangents of their extensions, and the tensors.

        To the cotangents of z0 and of the tensors. Those of the extensions are one ``[steps, batch,
        n]`` for each coefficient.
        """
        count, many, coefficients = len(self.state), len(self.carried), self.coefficients
        pullback, size = self.pullback, 2 * count + 5
        pulled, start = pullback.step, pullback.start
        settled, varied = pullback.settled, pullback.varied

        def backward(v: Tensor, t0: Tensor, z0: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
            kept = Kept.of(given[:size], count)
            one_room([*kept.flat()[1 + count :], *given[size : size + coefficients]])
            between, tensors = given[size : size + coefficients], given[size + coefficients :]
            known = pulled.before(*tensors)

            def going(index: Tensor, *cotangents: Tensor) -> Tensor:
                del cotangents
                return index >= 0

            def step(index: Tensor, *cotangents: Tensor) -> tuple[Tensor, ...]:
                begins = index == 0

                def before(first: Tensor, after: Tensor) -> Tensor:
                    return torch.where(begins, first, _at(after, index - 1))

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

            none = [torch.zeros_like(kept.first[i]) for i in self.carried]
            sums = [torch.zeros_like(tensor) for tensor in varied(*tensors)]
            _, v, *rest = while_loop(going, step, (kept.steps - 1, v.clone(), *none, *sums))
            sums = rest[many:]
            if start is not None:
                more, *shares = start.inside(t0, z0, *rest[:many], *start.before(*tensors))
                v, sums = v + more, [a + b for a, b in zip(sums, shares, strict=True)]
            return v, *settled(*tensors, *sums)

        return self.compiled(backward)


def _cut(tensors: Sequence[Tensor]) -> tuple[Found, Sequence[Tensor]]:
    """What was found, and the rest."""
    many = len(Found._fields)
    return Found(*tensors[:many]), tensors[many:]


def _at(stack: Tensor, index: Tensor) -> Tensor:
    """A row; the first one for an iteration behind the last, which changes nothing."""
    return stack.index_select(0, index.clamp(min=0).view(1)).squeeze(0)
