"""What one step of an ODE solver is, and what follows the steps of an integration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

from torch import Tensor

from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.explicit_stages import EqualStep
from implicitcore.ode_solvers.step_size import StepSize
from implicitcore.system.system import System
from implicitcore.tensors.norms import column

State = TypeVar("State")


class Stepper(ABC, Generic[State]):
    """One map per step, for the loop that all stepwise ODE solvers share.

    Attributes:
        max_steps: most steps of a sample between two stops.
        lockstep: made for steps that all samples take together: dt may also be one number for
            them, ``[]``, and a step from a state that is not finite ends at none that is, so that
            not each step has to be looked at.
        recordable: a step is the same operations on the device whatever its values are, and reads
            none on the host, so that a CUDA graph may do it.
        velocity_beside: the velocity that the state holds after a step is that of a point beside
            the end of the step.
    """

    max_steps: int
    lockstep: ClassVar[bool] = False
    recordable: ClassVar[bool] = False
    velocity_beside: ClassVar[bool] = False

    @property
    @abstractmethod
    def step_size(self) -> StepSize:
        """How steps are chosen."""

    @abstractmethod
    def step(self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: State) -> Step:
        """One step from t ``[batch]`` to t + dt, for every sample independently."""

    def equal_step(self, system: System) -> EqualStep | None:
        """:meth:`step` for many steps of one size that all samples take, without its parts.

        None: the step itself is taken.
        """
        del system
        return None

    def init(self, system: System, t: Tensor, z: Tensor) -> State:
        """The state before a step from (t, z): by default the velocity there."""
        return system.velocity(t, z)  # pyright: ignore[reportReturnType]

    def velocity(self, state: State) -> Tensor:
        """The velocity that the state holds."""
        return state  # pyright: ignore[reportReturnType]

    @property
    def looks_ahead(self) -> bool:
        """Whether a stage lies beyond the end of the step: the field may not jump there."""
        return False

    @property
    def piece_needs_state(self) -> bool:
        """Whether :meth:`piece` needs the state at the end of the step."""
        return True

    def piece(
        self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: State, step: Step
    ) -> list[Tensor]:
        """The continuous extension of a step.

        The coefficients of :func:`~implicitcore.ode_solvers.dense.evaluate`, each ``[batch, n]``.
        By default Hermite's cubic through the states and velocities at both ends: its error goes
        with dt^4, so that a method of a higher order than 4 needs one of its own. It is asked for
        where a step passes output times, and for dense output and events; ``step.state`` is then
        not None, unless ``piece_needs_state`` is False. A step's own samples alone may count.
        """
        del system, t
        width, move = column(dt).to(z.dtype), step.z - z
        bend = width * self.velocity(state) - move
        return [z, move, bend, move - width * self.velocity(step.state) - bend]


class StepObserver(ABC):
    """Follows the steps of an integration: a quadrature of something beside the state."""

    @abstractmethod
    def after_init(self) -> None:
        """Called after the solver's state was made: it holds the velocity evaluated last."""

    @abstractmethod
    def before_step(self) -> None:
        """Called before each step: the velocities evaluated from here on are its stages."""

    @abstractmethod
    def after_step(self, step: Step, dt: Tensor, accept: Tensor | None) -> None:
        """Called after each step: dt ``[batch]``, and which samples accepted it.

        None where those that did not had dt = 0.
        """

    @abstractmethod
    def arrive(self, z: Tensor, arrived: Tensor, which: Tensor) -> Tensor:
        """The state to go on from, where samples ``arrived`` at their output times ``which``."""
