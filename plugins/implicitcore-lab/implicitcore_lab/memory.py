"""Peak memory of a piece of work, counted the same way for every layer."""

from __future__ import annotations

import resource
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Bytes that ``work`` holds at its fullest moment, beyond what was held before it.

    On CUDA the allocator's own count; on a CPU the storages of all tensors that torch operations
    return, counted while they live: the same number in every run, whatever the allocator does.

    Arguments:
        work: what to measure.
        device: where its tensors lie.

    Returns:
        The peak, in bytes.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveBytes() as counter:
        work()
    return counter.peak


def process_peak(device: torch.device) -> int:
    """The most bytes held so far.

    The CUDA allocator's since its count was last reset, or the process's largest resident memory.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes * (1 if sys.platform == "darwin" else 1024)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, until each storage dies.

    What they are given was there before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note((args, kwargs), made=False)
        result = func(*args, **(kwargs or {}))
        self._note(result, made=True)
        return result

    def _note(self, tensors: Any, *, made: bool) -> None:
        for leaf in tree_leaves(tensors):
            for part in _strided(leaf) if isinstance(leaf, Tensor) else ():
                storage = part.untyped_storage()
                if storage._cdata not in self._seen:
                    self._watch(storage, storage.nbytes() if made else 0)

    def _watch(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata

        def died(_: object) -> None:
            self.live -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, died)
        self.live += size
        self.peak = max(self.peak, self.live)


def _strided(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors with memory that a tensor consists of: a sparse one is its indices and values."""
    if tensor.layout is torch.strided:
        return (tensor,)
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
