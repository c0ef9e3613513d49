"""The stage equations of one step, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from implicitcore.ode_solvers.factors import Factors
from implicitcore.ode_solvers.implicit_tableaus import ImplicitTableau
from implicitcore.ode_solvers.stages import Frame, Stage
from implicitcore.system.system import System
from implicitcore.tensors.norms import column


class StageSequence:
    """Those of a diagonally implicit method.

    Arguments:
        tableau: the method.
        system: the vector field of the equations.
        t: the time before the step, ``[batch]``.
        dt: ``[batch]``.
        velocity: there, ``[batch, n]``.
        frame: what they share; it has the state.

    Attributes:
        moves: of the stages so far, each ``[batch, n]``.
        increments: dt k_i of the stages so far; the first of some methods is the state's.
        points: their times and states.
    """

    def __init__(  # noqa: PLR0913 - what a step is
        self,
        tableau: ImplicitTableau,
        system: System,
        t: Tensor,
        dt: Tensor,
        velocity: Tensor,
        frame: Frame,
    ) -> None:
        self.tableau, self.system, self.t, self.dt, self.frame = tableau, system, t, dt, frame
        self.velocity, self.own, self.one = velocity, dt * tableau.gamma, torch.ones_like(dt)
        z, explicit = frame.z, tableau.explicit
        self.moves: list[Tensor] = []
        self.increments = [velocity * column(dt).to(z.dtype) for _ in range(explicit)]
        self.points = [(t, z)] * explicit

    def started(self, factors: Factors | None = None) -> StageSequence:
        """The same equations, of which none is solved."""
        frame = Frame(self.frame.z, self.frame.weight, factors)
        return StageSequence(self.tableau, self.system, self.t, self.dt, self.velocity, frame)

    def __len__(self) -> int:
        return len(self.tableau.a) - self.tableau.explicit

    def equation(self) -> Stage:
        """That of the next stage."""
        t = torch.add(self.t, self.dt, alpha=self.tableau.c[len(self.increments)])
        system, offset = self.system, self.offset()
        return Stage(system.problem, system.context, system, t, self.own, offset, self.frame)

    def offset(self) -> Tensor:
        """The move that the earlier stages give the next."""
        return self.combined(self.tableau.a[len(self.increments)][:-1])

    def start(self) -> Tensor:
        """A first move of the next stage: the polynomial through those before."""
        weights = self.tableau.predictors[len(self.increments)]
        if not weights:
            return torch.zeros_like(self.frame.z)
        moves = self.moves[-len(weights) :]
        return self.system.backend.stage_combination(None, self.one, moves, weights)

    def add(self, stage: Stage, move: Tensor) -> None:
        """The next stage is solved."""
        # From the equation and not by another evaluation, which would multiply what is left of the
        # error by dt dg/dz.
        self.moves.append(move)
        self.increments.append((move - stage.offset) / self.tableau.gamma)
        self.points.append((stage.t, self.frame.z + move))

    @property
    def end(self) -> Tensor:
        """The state at the end of the step, where all stages are solved: the last one."""
        return self.points[-1][1]

    @property
    def whole(self) -> System:
        """The vector field of the steps."""
        return self.system

    @property
    def explicit(self) -> Sequence[Tensor]:
        """Dt times what is explicit of the velocity, at each stage: there is none."""
        return ()

    def past_after(self, solved: Tensor) -> tuple[Tensor, Tensor] | None:
        """What the next step is told of this one, where it is ``solved``: nothing."""
        del solved
        return None

    def back_to(self, stage: int) -> None:
        """Forget all from a stage on."""
        del self.moves[stage:]
        del self.increments[stage + self.tableau.explicit :]
        del self.points[stage + self.tableau.explicit :]

    def combined(self, weights: tuple[float, ...]) -> Tensor:
        """The sum of the increments with weights, zero where there are none."""
        if not self.increments:
            return torch.zeros_like(self.frame.z)
        return self.system.backend.stage_combination(None, self.one, self.increments, weights)
