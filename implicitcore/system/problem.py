"""What is solved: dynamics at one input, and how the state is laid out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from implicitcore.dynamics.base import Dynamics
from implicitcore.dynamics.fixed_point import FixedPointMap
from implicitcore.tensors.packing import Packing
from implicitcore.tensors.restrict import SHARED, of_input, rule
from implicitcore.tensors.shared import check_batch, marked_like, shared, unwrapped


@dataclass(frozen=True, eq=False)
class Problem:
    """Dynamics bound to one x.

    Attributes:
        dynamics: f or g.
        marked: the input, any pytree, with the marks of what belongs to all samples.
        packing: how the state is laid out.
        x: the input without its marks: what the dynamics receive.
        is_map: see :meth:`Dynamics.is_map`.
        subtracts: the vector field is f(z) - z.
    """

    dynamics: Dynamics = field(metadata=SHARED)
    marked: Any = field(metadata=rule(of_input))
    packing: Packing
    x: Any = field(init=False)
    is_map: bool = field(init=False)
    subtracts: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", unwrapped(self.marked))
        object.__setattr__(self, "is_map", self.dynamics.is_map())
        subtracts = type(self.dynamics).velocity is FixedPointMap.velocity
        object.__setattr__(self, "subtracts", subtracts)

    @classmethod
    def of(cls, dynamics: Dynamics, x: Any, packing: Packing) -> Problem:
        """The problem at an x that a user gave.

        Raises:
            InputError: a tensor in x is neither per sample nor marked as shared.
        """
        if packing.coupled:  # one sample, to which all of x belongs
            return cls(dynamics, shared(x), packing)
        check_batch(x, packing.batch)
        return cls(dynamics, x, packing)

    def bind(self, x: Any) -> Problem:
        """The same dynamics at another x, given without marks and marked in the same places."""
        return replace(self, marked=marked_like(self.marked, x))
