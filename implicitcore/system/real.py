"""A complex system as one of real numbers, which every root solver knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.system.context import Recorder
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.linear_system import LinearSystem, Products
from implicitcore.system.problem import Problem
from implicitcore.system.system import System
from implicitcore.tensors.packing import Packing, to_complex, to_real


@dataclass(eq=False)
class RealSystem(System):
    """f of the real and imaginary parts y ``[batch, 2 n]``: 2 n real functions.

    Right for any f that is differentiable in them, holomorphic or not (a conjugate, a modulus),
    where a Jacobian of complex numbers would be none. Products with the real Jacobian are what
    torch.autograd gives for complex tensors.

    Attributes:
        inner: the system itself.
    """

    inner: System

    @classmethod
    def of_parts(cls, inner: System, z0: Tensor) -> RealSystem:
        """The system of the parts of z0's states, counting with itself."""
        return cls(_problem(inner, z0), inner.context, inner)

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """See :meth:`System.velocity`."""
        return to_real(self.inner.velocity(t, to_complex(z)))

    def scale(self, update_norm: Tensor, start_norm: Tensor) -> Tensor:
        """See :meth:`System.scale`."""
        return self.inner.scale(update_norm, start_norm)

    def tolerance(self, tol: float) -> float:
        """See :meth:`System.tolerance`."""
        return self.inner.tolerance(tol)

    def absolute(self, atol: float) -> Tensor | float:
        """See :meth:`System.absolute`."""
        return self.inner.absolute(atol)

    def map(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        fz, g = self.inner.map(to_complex(z))
        return to_real(fz), None if g is None else to_real(g)


def real_system(system: System, z0: Tensor) -> System:
    """The system of the real and imaginary parts; a linear one stays linear."""
    if not isinstance(system, LinearSystem):
        return RealSystem.of_parts(system, z0)
    jacobian = _RealProducts(
        system.jacobian.system, to_real(system.jacobian.point), system.jacobian
    )
    v = to_real(system.v)
    return LinearSystem(
        _problem(system, z0), system.context, jacobian, v, system.v_norm, system.unit
    )


def real_evaluation(now: Evaluation) -> Evaluation:
    """An evaluation of the complex system as one of the real one."""
    value, size, update = now.residual
    return Evaluation(to_real(now.z), to_real(now.fz), Residual(to_real(value), size, update))


def of_complex(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of the real and imaginary parts as one of the complex state."""
    return lambda v: to_complex(function(to_real(v)))


def back_to_complex(recorder: Recorder | None, count: int) -> None:
    """Make the iterates that were recorded complex, but for the first ``count``."""
    if recorder is not None and recorder.iterates is not None:
        recorder.iterates[count:] = map(to_complex, recorder.iterates[count:])


def _problem(system: System, z0: Tensor) -> Problem:
    return replace(system.problem, packing=Packing.of(to_real(z0)))


class _RealProducts(Products):
    """Products with the Jacobian of the real and imaginary parts."""

    def vjp(self, v: Tensor) -> Tensor:
        return to_real(self.jacobian.vjp(to_complex(v)))

    def jvp(self, v: Tensor) -> Tensor:
        return to_real(self.jacobian.jvp(to_complex(v)))

    def matrix(self) -> Tensor:
        batch, n = self.point.shape
        units = torch.eye(n, dtype=self.point.dtype, device=self.point.device)
        rows = [self.vjp(unit.expand(batch, n)) for unit in units]
        return torch.stack(rows, 1) if rows else units.expand(batch, 0, 0)
