"""What a function may do that a CUDA graph is to do in its place, seen operation by operation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils import _pytree as pytree
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode

from implicitcore.errors import show


class CaptureError(RuntimeError):
    """Work that cannot be recorded; says why.  Never leaves the library."""


_ON_HOST = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_NORMS = frozenset({"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"})
"""Operations that write their running statistics without saying so, in training."""


class WatchedCapture(TorchDispatchMode):
    """Raises where an operation would not do, as part of a CUDA graph, what it does by itself.

    Arguments:
        known: what may be read: memory that stays where it is, and is not replaced unseen.
        device: on which all is to be computed.

    Attributes:
        reason: what was seen, also where the function has caught the exception.
    """

    def __init__(self, known: Iterable[Tensor], device: torch.device) -> None:
        super().__init__()
        self.device, self.reason = device, ""
        self.known = {_address(tensor) for tensor in known}
        self.made: set[int] = set()
        self.arguments: set[int] = set()

    @contextmanager
    def reading(self, *tensors: Tensor) -> Iterator[None]:
        """Watch a call that may read these, and not write into them.

        Raises:
            CaptureError: something was seen, if only by the function, which caught the exception.
        """
        self.arguments = {_address(tensor) for tensor in tensors}
        with self:
            yield
        self.check()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        problem = self._problem(func, args, kwargs)
        found = None if problem else func(*args, **kwargs)
        for leaf in _tensors(found):
            if leaf.device != self.device:
                problem = f"it computes on {leaf.device} ({func.overloadpacket})"
            elif _address(leaf) not in self.known | self.arguments:
                self.made.add(_address(leaf))
        if problem:
            self.reason = self.reason or problem
            raise CaptureError(problem)
        return found

    def check(self) -> None:
        """Raise where something was seen.

        Raises:
            CaptureError: says what.
        """
        if self.reason:
            raise CaptureError(self.reason)

    def _problem(self, func: Any, args: Any, kwargs: Any) -> str:
        name = str(func.overloadpacket)
        if _reads_host(func, args):
            return f"it reads values on the host ({name})"
        if kwargs.get("generator") is not None:
            return f"it draws from a generator of its own ({name})"
        for leaf in _tensors((args, kwargs)):
            if leaf.numel() and _address(leaf) not in self.known | self.made | self.arguments:
                return (
                    f"it reads a tensor {list(leaf.shape)} that is no parameter, buffer or "
                    "attribute of it, nor in x"
                )
        for leaf in _written(func, args, kwargs):
            if _address(leaf) in self.known | self.arguments:
                return f"it writes into a tensor {list(leaf.shape)} that it reads ({name})"
        return ""


def _reads_host(func: Any, args: Any) -> bool:
    """Whether the host must know values; of an index, where it is a mask."""
    if func.overloadpacket is torch.ops.aten.index:
        return any(leaf.dtype in (torch.bool, torch.uint8) for leaf in _tensors(args[1]))
    return not _ON_HOST.isdisjoint(func.tags)


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """The tensors that an operation writes into."""
    if func.overloadpacket.__name__ in _NORMS and args[5]:
        yield from _tensors(args[3:5])
    for place, entry in enumerate(func._schema.arguments):
        if entry.alias_info is not None and entry.alias_info.is_write:
            yield from _tensors(args[place] if place < len(args) else kwargs.get(entry.name))


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))


def _address(tensor: Tensor) -> int:
    """That of all memory that a tensor is a view of."""
    return tensor.untyped_storage().data_ptr()


def described(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensors have in common where one may stand in for the other in a graph.

    Raises:
        CaptureError: it is no plain tensor.
    """
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
        raise CaptureError(f"it reads {show(tensor)}, which is no plain tensor")
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def placed(tensor: Tensor) -> tuple[Any, ...]:
    """The same, and where it is.

    Raises:
        CaptureError: it is no plain tensor.
    """
    return tensor.data_ptr(), *described(tensor)


def modes_watch() -> bool:
    """Whether a mode of torch is to see each operation; one that sets the device need not."""
    if torch._C._len_torch_dispatch_stack():
        return True
    modes = _get_current_function_mode_stack() if torch._C._len_torch_function_stack() else ()
    return not all(isinstance(mode, DeviceContext) for mode in modes)


@contextmanager
def autocast_uncached() -> Iterator[None]:
    """Autocast whose casts are all made inside: one kept from before would be freed."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
