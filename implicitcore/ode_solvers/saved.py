"""What is kept at the output times in place of the states: a function of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.dynamics.cells import called, takes_time
from implicitcore.errors import InputError, show
from implicitcore.ode_solvers.dense import StepStart, bounded, evaluate
from implicitcore.ode_solvers.outputs import Outputs, Rows
from implicitcore.ode_solvers.stops import of_each
from implicitcore.system.memory import as_given, check_given
from implicitcore.system.system import System
from implicitcore.tensors.like import described
from implicitcore.tensors.norms import column
from implicitcore.tensors.packing import Packing
from implicitcore.tensors.state import DTYPES


class Save:
    """A function of the state, whose values are kept packed, ``[batch, m]``.

    Arguments:
        function: (t, z, x), or as its signature says (z, x), -> any pytree of ``[batch, ...]``.

    Attributes:
        packing: how a value is laid out, once there was one.

    Raises:
        InputError: it cannot be called.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        if not callable(function):
            raise InputError(f"save: expected a function of (t, z, x), received {show(function)}")
        self.function, self.timed = function, takes_time(function, otherwise=True)
        self.packing: Packing | None = None

    def __call__(self, system: System, t: Tensor, z: Tensor) -> Tensor:
        """What is kept of states ``[batch, n]`` at times ``[batch]``.

        Raises:
            InputError: the function does not take these arguments or writes into them, or its value
                cannot be kept.
        """
        point = system.problem.time(t), system.packing.unpack(z), system.x
        given = as_given(t=point[0], z=point[1], x=point[2])
        value = system.scope.call(called, self.function, self.timed, "save", point)
        check_given("save", given)
        packing = _packing(value, system.packing)
        if self.packing is None:
            self.packing = packing
        elif packing != self.packing:
            found, expected = _said(value), self.packing
            shapes = ", ".join(f"shape {[*shape]}" for shape in expected.full_shapes)
            raise InputError(f"save: expected {shapes} as at the first time, received {found}")
        return packing.pack(value)

    @property
    def known(self) -> Packing:
        """How a value is laid out.

        Raises:
            InputError: there was none yet.
        """
        if self.packing is None:
            raise InputError("save: nothing was kept yet")
        return self.packing


def _packing(value: Any, state: Packing) -> Packing:
    """How a value is laid out.

    Raises:
        InputError: it cannot be kept.
    """
    leaves, batch = pytree.tree_leaves(value), state.batch
    size = "batch" if state.coupled else f"{batch}"

    def fits(leaf: Any) -> bool:
        if not isinstance(leaf, Tensor) or leaf.dtype not in DTYPES or not leaf.ndim:
            return False
        return state.coupled or len(leaf) == batch

    if not (leaves and all(map(fits, leaves))):
        raise InputError(
            f"save: expected it to return floating-point or complex tensors of shape [{size}, ...],"
            f" received {_said(value)}"
        )
    return Packing.of(value, coupled=state.coupled)


def _said(value: Any) -> str:
    leaves = pytree.tree_leaves(value)
    return ", ".join(described(leaf) if isinstance(leaf, Tensor) else show(leaf) for leaf in leaves)


class SavedOutputs(Outputs):
    """What is kept at the output times, each as it is reached.

    Its rows are values ``[m]`` of one output time each, and no states: these are gone with their
    steps. A function that is asked for some samples alone gets one of these in the place of each
    other: it meets no state but those at output times.

    Arguments:
        save: the function.
        system: gives x and the layout of the state.
        times: the output times, ``[T]`` or ``[T, batch]``.
        z0: the state at the first time, ``[batch, n]``; None where only later ones are wanted.
    """

    saves = True

    def __init__(self, save: Save, system: System, times: Tensor, z0: Tensor | None = None) -> None:
        super().__init__(z0)
        self.save, self.system, self.times = save, system, times
        if z0 is not None:
            self.rows = [self.kept(times[0].expand(len(z0)), z0).clone()]

    def again(self, system: System) -> SavedOutputs:
        """See :meth:`Outputs.again`."""
        return SavedOutputs(self.save, system, self.times)

    def kept(self, t: Tensor, z: Tensor) -> Tensor:
        """See :meth:`Outputs.kept`."""
        return self.save(self.system, t, z)

    def late(self, t: Tensor, z: Tensor, reached: Tensor) -> Tensor:
        """See :meth:`Outputs.late`: nothing is asked of the function where there is none."""
        if bool((reached < len(self.times)).any()):
            return self.kept(t, z)
        layout = self.save.known
        return z.new_zeros(len(z), sum(layout.sizes), dtype=layout.dtype)

    def arrive_together(self, z: Tensor, first: int, end: int) -> None:
        """See :meth:`Outputs.arrive_together`."""
        for due in self.times[first:end]:
            super().arrive_together(self.kept(due.expand(len(z)), z).clone(), 0, 1)

    def pass_together(
        self, start: StepStart, piece: Sequence[Tensor], first: int, end: int
    ) -> None:
        """See :meth:`Outputs.pass_together`."""
        rows = bounded(torch.stack(list(piece), 1)).unbind(1)
        for due in self.times[first:end]:
            z = evaluate(rows, _share(due, start.t, start.dt, rows[0]))
            super().arrive_together(self.kept(due.expand(len(z)), z).clone(), 0, 1)

    def arrive(self, z: Tensor, arrived: Tensor, first: Tensor, end: Tensor) -> None:
        """See :meth:`Outputs.arrive`."""

        def state(rows: Tensor, due: Tensor) -> Tensor:
            del due
            return z.index_select(0, rows)

        self._each(state, arrived, first, end)

    def passing(
        self,
        start: StepStart,
        piece: Sequence[Tensor],
        passed: Tensor | None,
        first: Tensor,
        end: Tensor,
    ) -> None:
        """See :meth:`Outputs.passing`."""
        pieces = torch.stack(list(piece), 1)

        def state(rows: Tensor, due: Tensor) -> Tensor:
            t, dt = start.t.index_select(0, rows), start.dt.index_select(0, rows)
            found = bounded(pieces.index_select(0, rows)).unbind(1)
            return evaluate(found, _share(due, t, dt, found[0]))

        self._each(state, torch.ones_like(end > first) if passed is None else passed, first, end)

    def _each(
        self, state: Callable[[Tensor, Tensor], Tensor], who: Tensor, first: Tensor, end: Tensor
    ) -> None:
        """Some samples are at output times of their own: the first of each together, and so on.

        Arguments:
            state: of the samples ``rows`` at the times that are ``due``.
            who: these samples, ``[batch]`` bool.
            first: their first output time, ``[batch]``.
            end: one more than their last.
        """
        # One look at the device: who is where, again and again, is found out on the host.
        many = torch.where(who, end - first, 0).cpu()
        place = torch.arange(len(many))
        for later in range(int(many.amax())):
            here = (many > later).nonzero().squeeze(1)
            rows = torch.where(many > later, place, here[0]).to(who.device)
            samples, whole = here.to(who.device), len(here) == len(many)
            index = first + later
            due = of_each(self.times, index.clamp(max=len(self.times) - 1)).index_select(0, rows)
            system = self.system if whole else self.system.restrict(rows)
            found = self.save(system, due, state(rows, due)).index_select(0, samples)
            index = index.index_select(0, samples)
            self.add(found, Rows(samples, index, index + 1))


def _share(due: Tensor, t: Tensor, dt: Tensor, z: Tensor) -> Tensor:
    """The share of a step at which a time is due, to broadcast with a state."""
    return column((due - t) / dt).to(z.dtype)
