"""f as a function of a packed state, as a graph can take it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.backends.base import Residual
from implicitcore.backends.graph import RootGraph
from implicitcore.backends.torch import TORCH, TorchBackend
from implicitcore.dynamics.base import Dynamics
from implicitcore.errors import InputError
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.problem import rounding_of, subtracts
from implicitcore.tensors.norms import real_dtype, scaled_norm
from implicitcore.tensors.state import check_returned, check_state


@dataclass(frozen=True, eq=False)
class Layout:
    """How a state is one tensor ``[batch, n]``, for any size of the batch.

    Attributes:
        spec: the structure of the state.
        shapes: of each leaf, without its first dimension.
        coupled: the whole batch is one sample, ``[1, n]``.
    """

    spec: pytree.TreeSpec
    shapes: tuple[tuple[int, ...], ...]
    coupled: bool

    @classmethod
    def of(cls, z: Any, *, coupled: bool = False) -> Layout:
        """The layout of states shaped like ``z``.

        Raises:
            InputError: no state, as :class:`Packing` says; one of complex numbers, or of several
                tensors in a coupled batch.
        """
        leaves, spec = pytree.tree_flatten(z)
        check_state(z, leaves, coupled=coupled)
        if any(leaf.is_complex() for leaf in leaves):
            raise InputError("a graph solves real states; received a complex one")
        if coupled and len(leaves) > 1:
            raise InputError(
                "a graph solves a coupled batch whose state is one tensor; "
                f"received {len(leaves)} tensors"
            )
        return cls(spec, tuple(tuple(leaf.shape[1:]) for leaf in leaves), coupled)

    def pack(self, z: Any, times: int | None = None) -> Tensor:
        """A state as ``[batch, n]``, the states at so many times as ``[times, batch, n]``."""
        leaves = [z] if isinstance(z, Tensor) else pytree.tree_leaves(z)
        if times is not None:
            if self.coupled:
                return leaves[0].reshape(times, 1, -1)
            return torch.cat(
                [leaf.flatten(2) if leaf.ndim > 2 else leaf.unsqueeze(2) for leaf in leaves], 2
            )
        if self.coupled:
            return leaves[0].reshape(1, -1)
        if len(leaves) == 1 and len(self.shapes[0]) == 1:
            return leaves[0]
        parts = [leaf.reshape(leaf.shape[0], prod(leaf.shape[1:])) for leaf in leaves]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def returned(self, value: Any, state: Any, dynamics: Dynamics) -> Tensor:
        """What some dynamics returned for a state, as ``[batch, n]``.

        Raises:
            InputError: it is not shaped like that state, or of another dtype.
        """
        leaves = pytree.tree_leaves(state)
        shapes = [tuple(leaf.shape) for leaf in leaves]
        dtypes = [leaf.dtype for leaf in leaves]
        of_state = self.spec, shapes, dtypes, leaves[0].device
        check_returned(value, type(dynamics).__name__, of_state)
        return self.pack(value)

    def unpack(self, flat: Tensor) -> Any:
        """``[batch, n]`` as a state, ``[times, batch, n]`` as the states at several times."""
        lead = (*flat.shape[:-2], -1) if self.coupled else flat.shape[:-1]
        if len(self.shapes) == 1:
            leaf = flat
            if self.coupled or len(self.shapes[0]) != 1:
                leaf = flat.reshape(*lead, *self.shapes[0])
            return leaf if self.spec.is_leaf() else pytree.tree_unflatten([leaf], self.spec)
        parts = flat.split([prod(shape) for shape in self.shapes], -1)
        leaves = [
            part.reshape(*lead, *shape) for part, shape in zip(parts, self.shapes, strict=True)
        ]
        return pytree.tree_unflatten(leaves, self.spec)


def exact_norm(z: Tensor) -> Tensor:
    """2-norm of each sample, ``[batch, n] -> [batch]``, whose squares neither over- nor underflow.

    In the units of float64, or where the state is in float64 itself, in those of its largest entry.
    """
    if z.dtype == torch.float64:
        return scaled_norm(z)
    return torch.linalg.vector_norm(z, dim=1, dtype=torch.float64).to(real_dtype(z))


@dataclass(frozen=True, eq=False)
class GraphSystem:
    """What a solve in a graph sees: f and its residual, and what its tolerance is relative to.

    Attributes:
        function: z -> f(z) and g(z), where the dynamics give it, else None; ``[batch, n]``.
        relative_to: see :meth:`Dynamics.scale`.
        rounding: of f(z), relative to it, where the residual is a difference with z.
        iterations: those of a backend; None: of torch's operations.
    """

    function: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    relative_to: Callable[[Tensor, Tensor], Tensor]
    rounding: float
    iterations: RootGraph | None = field(default=None, kw_only=True)

    def evaluate(self, z: Tensor) -> Evaluation:
        """One evaluation; what it gives shares no memory with what f reads."""
        fz, g = self.function(z)
        value = fz - z if g is None else g.clone()
        residual = Residual(value, exact_norm(value), exact_norm(fz))
        return Evaluation(z, fz.clone() if g is None else fz, residual)

    def scale(self, update_norm: Tensor, start_norm: Tensor) -> Tensor:
        """What the relative tolerance is relative to, ``[batch]``."""
        return self.relative_to(update_norm, start_norm)


def graph_system(dynamics: Dynamics, x: Any, layout: Layout, dtype: torch.dtype) -> GraphSystem:
    """The system of some dynamics at x, given without marks."""
    if dynamics.is_map():

        def function(z: Tensor) -> tuple[Tensor, Tensor | None]:
            state = layout.unpack(z)
            return layout.returned(dynamics.update(state, x), state, dynamics), None

        return GraphSystem(function, dynamics.scale, rounding_of(True, dtype))

    def field(z: Tensor) -> tuple[Tensor, Tensor | None]:
        state = layout.unpack(z)
        g = layout.returned(dynamics.velocity(_zero_time(state), state, x), state, dynamics)
        return z + g, g

    return GraphSystem(field, dynamics.scale, rounding_of(False, dtype))


@dataclass(frozen=True, eq=False)
class GraphField:
    """What an integration in a graph sees of the dynamics; the steps of the solvers ask no more.

    Attributes:
        velocity: t ``[batch]`` and z ``[batch, n]`` -> g(t, z).
        scale: as that of :class:`GraphSystem`, for a steady state; so is ``rounding``.
        rounding: of f(z), relative to it.
        dtypes: as those of a system: a graph has states of one dtype.
    """

    velocity: Callable[[Tensor, Tensor], Tensor]
    scale: Callable[[Tensor, Tensor], Tensor]
    rounding: float
    dtypes: ClassVar[tuple[torch.dtype, ...]] = ()

    @property
    def backend(self) -> TorchBackend:
        """The kernels of the steps."""
        return TORCH

    def evaluation(self, z: Tensor, velocity: Tensor) -> Evaluation:
        """What is known of z from the velocity there."""
        fz = z + velocity
        return Evaluation(z, fz, Residual(velocity, exact_norm(velocity), exact_norm(fz)))


def graph_field(dynamics: Dynamics, x: Any, layout: Layout, dtype: torch.dtype) -> GraphField:
    """The vector field of some dynamics at x, given without marks."""
    is_difference = subtracts(dynamics)

    def velocity(t: Tensor, z: Tensor) -> Tensor:
        state = layout.unpack(z)
        if is_difference:
            return layout.returned(dynamics.update(state, x), state, dynamics) - z
        first: Tensor = pytree.tree_leaves(state)[0]
        time = t if dynamics.exact_time else t.to(real_dtype(first))
        time = time.reshape(-1, *(1,) * (first.ndim - 1))
        return layout.returned(dynamics.velocity(time, state, x), state, dynamics).clone()

    return GraphField(velocity, dynamics.scale, rounding_of(dynamics.is_map(), dtype))


def _zero_time(state: Any) -> Tensor:
    leaves: Sequence[Tensor] = pytree.tree_leaves(state)
    first = leaves[0]
    return first.new_zeros(first.shape[0], *(1,) * (first.ndim - 1), dtype=real_dtype(first))
