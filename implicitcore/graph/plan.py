"""A solve and its gradient as two compiled functions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.backends.base import Backend
from implicitcore.backends.graph import KrylovGraph, RootGraph
from implicitcore.dynamics.base import Dynamics
from implicitcore.graph.compiled import compiled
from implicitcore.graph.fused import adjoint_graph, root_graph
from implicitcore.graph.history import keeps_loop
from implicitcore.graph.linear import LoopedSolve, linear_solve
from implicitcore.graph.reads import Reads
from implicitcore.graph.solvers import follows_field, run
from implicitcore.graph.stop import Found
from implicitcore.graph.system import (
    GraphField,
    GraphSystem,
    Layout,
    graph_field,
    graph_system,
)
from implicitcore.graph.trace import Kind, Split, split, traced
from implicitcore.system.problem import rounding_of
from implicitcore.tensors.norms import column


@dataclass(frozen=True, eq=False)
class Inputs:
    """What f reads beside z, as a list of tensors: those of x, then those of modules.

    Attributes:
        spec: the structure of x.
        fixed: the leaves of x that are no tensors, by their places.
        count: of the tensors in x.
        reads: has the module and the name of each other tensor.
    """

    spec: pytree.TreeSpec
    fixed: dict[int, Any]
    count: int
    reads: Reads

    def x(self, tensors: Sequence[Tensor]) -> Any:
        """The x that the tensors are of."""
        rest = iter(tensors)
        places = range(self.count + len(self.fixed))
        leaves = [self.fixed[i] if i in self.fixed else next(rest) for i in places]
        return pytree.tree_unflatten(leaves, self.spec)


@dataclass(frozen=True, eq=False)
class Plan:
    """One solve, compiled for states and inputs of one kind.

    Attributes:
        dynamics: what is solved.
        solver: of the equilibrium.
        adjoint: of the backward pass.
        layout: of the state.
        inputs: what f reads beside z.
        kinds: of z0 and those tensors.
        horizon: the end time of an ODE solver.
        backend: is asked for iterations of its own.
        cuda_graphs: have the iterations as CUDA graphs.
    """

    dynamics: Dynamics
    solver: Any
    adjoint: Any
    layout: Layout
    inputs: Inputs
    kinds: tuple[Kind, ...]
    horizon: float
    backend: Backend
    cuda_graphs: bool

    def _function(self, z: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """f(z), and g(z) where the dynamics give it, of these tensors."""
        with self._reading(tensors) as x:
            system = graph_system(self.dynamics, x, self.layout, z.dtype)
            fz, g = system.function(z)
        return (fz,) if g is None else (fz, g)

    def _velocity(self, t: Tensor, z: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """g(t, z) of these tensors."""
        with self._reading(tensors) as x:
            return (graph_field(self.dynamics, x, self.layout, z.dtype).velocity(t, z),)

    @contextmanager
    def _reading(self, tensors: Sequence[Tensor]) -> Iterator[Any]:
        """The x that the tensors hold; the modules read the others."""
        many = self.inputs.count
        with self.inputs.reads.tracing(tensors[many:]):
            yield self.inputs.x(tensors[:many])

    def _pulled(self, places: Sequence[int]) -> Callable[..., tuple[Tensor, ...]]:
        """v, z and the tensors -> v^T df of those in some places of (z, *tensors)."""

        def pulled(v: Tensor, *point: Tensor) -> tuple[Tensor, ...]:
            def value(*wanted: Tensor) -> Tensor:
                given = [*point]
                for place, tensor in zip(places, wanted, strict=True):
                    given[place] = tensor
                return self._function(*given)[0]

            return torch.func.vjp(value, *(point[place] for place in places))[1](v)

        return pulled

    @cached_property
    def differentiated(self) -> list[int]:
        """The places of the tensors that get a gradient."""
        return [i for i, kind in enumerate(self.kinds[1:]) if kind.requires_grad]

    @cached_property
    def _value(self) -> Split:
        graph = traced(self._function, self.kinds)
        return split(graph, 1, range(1 if self.dynamics.is_map() else 2))

    @cached_property
    def moment(self) -> Kind:
        """Of the time of each sample, as f receives it."""
        z = self.kinds[0]
        dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
        return z._replace(shape=z.shape[:1], dtype=dtype, requires_grad=False)

    @cached_property
    def field(self) -> Split:
        """g(t, z) of the tensors."""
        return split(traced(self._velocity, (self.moment, *self.kinds)), 2, [0])

    @cached_property
    def _products(self) -> tuple[Split, Split]:
        """J^T v, and v^T df of the tensors."""
        # Each by itself: one operation may give both, as the backward pass of a convolution does.
        places = [0], [i + 1 for i in self.differentiated]
        kinds = self.kinds[0], *self.kinds
        product, others = (
            split(traced(self._pulled(wanted), kinds), 1, range(len(wanted))) for wanted in places
        )
        return product, others

    @cached_property
    def _iterations(self) -> RootGraph | None:
        """The backend's, of the solve."""
        return root_graph(self.backend, self.solver, self.dynamics, self.kinds[0].example())

    @cached_property
    def _fused_adjoint(self) -> RootGraph | KrylovGraph | None:
        """The backend's, of the backward pass."""
        return adjoint_graph(self.backend, self.adjoint, self.kinds[0].example())

    def keeps_loop(self, z: Tensor) -> bool:
        """Whether the layer's own loop solves from z; see :func:`keeps_loop`."""
        return self._iterations is None and keeps_loop(z, self.solver, self.backend)

    def pull(self, v: Tensor, z: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What :attr:`backward` gives, where it is the faster one by it."""
        own = self._fused_adjoint is None and keeps_loop(z, self.adjoint, self.backend)
        return (self._looped if own else self.backward)(v, z, *tensors)

    def check(self) -> None:
        """Refuse what no graph can take of f, as a compiled call does.

        Raises:
            InputError: see :func:`traced`.
            GradientError: see there.
        """
        getattr(self, "field" if follows_field(self.solver) else "_value")  # traced once

    @cached_property
    def forward(self) -> Callable[..., tuple[Tensor, ...]]:
        """z0 and the tensors -> z, residual, status, steps, evaluations."""
        solver, horizon = self.solver, self.horizon
        system = self.as_field() if follows_field(solver) else self._as_system()

        def forward(z0: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            return tuple(run(solver, system(*tensors), z0, horizon))

        return self.compiled(forward)

    def compiled(self, function: Any, *, in_cpp: bool = True) -> Callable[..., Any]:
        """One of the functions of this plan, compiled."""
        device, graphs = self.kinds[0].device, self.cuda_graphs
        return compiled(function, device=device, in_cpp=in_cpp, cuda_graphs=graphs)

    def _as_system(self) -> Callable[..., GraphSystem]:
        """The tensors -> the map that they make."""
        value, is_map, scale = self._value, self.dynamics.is_map(), self.dynamics.scale
        rounding = rounding_of(is_map, self.kinds[0].dtype)
        iterations = self._iterations

        def system(*tensors: Tensor) -> GraphSystem:
            known = value.before(*tensors)

            def function(z: Tensor) -> tuple[Tensor, Tensor | None]:
                found = value.inside(z, *known)
                return found[0], None if is_map else found[1]

            return GraphSystem(function, scale, rounding, iterations=iterations)

        return system

    def as_field(self) -> Callable[..., GraphField]:
        """The tensors -> the vector field that they make."""
        value, scale, dtype = self.field, self.dynamics.scale, self.moment.dtype
        rounding = rounding_of(self.dynamics.is_map(), self.kinds[0].dtype)

        def field(*tensors: Tensor) -> GraphField:
            known = value.before(*tensors)

            def velocity(t: Tensor, z: Tensor) -> Tensor:
                return value.inside(t.to(dtype), z, *known)[0].clone()

            return GraphField(velocity, scale, rounding)

        return field

    def velocity(self, tensors: Sequence[Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """g(t, z) of these tensors, ``[batch]`` and ``[batch, n]``, as it was traced."""
        return self.as_field()(*tensors).velocity

    @cached_property
    def backward(self) -> Callable[..., tuple[Tensor, ...]]:
        """v, z and the tensors -> residual, status, products, and the gradients."""
        solver, fused = self.adjoint, self._fused_adjoint

        def solve(product: Callable[[Tensor], Tensor], v: Tensor) -> tuple[Tensor, Found]:
            return linear_solve(solver, product, v, fused)

        return self.compiled(self._backward(solve))

    @cached_property
    def _looped(self) -> Callable[..., tuple[Tensor, ...]]:
        """The same with a linear solve by its solver's own loop, and nothing compiled."""
        return self._backward(LoopedSolve(self.adjoint, self.dynamics, self.backend))

    def _backward(self, solve: Callable[..., tuple[Tensor, Found]]) -> Callable[..., Any]:
        product, others = self._products

        def backward(v: Tensor, z: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            known = product.before(z, *tensors)
            finite = column(v.isfinite().all(1))
            u, found = solve(lambda u: product.inside(u, *known)[0], torch.where(finite, v, 0))
            u = torch.where(finite, u, torch.nan)
            gradients = others.inside(u, *others.before(z, *tensors))
            return found.residual, found.status, found.evaluations, *gradients

        return backward
