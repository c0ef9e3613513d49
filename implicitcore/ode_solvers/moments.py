"""When the stages of an explicit method are evaluated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from implicitcore.tensors.transforms import in_graph

# With more stages their times are found together.
MANY = 3


def moments_of(
    t: Tensor, dt: Tensor, nodes: tuple[float, ...], times: Callable[[Tensor], Tensor]
) -> Sequence[Tensor]:
    """The times of the stages after the first, ``times`` makes them what the field takes."""
    if len(nodes) > MANY and not in_graph():
        return times(torch.addcmul(t, _nodes(nodes, t.dtype, t.device), dt)).unbind(0)
    found, reached, moment = [], 0.0, times(t)
    for node in nodes:
        if node != reached:
            reached, moment = node, times(torch.add(t, dt, alpha=node))
        found.append(moment)
    return found


@functools.cache
def _nodes(nodes: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Those of a method, ``[stages, 1]``."""
    with torch.inference_mode(False):
        return torch.tensor(nodes, dtype=torch.float64, device="cpu").to(device, dtype)[:, None]
