"""A compiled solve as one operation of a graph around it, and its gradient as another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import guard_scalar
from torch.utils import _pytree as pytree

from implicitcore.errors import InputError
from implicitcore.gradients.failures import report
from implicitcore.graph.constants import told_apart
from implicitcore.graph.functions import Replaced, masked, pulled
from implicitcore.graph.inside import inside, owned
from implicitcore.graph.layer import result
from implicitcore.graph.stop import Found
from implicitcore.graph.times import clock_of, of_samples
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.ode_solvers.times import check_times
from implicitcore.tensors.norms import real_dtype
from implicitcore.tensors.shared import Shared, unwrapped


class Form(NamedTuple):
    """What a call in a graph is made of beside its tensors.

    Attributes:
        layer: the name of the compiled layer, see :func:`named`.
        x: the structure of x, without marks.
        fixed: the places and values of the leaves of x that are no tensors.
        shared: of each tensor in x, whether it belongs to all samples.
        z: the structure of the state.
        reports: whether a failed sample is warned of or raised for.
    """

    layer: str
    x: pytree.TreeSpec
    fixed: tuple[tuple[int, Any], ...]
    shared: tuple[bool, ...]
    z: pytree.TreeSpec
    reports: bool


_FORMS: list[Form] = []
_NUMBERS: dict[Form, int] = {}  # of those, by what tells their constants apart
_LAYERS: WeakValueDictionary[str, Any] = WeakValueDictionary()
_COUNT = count()


def named(layer: Any) -> str:
    """A name for a compiled layer, by which the operations find it; another one at each call."""
    name = f"layer_{next(_COUNT)}"
    _LAYERS[name] = layer
    return name


@torch.compiler.assume_constant_result
def _form(layer: str, x: Any, shared: tuple[bool, ...], z: Any, reports: bool) -> int:
    """The number of a form, a constant of the graph: of x and z with None for their tensors."""
    leaves, spec = pytree.tree_flatten(x, is_leaf=lambda leaf: leaf is None)
    fixed = tuple((place, leaf) for place, leaf in enumerate(leaves) if leaf is not None)
    of_z = pytree.tree_structure(z, is_leaf=lambda leaf: leaf is None)
    form = Form(layer, spec, fixed, shared, of_z, reports)
    known = form._replace(fixed=told_apart(value for pair in fixed for value in pair))
    if known not in _NUMBERS:
        _FORMS.append(form)
        _NUMBERS[known] = len(_FORMS) - 1
    return _NUMBERS[known]


class Operation(NamedTuple):
    """The solve of a layer, as the graph that is being traced sees it.

    Attributes:
        form: the number of the call's form.
        tensors: those of x, then those that modules own.
    """

    form: int
    tensors: list[Tensor]

    @classmethod
    def of(cls, layer: str, owned: Sequence[Tensor], x: Any, z0: Any, reports: bool) -> Operation:
        """Of a call.

        Arguments:
            layer: its name.
            owned: the tensors that f reads beside x.
            x: the input, with its marks.
            z0: where the solve begins.
            reports: see :class:`Form`.
        """
        leaves, spec = pytree.tree_flatten(unwrapped(x))
        given, shared, rest = [], [], []
        for leaf, mark in zip(leaves, marks(x), strict=True):
            if isinstance(leaf, Tensor):
                given.append(leaf)
                shared.append(mark)
            rest.append(None if isinstance(leaf, Tensor) else _constant(leaf))
        start, z_spec = pytree.tree_flatten(z0)
        # Structures as they are, for the tracer has its own of them.
        x_form = pytree.tree_unflatten(rest, spec)
        z_form = pytree.tree_unflatten([None for _ in start], z_spec)
        return cls(_form(layer, x_form, tuple(shared), z_form, reports), [*given, *owned])

    def solve(self, z0: Any, times: Tensor | None) -> Found:
        """What the solve comes to from z0; at the output times, ``[T]`` or ``[T, batch]``."""
        start, spec = pytree.tree_flatten(z0)
        found = torch.ops.implicitcore.solve(self.form, start, self.tensors, times)
        *z, residual, status, steps, evaluations = found
        z = pytree.tree_unflatten(z, spec)
        return Found(z, residual.detach(), status, steps, evaluations)


def _constant(leaf: Any) -> Any:
    """A number as itself: one that has changed between calls has a symbol in a trace."""
    return guard_scalar(leaf) if isinstance(leaf, int | float) else leaf


def marks(x: Any) -> list[bool]:
    """Of each leaf of x whether it is marked as shared."""
    if isinstance(x, Tensor):
        return [False]
    found = []
    for node in pytree.tree_leaves(x, is_leaf=lambda node: isinstance(node, Shared)):
        marked = isinstance(node, Shared)
        found += [marked] * (len(pytree.tree_leaves(node)) if marked else 1)
    return found


@torch.library.custom_op("implicitcore::solve", mutates_args=())
def solve(form: int, z0: list[Tensor], tensors: list[Tensor], times: Tensor | None) -> list[Tensor]:
    """The leaves of z, then residual, status, steps and evaluations, of each sample.

    Arguments:
        form: the number of the call's form.
        z0: the leaves of the start.
        tensors: those of x, then those that modules own.
        times: the output times, ``[T]`` or ``[T, batch]``.
    """
    parts, owner = form_of(form)
    layer = owner.layer
    with inside():
        layout, plan, flat = owner.planned(parts, z0, tensors, clock=clock_of(times))
        if times is None:
            found = Found(*plan.forward(flat, *tensors))
        else:
            due = of_samples(check_times(times, flat, of_each=True), flat)
            found = plan.integrated(due, flat, tensors, training=False)[0]
        replaced = Replaced.of(found.status, layer.on_failure)
        z = layout.unpack(masked(found.z, flat, replaced, layer.on_failure))
        batch = z0[0].shape[0] if layer.coupled else found.status.shape[0]
        each = [value.expand(batch) for value in (found.residual, found.status, found.steps)]
        found = Found(z, each[0], each[1], each[2], found.evaluations)
        if parts.reports:
            evaluations: Any = int(found.evaluations)
            known = found._replace(evaluations=evaluations)
            start = pytree.tree_unflatten(z0, parts.z)
            known = result(layer.solver, layer.horizon, known, times=times, start=start)
            report(known, layer.on_failure, type(layer).__name__, layer)
    return [owned(leaf) for leaf in (*pytree.tree_leaves(z), *found[1:])]


@solve.register_fake
def _(form: int, z0: list[Tensor], tensors: list[Tensor], times: Tensor | None) -> list[Tensor]:
    del form, tensors
    first, batch = z0[0], z0[0].shape[0]
    dtype = real_dtype(torch.cat([leaf.new_empty(1) for leaf in z0]))
    lead = () if times is None else (times.shape[0],)
    z = [leaf.new_empty(*lead, *leaf.shape) for leaf in z0]
    residual = first.new_empty(batch, dtype=dtype)
    status = first.new_empty(batch, dtype=torch.int8)
    steps = first.new_empty(batch, dtype=torch.int64)
    return [*z, residual, status, steps, first.new_empty((), dtype=torch.int64)]


@torch.library.custom_op("implicitcore::pullback", mutates_args=())
def pullback(  # noqa: PLR0913 - an operation takes no tuples
    form: int,
    wanted: list[int],
    v: list[Tensor],
    z: list[Tensor],
    status: Tensor,
    tensors: list[Tensor],
    times: Tensor | None,
) -> list[Tensor]:
    """The cotangents of some of the start's leaves and the tensors, in this order.

    Arguments:
        form: the number of the call's form.
        wanted: the places of those that have one.
        v: of the leaves of z.
        z: the leaves of z; of a trajectory, of its start, for its steps are taken again.
        status: of each sample.
        tensors: those of x, then those that modules own.
        times: the output times.
    """
    parts, owner = form_of(form)
    many, on_failure = len(z), owner.layer.on_failure
    with inside():
        layout, plan, flat = owner.planned(parts, z, tensors, wanted, clock_of(times))
        due = of_samples(times, flat)
        replaced = Replaced.of(status[:1] if layout.coupled else status, on_failure)
        lead = None if times is None else len(times)
        cotangent = layout.pack(pytree.tree_unflatten(v, parts.z), lead).contiguous()
        at_start, found = pulled(plan, replaced, cotangent, flat, tensors, due)
        values = dict(enumerate(pytree.tree_leaves(layout.unpack(at_start))))
    values.update(zip((many + place for place in plan.differentiated), found, strict=True))
    return [owned(values[place]) for place in wanted]


@pullback.register_fake
def _(  # noqa: PLR0913 - as above
    form: int,
    wanted: list[int],
    v: list[Tensor],
    z: list[Tensor],
    status: Tensor,
    tensors: list[Tensor],
    times: Tensor | None,
) -> list[Tensor]:
    del form, v, status, times
    every = [*z, *tensors]
    return [
        torch.empty_like(every[place], memory_format=torch.contiguous_format) for place in wanted
    ]


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.form, z0, tensors, times = inputs
    ctx.many, ctx.timed = len(z0), times is not None
    solver = form_of(ctx.form)[1].layer.solver
    z = z0 if isinstance(solver, ODESolver) else output[: ctx.many]
    given = [] if times is None else [times]
    ctx.save_for_backward(*given, *z, output[ctx.many + 1], *tensors)


def _backward(ctx: Any, grads: Sequence[Tensor | None]) -> Any:
    many, saved = ctx.many, [*ctx.saved_tensors]
    times = saved.pop(0) if ctx.timed else None
    z, status, tensors = saved[:many], saved[many], saved[many + 1 :]
    lead = () if times is None else (times.shape[0],)
    given = zip(grads[:many], z, strict=True)
    v = [leaf.new_zeros(*lead, *leaf.shape) if g is None else g for g, leaf in given]
    _, starts, others, _ = ctx.needs_input_grad
    needed = [*starts, *others]
    wanted = [place for place, needs in enumerate(needed) if needs]
    found: list[Tensor | None] = [None] * len(needed)
    if wanted:
        values = torch.ops.implicitcore.pullback(ctx.form, wanted, v, z, status, tensors, times)
        for place, value in zip(wanted, values, strict=True):
            found[place] = value
    return None, found[:many], found[many:], None


solve.register_autograd(_backward, setup_context=_setup)


def form_of(number: int) -> tuple[Form, Any]:
    """The form of a number, and its compiled layer.

    Raises:
        InputError: the layer is gone.
    """
    form = _FORMS[number]
    layer = _LAYERS.get(form.layer)
    if layer is None:
        raise InputError("the compiled layer of this graph is gone: keep the model around it")
    return form, layer
