"""What may be a state, and what is like one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import InputError
from implicitcore.tensors.shared import is_marked

DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
)
"""What states may be of: those in which torch has all operations of the solvers."""


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def check_returned(
    value: Any,
    what: str,
    state: tuple[pytree.TreeSpec, Sequence[Sequence[int]], Sequence[torch.dtype], torch.device],
) -> None:
    """Require that ``value`` is as a state, given as its structure, shapes, dtypes and device.

    Raises:
        InputError: says what was received and what was expected.
    """
    spec, shapes, dtypes, device = state
    leaves, found = pytree.tree_flatten(value)
    if found != spec:
        expected = f"the structure of z: {spec}"
        if spec.is_leaf():
            expected = f"one tensor of shape {[*shapes[0]]}, the next state"
        raise InputError(
            f"{what} returned {_kind(value)} of {len(leaves)} tensors, expected {expected}"
        )
    for leaf, shape, dtype in zip(leaves, shapes, dtypes, strict=True):
        problem = _difference(leaf, shape, (dtype, device))
        if problem:
            raise InputError(f"{what} returned {problem}")


def _difference(leaf: Any, shape: Sequence[int], kind: Sequence[Any]) -> str:
    """How a leaf differs from that of the state; empty where it does not."""
    if not isinstance(leaf, Tensor):
        return f"{_kind(leaf)}, expected a tensor of shape {[*shape]}"
    if tuple(leaf.shape) != shape:
        return f"shape {list(leaf.shape)}, expected {[*shape]} (the shape of z)"
    for name, expected in zip(("dtype", "device"), kind, strict=True):
        found = getattr(leaf, name)
        if found != expected:
            where = "a tensor on " if name == "device" else ""
            return f"{where}{found}, expected {expected} (the {name} of z)"
    return ""


def check_state(z: Any, leaves: Sequence[Any], *, coupled: bool, mixed: bool = False) -> None:
    """Require that ``z``, of these leaves, is a state; ``mixed`` ones have several dtypes.

    Raises:
        InputError: see :meth:`Packing.of`.
    """
    if is_marked(z):
        raise InputError(
            "the state z is marked as shared; expected a plain start, one for each sample"
        )
    if not leaves:
        raise InputError(
            "the state z holds no tensors; expected a tensor, or a tuple, list or dict of tensors"
        )
    for leaf in leaves:
        problem = _problem(leaf)
        if problem:
            raise InputError(f"the state z holds {problem}")
    # One by one with the first: a trace would take a size that it puts into a set for a constant.
    first, *others = leaves
    for name in ("device",) if mixed else ("dtype", "device"):
        if any(getattr(leaf, name) != getattr(first, name) for leaf in others):
            found = sorted({str(getattr(leaf, name)) for leaf in leaves})
            raise InputError(f"the tensors of the state z differ in {name}: {found}; expected one")
    if not coupled and any(leaf.shape[0] != first.shape[0] for leaf in others):
        found = sorted({leaf.shape[0] for leaf in leaves})
        raise InputError(
            f"the tensors of the state z differ in batch size: {found}; expected "
            "the batch first in each"
        )


def _problem(leaf: object) -> str:
    """Why a leaf cannot be part of a state; empty where it can."""
    if not isinstance(leaf, Tensor):
        return f"{_kind(leaf)}; expected tensors only"
    if leaf.ndim == 0:
        return "a tensor with no dimensions; expected the batch first: [batch, ...]"
    if leaf.layout is not torch.strided:
        return f"a tensor of layout {leaf.layout}; expected a dense one: z.to_dense()"
    if leaf.is_meta:
        return "a tensor on the meta device, which has no values; expected one on another device"
    if not (leaf.is_floating_point() or leaf.is_complex()):
        return f"a tensor of dtype {leaf.dtype}; expected a floating-point or complex dtype"
    if leaf.dtype not in DTYPES:
        return f"a tensor of dtype {leaf.dtype}, with which torch does not compute: z.float()"
    return ""
