"""Autocast around f and nothing else: a solver's own products would lose its state's precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_T = TypeVar("_T")
_DEVICE_TYPES = ("cpu", "cuda", "xpu", "mps")

Autocast = tuple[tuple[str, torch.dtype], ...]
"""The device types with autocast on, and to which dtype; empty where it is off."""


def ambient() -> Autocast:
    """The autocast of the code that asks."""
    found: Autocast = ()
    if not torch._C._is_any_autocast_enabled():
        return found
    asked = torch.is_autocast_enabled
    for device in _DEVICE_TYPES:
        if asked(device):
            found += ((device, torch.get_autocast_dtype(device)),)
    return found


def promoted(z: Any, autocast: Autocast) -> Any:
    """The state in float32, where autocast made it a low precision.

    What f is computed in is not what z is kept in.
    """
    if not autocast:
        return z
    low = {dtype for _, dtype in autocast}
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.float() if leaf.dtype in low else leaf, z)


@contextmanager
def restored(state: Autocast) -> Iterator[None]:
    """Autocast as it was, for f."""
    with ExitStack() as stack:
        for device, dtype in state:
            stack.enter_context(torch.autocast(device, dtype))
        yield


@contextmanager
def suspended() -> Iterator[None]:
    """No autocast, for a solver; also a decorator."""
    state = ambient()
    if not state:
        yield
        return
    with ExitStack() as stack:
        for device, dtype in state:
            stack.enter_context(torch.autocast(device, dtype, enabled=False))
        yield


def without_autocast(function: Callable[..., _T], *arguments: Any) -> _T:
    """What the function returns with autocast suspended: at no cost where there is none."""
    if not ambient():
        return function(*arguments)
    with suspended():
        return function(*arguments)
