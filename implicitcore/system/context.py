"""With what a solve is done: kernels, scope, autocast, and the record of what it costs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.solution import Origin
from implicitcore.system.current import current
from implicitcore.system.function_state import FunctionState
from implicitcore.system.memory import Memory
from implicitcore.system.scope import SolveContext
from implicitcore.tensors.amended import amended
from implicitcore.tensors.autocast import Autocast, ambient
from implicitcore.tensors.restrict import SHARED, rule


@dataclass(init=False)
class Counter:
    """The evaluations of a system and of its parts."""

    evaluations: int = 0


@dataclass
class Recorder:
    """What a root solver leaves of its way.

    Attributes:
        residuals: ``[batch]`` after each evaluation; None where they are not wanted.
        iterates: ``[batch, n]`` at each evaluation, with their graph; None where not wanted.
    """

    residuals: list[Tensor] | None = None
    iterates: list[Tensor] | None = None

    def record(self, z: Tensor, residual: Tensor) -> None:
        """Keep an iterate and the norms of its residual."""
        if self.residuals is not None:
            self.residuals.append(residual)
        if self.iterates is not None:
            self.iterates.append(z)

    def trace(self) -> Tensor | None:
        """The residuals, ``[evaluations, batch]``; None where there are none."""
        return torch.stack(self.residuals) if self.residuals else None


@dataclass(frozen=True, eq=False)
class Context:
    """What all evaluations of a solve have in common.

    Attributes:
        backend: the kernels that the solvers use.
        scope: what is drawn or computed once a solve.
        autocast: what f is evaluated under.
        counter: of evaluations; a system of some samples counts with the whole.
        memory: how f uses memory.
        function: what f read when the solve began; None where there is no backward pass.
        recorder: of the iterates, if any.
        range_checked: a stop test is to ask at its start for other units, where it needs them.
        origin: what the solve began with, where a solver goes on from another's iterate.
        batch: samples of the whole, of which a system may have some; None where nobody asks.
        known: where a part of the batch begins, and its residuals there, ``[batch]``, which a stop
            test compares with its first.
        dtypes: of the tensors of the state, where they differ: their f is rounded to.
    """

    backend: Backend = field(metadata=SHARED)
    scope: SolveContext = field(default_factory=lambda: current() or SolveContext())
    autocast: Autocast = field(default_factory=ambient, metadata=SHARED)
    counter: Counter = field(default_factory=Counter, metadata=SHARED)
    memory: Memory = field(default_factory=Memory, metadata=SHARED)
    function: FunctionState | None = field(default=None, metadata=SHARED)
    recorder: Recorder | None = field(default=None, metadata=rule(lambda value, rows: None))
    range_checked: bool = field(default=False, metadata=SHARED)
    origin: Origin | None = None
    batch: int | None = field(default=None, metadata=SHARED)
    known: tuple[Tensor, Tensor] | None = field(
        default=None, metadata=rule(lambda value, rows: None)
    )
    dtypes: tuple[torch.dtype, ...] = field(default=(), metadata=SHARED)

    @property
    def rounded(self) -> list[torch.dtype]:
        """The dtypes that values of f are rounded to, where that of the packed state is finer."""
        return [*(dtype for _, dtype in self.autocast), *self.dtypes]

    def tolerance(self, tol: float, unit: float) -> float:
        """``tol``, but no less than values of f can meet: a part of a ``unit`` under autocast.

        Of a state of several dtypes a whole one.
        """
        lower = (unit * torch.finfo(dtype).eps for _, dtype in self.autocast)
        return max(tol, *lower, *(torch.finfo(dtype).eps for dtype in self.dtypes))

    def recounted(self) -> Context:
        """The same for another system, which counts by itself and records nothing."""
        return amended(
            self,
            counter=Counter(),
            memory=self.memory.fork(),
            recorder=None,
            range_checked=False,
            origin=None,
            known=None,
        )

    def whole(self, batch: int) -> int | None:
        """How many samples the whole has, where ``batch`` are a part of it; None else."""
        return None if self.batch == batch else self.batch

    def end(self) -> None:
        """The forward solve has ended: let go of what only further evaluations need."""
        self.memory.release()
        if self.function is not None:
            self.function.settle()
