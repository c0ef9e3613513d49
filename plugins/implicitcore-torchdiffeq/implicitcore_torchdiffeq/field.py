"""The vector field as torchdiffeq calls it."""

from __future__ import annotations

import torch
from torch import Tensor

from implicitcore import Status
from implicitcore.extend import System, real_dtype, rms_norm

# Steps in a row that may be rejected for a NaN: a smaller one may avoid it.
PATIENCE = 12


class OutOfSteps(Exception):
    """The steps of the solver are spent."""


class Field:
    """The vector field at one time for the whole batch.

    It counts the steps and knows which sample was at fault in the last.

    Arguments:
        system: gives the velocity.
        most: steps that may be tried.
    """

    def __init__(self, system: System, most: int) -> None:
        self.system, self.most = system, most
        self.steps = 0
        self.t: Tensor | None = None  # where the last step that was tried began
        self.errors: Tensor | None = None  # of the last step that was tried, [batch]
        self.bad = 0  # steps in a row with an error that was not finite
        self.foreign: Exception | None = None  # an error of the user's function, not of torchdiffeq
        self.loose = False  # the tolerance of a step was not met, and the solver went on

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """The velocity ``[batch, n]`` at the one time t."""
        try:
            return self.system.velocity(t.to(real_dtype(y)).expand(len(y)), y)
        except Exception as error:
            self.foreign = error
            raise

    def callback_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        """torchdiffeq is about to try a step from t0."""
        del y0, dt
        self.t = t0
        if self.steps == self.most:
            raise OutOfSteps
        self.steps += 1

    @torch.no_grad()
    def norm(self, scaled: Tensor) -> Tensor:
        """That of the worst sample, in the root mean square.

        A NaN is an infinite error: the step is rejected, and a smaller one tried.
        """
        self.errors = rms_norm(scaled)
        self.bad = 0 if bool(self.errors.isfinite().all()) else self.bad + 1
        if self.bad > PATIENCE:
            raise AssertionError("a sample is not finite")
        return self.errors.nan_to_num(torch.inf, torch.inf).max()

    def at_fault(self, error: Exception) -> tuple[Tensor, Status]:
        """The samples for which the integration could not go on, ``[batch]``, and their status.

        Any error but torchdiffeq's is raised.
        """
        if error is self.foreign or self.t is None:
            raise error
        everyone = torch.ones(self.system.packing.batch, dtype=torch.bool, device=self.t.device)
        if isinstance(error, OutOfSteps):
            return everyone, Status.MAX_STEPS
        if self.errors is None:
            return everyone, Status.DIVERGED
        lost, rejected = ~self.errors.isfinite(), self.errors > 1
        if bool(lost.any()):
            return lost, Status.NON_FINITE
        return (rejected if bool(rejected.any()) else everyone), Status.DIVERGED
