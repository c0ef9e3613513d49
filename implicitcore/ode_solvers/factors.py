"""The factorised matrices of the simplified Newton method."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from implicitcore.tensors.norms import column, real_dtype

# So few rows are factorised anew in each step: what more iterations with old factors cost is more.
SMALL = 128

# The factors serve while dt is within this share of theirs.
DRIFT = 0.1


class Factors(NamedTuple):
    """The LU factors of I - dt (A x J), of each sample."""

    lu: Tensor  # [batch, m, m]
    pivots: Tensor  # [batch, m] int32
    dt: Tensor  # [batch], that of the matrix; zero where it is to be made anew

    @classmethod
    def none(cls, jacobian: Tensor, rows: int) -> Factors:
        """Those of dt = 0, for matrices like J ``[batch, n, n]``."""
        batch, device = len(jacobian), jacobian.device
        unit = torch.eye(rows, dtype=real_dtype(jacobian), device=device).expand(batch, -1, -1)
        pivots = torch.arange(1, rows + 1, dtype=torch.int32, device=device).expand(batch, -1)
        return cls(unit.contiguous(), pivots.contiguous(), unit.new_zeros(batch))

    @classmethod
    def of(cls, coupling: Tensor, dt: Tensor, jacobian: Tensor) -> Factors:
        """Those of a step.

        Arguments:
            coupling: A ``[k, k]``, of the stages that are solved together.
            dt: ``[batch]``.
            jacobian: J ``[batch, n, n]``.
        """
        batch, n, k = len(jacobian), jacobian.shape[1], len(coupling)
        matrix = (jacobian * dt.view(-1, 1, 1)).view(batch, 1, n, 1, n) * coupling.view(k, 1, k, 1)
        unit = torch.eye(k * n, dtype=matrix.dtype, device=matrix.device)
        factors, pivots, _ = torch.linalg.lu_factor_ex(unit - matrix.reshape(batch, k * n, k * n))
        return cls(factors, pivots, dt)

    def renewed(self, coupling: Tensor, dt: Tensor, jacobian: Tensor) -> Factors:
        """The same where dt is near theirs, new ones where it is not.

        All are made where one is needed, and each sample keeps its own where it needs none: what is
        its own does not depend on the others.
        """
        if not self.old:
            return self.of(coupling, dt, jacobian)
        wrong = (dt - self.dt).abs() > DRIFT * self.dt.abs()
        if not bool(wrong.any()):
            return self
        new = self.of(coupling, dt, jacobian)
        return Factors(
            torch.where(wrong[:, None, None], new.lu, self.lu),
            torch.where(column(wrong), new.pivots, self.pivots),
            torch.where(wrong, dt, self.dt),
        )

    @property
    def old(self) -> bool:
        """They may be of another step."""
        return self.lu.shape[1] > SMALL

    def solve(self, right: Tensor) -> Tensor:
        """The solutions for ``[batch, m]``."""
        if right.dtype == self.lu.dtype:
            return torch.linalg.lu_solve(self.lu, self.pivots, right.unsqueeze(2)).squeeze(2)
        return self.solve(right.to(self.lu.dtype)).to(right.dtype)
