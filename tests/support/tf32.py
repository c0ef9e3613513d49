"""What TF32 does to a product on a GPU, on a CPU: its factors lose all but ten bits where torch is
told that they may, and the library takes the tensors for those of a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytest import MonkeyPatch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = (aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv, aten.addmv, aten.dot)
DROPPED = 13
"""Bits of a float32 that TF32 does not have."""


class _Rounding(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.rounded: list[str] = []
        self.exact: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket
        if name in PRODUCTS and any(
            isinstance(leaf, Tensor) and leaf.dtype == torch.float32
            for leaf in pytree.tree_leaves(args)
        ):
            whole = torch.backends.cuda.matmul.fp32_precision != "tf32"
            (self.exact if whole else self.rounded).append(str(name))
            # What is added to a product is not a factor of it.
            own = args[:1] if str(name).startswith("aten.add") or name is aten.baddbmm else ()
            if not whole:
                args = (*own, *pytree.tree_map(_rounded, tuple(args[len(own) :])))
        return func(*args, **(kwargs or {}))


def _rounded(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return value
    half = 1 << (DROPPED - 1)
    bits = (value.view(torch.int32) + half) >> DROPPED << DROPPED
    return bits.view(torch.float32)


@contextmanager
def emulated() -> Iterator[_Rounding]:
    """Tensors of the CPU are taken for those of a device; which products were rounded."""
    with MonkeyPatch.context() as patch, _Rounding() as found:
        patch.setattr(Tensor, "is_cpu", False)  # in a backward pass too, unlike a mode of torch
        yield found


@contextmanager
def allowed(setting: Any = torch.backends.cuda.matmul) -> Iterator[None]:
    """TF32, as torch is told of it."""
    before = setting.fp32_precision
    setting.fp32_precision = "tf32"
    try:
        yield
    finally:
        setting.fp32_precision = before
