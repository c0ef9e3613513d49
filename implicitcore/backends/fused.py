"""The base of backends with kernels of their own, which fall back to plain torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor

from implicitcore.backends.adams_step import AdamsAttempt, AdamsStep
from implicitcore.backends.base import Backend, Residual, StageSums
from implicitcore.backends.fused_products import AxpyHistory, InnerProducts, pays
from implicitcore.backends.fused_sums import FusedSums, table
from implicitcore.backends.graph import KrylovGraph, RootGraph
from implicitcore.backends.krylov_space import KrylovSpace
from implicitcore.backends.root_iteration import RootIteration, StopRule, UpdateRule
from implicitcore.backends.step_control import StepOutcome, StepRule, StepTaken, control_step
from implicitcore.backends.torch import TORCH
from implicitcore.tensors.transforms import transformed


class FusedBackend(Backend):
    """Kernels, with plain torch for all that they do not take.

    A derived class declares ``device_types`` and ``dtypes`` and implements the kernels. Each is
    called with tensors that

    * have one of these dtypes, are on one device of these types, and are not empty;
    * are contiguous, except those of shape ``[batch, depth, n]`` or ``[batch, 1, n]`` (``out`` of
      :meth:`axpy_history` too), which are contiguous in the last dimension: a history is often a
      view into a larger one, and a row a view into a history;
    * are not seen by autograd.

    The exception is dt of ``_stage_combination``, ``[batch]``: with ``expanded_dt`` it may be one
    number expanded, where the step of all samples is the same.

    Where a graph is recorded, the stage combinations of a step and products with a long history are
    computed by these kernels, and so are their derivatives, of any order, where that was measured
    to be faster than torch: see :meth:`stage_sums` and :meth:`axpy_history`. A derived class writes
    no derivative. All other calls in a graph, in a transform of ``torch.func``, or with any other
    tensor are torch's.
    """

    differentiable: ClassVar[bool] = True
    expanded_dt: ClassVar[bool] = False

    @final
    def root_iteration(self, update: UpdateRule, rule: StopRule, z: Tensor) -> RootIteration | None:
        """See :meth:`Backend.root_iteration`."""
        return self._root_iteration(update, rule, z) if self._takes(z) else None

    def _root_iteration(
        self, update: UpdateRule, rule: StopRule, z: Tensor
    ) -> RootIteration | None:
        """The iterations of a solve; None where the kernels do not do a whole one."""
        del update, rule, z
        return None

    @final
    def krylov_space(self, g: Tensor, limit: Tensor, most: int) -> KrylovSpace | None:
        """See :meth:`Backend.krylov_space`."""
        if torch.is_grad_enabled() or not self._takes(g):
            return None  # a product may be in a graph though nothing is that it is given
        return self._krylov_space(g, limit, most)

    def _krylov_space(self, g: Tensor, limit: Tensor, most: int) -> KrylovSpace | None:
        """The spaces of a cycle; None where the kernels do not do all of it."""
        del g, limit, most
        return None

    @final
    def root_graph(
        self, update: UpdateRule, rule: StopRule, z: Tensor, most: int
    ) -> RootGraph | None:
        """See :meth:`Backend.root_graph`."""
        return self._root_graph(update, rule, z, most) if self._fits(z) else None

    def _root_graph(
        self, update: UpdateRule, rule: StopRule, z: Tensor, most: int
    ) -> RootGraph | None:
        """The iterations of a solve; None where there are no operations of a whole one."""
        del update, rule, z, most
        return None

    @final
    def krylov_graph(self, g: Tensor) -> KrylovGraph | None:
        """See :meth:`Backend.krylov_graph`."""
        return self._krylov_graph(g) if self._fits(g) else None

    def _krylov_graph(self, g: Tensor) -> KrylovGraph | None:
        """The spaces of a cycle; None where there are no operations of all of it."""
        del g
        return None

    @final
    def step_control(self, rule: StepRule, taken: StepTaken) -> StepOutcome:
        """See :meth:`Backend.step_control`."""
        if self._takes(taken.z, taken.z_next, taken.error):
            found = self._step_control(rule, taken)
            if found is not None:
                return found
        return control_step(self, rule, taken)

    def _step_control(self, rule: StepRule, taken: StepTaken) -> StepOutcome | None:
        """What becomes of a step; None where the kernels do not do all of it."""
        del rule, taken
        return None

    @final
    def adams_step(self, attempt: AdamsAttempt) -> AdamsStep | None:
        """See :meth:`Backend.adams_step`."""
        if torch.is_grad_enabled() or not self._takes(attempt.z, attempt.past.differences):
            return None  # what f gives may be in a graph though nothing is that it is given
        return self._adams_step(attempt)

    def _adams_step(self, attempt: AdamsAttempt) -> AdamsStep | None:
        """A step of Adams' method; None where the kernels do not do all of it."""
        del attempt
        return None

    @final
    def residual(self, fz: Tensor, z: Tensor, out: Tensor | None = None) -> Residual:
        """See :meth:`Backend.residual`."""
        if not self._takes(fz, z) or not (out is None or out.is_contiguous()):
            return TORCH.residual(fz, z, out)
        fz, z = fz.contiguous(), z.contiguous()
        return self._residual(fz, z, torch.empty_like(z) if out is None else out)

    @final
    def inner_products(self, history: Tensor, row: Tensor) -> Tensor:
        """See :meth:`Backend.inner_products`."""
        if not self._takes(history, row):
            if self._joins(history, row):
                return InnerProducts.apply(self, history, row)
            return TORCH.inner_products(history, row)
        return self._inner_products(_rows(history), _rows(row))

    @final
    def axpy_history(
        self,
        row: Tensor | None,
        weights: Tensor,
        history: Tensor,
        scale: float = 1.0,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`Backend.axpy_history`.

        By the kernels in a graph, too, on a CPU and with a history in it of 65,536 entries or more,
        as :meth:`inner_products`.
        """
        others = (weights,) if row is None else (weights, row)
        if not self._takes(history, *others):
            if out is None and self._joins(history, *others):
                return AxpyHistory.apply(self, row, weights, history, scale)
            return TORCH.axpy_history(row, weights, history, scale, out=out)
        row = None if row is None else _rows(row)
        out = history.new_empty(history.shape[0], 1, history.shape[2]) if out is None else out
        return self._axpy_history(row, weights.contiguous(), _rows(history), scale, out)

    @final
    def stage_combination(
        self, z: Tensor | None, dt: Tensor, stages: Sequence[Tensor], weights: Sequence[float]
    ) -> Tensor:
        """See :meth:`Backend.stage_combination`."""
        used = [(stage, weight) for stage, weight in zip(stages, weights, strict=True) if weight]
        tensors = [stage for stage, _ in used] if z is None else [z, *(stage for stage, _ in used)]
        if not used or dt.requires_grad or dt.device != tensors[0].device:
            return TORCH.stage_combination(z, dt, stages, weights)
        if not self._takes(*tensors):
            return TORCH.stage_combination(z, dt, stages, weights)
        z = None if z is None else z.contiguous()
        return self._stage_combination(
            z,
            self.of_each(dt, len(tensors[0])),
            [stage.contiguous() for stage, _ in used],
            [weight for _, weight in used],
        )

    def stage_sums(
        self, rows: tuple[tuple[float, ...], ...], z: Tensor, dt: Tensor
    ) -> StageSums | None:
        """See :meth:`Backend.stage_sums`.

        In a graph each is one call of the kernel, and so is the derivative of a stage, for tableaus
        of more than three weights a row and, on a CPU, states of 65,536 entries or more in all, or
        tableaus of more than five; the others are torch's there.
        """
        if not self._fits(z) or dt.device != z.device or _traced():
            return TORCH.stage_sums(rows, z, dt)
        known = table(rows)
        if known.single and dt.dtype is z.dtype:  # one operation of torch, too
            return TORCH.stage_sums(rows, z, dt)
        if z.requires_grad and torch.is_grad_enabled() and not known.pays(z):
            return TORCH.stage_sums(rows, z, dt)
        return FusedSums(self, self._stage_combination, rows, z, dt)

    @final
    def error_norm(
        self, error: Tensor, z: Tensor, z_next: Tensor, rtol: float, atol: float
    ) -> Tensor:
        """See :meth:`Backend.error_norm`."""
        if not self._takes(error, z, z_next):
            return TORCH.error_norm(error, z, z_next, rtol, atol)
        return self._error_norm(error.contiguous(), z.contiguous(), z_next.contiguous(), rtol, atol)

    def of_each(self, dt: Tensor, batch: int) -> Tensor:
        """Dt as the kernels take it, ``[batch]``."""
        each = dt if dt.ndim else dt.expand(batch)
        return each if self.expanded_dt else each.contiguous()

    def _takes(self, first: Tensor, *others: Tensor) -> bool:
        """Whether the kernels take these tensors."""
        if not self._fits(first, *others):
            return False
        if torch.is_grad_enabled() and (
            first.requires_grad or any(other.requires_grad for other in others)
        ):
            return False
        return not transformed()

    def _fits(self, first: Tensor, *others: Tensor) -> bool:
        """Whether they take their dtypes, devices and sizes."""
        if (
            first.dtype not in self.dtypes
            or first.device.type not in self.device_types
            or not first.numel()
        ):
            return False
        return not any(
            other.dtype != first.dtype or other.device != first.device or not other.numel()
            for other in others
        )

    def _joins(self, history: Tensor, *others: Tensor) -> bool:
        """Whether a product with a history is made by a kernel in a graph."""
        if not torch.is_grad_enabled() or not pays(history):
            return False
        return self._fits(history, *others) and not _traced()

    @abstractmethod
    def _residual(self, fz: Tensor, z: Tensor, out: Tensor) -> Residual:
        """Write f(z) - z to ``out``.

        The norms are in :func:`~implicitcore.tensors.norms.real_dtype`.
        """

    @abstractmethod
    def _inner_products(self, history: Tensor, row: Tensor) -> Tensor:
        """The inner products, in the dtype of the row but summed in ``real_dtype``."""

    @abstractmethod
    def _axpy_history(
        self, row: Tensor | None, weights: Tensor, history: Tensor, scale: float, out: Tensor
    ) -> Tensor:
        """Write the sum to ``out``, which may be the row, and return it."""

    @abstractmethod
    def _stage_combination(
        self, z: Tensor | None, dt: Tensor, stages: Sequence[Tensor], weights: Sequence[float]
    ) -> Tensor:
        """The stage combination; no weight is zero, and dt may have another real dtype."""

    @abstractmethod
    def _error_norm(
        self, error: Tensor, z: Tensor, z_next: Tensor, rtol: float, atol: float
    ) -> Tensor:
        """The scaled norm, in ``real_dtype``."""


def _traced() -> bool:
    """Whether another than autograd follows the operations of torch."""
    return transformed() or torch.compiler.is_compiling()


def _rows(history: Tensor) -> Tensor:
    """The history with contiguous rows."""
    return history if history.stride(2) == 1 else history.contiguous()
