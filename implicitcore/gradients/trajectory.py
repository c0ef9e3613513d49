"""What the gradient strategies of trajectories have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import GradientError
from implicitcore.ode_solvers.saved import Save
from implicitcore.solution import Backward, Trajectory
from implicitcore.system.system import System
from implicitcore.tensors.autocast import suspended
from implicitcore.tensors.graph_leaves import Listed, graph_leaves, inputs, union
from implicitcore.tensors.restrict import SHARED


class Bound(NamedTuple):
    """The forward system in a backward pass.

    Attributes:
        system: counts by itself; the tensors of its x are leaves of their own, for what they were
            computed from is autograd's to follow.
        inputs: those leaves, then the leaves that the vector field captured: what gets a gradient.
    """

    system: System
    inputs: list[Tensor]


Pullback = Callable[[Bound, Tensor, Tensor | None], tuple[Tensor | None, Sequence[Tensor | None]]]
"""From v = dL/dz at each output time, ``[T, batch, n]``, and that of the end, where the trajectory
has one beside z: dL/dz0 and the gradients of the inputs."""


def attach(  # noqa: PLR0913 - keyword options
    strategy: object,
    pullback: Pullback,
    system: System,
    solution: Trajectory,
    z0: Tensor,
    *,
    replays: bool = False,
    save: Save | None = None,
) -> Trajectory:
    """The trajectory, solved without a graph, whose z is differentiated by ``pullback``.

    Gradients reach z0, the tensors of x, the parameters of the dynamics, and the leaves that the
    vector field depends on at the first or the last time: an evaluation at each finds those that no
    module lists, and is compared with the field of the backward pass. A pullback that ``replays``
    the steps compares them itself: its leaves are looked for at the first time, with those of what
    it is to ``save`` there.
    """
    ends = slice(0, 1) if replays else slice(None, None, max(len(solution.times) - 1, 1))
    start = solution.start.detach().unsqueeze(0)
    probe = _Probe(solution.times[ends], solution.z[ends] if save is None else start)
    bare = system.bind(pytree.tree_map_only(Tensor, torch.detach, system.x))
    captured = probe.record(bare)
    if save is not None:
        with torch.enable_grad():
            row = save(bare, solution.times[0].expand(len(z0)), start[0])
        captured = union(captured, graph_leaves(row))
    system.evaluations += len(probe.times)
    listed = (p for p in system.dynamics.parameters() if p.requires_grad)
    captured = union(listed, captured)
    name, record = type(strategy).__name__, solution.backward
    call = _Call(name, pullback, system, captured, probe, replays, record)
    z, end = _Attached.apply(call, solution.z, solution.end, z0, *inputs(system.x), *captured)
    return solution.amended(z=z, end=end, evaluations=system.evaluations)


class _Probe:
    """The vector field at the ends of a trajectory, to tell whether backward meets the same one."""

    def __init__(self, times: Tensor, z: Tensor) -> None:
        self.times, self.z = times, z
        self.velocities: list[Tensor] = []

    def record(self, system: System) -> list[Tensor]:
        """Evaluate the field; the leaves that it depends on."""
        with torch.enable_grad():
            found = self._evaluate(system)
        self.velocities = [velocity.detach() for velocity in found]
        return union(*map(graph_leaves, found))

    def check(self, system: System) -> None:
        """Require that the field is the same.

        Raises:
            GradientError: it is not.
        """
        with torch.no_grad():
            found = self._evaluate(system)
        require_same([agrees(*pair) for pair in zip(found, self.velocities, strict=True)])

    def _evaluate(self, system: System) -> list[Tensor]:
        batch = self.z.shape[1]
        return [
            system.velocity(t.expand(batch), z.detach())
            for t, z in zip(self.times, self.z, strict=True)
        ]


def agrees(found: Tensor, expected: Tensor) -> Tensor:
    """Whether a state or velocity ``[..., n]`` of the backward pass is that of the forward, a bool.

    Up to the square root of the precision, relative to its norm: sums may have another order. What
    is not finite cannot be compared.
    """
    bound = torch.finfo(expected.dtype).eps ** 0.5 * _size(expected)
    return ~(_size(found - expected) > bound).any()


def require_same(same: Sequence[Tensor]) -> None:
    """Require that the field is that of the forward pass.

    Raises:
        GradientError: one of the comparisons says that it is not.
    """
    if same and not bool(torch.stack(list(same)).all()):
        raise GradientError(_CHANGED)


def _size(z: Tensor) -> Tensor:
    return torch.linalg.vector_norm(z, dim=-1)


_CHANGED = (
    "the vector field of the backward pass is not that of the solve: an attribute or a tensor that "
    "it reads was changed since, or it draws random numbers; give what changes in x, call backward "
    "first, or use Unrolled"
)


@dataclass(eq=False)
class _Again(System):
    """The forward system in a backward pass: it may depend on no other leaves than the inputs."""

    listed: Listed = field(metadata=SHARED)

    @property
    def is_field(self) -> bool:
        """See :meth:`System.is_field`."""
        return True

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """See :meth:`System.velocity`."""
        velocity = super().velocity(t, z)
        self.listed.check("the vector field", [velocity], [z])
        return velocity


class _Call(NamedTuple):
    """What the backward pass needs to know about the forward."""

    strategy: str
    pullback: Pullback
    system: System
    captured: list[Tensor]
    probe: _Probe
    replays: bool
    record: Backward

    def bound(self) -> Bound:
        x = pytree.tree_map_only(Tensor, _leaf, self.system.x)
        listed, system = [*inputs(x), *self.captured], self.system.bind(x)
        return Bound(_Again(system.problem, system.context, Listed(listed)), listed)


def _leaf(tensor: Tensor) -> Tensor:
    """The tensor as a leaf of its own, in its place of x: a gradient is found for each place."""
    return tensor.detach().requires_grad_(tensor.requires_grad)


def first_only(strategy: str) -> str:
    """What is said of a second derivative."""
    return (
        f"{strategy} gives first derivatives only; use Unrolled for a second derivative "
        "(create_graph=True)"
    )


@contextmanager
def backward_pass(ctx: Any, strategy: str, system: System) -> Iterator[None]:
    """The backward pass of a function that saved what the solve depends on.

    Arguments:
        ctx: autograd's, of the function.
        strategy: the name of the gradient strategy.
        system: the one of the forward pass.

    Raises:
        GradientError: on a second derivative; where the function has changed since the solve.
    """
    if torch.is_grad_enabled():
        raise GradientError(first_only(strategy))
    system.check_function()
    _ = ctx.saved_tensors  # autograd's own error, where one of them was changed in place since
    with system.scope.entered(), suspended():
        yield


class _Attached(torch.autograd.Function):
    """The stored trajectory, differentiable in z0 and the tensors of the vector field."""

    @staticmethod
    def forward(ctx: Any, call: _Call, z: Tensor, end: Tensor | None, *tensors: Tensor) -> Any:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        return z.clone(), None if end is None else end.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        call: _Call = ctx.call
        with backward_pass(ctx, call.strategy, call.system):
            bound = call.bound()
            if not call.replays:
                call.probe.check(bound.system)
                call.record.evaluations += len(call.probe.times)
            z0, gradients = call.pullback(bound, *grad_outputs)
        if not len(ctx.saved_tensors[0]):
            # An empty batch takes no step: what the field depends on has a gradient of zero, as a
            # data-parallel module requires.
            gradients = [torch.zeros_like(tensor) for tensor in bound.inputs]
        return None, None, None, z0, *gradients


def pull(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """The product of the cotangents with the Jacobian.

    None for an input that no output depends on.
    """
    # The graph is kept for the sake of what lies before the solve: a captured tensor that is no
    # leaf.
    return torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True, allow_unused=True)


def total(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    """The sum of two gradients, where None is zero."""
    return new if old is None else old if new is None else old + new


def first_order(tensor: Tensor, refusal: str) -> Tensor:
    """The tensor itself, which refuses a second derivative: what comes of it has no graph."""
    return _FirstOrder.apply(tensor, refusal)


class _FirstOrder(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: Tensor, refusal: str) -> Tensor:
        del refusal
        return tensor.view_as(tensor)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        del output
        ctx.refusal = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        if torch.is_grad_enabled():
            raise GradientError(ctx.refusal)
        return grad_outputs[0], None
