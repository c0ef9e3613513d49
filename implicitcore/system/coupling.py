"""Whether the samples of a batch depend on each other, which a solve per sample must not meet.

A graph with its nodes as the batch, a batch norm in training or attention over the batch are one
problem and not many: a sample that has met its tolerance is kept, and moves on with the others
unseen. ``coupled=True`` solves such a batch as one sample. Here the other solves are checked: where
an evaluation is at hand anyway its residual is compared, and else f is asked once. Solves of ODE
solvers and solves without a gradient are not checked.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from implicitcore.backends.base import Residual
from implicitcore.dynamics.base import Dynamics
from implicitcore.errors import InputError
from implicitcore.solution import Solution
from implicitcore.system.linearization import Linearization
from implicitcore.system.system import System

# A residual that is this many times the one reported is another's doing.
WORSE = 10.0

# What rounding may change, in units of the dtype, relative to the values compared.
ROUNDING = 1e3

# What f has been asked already, so that it is asked once: by the cell, for each mode of a module.
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
        rounding = ROUNDING * _rounding(system, found.value)
        allowed = torch.add(reported * WORSE, found.update_norm.detach(), alpha=rounding)
        worse = solution.converged & ~(size <= allowed)
        if bool(worse.any()):
            first = int(worse.nonzero()[0])
            raise InputError(
                _message(
                    f"sample {first} was solved to a residual of {reported[first].item():.3g} and "
                    f"has {size[first].item():.3g} beside the others"
                )
            )


@torch.no_grad()
def check_products(system: System, jacobian: Linearization, v: Tensor, u: Tensor) -> None:
    """Require that a sample without an incoming gradient has none afterwards.

    One more product, and only where such samples are in the batch; once for each f.

    Arguments:
        system: the one that was solved.
        jacobian: J at its solution.
        v: the incoming gradient, ``[batch, n]``.
        u: the solution of (I - J)^T u = v, ``[batch, n]``.

    Raises:
        InputError: f mixes samples.
    """
    question = "products"
    if _alone(system) or _was_asked(system.dynamics, question):
        return
    quiet = (v == 0).all(1)
    if not bool(quiet.any()) or bool(quiet.all()):
        return
    if bool((jacobian.vjp(u)[quiet].abs() > 0).any()):  # NaN is the own of a failed sample
        raise InputError(_message("a sample that is not in the loss has a gradient"))
    _note(system.dynamics, question)


def _message(found: str) -> str:
    return (
        f"the cell mixes samples: {found}; use coupled=True, which solves the batch as one (nodes "
        "of a graph, batch norm in training, attention over the batch)"
    )


def _alone(system: System) -> bool:
    return system.packing.coupled or system.packing.batch < 2


def _rounding(system: System, value: Tensor) -> float:
    """The precision that f is computed in."""
    dtypes = [value.dtype, *(dtype for _, dtype in system.context.autocast)]
    return max(torch.finfo(dtype).eps for dtype in dtypes)


def _subject(dynamics: Dynamics) -> Any:
    """What the user gave: it outlives the dynamics that a function makes for each call."""
    given = (getattr(dynamics, name, None) for name in ("cell", "field"))
    return next((subject for subject in given if subject is not None), dynamics)


def _key(subject: Any, question: str) -> tuple[str, bool]:
    return question, isinstance(subject, nn.Module) and subject.training


def _was_asked(dynamics: Dynamics, question: str) -> bool:
    subject = _subject(dynamics)
    try:
        return _key(subject, question) in _ASKED.get(subject, ())
    except TypeError:  # it cannot be referred to weakly
        return False


def _note(dynamics: Dynamics, question: str) -> None:
    subject = _subject(dynamics)
    try:
        _ASKED.setdefault(subject, set()).add(_key(subject, question))
    except TypeError:
        return
