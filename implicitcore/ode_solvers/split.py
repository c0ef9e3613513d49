"""The parts of a vector field that is given in two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from implicitcore.dynamics.split_field import SplitField
from implicitcore.dynamics.vector_field import VectorField
from implicitcore.system.system import System
from implicitcore.tensors.amended import amended


class Split(NamedTuple):
    """A system as the sum of two, which count with it."""

    stiff: System
    nonstiff: System


_KNOWN: WeakKeyDictionary[System, Split | None] = WeakKeyDictionary()


def split(system: System) -> Split | None:
    """The parts of the vector field; None where it is not given in two.

    Nor where the system is another one than that of the field, as the adjoint's is.
    """
    if system not in _KNOWN:
        _KNOWN[system] = _split(system)
    return _KNOWN[system]


def _split(system: System) -> Split | None:
    whole = system.problem.dynamics
    if not (system.is_field and isinstance(whole, VectorField)):
        return None
    if not isinstance(whole.field, SplitField):
        return None
    return Split(
        *(_part(system, whole, part) for part in (whole.field.stiff, whole.field.nonstiff))
    )


def _part(system: System, whole: VectorField, part: Callable[..., Any]) -> System:
    field = VectorField(part, autonomous=whole.autonomous or None, exact_time=whole.exact_time)
    problem = replace(system.problem, dynamics=field)
    context = amended(system.context, memory=system.context.memory.fork())
    return amended(system, problem=problem, context=context)
