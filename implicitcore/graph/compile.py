"""Layers whose solve and whose gradient are one compiled graph each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from implicitcore.errors import InputError
from implicitcore.gradients.failures import report
from implicitcore.graph import operator
from implicitcore.graph.checks import check_autocast, check_call, check_trajectory
from implicitcore.graph.constants import told_apart
from implicitcore.graph.functions import Call, applied
from implicitcore.graph.history import keeps_loop
from implicitcore.graph.layer import GraphLayer, result
from implicitcore.graph.plan import Inputs, Plan
from implicitcore.graph.reads import Reads
from implicitcore.graph.stepped import Clock
from implicitcore.graph.stop import Found
from implicitcore.graph.system import Layout
from implicitcore.graph.times import checked_times, clock_of, of_samples, times_in_graph
from implicitcore.graph.trace import kinds_of
from implicitcore.graph.trajectory import TrajectoryPlan
from implicitcore.layers.base import ImplicitLayer
from implicitcore.layers.call import refuse_options
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.ode_solvers.times import Times
from implicitcore.root_solvers.base import RootSolver
from implicitcore.solution import Backward, FinalState, Solution, Trajectory
from implicitcore.tensors.shared import Shared, check_batch, unwrapped
from implicitcore.tensors.transforms import eager


class CompiledLayer(nn.Module):
    """See :func:`compile`.

    Arguments:
        layer: the layer; it stays what it was, and shares its parameters with this module.
    """

    def __init__(self, layer: ImplicitLayer) -> None:
        super().__init__()
        check_call(layer)
        self.layer = layer
        self.plans: dict[Any, Plan] = {}
        self.latest: tuple[Any, Plan] | None = None  # of the last call, by what is read of it
        self.reads, self.name = Reads.of(layer.dynamics), operator.named(self)
        # For a graph around this one, without a gradient; in a tuple it is no part of this module.
        self.inlined = (GraphLayer(layer),)

    def forward(self, x: Any, z0: Any = None, *, times: Times = None, **options: Any) -> Any:
        """See :meth:`ImplicitLayer.forward`; ``options`` of a call are refused."""
        if torch.compiler.is_compiling():
            if not torch.is_grad_enabled():
                return self.inlined[0](x, z0, times=times, **options)
            return self._as_operation(x, z0, times, options, reports=True)[0].z
        solution = self._solve(x, z0, times, options)
        report(solution, self.layer.on_failure, type(self.layer).__name__, self.layer)
        return solution.z

    def solve(
        self, x: Any, z0: Any = None, *, times: Times = None, **options: Any
    ) -> Solution | FinalState | Trajectory:
        """See :meth:`ImplicitLayer.solve`; ``options`` of a call are refused."""
        if not torch.compiler.is_compiling():
            return self._solve(x, z0, times, options)
        if not torch.is_grad_enabled():
            return self.inlined[0].solve(x, z0, times=times, **options)
        found, more = self._as_operation(x, z0, times, options, reports=False)
        return result(self.layer.solver, self.layer.horizon, found, backward=Backward(), **more)

    def _as_operation(
        self, x: Any, z0: Any, times: Times, options: dict[str, Any], reports: bool
    ) -> tuple[Found, dict[str, Any]]:
        """The solve in the graph of a model around this layer; where it began, and its times."""
        refuse_options(options)
        check_autocast()
        layer = self.layer
        begin = layer.start(unwrapped(x)) if z0 is None else z0
        if isinstance(layer.solver, RootSolver):
            start = pytree.tree_map(torch.detach, begin)
        else:
            detaches = z0 is None and layer.start.detached
            start = pytree.tree_map(torch.detach, begin) if detaches else begin
        owned = [getattr(module, name) for module, name in self.reads.owned]
        grid = times_in_graph(layer.solver, times, start, coupled=layer.coupled)
        found = operator.call(self.name, owned, x, start, reports, grid)
        spent = layer.start.evaluations if z0 is None else 0
        more = {"start": begin, "times": grid}
        return found._replace(evaluations=found.evaluations + spent), more

    @eager
    def _solve(
        self, x: Any, z0: Any, times: Times, options: dict[str, Any]
    ) -> Solution | FinalState | Trajectory:
        refuse_options(options)
        layer = self.layer
        check_call(layer)
        begin = layer.start(unwrapped(x)) if z0 is None else z0
        layout = Layout.of(begin, coupled=layer.coupled)
        flat = layout.pack(begin)
        if isinstance(layer.solver, RootSolver) or (z0 is None and layer.start.detached):
            flat = flat.detach()
        check_batch(x, len(pytree.tree_leaves(begin)[0]))
        grid = checked_times(layer.solver, times, flat, coupled=layer.coupled)
        plan, tensors = self._plan(x, layout, flat, clock_of(grid))
        record, training = Backward(), _has_graph(flat, *tensors)
        if keeps_loop(flat, plan.unfused(training=training), layer.backend):
            plan.check()
            return self._solved(x, begin, z0 is None)
        if isinstance(plan, TrajectoryPlan) and training:
            check_trajectory(layer)
        call = Call(plan, layer.on_failure, record, of_samples(grid, flat))
        found = applied(call, flat, tensors, training=training)
        spent = layer.start.evaluations if z0 is None else 0
        found = found._replace(z=layout.unpack(found.z), evaluations=int(found.evaluations) + spent)  # pyright: ignore[reportArgumentType] - a number outside of the graph
        given = {"start": begin, "backward": record, "times": grid}
        found = result(layer.solver, layer.horizon, found, **given)
        return found.of_each(len(pytree.tree_leaves(begin)[0])) if layer.coupled else found

    def _solved(self, x: Any, begin: Any, started: bool) -> Solution | FinalState:
        """By the layer's own loop, from the start that it has made, or that was given."""
        start = self.layer.start
        z0 = pytree.tree_map(torch.detach, begin) if started and start.detached else begin
        found: Any = self.layer.solve(x, z0)
        if not started:
            return found
        return found.amended(start=begin, evaluations=found.evaluations + start.evaluations)

    def regularizer(self, solution: Solution) -> Tensor:
        """See :meth:`ImplicitLayer.regularizer`."""
        return self.layer.regularizer(solution)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was compiled, which another process compiles again."""
        return {**super().__getstate__(), "plans": {}, "latest": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With a name of its own."""
        super().__setstate__(state)
        self.name = operator.named(self)

    def planned(
        self,
        form: operator.Form,
        z: Sequence[Tensor],
        tensors: Sequence[Tensor],
        wanted: Sequence[int] = (),
        clock: Clock | None = None,
    ) -> tuple[Layout, Plan, Tensor]:
        """The layout of a state, what was compiled for such a call, and the packed state.

        Arguments:
            form: of the call.
            z: the leaves of the state.
            tensors: those of x, then those that modules own.
            wanted: the places in both of what gets a gradient.
            clock: of a call with output times.

        Raises:
            InputError: the graph was traced with other modules, or the sizes of the batch differ.
        """
        check_call(self.layer)
        if isinstance(self.layer.solver, ODESolver):
            check_trajectory(self.layer)
        if not self._is_current():
            self.name = operator.named(self)  # which the graph around it looks at
            raise InputError(
                "a part of f was replaced since the model around this compiled layer was traced: "
                "call the model once more, which traces it anew"
            )
        count, batch = len(form.shared), z[0].shape[0]
        given = zip(tensors[:count], form.shared, strict=True)
        check_batch([Shared(tensor) if mark else tensor for tensor, mark in given], batch)
        state = pytree.tree_unflatten(z, form.z)
        layout = Layout.of(state, coupled=self.layer.coupled)
        flat = layout.pack(state)
        needs = [False, *(len(z) + place in wanted for place in range(len(tensors)))]
        inputs = Inputs(form.x, dict(form.fixed), count, self.reads)
        every = flat, *tensors
        return layout, self._planned(inputs, form.shared, layout, every, needs, clock), flat

    def _plan(
        self, x: Any, layout: Layout, flat: Tensor, clock: Clock | None = None
    ) -> tuple[Plan, list[Tensor]]:
        """What was compiled for such inputs, and the tensors that it takes."""
        leaves, spec = pytree.tree_flatten(unwrapped(x))
        fixed = {i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        each = zip(leaves, operator.marks(x), strict=True)
        shared = [mark for leaf, mark in each if isinstance(leaf, Tensor)]
        self._is_current()
        tensors = [*given, *(getattr(module, name) for module, name in self.reads.owned)]
        inputs = Inputs(spec, fixed, len(given), self.reads)
        every = flat, *tensors
        needs = [tensor.requires_grad for tensor in every]
        return self._planned(inputs, shared, layout, every, needs, clock), tensors

    def _is_current(self) -> bool:
        """Whether what f reads is where it was; else it is looked for anew."""
        current, same = self.reads.compared(self.layer.dynamics)
        if not same:
            self.reads, self.latest = Reads.of(self.layer.dynamics), None
            self.plans.clear()
        return current

    def _planned(
        self,
        inputs: Inputs,
        shared: Sequence[bool],
        layout: Layout,
        tensors: Sequence[Tensor],
        needs: Sequence[bool],
        clock: Clock | None,
    ) -> Plan:
        """What was compiled for such inputs: z, those of x of which some are shared, and others."""
        layer = self.layer
        fixed = told_apart(value for pair in inputs.fixed.items() for value in pair)
        modes = tuple([module.training for module in self.reads.modules])
        options = layer.solver, layer.gradient, layer.horizon, layer.backend
        parts = *options, layout.spec, layout.shapes, inputs.spec
        sizes = [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
        # Compared, and not hashed: most of it is the very object of the call before.
        seen = parts, fixed, modes, layer.coupled, sizes, [*shared], [*needs], clock
        if self.latest is not None and self.latest[0] == seen:
            return self.latest[1]
        kinds = kinds_of(tensors, shared, needs, coupled=layer.coupled)
        key = *parts, fixed, modes, kinds, clock
        if key not in self.plans:
            adjoint = getattr(layer.gradient, "solver", None)
            of = layer.dynamics, layer.solver, adjoint, layout, inputs, kinds, *options[2:]
            follows = isinstance(layer.solver, ODESolver)
            self.plans[key] = TrajectoryPlan(*of, clock) if follows else Plan(*of)
        self.latest = seen, self.plans[key]
        return self.plans[key]


def compile(layer: ImplicitLayer) -> CompiledLayer:  # noqa: A001 - as torch.compile
    """The layer with its solve and its gradient as one compiled graph each.

    The loop, its stop test and the cell are fused; what does not depend on z (the weights of
    parametrizations, what the cell makes of x alone) is computed once a solve. The steps, statuses
    and iterates are those of the layer within rounding, and so is the gradient. The solution's
    ``evaluations`` lack the one that the layer takes for its graph, which is a part of the backward
    pass here.

    The first call compiles, and takes seconds to a minute; the first call with another size of the
    batch compiles once more, for all sizes. What backward needs is compiled by the first one.
    The gradient of a trajectory is that of its steps, exact whatever the tolerances. The way there
    keeps the state before each of them, ``[steps, batch, n]``, and the solver's: twice that of a
    Runge-Kutta method whose last stage is its next first one, ``max_order + 1`` times it of
    ``Adams``. Where memory is short, ``Checkpointed`` in the layer itself keeps fewer.

    Worth it for small cells in long runs; on large ones evaluations are the cost, and stay. On a
    CPU the solvers with a history (``Anderson``, ``Broyden``, ``GMRES``) are compiled for states of
    at most 64 KiB, the whole batch counted: a graph copies a history at every step. Larger states
    are solved by the layer as it is, and counted as it counts; so are all of a layer with another
    backend than torch. But for ``cpp``: there an iteration is one operation, whatever the size.
    ``torch.compile`` of a model around it has it in its own graph, whatever the size, also with
    ``fullgraph=True``: in training as one operation, and its gradient as another, which warn and
    raise when they run; in inference by its loop, where the layer would raise with NaN, and with
    the options that it has now. What such an operation keeps of a trajectory is the start: its
    gradient takes the steps once more. Its solution has tensors alone, and an empty ``backward``.

    Arguments:
        layer: with the solver ``Picard``, ``Anderson``, ``Broyden`` or ``SteadyState``, and the
            gradient ``Implicit`` with one of the first three or ``GMRES``; or with an ODE solver
            and the gradient ``Checkpointed`` or ``Unrolled`` (others for inference alone). The ODE
            solvers are ``Adams`` and the explicit Runge-Kutta methods, with equal or chosen steps.
            The result shares its parameters and follows its options; what is put in the place of
            its dynamics, or of a module, function, hook, number or string in them, is compiled
            anew, also where a function has it of its closure or its globals: what changes often
            should be a buffer or a part of x. f has to be a function of its inputs: in training no
            dropout, and no statistics that it writes. A tensor or a container that is a plain
            attribute of f is a constant of the graph, and so is an attribute of a class.

    Returns:
        A module: called as the layer, with ``solve``, and ``layer``, which stays what it was.

    Raises:
        ConfigError: a solver or gradient that has no loop in a graph.
        GradientError: from a call that wants the gradient of a trajectory by another strategy.

    Example:
        >>> import implicitcore as ic
        >>> cell = ic.FixedPoint(lambda z, x: (z + x).sin() / 2)
        >>> layer = ic.compile(ic.ImplicitLayer(cell, solver=ic.Anderson(tol=1e-5)))
        >>> layer.layer.solver.tol
        1e-05
    """
    return CompiledLayer(layer)


def _has_graph(*tensors: Tensor) -> bool:
    """Whether a gradient may be asked for."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
