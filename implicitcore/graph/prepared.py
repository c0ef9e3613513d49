"""A call of a compiled layer, before its solve and after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._dynamo.guards import TensorGuards
from torch.utils import _pytree as pytree

from implicitcore.graph.compiled import Kinds, guards, kinds
from implicitcore.graph.constants import told_apart
from implicitcore.graph.plan import Plan
from implicitcore.graph.stop import Found
from implicitcore.graph.system import Layout
from implicitcore.graph.times import OutputTimes
from implicitcore.solution import Backward

_PLAIN = (Tensor, torch.nn.Parameter)


class Form(NamedTuple):
    """What a call is made of beside its tensors, and those of x."""

    structure: Any  # of x with its marks and of the start, and what in them is no tensor
    tensors: list[Tensor]

    @classmethod
    def of(cls, x: Any, begin: Any) -> Form:
        """Of an input and a start."""
        if type(x) in _PLAIN and type(begin) in _PLAIN:  # whose structure takes longer
            return cls((begin.shape, begin.layout), [x])
        leaves, of_x = pytree.tree_flatten(x)
        state, of_z = pytree.tree_flatten(begin)
        fixed = told_apart(leaf for leaf in leaves if not isinstance(leaf, Tensor))
        places = [isinstance(leaf, Tensor) for leaf in leaves]
        sizes = [(t.shape, t.layout, t.dtype) if isinstance(t, Tensor) else t for t in state]
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return cls((of_x, of_z, fixed, places, sizes), given)


class Prepared(NamedTuple):
    """What a solve takes."""

    layout: Layout
    flat: Tensor  # the start, packed, without a graph where it has none
    plan: Plan
    tensors: Sequence[Tensor]  # that the plan takes
    keeps: bool  # whether the layer's own loop solves it
    kinds: Kinds | None = None  # of both, where they are known
    times: OutputTimes | None = None

    @property
    def training(self) -> bool:
        """Whether a gradient may be asked for."""
        if not torch.is_grad_enabled():
            return False
        moves = self.times is not None and self.times.moves is not None
        return moves or any([t.requires_grad for t in (self.flat, *self.tensors)])


class Run(NamedTuple):
    """What a solve came to."""

    found: Found  # packed
    layout: Layout
    begin: Any  # where it began
    spent: int  # evaluations that gave it
    record: Backward
    times: Tensor | None  # the output times, ``[T]`` or ``[T, batch]``


class Recent(NamedTuple):
    """The last call without output times, for one of its kind."""

    structure: Any  # see :class:`Form`
    kinds: Kinds
    alike: TensorGuards | None  # see :func:`guards`; without the start where it is the first
    layout: Layout
    plan: Plan
    keeps: bool

    @classmethod
    def of(cls, x: Any, begin: Any, call: Prepared) -> Recent | None:
        """A call; None where its tensors do not tell all of it."""
        tensors = call.flat, *call.tensors
        known = kinds(tensors)
        if known is None:
            return None
        others = tensors[_is_first(call.flat, call.tensors) :]
        alike, form = guards(others), Form.of(x, begin)
        return cls(form.structure, known, alike, call.layout, call.plan, call.keeps)

    def again(self, form: Form, flat: Tensor, owned: Sequence[Tensor]) -> Prepared | None:
        """A call of this form from that start, where it is of the same kind."""
        tensors = *form.tensors, *owned
        if not self._is_alike(flat, tensors) and kinds((flat, *tensors)) != self.kinds:
            return None
        return Prepared(self.layout, flat, self.plan, tensors, self.keeps, self.kinds)

    def _is_alike(self, flat: Tensor, tensors: Sequence[Tensor]) -> bool:
        """Whether they are known to be of these kinds, where the check takes no tensor twice."""
        is_first, alike = _is_first(flat, tensors), self.alike
        if alike is None or torch._C._len_torch_dispatch_stack():
            return False
        if is_first != (self.kinds[-1] is not None):
            return False
        return alike.check(*tensors) if is_first else alike.check(flat, *tensors)


def _is_first(flat: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Whether the start is the first tensor of x."""
    return bool(tensors) and flat is tensors[0]
