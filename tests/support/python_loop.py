"""A loop in Python in the place of ``torch.while_loop``, without the time that tracing takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree


def while_loop(going: Callable[..., Any], step: Callable[..., Any], carried: Any) -> Any:
    """What ``torch.while_loop`` computes."""
    while going(*carried):
        carried = step(*carried)
    return carried


def stacking_loop(going: Callable[..., Any], step: Callable[..., Any], carried: Any) -> Any:
    """What ``implicitcore.graph.kept.stacking_loop`` computes."""
    found = []
    while going(*carried):
        carried = step(*carried)
        found.append(carried)
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *(found or [carried]))
