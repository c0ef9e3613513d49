"""A loop in Python in the place of ``torch.while_loop``, without the time that tracing takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def while_loop(going: Callable[..., Any], step: Callable[..., Any], carried: Any) -> Any:
    """What ``torch.while_loop`` computes."""
    while going(*carried):
        carried = step(*carried)
    return carried
