"""One evaluation of a system."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from implicitcore.backends.base import Residual


class Evaluation(NamedTuple):
    """An iterate and what f gave there: solvers hand it on, and nothing of it is computed twice."""

    z: Tensor  # [batch, n]
    fz: Tensor  # [batch, n], f(z)
    residual: Residual  # f(z) - z and its norms
