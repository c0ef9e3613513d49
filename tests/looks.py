"""How often a loop waits for its accelerator, counted on a machine that has none.

Tensors on the device ``meta`` have no values, so every look at one, and every copy from the host,
can be caught: a loop that is told what it reads runs as it would on CUDA.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
WAITS = (aten.equal, aten.masked_select, aten.nonzero)
"""Operations whose result's shape, or truth, the host must know."""
MADE = (torch.tensor, torch.as_tensor, Tensor.new_tensor)
"""What copies a Python value to the device."""


class Looks:
    """Counts each wait by the operation.

    Arguments:
        answer: the values of a tensor that the host reads.
    """

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        self.seen: Counter[str] = Counter()
        self._modes = _Operations(self, answer), _Functions(self)

    def __enter__(self) -> Looks:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*exc)

    def note(self, operation: Any) -> None:
        self.seen[str(operation)] += 1


class _Operations(TorchDispatchMode):
    def __init__(self, looks: Looks, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.looks, self.answer = looks, answer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket
        if name is aten._local_scalar_dense and args[0].is_meta:
            self.looks.note(name)
            return self.answer(args[0]).item()
        if (
            name is aten._to_copy
            and kwargs.get("device") is not None
            and torch.device(kwargs["device"]) != args[0].device
        ):
            self.looks.note(name)
            if args[0].is_meta:
                return self.answer(args[0])
        if name in WAITS or (name is aten.copy_ and args[0].device != args[1].device):
            self.looks.note(name)
        return func(*args, **kwargs)


class _Functions(TorchFunctionMode):
    def __init__(self, looks: Looks) -> None:
        super().__init__()
        self.looks = looks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in MADE and found.is_meta:
            self.looks.note(func.__name__)
        return found
