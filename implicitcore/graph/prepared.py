"""A call of a compiled layer, before its solve and after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicitcore.graph.plan import Plan
from implicitcore.graph.stop import Found
from implicitcore.graph.system import Layout
from implicitcore.graph.times import OutputTimes
from implicitcore.solution import Backward


class Prepared(NamedTuple):
    """What a solve takes."""

    layout: Layout
    flat: Tensor  # the start, packed, without a graph where it has none
    plan: Plan
    tensors: Sequence[Tensor]  # that the plan takes
    times: OutputTimes | None = None

    @property
    def training(self) -> bool:
        """Whether a gradient may be asked for."""
        if not torch.is_grad_enabled():
            return False
        moves = self.times is not None and self.times.moves is not None
        return moves or self.flat.requires_grad or any(t.requires_grad for t in self.tensors)


class Run(NamedTuple):
    """What a solve came to."""

    found: Found  # packed
    layout: Layout
    begin: Any  # where it began
    spent: int  # evaluations that gave it
    record: Backward
    times: Tensor | None  # the output times, ``[T]`` or ``[T, batch]``


class Recent(NamedTuple):
    """The last call of tensors alone, for one of its kind."""

    kinds: list[Any]  # of the start, and of the tensors that the plan takes
    layout: Layout
    plan: Plan

    @classmethod
    def of(cls, begin: Any, prepared: Prepared) -> Recent:
        """A call that began there."""
        return cls(kinds(begin, prepared.tensors), prepared.layout, prepared.plan)


def kinds(begin: Tensor, tensors: Sequence[Tensor]) -> list[Any]:
    """All that a plan depends on in tensors."""
    every = begin, *tensors
    return [(t.shape, t.dtype, t.device, t.layout, t.requires_grad) for t in every]
