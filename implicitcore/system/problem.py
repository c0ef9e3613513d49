"""What is solved: dynamics at one input, and how the state is laid out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from implicitcore.dynamics.base import Dynamics
from implicitcore.dynamics.fixed_point import FixedPoint, FixedPointMap
from implicitcore.dynamics.vector_field import VectorField
from implicitcore.tensors.packing import Packing
from implicitcore.tensors.restrict import SHARED, of_input, rule
from implicitcore.tensors.shared import check_batch, marked_like, shared, unwrapped


def stop_scale(dynamics: Dynamics) -> Literal["update", "root"] | None:
    """:meth:`Dynamics.scale` as data; None where it is a function of its own."""
    scale = type(dynamics).scale
    if scale is FixedPointMap.scale:
        return "update"
    return "root" if scale is Dynamics.scale else None


def subtracts(dynamics: Dynamics) -> bool:
    """Whether the vector field is f(z) - z."""
    return type(dynamics).velocity is FixedPointMap.velocity


def rounding_of(is_map: bool, dtype: torch.dtype) -> float:
    """Of f(z), relative to it, where the residual is a difference with z: that of a map."""
    return torch.finfo(dtype).eps / 2 if is_map else 0.0


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
        time_dtype: in which t reaches the dynamics; None leaves it as it comes.
        update: what gives f(z, x): the user's own function, where the dynamics do no more than
            call it. Of wrong arguments :meth:`Dynamics.explain_call` tells then.
        velocity: the same of g(t, z, x), or of g(z, x) where no time is taken.
        takes_time: whether g does; f(z) - z does not.
    """

    dynamics: Dynamics = field(metadata=SHARED)
    marked: Any = field(metadata=rule(of_input))
    packing: Packing
    x: Any = field(init=False)
    is_map: bool = field(init=False)
    subtracts: bool = field(init=False)
    time_dtype: torch.dtype | None = field(init=False)
    update: Callable[[Any, Any], Any] = field(init=False)
    velocity: Callable[..., Any] = field(init=False)
    takes_time: bool = field(init=False)

    def __post_init__(self) -> None:
        put, dynamics, marked = object.__setattr__, self.dynamics, self.marked
        put(self, "x", marked if isinstance(marked, Tensor) else unwrapped(marked))
        put(self, "is_map", dynamics.is_map())
        put(self, "subtracts", type(dynamics).velocity is FixedPointMap.velocity)
        put(self, "time_dtype", None if dynamics.exact_time else self.packing.real_dtype)
        is_field = type(dynamics) is VectorField
        put(self, "update", dynamics.cell if type(dynamics) is FixedPoint else dynamics.update)
        put(self, "velocity", dynamics.field if is_field else dynamics.velocity)
        put(self, "takes_time", not (self.subtracts or (is_field and dynamics.autonomous)))

    def time(self, t: Tensor) -> Tensor:
        """Times ``[batch]`` as functions of the user receive them: to broadcast against z."""
        if self.time_dtype is not None and t.dtype != self.time_dtype:
            t = t.to(self.time_dtype)
        return self.packing.spread(t)

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
