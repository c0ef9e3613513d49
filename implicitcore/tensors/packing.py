"""Packing of a state: any pytree of tensors with the batch first <-> one tensor ``[batch, n]``.

It happens once, at the layer's edge. A single tensor is packed by a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import InputError
from implicitcore.tensors.norms import DOUBLE
from implicitcore.tensors.restrict import COUNT, SHARED
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

_LEAF = pytree.tree_structure(0)


@dataclass(frozen=True)
class Packing:
    """How a state is laid out in ``[batch, n]``.

    A coupled batch, whose samples depend on each other, is one sample: its states are ``[1, n]``,
    with one norm, one step and one stop test for all of them.

    Attributes:
        spec: the structure of the state.
        shapes: of each leaf, without the batch; of the whole leaf where the batch is coupled.
        batch: samples that are solved apart from each other: 1 where the batch is coupled.
        dtype: of every leaf.
        device: of every leaf.
        coupled: the samples depend on each other.
        sizes: entries of each leaf per sample.
        plain: the state is one tensor.
        flat: the state is one tensor ``[batch, n]``, packed as it is.
        full_shapes: of each leaf, as the user gives and gets it.
        spread_shape: of times, to broadcast with the first leaf: -1, 1, .., 1.
        real_dtype: of norms and times.
    """

    spec: pytree.TreeSpec = field(metadata=SHARED)
    shapes: tuple[tuple[int, ...], ...] = field(metadata=SHARED)
    batch: int = field(metadata=COUNT)
    dtype: torch.dtype
    device: torch.device = field(metadata=SHARED)
    coupled: bool = False
    sizes: tuple[int, ...] = field(init=False, repr=False, compare=False)
    plain: bool = field(init=False, repr=False, compare=False)
    flat: bool = field(init=False, repr=False, compare=False)
    full_shapes: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)
    spread_shape: tuple[int, ...] = field(init=False, repr=False, compare=False)
    real_dtype: torch.dtype = field(init=False, repr=False, compare=False)

    @classmethod
    def of(cls, z: Any, *, coupled: bool = False, real: bool = False) -> Packing:
        """The packing of states shaped like ``z``.

        Arguments:
            z: a state.
            coupled: its samples depend on each other.
            real: complex states are packed as their real and imaginary parts.

        Raises:
            InputError: no tensors, no batch dimension, different batch sizes, dtypes or devices, or
                an integer dtype.
        """
        if type(z) not in _PLAIN:
            return cls._of(z, coupled, real)
        key = (z.shape, z.dtype, z.device, z.layout, coupled, real)
        packing = _KNOWN.get(key)
        if packing is None:
            packing = cls._of(z, coupled, real)
            if len(_KNOWN) == _MOST:
                _KNOWN.clear()
            _KNOWN[key] = packing
        return packing

    @classmethod
    def _of(cls, z: Any, coupled: bool, real: bool) -> Packing:
        leaves, spec = ([z], _LEAF) if isinstance(z, Tensor) else pytree.tree_flatten(z)
        check_state(z, leaves, coupled=coupled)
        shapes, dtype = tuple(tuple(leaf.shape) for leaf in leaves), leaves[0].dtype
        kind = RealPacking if real and dtype.is_complex else cls
        if coupled:
            return kind(spec, shapes, 1, dtype, leaves[0].device, coupled=True)
        parts, batch = tuple(shape[1:] for shape in shapes), shapes[0][0]
        return kind(spec, parts, batch, dtype, leaves[0].device)

    def __post_init__(self) -> None:
        """What every evaluation asks for; a ``cached_property`` takes a lock."""
        put = object.__setattr__
        lead = () if self.coupled else (self.batch,)
        put(self, "sizes", tuple(map(prod, self.shapes)))
        put(self, "plain", self.spec.is_leaf())
        put(self, "flat", self.plain and not self.coupled and len(self.shapes[0]) == 1)
        put(self, "full_shapes", tuple((*lead, *shape) for shape in self.shapes))
        put(self, "spread_shape", (-1, *(1,) * (len(self.full_shapes[0]) - 1)))
        put(self, "real_dtype", torch.float64 if self.dtype in DOUBLE else torch.float32)

    def pack(self, z: Any) -> Tensor:
        """A state as ``[batch, n]``; a view where the state is one tensor."""
        if self.flat:
            return z if isinstance(z, Tensor) else pytree.tree_leaves(z)[0]
        parts = [
            leaf.reshape(self.batch, size)
            for leaf, size in zip(pytree.tree_leaves(z), self.sizes, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def unpack(self, flat: Tensor) -> Any:
        """``[..., batch, n]`` as a state; leading dimensions (times) stay in front of the batch."""
        if self.flat:
            return flat
        lead = flat.shape[:-2]
        if self.plain:
            return flat.reshape(*lead, *self.full_shapes[0])
        parts = flat.split(list(self.sizes), -1)
        leaves = [
            part.reshape(*lead, *shape) for part, shape in zip(parts, self.full_shapes, strict=True)
        ]
        return pytree.tree_unflatten(leaves, self.spec)

    def spread(self, t: Tensor) -> Tensor:
        """Times ``[batch]`` with as many dimensions as the state's first tensor, to broadcast."""
        return t.reshape(self.spread_shape)

    def fits(self, value: Any) -> bool:
        """Whether the state is one tensor, and the value another like it."""
        return (
            self.plain
            and isinstance(value, Tensor)
            and value.shape == self.full_shapes[0]
            and value.dtype == self.dtype
            and value.device == self.device
        )

    def check(self, value: Any, what: str) -> None:
        """Require that ``value`` has this packing's structure, shapes and dtype.

        Raises:
            InputError: says what was received and what was expected.
        """
        check_returned(value, what, (self.spec, self.full_shapes, self.dtype, self.device))


@dataclass(frozen=True)
class RealPacking(Packing):
    """Complex states as their real and imaginary parts, ``[batch, 2 n]``.

    For a solver of real numbers: f still takes and returns the complex ones.
    """

    def __post_init__(self) -> None:
        """Every state goes through :meth:`pack` and :meth:`unpack`."""
        super().__post_init__()
        object.__setattr__(self, "plain", False)
        object.__setattr__(self, "flat", False)

    def pack(self, z: Any) -> Tensor:
        """See :meth:`Packing.pack`."""
        return to_real(super().pack(z))

    def unpack(self, flat: Tensor) -> Any:
        """See :meth:`Packing.unpack`."""
        return super().unpack(to_complex(flat))


def to_real(z: Tensor) -> Tensor:
    """``[..., n]`` complex as ``[..., 2 n]`` real, a view; the 2-norm is the same."""
    return torch.view_as_real(z.resolve_conj()).flatten(-2)


def to_complex(y: Tensor) -> Tensor:
    """``[..., 2 n]`` real as ``[..., n]`` complex."""
    pairs = y.unflatten(-1, (-1, 2)) if y.shape[-1] else y.reshape(*y.shape, 2)
    return torch.view_as_complex(pairs.contiguous())


# The packings of states that are one tensor, which every solve asks for: they follow from the key.
_PLAIN, _KNOWN, _MOST = (Tensor, torch.nn.Parameter), dict[tuple[Any, ...], Packing](), 256


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def check_returned(
    value: Any,
    what: str,
    state: tuple[pytree.TreeSpec, Sequence[Sequence[int]], torch.dtype, torch.device],
) -> None:
    """Require that ``value`` is as a state, given as its structure, shapes, dtype and device.

    Raises:
        InputError: says what was received and what was expected.
    """
    spec, shapes, *kind = state
    leaves, found = pytree.tree_flatten(value)
    if found != spec:
        expected = f"the structure of z: {spec}"
        if spec.is_leaf():
            expected = f"one tensor of shape {[*shapes[0]]}, the next state"
        raise InputError(
            f"{what} returned {_kind(value)} of {len(leaves)} tensors, expected {expected}"
        )
    for leaf, shape in zip(leaves, shapes, strict=True):
        problem = _difference(leaf, shape, kind)
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


def check_state(z: Any, leaves: Sequence[Any], *, coupled: bool) -> None:
    """Require that ``z``, of these leaves, is a state.

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
    for name in ("dtype", "device"):
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
