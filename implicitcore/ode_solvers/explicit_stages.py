"""The stages of an explicit Runge-Kutta method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from implicitcore.backends.base import Backend, StageSums
from implicitcore.ode_solvers.tableaus import Tableau
from implicitcore.system.resolved import ResolvedField
from implicitcore.system.system import System

Taken = tuple[Tensor, Tensor | None, Sequence[Tensor]]


class EqualStep(NamedTuple):
    """A step that all samples take together, made ready for many."""

    nodes: tuple[float, ...]  # of the stages after the first
    weights: tuple[float, ...]  # of the stages
    field: ResolvedField
    # The times of all stages, dt, z and the first stage, None where it is to be evaluated -> z at
    # the end, the first stage of the next step where the method has it, and the stages.
    take: Callable[[Sequence[Tensor], Tensor, Tensor, Tensor | None], Taken]


def stages_of(
    tableau: Tableau,
    velocity: Callable[[Tensor, Tensor], Tensor],
    sums: StageSums,
    moments: Sequence[Tensor],
    start: tuple[Tensor, Tensor],
) -> tuple[list[Tensor], Tensor]:
    """All stages of a step, and its end.

    Arguments:
        tableau: the method.
        velocity: as :class:`~implicitcore.system.resolved.ResolvedField` has it.
        sums: of the rows of the tableau.
        moments: the times of the stages after the first.
        start: z and the first stage.
    """
    point, first = start
    stages = [first]
    for row, moment in enumerate(moments):
        point = sums(stages, row)
        stages.append(velocity(moment, point))
    return stages, point if tableau.fsal else sums(stages, len(tableau.a))


def equal_step(tableau: Tableau, system: System) -> EqualStep:
    """That of a method."""
    field, backend, rows = ResolvedField.of(system), system.backend, tableau.rows
    velocity = field.velocity

    def take(moments: Sequence[Tensor], dt: Tensor, z: Tensor, first: Tensor | None) -> Taken:
        known = velocity(moments[0], z) if first is None else first
        sums = sums_of(backend, rows, z, dt)
        stages, end = stages_of(tableau, velocity, sums, moments[1:], (z, known))
        return end, stages[-1] if tableau.fsal else None, stages

    return EqualStep(tableau.c, tableau.b, field, take)


def extension_of(tableau: Tableau) -> tuple[tuple[float, ...], ...]:
    """The weights of the stages in c_2, c_3, .. of a piece, over dt.

    The last of the step's own stages is the velocity at its end. Hermite's cubic, then what the
    tableau has of its own.
    """
    # A stage more, where the method itself has not that velocity.
    move = tableau.b if tableau.fsal else (*tableau.b, 0.0)
    first = (1.0, *(0.0 for _ in move[1:]))
    last = (*(0.0 for _ in move[1:]), 1.0)
    rows = (
        tuple(one - b for one, b in zip(first, move, strict=True)),
        tuple(2 * b - one - end for one, b, end in zip(first, move, last, strict=True)),
    )
    return (*((*row, *(0.0 for _ in tableau.more_a)) for row in rows), *tableau.dense)


def sums_of(
    backend: Backend, rows: tuple[tuple[float, ...], ...], z: Tensor, dt: Tensor
) -> StageSums:
    """The combinations of a step by a backend."""
    return backend.stage_sums(rows, z, dt) or _OneByOne(backend, rows, z, dt)


class _OneByOne:
    """Each by the backend's :meth:`Backend.stage_combination`."""

    def __init__(
        self, backend: Backend, rows: tuple[tuple[float, ...], ...], z: Tensor, dt: Tensor
    ) -> None:
        self.combination, self.rows, self.z, self.dt = backend.stage_combination, rows, z, dt

    def __call__(self, stages: Sequence[Tensor], row: int, *, move: bool = False) -> Tensor:
        """See :class:`StageSums`."""
        return self.combination(None if move else self.z, self.dt, stages, self.rows[row])
