"""Packing of a state: any pytree of tensors with the batch first <-> one tensor ``[batch, n]``.

It happens once, at the layer's edge. A single tensor is packed by a view.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import InputError
from implicitcore.tensors.restrict import COUNT, SHARED


@dataclass(frozen=True)
class Packing:
    """How a state is laid out in ``[batch, n]``.

    Attributes:
        sizes: entries of each leaf per sample.
        plain: the state is one tensor.
        shape: of the state, where it is one tensor.
    """

    spec: pytree.TreeSpec = field(metadata=SHARED)
    shapes: tuple[tuple[int, ...], ...] = field(metadata=SHARED)
    batch: int = field(metadata=COUNT)
    dtype: torch.dtype
    sizes: tuple[int, ...] = field(init=False, repr=False, compare=False)
    plain: bool = field(init=False, repr=False, compare=False)
    shape: tuple[int, ...] = field(init=False, repr=False, compare=False)

    @classmethod
    def of(cls, z: Any) -> Packing:
        """The packing of states shaped like ``z``.

        Raises:
            InputError: no tensors, no batch dimension, different batch sizes, dtypes or devices, or
                an integer dtype.
        """
        leaves, spec = pytree.tree_flatten(z)
        _check(leaves)
        return cls(
            spec,
            tuple(tuple(leaf.shape[1:]) for leaf in leaves),
            leaves[0].shape[0],
            leaves[0].dtype,
        )

    def __post_init__(self) -> None:
        """What every evaluation asks for; a ``cached_property`` takes a lock."""
        assign = object.__setattr__
        assign(self, "sizes", tuple(map(prod, self.shapes)))
        assign(self, "plain", self.spec.is_leaf())
        assign(self, "shape", (self.batch, *self.shapes[0]))

    def pack(self, z: Any) -> Tensor:
        """A state as ``[batch, n]``; a view where the state is one tensor."""
        if isinstance(z, Tensor):
            return z if z.ndim == 2 else z.reshape(z.shape[0], self.sizes[0])
        leaves = pytree.tree_leaves(z)
        flat = [
            leaf.reshape(leaf.shape[0], size) for leaf, size in zip(leaves, self.sizes, strict=True)
        ]
        return flat[0] if len(flat) == 1 else torch.cat(flat, 1)

    def unpack(self, flat: Tensor) -> Any:
        """``[..., batch, n]`` as a state; leading dimensions (times) stay in front of the batch."""
        if self.plain and len(self.shapes[0]) == 1:
            return flat
        lead = flat.shape[:-1]
        if self.plain:
            return flat.reshape(*lead, *self.shapes[0])
        parts = flat.split(list(self.sizes), -1)
        leaves = [
            part.reshape(*lead, *shape) for part, shape in zip(parts, self.shapes, strict=True)
        ]
        return pytree.tree_unflatten(leaves, self.spec)

    def check(self, value: Any, what: str) -> None:
        """Require that ``value`` has this packing's structure, shapes and dtype.

        Raises:
            InputError: says what was received and what was expected.
        """
        if (
            self.plain
            and isinstance(value, Tensor)
            and value.shape == self.shape
            and value.dtype == self.dtype
        ):
            return
        leaves, spec = pytree.tree_flatten(value)
        if spec != self.spec:
            raise InputError(
                f"{what} returned {_kind(value)} of {len(leaves)} tensors, expected the "
                f"structure of z: {self.spec}"
            )
        for leaf, shape in zip(leaves, self.shapes, strict=True):
            if not isinstance(leaf, Tensor):
                raise InputError(
                    f"{what} returned {_kind(leaf)}, expected a tensor of shape "
                    f"{[self.batch, *shape]}"
                )
            if tuple(leaf.shape[1:]) != shape or leaf.shape[0] != self.batch:
                raise InputError(
                    f"{what} returned shape {list(leaf.shape)}, expected "
                    f"{[self.batch, *shape]} (the shape of z)"
                )
            if leaf.dtype != self.dtype:
                raise InputError(
                    f"{what} returned {leaf.dtype}, expected {self.dtype} (the dtype of z)"
                )


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def _check(leaves: list[Any]) -> None:
    if not leaves:
        raise InputError(
            "the state z holds no tensors; expected a tensor, or a tuple, list or dict of tensors"
        )
    for leaf in leaves:
        problem = _problem(leaf)
        if problem:
            raise InputError(f"the state z holds {problem}")
    if len(leaves) == 1:
        return
    for name in ("dtype", "device"):
        found = {getattr(leaf, name) for leaf in leaves}
        if len(found) > 1:
            raise InputError(
                f"the tensors of the state z differ in {name}: {sorted(map(str, found))}; "
                "expected one"
            )
    batches = {leaf.shape[0] for leaf in leaves}
    if len(batches) > 1:
        raise InputError(
            f"the tensors of the state z differ in batch size: {sorted(batches)}; expected "
            "the batch first in each"
        )


def _problem(leaf: object) -> str:
    """Why a leaf cannot be part of a state; empty where it can."""
    if not isinstance(leaf, Tensor):
        return f"{_kind(leaf)}; expected tensors only"
    if leaf.ndim == 0:
        return "a tensor with no dimensions; expected the batch first: [batch, ...]"
    if not (leaf.is_floating_point() or leaf.is_complex()):
        return f"a tensor of dtype {leaf.dtype}; expected a floating-point or complex dtype"
    return ""
