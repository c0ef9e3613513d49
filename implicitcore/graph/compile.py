"""Compiles layers."""

from __future__ import annotations

from torch import nn

from implicitcore.errors import ConfigError, show
from implicitcore.graph.compiled_layer import CompiledLayer
from implicitcore.layers.base import ImplicitLayer


def compile(  # noqa: A001 - as torch.compile
    layer: ImplicitLayer, *, cuda_graphs: bool | None = None
) -> CompiledLayer:
    """The layer with its solve and its gradient as one compiled graph each.

    The loop, its stop test and the cell are fused; what does not depend on z (the weights of
    parametrizations, what the cell makes of x alone) is computed once a solve. The steps, statuses
    and iterates are those of the layer within rounding, and so is the gradient. The solution's
    ``evaluations`` lack the one that the layer takes for its graph, which is a part of the backward
    pass here, and the one with which ``SteadyState`` asks why a sample has stalled.

    The first call compiles, and takes seconds to a minute; the first call with another size of the
    batch compiles once more, for all sizes. What backward needs is compiled by the first one.
    The gradient of a trajectory is that of its steps, exact whatever the tolerances. The strategy
    says what is kept of large ones, of more than 64 KiB with all samples and the solver's state.
    ``Unrolled`` keeps what the products of each step need, about what it keeps in
    the layer, and evaluates nothing again; where f folds the samples into other dimensions (the
    heads of attention), it does as ``Checkpointed``. That keeps the state before each step,
    ``[steps, batch, n]``, and the solver's (twice that of a Runge-Kutta method whose last stage is
    its next first one, ``max_order + 1`` times it of ``Adams``), and takes the step again on the
    way back. So both do with small steps, whose calls are the cost. Where memory is short,
    ``Checkpointed`` in the layer itself keeps fewer.

    Output times may be the same, and may require a gradient: each costs one evaluation then.

    Worth it for small cells in long runs; on large ones evaluations are the cost, and stay. On a
    CPU the solvers with a history (``Anderson``, ``Broyden``, ``GMRES``) are compiled for states of
    at most 64 KiB, the whole batch counted: a graph copies a history at every step. Larger states
    are solved by the layer as it is, and counted as it counts, where such a solver is the layer's;
    where it is the gradient's alone, the solve is compiled, and the gradient has the solver's own
    loop with products of a graph. So it is with another backend than torch, whatever the size. But
    for ``cpp``: there an iteration is one operation.
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
            attribute of f is a constant of the graph, and so is an attribute of a class. While f is
            traced, in the first call and the first backward pass of a kind, its modules hold other
            tensors: calls of compiled layers wait, but no other thread may use them uncompiled.
        cuda_graphs: whether iterations are CUDA graphs, of three and of one in turn. None: on a
            device that has them. They are recorded in the second solve of the same sizes, for at
            most eight sets of sizes; weights that are trained in place are followed, and others in
            their place recorded anew. Up to four iterations behind the end are launched, change
            nothing, and are not counted. Where nothing can be recorded, kernels are launched one
            by one, and a warning says why. ``False``: the loop of torch, in which the host waits
            for the device in each iteration.

    Returns:
        A module: called as the layer, with ``solve``, and ``layer``, which stays what it was.

    Raises:
        ConfigError: no layer (of a model, compile the layers in it), or a solver or gradient that
            has no loop in a graph.
        GradientError: from a call that wants the gradient of a trajectory by another strategy.

    Example:
        >>> import implicitcore as ic
        >>> cell = ic.FixedPoint(lambda z, x: (z + x).sin() / 2)
        >>> layer = ic.compile(ic.ImplicitLayer(cell, solver=ic.Anderson(tol=1e-5)))
        >>> layer.layer.solver.tol
        1e-05
    """
    if not isinstance(layer, ImplicitLayer):
        raise ConfigError([f"layer: expected a layer, received {show(layer)}{_held(layer)}"])
    return CompiledLayer(layer, cuda_graphs)


def _held(model: object) -> str:
    """Where a module holds layers, as what to do with them; empty where it holds none."""
    parts = model.named_modules() if isinstance(model, nn.Module) else ()
    names = [repr(name) for name, part in parts if isinstance(part, ImplicitLayer)]
    return f"; compile the layer at {' and '.join(names)} and put it there" if names else ""
