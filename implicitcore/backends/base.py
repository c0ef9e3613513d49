"""The abstract backend: the array kernels of the solvers' inner loops."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from implicitcore.backends.adams_step import AdamsAttempt, AdamsStep
from implicitcore.backends.graph import KrylovGraph, RootGraph
from implicitcore.backends.krylov_space import KrylovSpace
from implicitcore.backends.root_iteration import RootIteration, StopRule, UpdateRule
from implicitcore.backends.step_control import StepOutcome, StepRule, StepTaken, control_step
from implicitcore.options.options import PartMeta


class Residual(NamedTuple):
    """g = f(z) - z with its norms per sample."""

    value: Tensor  # [batch, n]
    norm: Tensor  # [batch], |g|
    update_norm: Tensor  # [batch], |f(z)|


class StageSums(Protocol):
    """The stage combinations of one step, row by row."""

    def __call__(self, stages: Sequence[Tensor], row: int, *, move: bool = False) -> Tensor:
        """That of a row, with the stages so far; without z where only the ``move`` is asked for."""
        ...


class Backend(metaclass=PartMeta):
    """Kernels from torch tensors to torch tensors, on torch's current stream, without a host sync.

    :class:`TorchBackend` is the reference: it defines the result of each kernel. States are
    ``[batch, n]``, histories ``[batch, depth, n]``, and a state beside a history is a row of one,
    ``[batch, 1, n]``. Norms are per sample, in float32 at least.

    Attributes:
        device_types: the torch device types that it runs on.
        dtypes: the dtypes of states that it takes.
        differentiable: autograd can differentiate its kernels.
    """

    kind: ClassVar[str] = "backend"
    device_types: ClassVar[tuple[str, ...]]
    dtypes: ClassVar[tuple[torch.dtype, ...]]
    differentiable: ClassVar[bool]

    @abstractmethod
    def unavailable_reason(self) -> str | None:
        """None where the backend can run.

        Else the package, driver, CUDA build or device that is missing.
        """

    def unready_reason(self) -> str | None:
        """Why ``auto`` passes over the backend, as one that would have to be built first.

        Here where it cannot run.
        """
        return self.unavailable_reason()

    def root_iteration(self, update: UpdateRule, rule: StopRule, z: Tensor) -> RootIteration | None:
        """The iterations of a solve from z, each in one call; torch's own loop where it is None.

        Arguments:
            update: how the next iterate follows.
            rule: when a sample stops.
            z: the start, ``[batch, n]``; nothing records a graph.
        """
        del update, rule, z
        return None

    def krylov_space(self, g: Tensor, limit: Tensor, most: int) -> KrylovSpace | None:
        """The Krylov spaces of a cycle of GMRES, one call a product; torch's own where it is None.

        Arguments:
            g: the residual to make small, ``[batch, n]``.
            limit: ``[batch]``, in the 2-norm: a sample whose residual is no larger needs no more
                products; infinite leaves it out.
            most: largest dimension.
        """
        del g, limit, most
        return None

    def root_graph(
        self, update: UpdateRule, rule: StopRule, z: Tensor, most: int
    ) -> RootGraph | None:
        """The iterations of a solve as operations of a graph; torch's own loop where it is None.

        Arguments:
            update: how the next iterate follows.
            rule: when a sample stops, without an origin; where its scale is a tensor, ``begin`` is
                given that of each solve.
            z: a state; the graph is for all of its dtype and device.
            most: evaluations.
        """
        del update, rule, z, most
        return None

    def krylov_graph(self, g: Tensor) -> KrylovGraph | None:
        """The Krylov spaces of GMRES as operations of a graph; torch's own where it is None.

        Arguments:
            g: a residual; the graph is for all of its dtype and device.
        """
        del g
        return None

    def step_control(self, rule: StepRule, taken: StepTaken) -> StepOutcome:
        """What follows the stages of an adaptive step: who accepts it, and how long the next is.

        The reference, with the backend's own :meth:`error_norm`, which
        one call may take the place of. The host waits once.

        Arguments:
            rule: how a step is judged; not in a graph, as nothing here.
            taken: the step.
        """
        return control_step(self, rule, taken)

    @abstractmethod
    def residual(self, fz: Tensor, z: Tensor, out: Tensor | None = None) -> Residual:
        """f(z) - z, its 2-norm and that of f(z), per sample.

        The difference is written to ``out``, where given; then nothing records a graph.
        """

    @abstractmethod
    def inner_products(self, history: Tensor, row: Tensor) -> Tensor:
        """Inner products of a row with each row of the history.

        ``[batch, depth, n], [batch, 1, n] -> [batch, 1, depth]``.
        """

    @abstractmethod
    def axpy_history(
        self,
        row: Tensor | None,
        weights: Tensor,
        history: Tensor,
        scale: float = 1.0,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """row + scale sum_i weights_i history_i, without the first term where ``row`` is None.

        Written to ``out``, where given, which may be the row; then nothing records a graph.
        ``[batch, 1, n], [batch, 1, depth], [batch, depth, n] -> [batch, 1, n]``.
        """

    @abstractmethod
    def stage_combination(
        self, z: Tensor | None, dt: Tensor, stages: Sequence[Tensor], weights: Sequence[float]
    ) -> Tensor:
        """The Runge-Kutta stage combination z + dt sum_i weights_i stages_i.

        Dt is ``[batch]``, or ``[]`` where it is one for all samples.
        Without the first term where ``z`` is None.
        """

    def stage_sums(
        self, rows: tuple[tuple[float, ...], ...], z: Tensor, dt: Tensor
    ) -> StageSums | None:
        """The stage combinations of a whole step; each by :meth:`stage_combination` where None.

        Arguments:
            rows: the weights of the stages so far in each.
            z: ``[batch, n]``.
            dt: as :meth:`stage_combination` takes it.
        """
        del rows, z, dt
        return None

    def adams_step(self, attempt: AdamsAttempt) -> AdamsStep | None:
        """A step of :class:`~implicitcore.Adams`; its own formulas where it is None."""
        del attempt
        return None

    @abstractmethod
    def error_norm(
        self, error: Tensor, z: Tensor, z_next: Tensor, rtol: float, atol: float
    ) -> Tensor:
        """Root mean square of error / (atol + rtol max(``|z|``, ``|z_next|``)), ``[batch]``."""
