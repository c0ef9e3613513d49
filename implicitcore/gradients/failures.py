"""What becomes of samples that do not converge: their values, their graph, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import ConvergenceWarning
from implicitcore.options.types import OnFailure
from implicitcore.solution import Solution, SolveError, SolveResult, Status, Trajectory
from implicitcore.system.coupling import check_part
from implicitcore.system.repeated import warn_repeatedly
from implicitcore.system.system import System
from implicitcore.tensors.graph_leaves import graph_leaves, inputs, union
from implicitcore.tensors.norms import column, real_dtype

Again = Callable[..., Solution | Trajectory]
"""Solves a system from a start, packed; with the rows ``[k]`` where it is that of some samples."""


def without_failed(
    found: Solution | Trajectory, again: Again, system: System, z0: Tensor, on_failure: OnFailure
) -> Solution | Trajectory:
    """The result of a solve, with no graph through the samples that are not finite.

    A factor of zero does not stop a NaN: the derivative of f at such a sample is one, and 0 NaN is
    NaN in every parameter. So the others are solved once more, with one of them in its place. An
    iterate above its tolerance and the state where the steps ran out keep their gradient.

    Arguments:
        found: of ``system`` from ``z0``, packed.
        again: solves the system of other samples from another start.
        system: what was solved.
        z0: the start, ``[batch, n]``.
        on_failure: ``"mask"`` gives every failed sample its start, made finite and without a graph.
    """
    masks = on_failure == "mask"
    if not (masks or torch.is_grad_enabled()) or not found.failed:
        return found
    left_out = ~found.converged if masks else found.status == Status.NON_FINITE
    first = found.z[0] if isinstance(found, Trajectory) else z0
    value, begin = (z.detach().nan_to_num(0.0, 0.0, 0.0) for z in (first, z0))
    if masks and bool(left_out.all()):
        stays = _every(found, value.expand_as)
        stays = _standing(stays, system, z0) if torch.is_grad_enabled() else stays
        return _ended(stays, begin, left_out)
    if torch.is_grad_enabled() and bool(left_out.any()):
        found = _solved_apart(found, left_out, again, system, z0)
    if not masks:
        return found
    found = _every(found, lambda states: torch.where(column(left_out), value, states))
    return _ended(found, begin, left_out)


def _ended(found: Solution | Trajectory, begin: Tensor, left_out: Tensor) -> Solution | Trajectory:
    """The result whose samples ``left_out`` end where they began, where it says so beside z."""
    end = getattr(found, "end", None)
    if end is None:
        return found
    return found.amended(end=torch.where(column(left_out), begin, end))


def _every(
    found: Solution | Trajectory, change: Callable[[Tensor], Tensor]
) -> Solution | Trajectory:
    """The result with its states changed, and its iterates where it has any."""
    iterates = getattr(found, "iterates", None)
    changed = {} if iterates is None else {"iterates": change(iterates)}
    return found.amended(z=change(found.z), **changed)


def _solved_apart(
    found: Solution | Trajectory, left_out: Tensor, again: Again, system: System, z0: Tensor
) -> Solution | Trajectory:
    """The same result, with the graph of a solve without the samples ``left_out``."""
    others = (~left_out).nonzero().squeeze(1)
    if not len(others):
        return _standing(found, system, z0)
    batch = torch.arange(len(left_out), device=left_out.device)
    rows = torch.where(left_out, others[0], batch)
    subsystem = system.restrict(rows)
    check_part(system, subsystem, z0.detach(), rows)
    subsystem = subsystem.restarted()
    part = again(subsystem, z0.index_select(0, rows), rows)
    subsystem.context.end()

    def joined(old: Tensor | None, new: Tensor | None) -> Tensor | None:
        if old is None or new is None:
            return None
        return torch.where(column(left_out) if old.ndim > 1 else left_out, old.detach(), new)

    names = ("z", "end", "iterates", "event_times", "event_index")
    changes: dict[str, Any] = {name: joined(*_both(found, part, name)) for name in names}
    old, new = _both(found, part, "interpolant")
    if old is not None and new is not None:
        changes["interpolant"] = _Joined(old, new, left_out)
    known = {name: value for name, value in changes.items() if value is not None}
    return found.amended(**known, evaluations=part.evaluations, backward=part.backward)


def _standing(found: Solution | Trajectory, system: System, z0: Tensor) -> Solution | Trajectory:
    """The same result with a gradient of zero, of all samples: see :class:`_Stays`.

    What f depends on is seen by one evaluation, for the solve may have no graph of it.
    """
    of_times = isinstance(found, Trajectory)
    t = found.times[0] if of_times else z0.new_zeros((), dtype=real_dtype(z0))
    fz = system.velocity(t.expand(len(z0)), z0.detach())
    listed = (p for p in system.dynamics.parameters() if p.requires_grad)
    given = (graph_leaves(tensor) for tensor in (found.z, fz, *inputs(system.x)))
    depends, start = union(listed, *given), z0 if of_times else z0.detach()
    stay = _every(found, lambda states: _Stays.apply(states.detach(), start, *depends))
    end = getattr(found, "end", None)
    changed = {} if end is None else {"end": end.detach()}
    return stay.amended(**changed, evaluations=system.evaluations)


def _both(found: SolveResult, part: SolveResult, name: str) -> tuple[Any, Any]:
    return getattr(found, name, None), getattr(part, name, None)


class _Stays(torch.autograd.Function):
    """A batch of which no sample is finite: as that of one among others, its state has no graph.

    The start and what f depends on have a gradient of zero, as a data-parallel module requires.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, z0: Tensor, *depends: Tensor) -> Tensor:
        ctx.start, ctx.dtype, ctx.depends = z0.shape, z0.dtype, depends
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (v,) = grad_outputs
        zeros = (torch.zeros_like(tensor) for tensor in ctx.depends)
        return None, v.new_zeros(ctx.start, dtype=ctx.dtype) if v.ndim > 2 else None, *zeros


@dataclass(frozen=True, eq=False)
class _Joined:
    """A continuous extension: that of one solve for some samples, of another for the rest."""

    old: Any
    new: Any
    left_out: Tensor

    def __call__(self, t: Tensor) -> Any:
        def joined(old: Tensor, new: Tensor) -> Tensor:
            mask = self.left_out.reshape(-1, *(1,) * (old.ndim - 2))
            return torch.where(mask, old.detach(), new)

        return pytree.tree_map(joined, self.old(t), self.new(t))

    def steps(self) -> tuple[Tensor, Any]:
        """See :meth:`~implicitcore.Trajectory.at_steps`."""
        both = self.old.steps(), self.new.steps()
        most = max(t.shape[1] for t, _ in both)

        def joined(*pair: Tensor) -> Tensor:
            old, new = (_filled(z, most) for z in pair)
            mask = self.left_out.reshape(-1, *(1,) * (old.ndim - 2))
            return torch.where(mask, old.detach(), new)

        (t_old, z_old), (t_new, z_new) = both
        return joined(t_old.T, t_new.T).T, pytree.tree_map(joined, z_old, z_new)


def _filled(z: Tensor, most: int) -> Tensor:
    """``[S, batch, ...]`` with NaN up to so many steps."""
    return torch.cat((z, z.new_full((most - len(z), *z.shape[1:]), torch.nan)))


def report(found: SolveResult, on_failure: OnFailure, name: str, owner: Any) -> None:
    """Say that samples failed, as ``on_failure`` asks for it.

    Arguments:
        found: the result.
        on_failure: ``"warn"`` is a warning, once and then at intervals, and raises where a value
            is not finite; ``"raise"`` raises; ``"mask"`` and ``"ignore"`` say nothing.
        name: of the layer or function.
        owner: whose warning it is, see :func:`~implicitcore.system.repeated.warn_repeatedly`.

    Raises:
        SolveError: a sample failed, and ``on_failure`` says so.
    """
    if on_failure in ("mask", "ignore") or not found.failed:
        return
    kinds = set(found.status.tolist())
    if on_failure == "raise" or Status.NON_FINITE in kinds:
        raise SolveError(f"{name} failed: {found.summary()}", found)
    warn_repeatedly(
        owner,
        frozenset(kinds - {Status.CONVERGED}),
        lambda: f"{name}: {found.summary()}",
        ConvergenceWarning,
    )
