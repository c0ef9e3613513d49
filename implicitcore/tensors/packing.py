"""Packing of a state: any pytree of tensors with the batch first <-> one tensor ``[batch, n]``.

It happens once, at the layer's edge. A single tensor is packed by a view.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.tensors.norms import DOUBLE
from implicitcore.tensors.restrict import COUNT, SHARED
from implicitcore.tensors.state import check_returned, check_state

_LEAF = pytree.tree_structure(0)


@dataclass(frozen=True)
class Packing:
    """How a state is laid out in ``[batch, n]``.

    A coupled batch, whose samples depend on each other, is one sample: its states are ``[1, n]``,
    with one norm, one step and one stop test for all of them.

    Tensors of different dtypes are packed in the one that holds them all, in which the solver
    computes. f receives each in its own and returns it so, and so are states and gradients. No
    tolerance is met beyond what the lowest rounds, and t comes in the lowest, float32 at least.

    Attributes:
        spec: the structure of the state.
        shapes: of each leaf, without the batch; of the whole leaf where the batch is coupled.
        batch: samples that are solved apart from each other: 1 where the batch is coupled.
        dtype: of the packed state, that of every leaf, or the one that holds them all.
        device: of every leaf.
        coupled: the samples depend on each other.
        dtypes: of each leaf, where they differ; else empty.
        sizes: entries of each leaf per sample.
        plain: the state is one tensor.
        flat: the state is one tensor ``[batch, n]``, packed as it is.
        full_shapes: of each leaf, as the user gives and gets it.
        spread_shape: of times, to broadcast with the first leaf: -1, 1, .., 1.
    """

    spec: pytree.TreeSpec = field(metadata=SHARED)
    shapes: tuple[tuple[int, ...], ...] = field(metadata=SHARED)
    batch: int = field(metadata=COUNT)
    dtype: torch.dtype
    device: torch.device = field(metadata=SHARED)
    coupled: bool = False
    dtypes: tuple[torch.dtype, ...] = field(default=(), metadata=SHARED)
    sizes: tuple[int, ...] = field(init=False, repr=False, compare=False)
    plain: bool = field(init=False, repr=False, compare=False)
    flat: bool = field(init=False, repr=False, compare=False)
    full_shapes: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)
    spread_shape: tuple[int, ...] = field(init=False, repr=False, compare=False)

    @classmethod
    def of(cls, z: Any, *, coupled: bool = False, real: bool = False) -> Packing:
        """The packing of states shaped like ``z``.

        Arguments:
            z: a state.
            coupled: its samples depend on each other.
            real: complex states are packed as their real and imaginary parts.

        Raises:
            InputError: no tensors, no batch dimension, different batch sizes or devices, or an
                integer dtype.
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
        check_state(z, leaves, coupled=coupled, mixed=True)
        shapes, given = tuple(tuple(leaf.shape) for leaf in leaves), [leaf.dtype for leaf in leaves]
        dtype, device = functools.reduce(torch.promote_types, given), leaves[0].device
        dtypes = () if all(each == dtype for each in given) else tuple(given)
        kind = RealPacking if real and dtype.is_complex else cls
        if coupled:
            return kind(spec, shapes, 1, dtype, device, coupled=True, dtypes=dtypes)
        parts, batch = tuple(shape[1:] for shape in shapes), shapes[0][0]
        return kind(spec, parts, batch, dtype, device, dtypes=dtypes)

    def __post_init__(self) -> None:
        """What every evaluation asks for; a ``cached_property`` takes a lock."""
        put = object.__setattr__
        lead = () if self.coupled else (self.batch,)
        put(self, "sizes", tuple(map(prod, self.shapes)))
        put(self, "plain", self.spec.is_leaf())
        put(self, "flat", self.plain and not self.coupled and len(self.shapes[0]) == 1)
        put(self, "full_shapes", tuple((*lead, *shape) for shape in self.shapes))
        put(self, "spread_shape", (-1, *(1,) * (len(self.full_shapes[0]) - 1)))

    def pack(self, z: Any) -> Tensor:
        """A state as ``[batch, n]``; a view where the state is one tensor."""
        if self.flat:
            return z if isinstance(z, Tensor) else pytree.tree_leaves(z)[0]
        parts = [
            leaf.reshape(self.batch, size)
            for leaf, size in zip(pytree.tree_leaves(z), self.sizes, strict=True)
        ]
        if self.dtypes:
            parts = [part.to(self.dtype) for part in parts]
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
        state = pytree.tree_unflatten(leaves, self.spec)
        return self.converted(state) if self.dtypes else state

    def converted(self, value: Any) -> Any:
        """What is built like a state with its tensors in the dtypes of this; else as it is."""
        leaves, spec = pytree.tree_flatten(value)
        if spec != self.spec:
            return value
        return pytree.tree_unflatten(map(_in, leaves, self._of_each), spec)

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
        check_returned(value, what, (self.spec, self.full_shapes, self._of_each, self.device))

    @functools.cached_property
    def real_dtype(self) -> torch.dtype:
        """Of times, which mix with every leaf: asked once a solve, of packings that are kept."""
        double = all(map(DOUBLE.__contains__, self.dtypes)) if self.dtypes else self.dtype in DOUBLE
        return torch.float64 if double else torch.float32

    @property
    def _of_each(self) -> tuple[torch.dtype, ...]:
        return self.dtypes or (self.dtype,) * len(self.sizes)


def _in(leaf: Any, dtype: torch.dtype) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return (leaf.real if leaf.is_complex() and not dtype.is_complex else leaf).to(dtype)


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
