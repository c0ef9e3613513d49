"""Radau IIA, whose stages are solved together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from implicitcore.errors import InputError
from implicitcore.ode_solvers.implicit_method import ImplicitMethod
from implicitcore.ode_solvers.implicit_tableaus import ImplicitTableau
from implicitcore.ode_solvers.repeated import repeated
from implicitcore.ode_solvers.stage_sequence import StageSequence
from implicitcore.ode_solvers.stages import Frame, Stage
from implicitcore.ode_solvers.step_cache import Kept, StepCache
from implicitcore.ode_solvers.step_size import Adaptive, StepSize
from implicitcore.options.shared import ErrorControl
from implicitcore.options.types import Controller
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, real_dtype
from implicitcore.tensors.products import BADDBMM, BMM, MATMUL

# Hairer, Wanner, Solving Ordinary Differential Equations II (1996), table IV.5.6 and section IV.8.
_S = 6**0.5
_C = ((4 - _S) / 10, (4 + _S) / 10, 1.0)
RADAU_IIA5 = ImplicitTableau(
    a=(
        ((88 - 7 * _S) / 360, (296 - 169 * _S) / 1800, (-2 + 3 * _S) / 225),
        ((296 + 169 * _S) / 1800, (88 + 7 * _S) / 360, (-2 - 3 * _S) / 225),
        ((16 - _S) / 36, (16 + _S) / 36, 1 / 9),
    ),
    c=_C,
    order=5,
    # The collocation polynomial, by its values at the first two nodes.
    dense=(
        (
            1 / (_C[0] * (1 - _C[0])) * _C[1] / (_C[1] - _C[0]),
            -1 / (_C[1] * (1 - _C[1])) * _C[0] / (_C[1] - _C[0]),
            -_C[1] / (1 - _C[0]) / (_C[1] - _C[0]) + _C[0] / (1 - _C[1]) / (_C[1] - _C[0]),
        ),
        (
            -1 / (_C[0] * (1 - _C[0])) / (_C[1] - _C[0]),
            1 / (_C[1] * (1 - _C[1])) / (_C[1] - _C[0]),
            (1 / (1 - _C[0]) - 1 / (1 - _C[1])) / (_C[1] - _C[0]),
        ),
    ),
)

# One over the real eigenvalue of the inverse of A, and the weights of the moves in the estimate of
# the error, (I - dt REAL dg/dz)^-1 REAL (dt g + sum_i ERROR_i m_i).
REAL = 1 / (3 + 3 ** (2 / 3) - 3 ** (1 / 3))
ERROR = ((-13 - 7 * _S) / 3, (-13 + 7 * _S) / 3, -1 / 3)


@dataclass(eq=False, kw_only=True)
class CoupledStage(Stage):
    """The moves of all stages, ``[batch, 3 n]``: m = dt (A x I) g(t + c dt, z + m).

    Attributes:
        times: of the stages, ``[batch, 3]``.
        coupling: dt A, ``[batch, 3, 3]``.
        many: the vector field with each sample three times, where f allows it.
        row: z, ``[batch, 1, n]``.
    """

    times: Tensor
    coupling: Tensor
    many: System | None
    row: Tensor

    def image(self, move: Tensor) -> Tensor:
        """See :meth:`Stage.image`: three evaluations."""
        return MATMUL[move.is_cpu](self.coupling, self._velocities(move)).flatten(1)

    def defect(self, move: Tensor) -> Tensor:
        """See :meth:`Stage.defect`."""
        velocities = self._velocities(move)
        moves = move.view_as(velocities)
        less = BADDBMM[move.is_cpu](moves, self.coupling, velocities, beta=-1)
        return less.view_as(move)

    def points(self, move: Tensor) -> Tensor:
        """The states of the stages, ``[batch, 3, n]``."""
        return self.row + move.view(len(move), 3, -1)

    def _velocities(self, move: Tensor) -> Tensor:
        points = self.points(move)
        if self.many is not None:
            found = self.many.velocity(self.times.flatten(), points.flatten(0, 1))
            return found.view_as(points)
        places = zip(self.times.unbind(1), points.unbind(1), strict=True)
        return torch.stack([self.outer.velocity(t, point) for t, point in places], 1)


@functools.cache
def _constant(name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return _CONSTANTS[name]().to(device, dtype)


def _double(values: Sequence[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _extrapolation() -> Tensor:
    """The weights of the last moves in the next ones, for each power of the ratio of the steps.

    ``[3, 9]``: q(1 + r c_i) - q(1), where q is the polynomial through zero and the moves.
    """
    nodes = _double(RADAU_IIA5.c)
    coefficients = torch.linalg.inv(torch.stack((nodes, nodes**2, nodes**3), 1))
    first, second, third = coefficients
    powers = (first + 2 * second + 3 * third, second + 3 * third, third)
    return torch.stack(
        [torch.outer(nodes**k, power).flatten() for k, power in enumerate(powers, 1)]
    )


def _real() -> Tensor:
    """The left eigenvector of A of its real eigenvalue, of norm one."""
    a = _double(RADAU_IIA5.a)
    return torch.linalg.svd(a.T - REAL * torch.eye(3, dtype=a.dtype))[2][-1]


_CONSTANTS: dict[str, Callable[[], Tensor]] = {
    "c": lambda: _double(RADAU_IIA5.c),
    "a": lambda: _double(RADAU_IIA5.a),
    "error": lambda: column(_double(ERROR) * REAL),
    "extrapolation": _extrapolation,
    "powers": lambda: _double([1.0, 2.0, 3.0]),
    "real": lambda: column(_real()),
}


class CoupledStages(StageSequence):
    """The one equation of Radau's stages."""

    past: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return 1

    def equation(self) -> CoupledStage:
        """All stages."""
        system, z, dt = self.system, self.frame.z, self.dt
        many = None if torch.is_grad_enabled() else repeated(system, 3, self.t, z)
        return CoupledStage(
            system.problem,
            system.context,
            system,
            self.t,
            dt,
            z,
            self.frame,
            times=torch.addcmul(
                column(self.t), column(dt), _constant("c", self.t.dtype, self.t.device)
            ),
            many=many,
            coupling=_constant("a", z.dtype, z.device) * dt.view(-1, 1, 1).to(z.dtype),
            row=z.unsqueeze(1),
        )

    def start(self) -> Tensor:
        """The polynomial of the last step, further on."""
        z = self.frame.z
        if self.past is None:
            return z.new_zeros(len(z), 3 * z.shape[1])
        dt, moves = self.past
        powers = column((self.dt / dt).to(z.dtype)) ** _constant("powers", z.dtype, z.device)
        weights = MATMUL[z.is_cpu](powers, _constant("extrapolation", z.dtype, z.device))
        return BMM[z.is_cpu](weights.view(-1, 3, 3), moves).flatten(1)

    def add(self, stage: Stage, move: Tensor) -> None:
        """They are solved."""
        if isinstance(stage, CoupledStage):
            points = stage.points(move).unbind(1)
            self.moves.append(move)
            self.points.extend(zip(stage.times.unbind(1), points, strict=True))

    def back_to(self, stage: int) -> None:
        """Forget them."""
        del self.moves[stage:], self.points[3 * stage :]

    def past_after(self, solved: Tensor) -> tuple[Tensor, Tensor]:
        """This step: no next one begins where it is not ``solved``."""
        del solved
        move = self.moves[0].detach()
        return torch.where(self.dt == 0, 1, self.dt), move.view(len(move), 3, -1)


@final
@dataclass(frozen=True, kw_only=True)
class RadauIIA5(ErrorControl, ImplicitMethod):
    """Radau IIA of three stages, order 5, adaptive and L-stable.

    m_i = dt sum_j a_ij g(t + c_j dt, z + m_j), collocation at the nodes of Radau; z_next = z + m_3.
    The three stages are one equation of 3 n unknowns, whose matrix I - dt A x dg/dz is formed and
    factorised where n <= ``dense_below``: 27 times the work of a matrix of ``ESDIRK``, for fewer
    and longer steps. The first choice for small stiff systems and tight tolerances; ``ESDIRK`` is
    cheaper for larger n. Its nodes lie within the step.

    Reference:
        Hairer, Wanner, Solving Ordinary Differential Equations II (1996), section IV.8: RADAU5.
    """

    tableau: ClassVar[ImplicitTableau] = RADAU_IIA5
    controller: Controller = "i"

    @property
    def step_size(self) -> StepSize:
        """Adaptive; the estimate goes with dt^4."""
        return Adaptive.of(self, 4)

    @property
    def equations(self) -> int:
        """One for all stages."""
        return 1

    def coupling(self, z: Tensor) -> Tensor:
        """A."""
        return _constant("a", real_dtype(z), z.device)

    def sequence(
        self, system: System, t: Tensor, dt: Tensor, state: StepCache, frame: Frame
    ) -> CoupledStages:
        """The equation of a step."""
        sequence = CoupledStages(self.tableau, system, t, dt, state.velocity, frame)
        sequence.past = state.past
        return sequence

    def error(self, sequence: StageSequence, kept: Kept | None) -> Tensor:
        """The difference to a method of order 3, filtered by (I - dt REAL dg/dz)^-1.

        Of which the matrix of the stages is a part, by the eigenvector of its real eigenvalue.
        """
        move = sequence.moves[0]
        moves, dt = move.view(len(move), 3, -1), column(sequence.dt).to(move.dtype)
        defect = (moves * _constant("error", move.dtype, move.device)).sum(1)
        defect = torch.addcmul(defect, sequence.velocity, dt, value=REAL)
        if kept is None:
            return defect
        real = _constant("real", move.dtype, move.device)
        found = kept.factors.solve((defect.unsqueeze(1) * real).flatten(1))
        return (found.view_as(moves) * real).sum(1)

    def no_past(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """No move, over a step of one."""
        return z.new_ones(len(z), dtype=real_dtype(z)), z.new_zeros(len(z), 3, z.shape[1])

    def check(self, z: Tensor) -> None:
        """See :meth:`ImplicitMethod.check`: a large state is refused, too."""
        super().check(z)
        if not self._dense(z):
            raise InputError(
                f"RadauIIA5 forms matrices of 3 n: expected n <= dense_below={self.dense_below}, "
                f"received n = {z.shape[1]}; use ESDIRK, which needs none, or raise dense_below"
            )
