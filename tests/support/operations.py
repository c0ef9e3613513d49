"""The torch operations that a piece of code runs."""

from __future__ import annotations

import gc
import sys
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """``names`` has those run while it is entered, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def python_calls(work):
    """Calls of Python functions, the work's own left out, and what is collected meanwhile."""
    found = []
    gc.collect()
    gc.disable()
    sys.setprofile(lambda frame, event, arg: found.append(frame) if event == "call" else None)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return len(found) - 1
