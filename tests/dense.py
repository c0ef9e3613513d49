"""Dense float64 computations that the tests compare with: those of the contract kit, and a gradient
at a point that is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from implicitcore.testing.dense import fixed_point as fixed_point
from implicitcore.testing.dense import jacobians as jacobians
from implicitcore.testing.dense import relative_error as relative_error
from implicitcore.testing.problems import Cell as Cell
from implicitcore.testing.problems import inputs as inputs


def implicit_gradient(
    f: Callable[[Tensor], Tensor], z: Tensor, v: Tensor, wrt: Sequence[Tensor]
) -> list[Tensor]:
    """u^T df with (I - J)^T u = v, at the fixed point z."""
    identity = torch.eye(z.shape[1], dtype=z.dtype)
    u = torch.linalg.solve((identity - jacobians(f, z).detach()).transpose(1, 2), v)
    return list(torch.autograd.grad(f(z), wrt, u, retain_graph=True))
