"""Radau IIA, whose stages are solved together."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from implicitcore.errors import InputError
from implicitcore.ode_solvers.factors import Factors
from implicitcore.ode_solvers.implicit_method import ImplicitMethod
from implicitcore.ode_solvers.implicit_tableaus import ImplicitTableau
from implicitcore.ode_solvers.stage_sequence import StageSequence
from implicitcore.ode_solvers.stages import Frame, Stage
from implicitcore.ode_solvers.step_cache import Kept, StepCache
from implicitcore.ode_solvers.step_size import Adaptive, StepSize
from implicitcore.options.shared import ErrorControl
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, real_dtype

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


@dataclass(eq=False)
class CoupledStage(Stage):
    """The moves of all stages, ``[batch, 3 n]``: dt (A x I) g(t + c dt, z + m)."""

    def image(self, move: Tensor) -> Tensor:
        """See :meth:`Stage.image`: three evaluations."""
        z = self.frame.z
        velocities = [
            self.outer.velocity(t, z + part)
            for t, part in zip(self.times, move.tensor_split(3, 1), strict=True)
        ]
        coupled = _matrix(z.dtype, z.device) @ torch.stack(velocities, 1)
        return (coupled * self.dt[:, None, None].to(z.dtype)).flatten(1)

    @property
    def times(self) -> list[Tensor]:
        """Those of the stages."""
        return [torch.add(self.t, self.dt, alpha=node) for node in RADAU_IIA5.c]


@functools.cache
def _matrix(dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(RADAU_IIA5.a, dtype=dtype, device=device)


@functools.cache
def _error(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The weights of dt g and of the moves in the estimate of the error, ``[1, 4]``."""
    with torch.inference_mode(False):
        weights = torch.tensor([[1.0, *ERROR]], dtype=torch.float64, device="cpu") * REAL
        return weights.to(device, dtype)


@functools.cache
def _extrapolation(dtype: torch.dtype, device: torch.device) -> Tensor:
    """From the values at the nodes and zero at zero to the coefficients of s, s^2, s^3."""
    with torch.inference_mode(False):
        nodes = torch.tensor(RADAU_IIA5.c, dtype=torch.float64, device="cpu")
        powers = torch.stack((nodes, nodes**2, nodes**3), 1)
        return torch.linalg.inv(powers).to(device, dtype)


class CoupledStages(StageSequence):
    """The one equation of Radau's stages."""

    past: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return 1

    def past_after(self, solved: Tensor) -> tuple[Tensor, Tensor]:
        """This step; where it is not ``solved`` nothing."""
        move = torch.where(column(solved), self.moves[0].detach(), 0)
        return self.dt, move.view(len(move), 3, -1)

    def equation(self) -> Stage:
        """All stages."""
        system, z = self.system, self.frame.z
        return CoupledStage(
            system.problem, system.context, system, self.t, self.dt, z, self.frame
        )

    def start(self) -> Tensor:
        """The polynomial of the last step, further on."""
        z = self.frame.z
        if self.past is None:
            return z.new_zeros(len(z), 3 * z.shape[1])
        dt, moves = self.past
        ratio = torch.where(dt == 0, 0, self.dt / dt).to(z.dtype)[:, None]
        nodes = _matrix(z.dtype, z.device).sum(1)
        ahead = 1 + ratio * nodes
        powers = torch.stack((ahead - 1, ahead**2 - 1, ahead**3 - 1), 2)
        weights = powers @ _extrapolation(z.dtype, z.device)
        return (weights @ moves).flatten(1)

    def add(self, stage: Stage, move: Tensor) -> None:
        """They are solved."""
        times = stage.times if isinstance(stage, CoupledStage) else []
        parts = move.tensor_split(3, 1)
        self.moves.append(move)
        self.points.extend((t, self.frame.z + part) for t, part in zip(times, parts, strict=True))

    def back_to(self, stage: int) -> None:
        """Forget them."""
        self.moves.clear()
        self.points.clear()


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
        return _matrix(real_dtype(z), z.device)

    def sequence(
        self, system: System, t: Tensor, dt: Tensor, state: StepCache, frame: Frame
    ) -> CoupledStages:
        """The equation of a step."""
        sequence = CoupledStages(self.tableau, system, t, dt, state.velocity, frame)
        sequence.past = state.past
        return sequence

    def error(self, sequence: StageSequence, kept: Kept | None) -> Tensor:
        """The difference to a method of order 3, filtered."""
        move, dt = sequence.moves[0], column(sequence.dt)
        start = (sequence.velocity * dt.to(move.dtype)).unsqueeze(1)
        parts = torch.cat((start, move.view(len(move), 3, -1)), 1)
        defect = (_error(move.dtype, move.device) @ parts).squeeze(1)
        if kept is None:
            return defect
        real = torch.full((1, 1), REAL, dtype=kept.jacobian.dtype, device=move.device)
        return Factors.of(real, sequence.dt.to(real.dtype), kept.jacobian).solve(defect)

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
