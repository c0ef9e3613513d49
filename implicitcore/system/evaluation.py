"""One evaluation of a system."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.tensors.norms import column


class Evaluation(NamedTuple):
    """An iterate and what f gave there: solvers hand it on, and nothing of it is computed twice."""

    z: Tensor  # [batch, n]
    fz: Tensor  # [batch, n], f(z)
    residual: Residual  # f(z) - z and its norms

    def where(self, rows: Tensor, other: Evaluation) -> Evaluation:
        """This one for the samples ``rows`` ``[batch]``, and the other one for all others."""
        wide, g, kept = column(rows), self.residual, other.residual
        residual = Residual(
            torch.where(wide, g.value, kept.value),
            torch.where(rows, g.norm, kept.norm),
            torch.where(rows, g.update_norm, kept.update_norm),
        )
        z, fz = torch.where(wide, self.z, other.z), torch.where(wide, self.fz, other.fz)
        return Evaluation(z, fz, residual)
