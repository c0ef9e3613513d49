"""Where and when the stages of an explicit method are evaluated."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.ode_solvers.tableaus import Tableau

# With more stages their times are found together.
MANY = 3


class OneByOne(NamedTuple):
    """Each combination of the stages by itself."""

    backend: Backend
    tableau: Tableau
    z: Tensor
    dt: Tensor

    def __call__(self, stages: Sequence[Tensor], row: int, *, move: bool = False) -> Tensor:
        """See :class:`StageSums`."""
        base, weights = None if move else self.z, self.tableau.rows[row]
        return self.backend.stage_combination(base, self.dt, stages, weights)


def moments_of(t: Tensor, dt: Tensor, nodes: tuple[float, ...]) -> Sequence[Tensor]:
    """The times of the stages after the first."""
    if len(nodes) > MANY and not torch.compiler.is_compiling():
        return torch.addcmul(t, _nodes(nodes, t.dtype, t.device), dt).unbind(0)
    found, reached, moment = [], 0.0, t
    for node in nodes:
        if node != reached:
            reached, moment = node, torch.add(t, dt, alpha=node)
        found.append(moment)
    return found


@functools.cache
def _nodes(nodes: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Those of a method, ``[stages, 1]``."""
    with torch.inference_mode(False):
        return torch.tensor(nodes, dtype=torch.float64, device="cpu").to(device, dtype)[:, None]
