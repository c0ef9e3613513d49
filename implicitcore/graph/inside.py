"""The inside of an operation of a graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import torch
from torch import Tensor


@contextmanager
def inside() -> Iterator[None]:
    """What is inside of an operation is out of reach of autograd, which a trace of f needs."""
    with torch._C._ForceDispatchKeyGuard(*_PLAIN), torch.no_grad():
        yield


def _plain_dispatch() -> tuple[Any, Any]:
    """What a new thread dispatches to: outside of all operations and modes."""
    found: list[Any] = []

    def read() -> None:
        found.append(torch._C._dispatch_tls_local_include_set())
        found.append(torch._C._dispatch_tls_local_exclude_set())

    thread = Thread(target=read)
    thread.start()
    thread.join()
    return found[0], found[1]


_PLAIN = _plain_dispatch()


def owned(tensor: Tensor) -> Tensor:
    """With a memory of its own, as an operation gives it."""
    return tensor.clone(memory_format=torch.contiguous_format)
