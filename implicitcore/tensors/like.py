"""Whether a tensor that somebody's code returned is like the one it is to go on from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from implicitcore.errors import InputError, show


def check_like(value: Any, like: Tensor, owner: object, method: str) -> None:
    """Require a tensor of the same shape, dtype and device: torch would broadcast it in silence.

    Comparisons in Python alone: it is asked once a step.

    Arguments:
        value: what was returned.
        like: what it should be like.
        owner: the part that returned it.
        method: of the part.

    Raises:
        InputError: says what was received and what was expected.
    """
    if (
        isinstance(value, Tensor)
        and value.shape == like.shape
        and value.dtype is like.dtype
        and value.device == like.device
    ):
        return
    what = f"{type(owner).__name__}.{method}"
    raise InputError(f"{what}: received {described(value)}, expected {described(like)}")


def described(value: Any) -> str:
    """A tensor's shape, dtype and device; of anything else what it is."""
    if not isinstance(value, Tensor):
        return show(value)
    layout = "" if value.layout is torch.strided else f" ({value.layout})"
    return f"shape {list(value.shape)}, {value.dtype} on {value.device}{layout}"
