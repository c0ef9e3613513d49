"""How often a loop makes the host wait for its accelerator, counted without one.

Tensors on the device ``meta`` have no values, so every read of one by the host, and every copy from
the host, can be intercepted. Given the values that it reads, a loop runs as it would on CUDA.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
DATA_DEPENDENT = (aten.equal, aten.masked_select, aten.nonzero)
"""Operations whose result, or its shape, the host must know."""
FREE = (
    "aten._local_scalar_dense",
    "aten._to_copy",
    "aten.empty_like",
    "aten.new_empty",
    "aten._unsafe_view",
)
"""Operations on a device that launch no kernel: allocations, and waits, which are counted apart."""
FROM_HOST = (torch.tensor, torch.as_tensor, Tensor.new_tensor)
"""Functions that copy a Python value to the device."""
IS_META = Tensor.is_meta.__get__  # pyright: ignore[reportAttributeAccessIssue] - a descriptor


class HostSyncs:
    """Counts the host's waits by operation, in ``counts``, and kernels launched, in ``launches``.

    Arguments:
        values: the values of a tensor that the host reads.
    """

    def __init__(self, values: Callable[[Tensor], Tensor]) -> None:
        self.counts: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.aside = False  # what runs now is not ours
        self._modes = _Operations(self, values), _Functions(self)

    def __enter__(self) -> HostSyncs:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*exc)

    def count(self, operation: Any) -> None:
        self.counts[str(operation)] += 1


def all_accept(batch: int) -> Callable[[Tensor], Tensor]:
    """What the host reads of an integration whose every step all samples accept, far from the end.

    Times are checked first: monotone, finite, forward, and not far from zero.
    """
    flags, numbers = iter((True, True, True, False)), iter((0.0,))

    def values(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.bool:
            return torch.tensor(next(flags, True))
        if tensor.is_floating_point():  # the start of the span, then its end
            return torch.full(tensor.shape, next(numbers, 1.0))
        # How many take over the end of the step, arrive and refuse it; or how many are active.
        counts = [batch] + [0] * (tensor.numel() - 1)
        return torch.tensor(counts) if tensor.ndim else torch.tensor(batch)

    return values


class _Operations(TorchDispatchMode):
    def __init__(self, syncs: HostSyncs, values: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.syncs, self.values = syncs, values

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket
        if not self.syncs.aside and str(name) not in FREE and not func.is_view:
            leaves = pytree.tree_leaves((args, kwargs))
            if any(isinstance(leaf, Tensor) and _on_meta(leaf) for leaf in leaves):
                self.syncs.launches[str(name)] += 1
        if name is aten._local_scalar_dense and _on_meta(args[0]):
            self.syncs.count(name)
            return self.values(args[0]).item()
        if (
            name is aten._to_copy
            and kwargs.get("device") is not None
            and torch.device(kwargs["device"]) != args[0].device
        ):
            self.syncs.count(name)
            if _on_meta(args[0]):
                return self.values(args[0])
        if (name in DATA_DEPENDENT and _on_meta(args[0])) or (
            name is aten.copy_ and args[0].device != args[1].device
        ):
            self.syncs.count(name)
        if name is aten.equal and _on_meta(args[0]):  # it has no kernel there
            return True
        return func(*args, **kwargs)


class _Functions(TorchFunctionMode):
    def __init__(self, syncs: HostSyncs) -> None:
        super().__init__()
        self.syncs = syncs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == IS_META:  # a solve refuses such tensors, and these stand for others
            return False
        found = func(*args, **(kwargs or {}))
        if func in FROM_HOST and _on_meta(found):
            self.syncs.count(func.__name__)
        return found


def _on_meta(tensor: Tensor) -> bool:
    return tensor.device.type == "meta"
