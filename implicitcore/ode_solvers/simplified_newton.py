"""The simplified Newton iteration of stage equations: one matrix for many stages and steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from implicitcore.ode_solvers.factors import Factors
from implicitcore.ode_solvers.stages import ROUNDING, Stage
from implicitcore.tensors.norms import column, norm

# What may be left of a stage, in units of the error that a step may make.
KAPPA = 0.01

# Most iterations of a stage.
MOST = 8


@dataclass(frozen=True, eq=False)
class Units:
    """In what the corrections of a step are measured.

    Attributes:
        inverse: ``[batch, m]``; the 2-norm of a correction times it is its size.
        floor: ``[batch]``, the size of what is but rounding of the state.
    """

    inverse: Tensor
    floor: Tensor

    @classmethod
    def of(cls, z: Tensor, weight: Tensor, copies: int = 1) -> Units:
        """Those of a state: the root mean square of entries over their weights.

        Arguments:
            z: ``[batch, n]``.
            weight: ``[batch, n]``, the error that a step may make.
            copies: how many stages are solved together.
        """
        batch, n = z.shape
        inverse = (max(n, 1) * copies) ** -0.5 / weight
        floor = norm(z * inverse) * (ROUNDING * torch.finfo(z.dtype).eps * copies**0.5)
        if copies > 1:
            inverse = inverse.unsqueeze(1).expand(-1, copies, -1).reshape(batch, copies * n)
        return cls(inverse, floor)


class Iteration:
    """The iteration of one stage equation, of each sample until it is solved or lost.

    A correction of size d, theta times that of the last, leaves an error of d theta / (1 - theta);
    for the first one theta is that of the stage before. A sample is solved where the error is below
    ``KAPPA`` of what a step may leave, or of the stage's own move where that is less, or where the
    correction is rounding; it is lost where they grow, or after ``MOST`` of them.

    Arguments:
        stage: the equation; its frame has the factors.
        start: a first move, ``[batch, m]``.
        rate: theta, ``[batch]``; NaN for a sample that is lost.
        units: of the corrections.

    Attributes:
        move: ``[batch, m]``.
        rate: theta, ``[batch]``.
        open: ``[batch]`` bool, neither solved nor lost.
        solved: ``[batch]`` bool.
        count: of the iterations so far.
        history: ``open`` after each of them, where nobody looked.

    Reference:
        Hairer, Wanner, Solving Ordinary Differential Equations II (1996), section IV.8.
    """

    def __init__(
        self, stage: Stage, factors: Factors, start: Tensor, rate: Tensor, units: Units
    ) -> None:
        self.stage, self.factors, self.units = stage, factors, units
        self.move, self.rate, self.count = start, rate, 0
        self.history: list[Tensor] = []
        self.open = self.solved = self._size = self._bound = rate
        self._whole = False  # known: every sample is open

    def finish(self) -> None:
        """As many iterations as a sample needs, with a look after each: for the host alone."""
        left = batch = len(self.move)
        while left and self.count < MOST:
            self._iterate()
            left = int(self.open.sum())
            self._whole = left == batch
        if left:
            self.open = torch.zeros_like(self.open)

    def advance(self, count: int) -> None:
        """So many iterations more."""
        for _ in range(min(count, MOST - self.count)):
            self._iterate()
            if self.count == MOST:
                self.open = torch.zeros_like(self.open)
            self.history.append(self.open)

    def _iterate(self) -> None:
        inverse, floor = self.units.inverse, self.units.floor
        correction = self.factors.solve(self.stage.defect(self.move))
        size = torch.linalg.vector_norm(correction * inverse, dim=1)
        moved = self.move + correction
        if not self.count:
            extent = torch.linalg.vector_norm(moved * inverse, dim=1).clamp(max=1)
            self._bound = torch.maximum(extent, floor) * KAPPA
            # As if there had been one before.
            last, self.move, was_open = size / self.rate, moved, None
        elif self._whole:
            last, was_open = self._size, None
            self.move, self.rate = moved, size / last
        else:
            last, was_open = self._size, self.open
            self.move = torch.where(column(was_open), moved, self.move)
            self.rate = torch.where(was_open, size / last, self.rate)
        solved = (size * size <= self._bound * (last - size)) | (size <= floor)
        going = size < last
        if not self.count:
            going = self.rate + size < torch.inf  # nor NaN
            solved = solved & going
        elif was_open is not None:
            solved, going = solved & was_open, going & was_open
        self.open = going & ~solved
        self.solved = solved if was_open is None else self.solved | solved
        self._size, self.count = size, self.count + 1

    @property
    def rate_after(self) -> Tensor:
        """What the next stage begins with, ``[batch]``."""
        return torch.where(self.solved, self.rate, torch.nan)
