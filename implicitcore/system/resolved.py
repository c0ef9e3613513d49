"""The vector field for many evaluations: what is the same in all is asked once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicitcore.system.current import running
from implicitcore.system.system import System


class ResolvedField(NamedTuple):
    """A vector field as one function."""

    velocity: Callable[[Tensor, Tensor], Tensor]  # g(t, z), t as times gives it: one evaluation
    times: Callable[[Tensor], Tensor]  # [..., batch] as the dynamics receive them

    @classmethod
    def of(cls, system: System) -> ResolvedField:
        """That of a system, for as long as its solve is the one that runs."""
        own = getattr(system.velocity, "__func__", None) is System.velocity
        return _of_dynamics(system) if own else cls(system.velocity, _same)


def _same(t: Tensor) -> Tensor:
    return t


def _of_dynamics(system: System) -> ResolvedField:  # noqa: C901 - one closure, no calls
    """The dynamics of a system, called without a look at what every evaluation finds alike.

    Only what every value has to pass is asked here, in Python alone: it is like the state, f did
    not write into z, and its memory is not that of the last value. All else, as the first two
    evaluations, goes the way of :meth:`System.velocity`.
    """
    problem, context = system.problem, system.context
    packing, counter, memory = problem.packing, context.counter, context.memory
    subtracts, x = problem.subtracts, problem.x
    function: Callable[..., Any] = problem.update if subtracts else problem.velocity
    timed = problem.takes_time
    shape = packing.full_shapes[0]
    kind = shape, packing.dtype, packing.device  # what Packing.fits asks for, without a call
    rows = None if packing.flat else (packing.batch, packing.sizes[0])
    lead = packing.spread_shape

    def times(t: Tensor) -> Tensor:
        t = t if problem.time_dtype is None else t.to(problem.time_dtype)
        return t.reshape(*t.shape[:-1], *lead)

    def general(t: Tensor, z: Tensor) -> Tensor:
        value = system.value(function, z, t) if timed else system.value(function, z)
        return value - z if subtracts else value  # here: f may have written into its z

    plain = packing.plain and not context.autocast and memory.addresses
    if not plain or running.context is not context.scope:
        return ResolvedField(general, times)

    def velocity(t: Tensor, z: Tensor) -> Tensor:
        if memory.copies_result is not False or memory.copies_state is not False:
            return general(t, z)
        if z.requires_grad and not torch.is_grad_enabled():
            return general(t, z)
        counter.evaluations += 1
        version, state = z._version, z if rows is None else z.reshape(shape)
        try:
            value = function(t, state, x) if timed else function(state, x)
        except Exception as error:
            system.failed(error)
            raise
        alike = type(value) is Tensor and (value.shape, value.dtype, value.device) == kind
        if alike and z._version == version:
            flat = value if rows is None else value.reshape(rows)
            pointer = flat.data_ptr()
            if pointer != memory.pointer:
                memory.result, memory.pointer, memory.version = flat, pointer, flat._version
                return flat - z if subtracts else flat
        owned = system.accepted(value, z, version)
        return owned - z if subtracts else owned

    return ResolvedField(velocity, times)
