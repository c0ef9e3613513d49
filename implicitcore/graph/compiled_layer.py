"""A layer whose solve and whose gradient are one compiled graph each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from implicitcore.errors import InputError
from implicitcore.gradients.failures import report
from implicitcore.gradients.unrolled import Unrolled
from implicitcore.graph import operator
from implicitcore.graph.checks import adjoint_of, check_autocast, check_call, check_trajectory
from implicitcore.graph.constants import told_apart
from implicitcore.graph.functions import Call, applied, applied_at
from implicitcore.graph.host_loop import records_on
from implicitcore.graph.layer import GraphLayer, result
from implicitcore.graph.operator_times import solved_at
from implicitcore.graph.plan import Inputs, Plan
from implicitcore.graph.prepared import Form, Prepared, Recent, Run
from implicitcore.graph.reads import Reads
from implicitcore.graph.stepped import Clock
from implicitcore.graph.stop import Found
from implicitcore.graph.system import Layout
from implicitcore.graph.times import checked_times, clock_of, times_in_graph
from implicitcore.graph.trace import kinds_of
from implicitcore.graph.trajectory import TrajectoryPlan
from implicitcore.layers.base import ImplicitLayer
from implicitcore.layers.call import Result, refuse_options
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.ode_solvers.times import Times
from implicitcore.root_solvers.base import RootSolver
from implicitcore.solution import Backward, FinalState, Solution
from implicitcore.tensors.shared import Shared, check_batch, unwrapped
from implicitcore.tensors.transforms import check_compiled, not_in_inference


class CompiledLayer(nn.Module):
    """See :func:`~implicitcore.graph.compile.compile`.

    Arguments:
        layer: the layer; it stays what it was, and shares its parameters with this module.
        cuda_graphs: whether iterations are CUDA graphs; None: where there are any.
    """

    def __init__(self, layer: ImplicitLayer, cuda_graphs: bool | None = None) -> None:
        super().__init__()
        check_call(layer)
        self.layer, self.cuda_graphs = layer, cuda_graphs
        self.plans: dict[Any, Plan] = {}
        self.recent: Recent | None = None
        self.reads, self.name = Reads.of(layer), operator.named(self)
        # For a graph around this one, without a gradient; in a tuple it is no part of this module.
        self.inlined = (GraphLayer(layer),)

    def forward(self, x: Any, z0: Any = None, *, times: Times = None, **options: Any) -> Any:
        """See :meth:`ImplicitLayer.forward`; ``options`` of a call are refused."""
        if torch.compiler.is_compiling():
            if not torch.is_grad_enabled():
                return self.inlined[0](x, z0, times=times, **options)
            return self._as_operation(x, z0, times, options, reports=True)[0].z
        run = self._run(x, z0, times, options)
        if not isinstance(run, Run) or bool(run.found.status.any()):
            solution = self._told(run) if isinstance(run, Run) else run
            report(solution, self.layer.on_failure, type(self.layer).__name__, self.layer)
            return solution.z
        return run.layout.unpack(run.found.z)

    def solve(self, x: Any, z0: Any = None, *, times: Times = None, **options: Any) -> Result:
        """See :meth:`ImplicitLayer.solve`; ``options`` of a call are refused."""
        if not torch.compiler.is_compiling():
            run = self._run(x, z0, times, options)
            return self._told(run) if isinstance(run, Run) else run
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
        operation = operator.Operation.of(self.name, owned, x, start, reports)
        if grid is None:
            found = operation.solve(start, None)
        else:
            found = solved_at(operation, start, grid, layer.on_failure)
        spent = layer.start.evaluations if z0 is None else 0
        more = {"start": begin, "times": None if grid is None else grid.detach()}
        return found._replace(evaluations=found.evaluations + spent), more

    @not_in_inference
    def _run(self, x: Any, z0: Any, times: Times, options: dict[str, Any]) -> Run | Result:
        """What the solve came to; the result itself where the layer's own loop made it."""
        check_compiled()
        refuse_options(options)
        check_autocast()
        layer = self.layer
        self._is_current(layer)
        begin = layer.start(unwrapped(x)) if z0 is None else z0
        call = self._again(layer, x, begin, z0) if times is None else None
        if call is None:
            call = self._prepared(x, begin, z0, times)
            self.recent = Recent.of(x, begin, call) if times is None else None
        plan, flat, training = call.plan, call.flat, call.training
        if call.keeps:
            plan.check()
            return self._solved(x, begin, z0 is None)
        if training and isinstance(plan, TrajectoryPlan):
            check_trajectory(layer)
        record, grid, spent = Backward(), call.times, layer.start.evaluations if z0 is None else 0
        of = Call(plan, layer.on_failure, record, call.kinds)
        if grid is None:
            found = applied(of, flat, call.tensors, training=training)
        else:
            found = applied_at(of, grid, flat, call.tensors, training=training)
        return Run(found, call.layout, begin, spent, record, grid and grid.all)

    def _prepared(self, x: Any, begin: Any, z0: Any, times: Times) -> Prepared:
        layer = self.layer
        check_call(layer)
        layout = Layout.of(begin, coupled=layer.coupled)
        flat = _packed(layer, layout, begin, z0)
        check_batch(x, len(pytree.tree_leaves(begin)[0]))
        grid = checked_times(layer.solver, times, flat, coupled=layer.coupled)
        plan, tensors = self._plan(x, layout, flat, clock_of(grid and grid.distinct))
        return Prepared(layout, flat, plan, tensors, plan.keeps_loop(flat), times=grid)

    def _again(self, layer: ImplicitLayer, x: Any, begin: Any, z0: Any) -> Prepared | None:
        """As the call before, where this one is of its kind, and all else is where it was."""
        if (recent := self.recent) is None:  # read once: another thread may put its own there
            return None
        form = Form.of(x, begin)
        if form.structure != recent.structure:
            return None
        return recent.again(form, _packed(layer, recent.layout, begin, z0), self.reads.tensors)

    def _told(self, run: Run) -> Result:
        """What the solve came to, as the layer says it."""
        (flat, residual, status, steps, count), layer = run.found, self.layer
        evaluations: Any = int(count) + run.spent  # a number outside of the graph
        found = Found(run.layout.unpack(flat), residual, status, steps, evaluations)
        given = {"start": run.begin, "backward": run.record, "times": run.times}
        told = result(layer.solver, layer.horizon, found, **given)
        return told.of_each(len(pytree.tree_leaves(run.begin)[0])) if layer.coupled else told

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
        return {**super().__getstate__(), "plans": {}, "reads": None, "recent": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With a name of its own."""
        super().__setstate__(state)
        self.reads, self.name = Reads.of(self.layer), operator.named(self)

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
        if not self._is_current(self.layer):
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
        tensors = [*given, *self.reads.tensors]
        inputs = Inputs(spec, fixed, len(given), self.reads)
        every = flat, *tensors
        needs = [tensor.requires_grad for tensor in every]
        return self._planned(inputs, shared, layout, every, needs, clock), tensors

    def _is_current(self, layer: ImplicitLayer) -> bool:
        """Whether what f reads is where it was; else it is looked for anew."""
        if self.reads.hold(layer):
            return True
        self.recent = None  # which is of what was there before, whoever asks
        self.reads, current, same = self.reads.renewed(layer)
        if not same:
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
        kinds = kinds_of(tensors, shared, needs, coupled=layer.coupled)
        key = *parts, fixed, modes, kinds, clock
        if key not in self.plans:
            adjoint = adjoint_of(layer, tensors[0].dtype)
            graphs = records_on(kinds[0].device, layer.dynamics, self.cuda_graphs)
            of = layer.dynamics, layer.solver, adjoint, layout, inputs, kinds, *options[2:], graphs
            follows = isinstance(layer.solver, ODESolver)
            saves = layer.gradient == Unrolled()
            self.plans[key] = TrajectoryPlan(*of, clock, saves) if follows else Plan(*of)
        return self.plans[key]


def _packed(layer: ImplicitLayer, layout: Layout, begin: Any, z0: Any) -> Tensor:
    """The start as a solve takes it: without a graph where that has no gradient."""
    flat = layout.pack(begin)
    if not flat.requires_grad:
        return flat
    detaches = isinstance(layer.solver, RootSolver) or (z0 is None and layer.start.detached)
    return flat.detach() if detaches else flat
