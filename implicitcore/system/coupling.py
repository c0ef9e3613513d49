"""Whether the samples of a batch depend on each other, which a solve per sample must not meet.

A graph with its nodes as the batch, a batch norm in training or attention over the batch are one
problem and not many: a sample that has met its tolerance is kept, and moves on with the others
unseen. ``coupled=True`` solves such a batch as one sample. Here the other solves are checked, by
what is evaluated anyway: a sample that has stopped goes along in the batch, and what f gives for it
may not change while the others move. Only where nothing shows f is asked, once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from implicitcore.backends.base import Residual
from implicitcore.dynamics.base import Dynamics
from implicitcore.solution import Solution, Status
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.linear_system import LinearSystem
from implicitcore.system.mixing import check_rows, cut, kernels, members_of, mixed, precision
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, norm, real_dtype
from implicitcore.tensors.transforms import transformed

# A residual that is this many times the one reported is another's doing.
WORSE = 10.0

# What rounding may change, relative to the values compared: so many units of the dtype, or the
# square root of a unit where that is less.
ROUNDING = 1e3

# What a cell has been asked already, and in which modes (training or not).
_ASKED: WeakKeyDictionary[Any, set[tuple[str, bool]]] = WeakKeyDictionary()


def check_residual(system: System, solution: Solution, found: Residual) -> None:
    """Require that the residual at a solution is the one by which its samples were judged.

    Arguments:
        system: the one that was solved.
        solution: packed, assembled of samples that may have stopped at different times.
        found: the residual of all of them at once, at ``solution.z``.

    Raises:
        InputError: a sample that converged has another residual: f mixes samples.
    """
    size, reported = found.norm.detach(), solution.residual
    if _alone(system) or torch.equal(size, reported):  # as a rule f gives the same bits again
        return
    with torch.no_grad():
        rounding = _rounding(system, found.value)
        allowed = torch.add(reported * WORSE, found.update_norm.detach(), alpha=rounding)
        _refuse(system, solution.converged & ~(size <= allowed), reported, size)


def check_known(system: System, now: Evaluation) -> None:
    """Require that a part of the batch begins with the residuals that it had in the whole.

    Raises:
        InputError: f mixes samples, or a tensor of x belongs to all of them.
    """
    known = system.context.known
    if known is None or known[0] is not now.z:
        return
    whole = system.context.whole(len(now.z))
    if whole is None:
        return
    found, size = now.residual.norm.detach(), now.residual.update_norm.detach()
    bound = kernels(precision(system.context, now.z.dtype))
    far = (found - known[1]).abs()
    wrong = (far > bound * (known[1] + size)) & far.isfinite()
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise cut(
            f"a sample had a residual of {known[1][row].item():.3g} among {whole} samples, and has "
            f"one of {found[row].item():.3g} among {len(found)} of them",
            system.problem.marked,
            whole,
        )


@torch.no_grad()
def check_part(system: System, part: System, z: Tensor, rows: Tensor) -> None:
    """Require that f takes some samples for what they are in the batch: two evaluations.

    Arguments:
        system: of all samples.
        part: of the samples ``rows``.
        z: a state of all samples, ``[batch, n]``.
        rows: indices ``[k]``.

    Raises:
        InputError: f mixes samples, or a tensor of x belongs to all of them.
    """
    t = torch.zeros(len(z), dtype=real_dtype(z), device=z.device)
    whole = system.velocity(t, z).index_select(0, rows)
    alone = part.velocity(t.index_select(0, rows), z.index_select(0, rows))
    eps = precision(system.context, z.dtype)
    check_rows(alone, whole, len(z), part.problem.marked, eps)


class Frozen(NamedTuple):
    """Samples that stopped and went along where they were."""

    z: Tensor  # [batch, n], where each stopped
    last: Tensor  # [batch, n], where each was evaluated last
    reported: Tensor  # [batch], their residuals at z
    found: Tensor  # [batch], the same at the last evaluation
    limit: Tensor  # [batch], what was to be met


@torch.no_grad()
def check_frozen(system: System, frozen: Frozen, met: Callable[[], Tensor]) -> None:
    """Require that samples which stopped have the same residual when the others have moved.

    No evaluation: they were evaluated beside the others.

    Arguments:
        system: what is solved.
        frozen: all samples.
        met: gives which of them met their tolerance, ``[batch]``; seldom asked.

    Raises:
        InputError: f mixes samples.
    """
    z, last, reported, found, limit = frozen
    judged = torch.maximum(reported, limit)
    if torch.equal(torch.minimum(found, judged), found):
        return  # no sample has more than what it was judged by
    if system.packing.coupled or len(z) < 2:
        return
    # The same states in the same place of a batch: there is no more between them than rounding.
    kept = met() & (last == z).all(1)
    allowed = torch.add(judged, norm(z), alpha=_rounding(system, z))
    _refuse(system, kept & (found > allowed) & found.isfinite(), reported, found)


@torch.no_grad()
def check_stalled(system: System, solution: Solution) -> Solution:
    """Require that it is not the other samples that keep one from going on: one evaluation.

    Nothing is asked where no sample stalled. A step that is not accepted begins with what f gave
    beside the others as they were then: where f mixes samples, no step is short enough.

    Arguments:
        system: what was solved.
        solution: packed.

    Returns:
        The solution, with all evaluations.

    Raises:
        InputError: f mixes samples.
    """
    if not solution.failed or _alone(system) or not bool((solution.status == Status.STALLED).any()):
        return solution
    z, stays = solution.z, torch.arange(len(solution.z), device=solution.z.device) % 2 == 1
    fz, value = system.map(torch.where(column(stays), z, solution.start))
    found = norm(fz - z if value is None else value)
    bound = precision(system.context, z.dtype) ** 0.5 * (norm(fz) + norm(z))
    far = stays & ((found - solution.residual).abs() > bound) & found.isfinite()
    _refuse(system, far, solution.residual, found)
    return solution.amended(evaluations=system.context.counter.evaluations)


def check_derivative(system: System, z: Tensor) -> None:
    """Require that what f gives for a sample has no derivative by another one.

    For a graph of all steps of a solver, which takes those of each sample for its own: a state that
    is right does not show that its derivative is not. One evaluation and up to eight
    products, once for an f: what some samples are not given comes back as zero, with no rounding in
    it. Each sample is in half of the products, no two in the same ones: there is one with the one
    sample and without the other, whichever is asked for.

    Arguments:
        system: what was solved.
        z: where to ask, ``[batch, n]``.

    Raises:
        InputError: f mixes samples.
    """
    if system.context.scope.group is not None or transformed() or was_asked(system, "derivative"):
        return
    jacobian, generator = system.linearize(z.detach()), torch.Generator().manual_seed(0)
    v = torch.randn(z.shape, generator=generator).to(z)
    order, members = torch.randperm(len(z), generator=generator), members_of(len(z))
    reached = torch.zeros_like(norm(v))
    with torch.no_grad():
        for group in members[:, order % members.shape[1]].to(z.device):
            size = norm(jacobian.vjp(torch.where(column(group), v, 0)))
            reached = torch.where(group, reached, torch.maximum(reached, size))
    if bool((reached.isfinite() & (reached > 0)).any()):
        index = int(reached.nan_to_num(0.0, 0.0).argmax())
        raise mixed(
            f"what it gives for others has a derivative by sample {index}",
            system.packing.full_shapes,
        )
    if bool(reached.isfinite().all()):
        note_asked(system, "derivative")


class Velocities(NamedTuple):
    """Velocities of samples at the same times and states, beside different ones of the others."""

    rows: Tensor  # [batch] bool, which to compare
    known: Tensor  # [batch, n]
    found: Tensor  # [batch, n]


@torch.no_grad()
def check_velocities(system: System, velocities: Velocities, scale: Tensor) -> None:
    """Require that they are the same.

    Arguments:
        system: the vector field.
        velocities: what was evaluated.
        scale: ``[batch]``, the size of a velocity, beside its own.

    Raises:
        InputError: the field mixes samples.
    """
    rows, known, found = velocities
    if _alone(system):
        return
    far, size = norm(found - known), norm(known)
    bound = precision(system.context, found.dtype) ** 0.5 * (size + scale)
    wrong = rows & (far > bound) & far.isfinite()
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise mixed(
            f"sample {first} has a velocity of norm {size[first].item():.3g}, and one that is "
            f"{far[first].item():.3g} off at the same place when the others have moved",
            system.packing.full_shapes,
        )


def _refuse(system: System, worse: Tensor, reported: Tensor, found: Tensor) -> None:
    """Raise where a sample has a residual that is worse than its own."""
    if not bool(worse.any()):
        return
    first = int(worse.nonzero()[0])
    shapes = system.packing.full_shapes
    backward = isinstance(system, LinearSystem)
    if backward and not bool(system.v[first].any()):
        raise mixed(f"sample {first} is not in the loss, and has a gradient", shapes)
    raise mixed(
        f"{'the gradient of ' if backward else ''}sample {first} was solved to a residual of "
        f"{reported[first].item():.3g} and has {found[first].item():.3g} beside the others",
        shapes,
    )


def _alone(system: System) -> bool:
    packing = system.problem.packing
    return packing.coupled or packing.batch < 2


def _rounding(system: System, value: Tensor) -> float:
    """What rounding may change, relative to f."""
    eps = precision(system.context, value.dtype)
    return min(ROUNDING * eps, eps**0.5)


def was_asked(system: System, what: str = "value") -> bool:
    """Whether this f, in its mode, has been evaluated to see whether it mixes samples.

    Arguments:
        system: of f.
        what: of f, its value or its derivative.
    """
    subject, mode = _subject(system.dynamics)
    try:
        return _alone(system) or (what, mode) in _ASKED.get(subject, ())
    except TypeError:  # it cannot be referred to weakly
        return False


def note_asked(system: System, what: str = "value") -> None:
    """This f has been asked, and need not be again."""
    subject, mode = _subject(system.dynamics)
    with suppress(TypeError):
        _ASKED.setdefault(subject, set()).add((what, mode))


def _subject(dynamics: Dynamics) -> tuple[Any, bool]:
    """What the user gave, and its mode.

    It outlives the dynamics that a function makes for each call.
    """
    given = (getattr(dynamics, name, None) for name in ("cell", "field"))
    subject = next((subject for subject in given if subject is not None), dynamics)
    return subject, isinstance(subject, nn.Module) and subject.training
