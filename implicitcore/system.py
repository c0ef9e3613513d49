"""Dynamics bound to one input: what a solver sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from implicitcore.backends.base import Backend, Residual
from implicitcore.backends.torch import TorchBackend
from implicitcore.dynamics.base import Dynamics
from implicitcore.packing import Packing


class Linearization:
    """Products with the Jacobian J of f at one point; each counts as an evaluation of the system.

    Arguments:
        system: counts the products.
        point: ``[batch, n]``, requires a gradient.
        fz: f(point), with its graph.
    """

    def __init__(self, system: System, point: Tensor, fz: Tensor) -> None:
        self.system, self.point, self.fz = system, point, fz
        self._transposed: tuple[Tensor, Tensor] | None = None

    def vjp(self, v: Tensor) -> Tensor:
        """J^T v, ``[batch, n]``."""
        self.system.evaluations += 1
        return self._product(self.fz, self.point, v, torch.is_grad_enabled())

    def jvp(self, v: Tensor) -> Tensor:
        """J v, ``[batch, n]``: the derivative of w -> J^T w, which needs no forward-mode rules from the cell."""
        self.system.evaluations += 1
        if self._transposed is None:
            with torch.enable_grad():
                w = torch.zeros_like(self.fz).requires_grad_()
                self._transposed = w, self._product(self.fz, self.point, w, True)
        w, pulled = self._transposed
        return self._product(pulled, w, v, torch.is_grad_enabled())

    @staticmethod
    def _product(output: Tensor, point: Tensor, v: Tensor, graph: bool) -> Tensor:
        if not output.requires_grad:  # f does not depend on z
            return torch.zeros_like(point)
        return torch.autograd.grad(output, point, v, retain_graph=True, create_graph=graph, materialize_grads=True)[0]


class System:
    """Dynamics bound to one x, as functions of a packed state ``[batch, n]``, with the evaluations counted.

    Arguments:
        dynamics: what is solved.
        x: the input of this solve, any pytree.
        packing: how the state is laid out.
        backend: the kernels that the solvers use.
        trace: keep the residual of each step.

    Attributes:
        evaluations: evaluations of the dynamics so far; Jacobian products count as one each.
        linear: g is affine in z, so that a linear solver may trust its own residuals.
        quadrature: the system integrates something along the steps of an ODE solver, and is told of each by :meth:`commit`,
            and of each output time by :meth:`arrive`.
    """

    linear: ClassVar[bool] = False
    quadrature: ClassVar[bool] = False

    def __init__(self, dynamics: Dynamics, x: Any, packing: Packing, *, backend: Backend | None = None, trace: bool = False) -> None:
        self.dynamics = dynamics
        self.x = x
        self.packing = packing
        self.backend = backend or TorchBackend()
        self.trace: list[Tensor] | None = [] if trace else None
        self.evaluations = 0
        self._residual: tuple[Tensor, Tensor, bool, Residual] | None = None

    def update(self, z: Tensor) -> Tensor:
        """The fixed-point map f(z), ``[batch, n]``: one evaluation."""
        return self._evaluate(self.dynamics.update, self.packing.unpack(z), self.x)

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """The vector field g(t, z), ``[batch, n]``, at the times t ``[batch]``: one evaluation."""
        broadcastable = t.reshape(-1, *(1,) * len(self.packing.shapes[0]))
        return self._evaluate(self.dynamics.velocity, broadcastable, self.packing.unpack(z), self.x)

    def residual(self, z: Tensor, fz: Tensor) -> Residual:
        """g = f(z) - z with ``|g|`` and ``|f(z)|`` per sample, from fz = f(z); computed once for the same pair."""
        memo, graph = self._residual, torch.is_grad_enabled()
        if memo is None or memo[0] is not z or memo[1] is not fz or memo[2] is not graph:
            memo = self._residual = (z, fz, graph, self.backend.residual(fz, z))
        return memo[3]

    def scale(self, update_norm: Tensor, start_norm: Tensor) -> Tensor:
        """What the relative tolerance is relative to, ``[batch]`` (see :meth:`Dynamics.scale`)."""
        return self.dynamics.scale(update_norm, start_norm)

    def bind(self, x: Any) -> System:
        """The same dynamics at another x, counting by itself."""
        return System(self.dynamics, x, self.packing, backend=self.backend)

    def commit(self, step: Any, dt: Tensor, accept: Tensor) -> None:
        """Hear of a step of an ODE solver: dt ``[batch]``, and which samples accepted it. Only a quadrature listens."""

    def arrive(self, z: Tensor, arrived: Tensor, which: Tensor) -> Tensor:
        """The state to go on from, where samples ``arrived`` at their output times ``which``. Only a quadrature is asked."""
        del arrived, which
        return z

    def linearize(self, z: Tensor) -> Linearization:
        """The Jacobian J of f at z, as products: one evaluation, whose graph every product reuses."""
        with torch.enable_grad():
            point = z if z.requires_grad else z.detach().requires_grad_()
            return Linearization(self, point, self.update(point))

    def _evaluate(self, function: Callable[..., Any], *arguments: Any) -> Tensor:
        self.evaluations += 1
        try:
            value = function(*arguments)
        except Exception as error:
            shapes = ", ".join(str([self.packing.batch, *shape]) for shape in self.packing.shapes)
            error.add_note(f"while evaluating {type(self.dynamics).__name__} on a state z of shape {shapes}, {self.packing.dtype}")
            raise
        self.packing.check(value, type(self.dynamics).__name__)
        return self.packing.pack(value).to(self.packing.dtype)
