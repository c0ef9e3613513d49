"""Dynamics bound to one input: what a solver sees."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.backends.base import Backend, Residual
from implicitcore.backends.torch import TorchBackend
from implicitcore.dynamics.base import Dynamics
from implicitcore.system.linearization import Linearization
from implicitcore.system.scope import SolveContext, current
from implicitcore.tensors.autocast import ambient, restored
from implicitcore.tensors.norms import norm, real_dtype
from implicitcore.tensors.packing import Packing
from implicitcore.tensors.transforms import check_products


@dataclass
class Counter:
    """The evaluations of a system and of its parts."""

    evaluations: int = 0


def select(tree: Any, index: Tensor, batch: int) -> Any:
    """Some samples of a pytree.

    Every tensor whose first dimension is as long as the batch is taken to be per sample.
    """

    def pick(leaf: Any) -> Any:
        per_sample = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == batch
        return leaf.index_select(0, index) if per_sample else leaf

    return pytree.tree_map(pick, tree)


class System:
    """Dynamics bound to one x, as functions of a packed state ``[batch, n]``, with the evaluations counted.

    Arguments:
        dynamics: what is solved.
        x: the input of this solve, any pytree.
        packing: how the state is laid out.
        backend: the kernels that the solvers use.
        trace: keep the residual of each step.

    Attributes:
        linear: g is affine in z, so that a linear solver may trust its own residuals.
        record_iterates: where not None, a stepwise root solver leaves its iterates here, one for
            each evaluation.
        tol_floor: the least relative tolerance that the products of a linear system can meet: under
            autocast they are rounded to its dtype.
        compact_below: with ``compact``, stopped samples leave the batch when at most this share of
            it is active: evaluations cost then at most a seventh more than the samples need, and
            the copies are few.
    """

    linear: ClassVar[bool] = False
    compact_below: ClassVar[float] = 7 / 8
    tol_floor: float = 0.0

    def __init__(
        self,
        dynamics: Dynamics,
        x: Any,
        packing: Packing,
        *,
        backend: Backend | None = None,
        trace: bool = False,
    ) -> None:
        self.dynamics = dynamics
        self.x = x
        self.packing = packing
        self.backend = backend or TorchBackend()
        self.trace: list[Tensor] | None = [] if trace else None
        self.record_iterates: list[Tensor] | None = None
        self.scope = current() or SolveContext()
        self.autocast = ambient()
        self._counter = Counter()
        self._has_map = type(dynamics).update is not Dynamics.update
        self._residual: tuple[Tensor, Tensor, bool, Residual] | None = None

    @property
    def evaluations(self) -> int:
        """Evaluations of the dynamics so far; Jacobian products count as one each."""
        return self._counter.evaluations

    @evaluations.setter
    def evaluations(self, count: int) -> None:
        self._counter.evaluations = count

    def update(self, z: Tensor) -> Tensor:
        """The fixed-point map f(z), ``[batch, n]``: one evaluation."""
        if self._has_map:
            return self._evaluate(self.dynamics.update, self.packing.unpack(z), self.x)
        # The residual is what these dynamics give: taken from z + g, it would be lost in the
        # rounding of a large z.
        g = self.velocity(z.new_zeros(z.shape[0], dtype=real_dtype(z)), z)
        fz = z + g
        self._residual = z, fz, torch.is_grad_enabled(), Residual(g, norm(g), norm(fz))
        return fz

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """The vector field g(t, z), ``[batch, n]``, at the times t ``[batch]``: one evaluation."""
        broadcastable = self.packing.spread(t)
        return self._evaluate(self.dynamics.velocity, broadcastable, self.packing.unpack(z), self.x)

    def residual(self, z: Tensor, fz: Tensor, out: Tensor | None = None) -> Residual:
        """g = f(z) - z with ``|g|`` and ``|f(z)|`` per sample, from fz = f(z).

        Computed once for the same pair. Where it is not known yet, g is written to ``out``.
        """
        memo, graph = self._residual, torch.is_grad_enabled()
        if memo is None or memo[0] is not z or memo[1] is not fz or (graph and not memo[2]):
            memo = self._residual = (z, fz, graph, self.backend.residual(fz, z, out))
        return memo[3]

    def scale(self, update_norm: Tensor, start_norm: Tensor) -> Tensor:
        """What the relative tolerance is relative to, ``[batch]`` (see :meth:`Dynamics.scale`)."""
        return self.dynamics.scale(update_norm, start_norm)

    def bind(self, x: Any) -> System:
        """The same dynamics at another x, counting by itself."""
        bound = System(self.dynamics, x, self.packing, backend=self.backend)
        bound.scope, bound.autocast = self.scope, self.autocast
        return bound

    def select(self, index: Tensor) -> System:
        """The system of some samples ``[k]``, counting with this one.

        Every tensor in x whose first dimension is as long as the batch is taken to be per sample;
        the rest is shared.
        """
        part = copy.copy(self)
        part.x = select(self.x, index, self.packing.batch)
        part.packing = replace(self.packing, batch=len(index))
        part.scope = self.scope.select(index, self.packing.batch)
        part.trace = part._residual = None
        return part

    def linearize(self, z: Tensor) -> Linearization:
        """The Jacobian J of f at z, as products.

        One evaluation, whose graph every product reuses.
        """
        check_products()
        # Without a graph a view of a leaf still says that it requires a gradient, and autograd does
        # not know it.
        attached = torch.is_grad_enabled() and z.requires_grad
        with torch.enable_grad():
            point = z if attached else z.detach().requires_grad_()
            return Linearization(self, point, self.update(point))

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """f under the conditions that the solve began with, also in a backward pass."""
        if not self.autocast:
            return self.scope.call(function, *arguments)
        with restored(self.autocast):
            value = self.scope.call(function, *arguments)
        return pytree.tree_map_only(Tensor, lambda leaf: leaf.to(self.packing.dtype), value)

    def _evaluate(self, function: Callable[..., Any], *arguments: Any) -> Tensor:
        self._counter.evaluations += 1
        try:
            value = self._call(function, *arguments)
        except Exception as error:
            shapes = ", ".join(str([*shape]) for shape in self.packing.full_shapes)
            error.add_note(
                f"while evaluating {type(self.dynamics).__name__} on a state z of shape "
                f"{shapes}, {self.packing.dtype}"
            )
            raise
        self.packing.check(value, type(self.dynamics).__name__)
        return self.packing.pack(value)
