"""Implicit functions without a layer: one call solves and attaches the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_args

from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.dynamics.fixed_point import FixedPoint
from implicitcore.dynamics.vector_field import VectorField
from implicitcore.errors import ConfigError, InputError
from implicitcore.gradients.base import GradientStrategy, Solve
from implicitcore.gradients.event_times import check_between
from implicitcore.gradients.failures import report
from implicitcore.gradients.implicit import Implicit
from implicitcore.gradients.run import RunOptions, run
from implicitcore.gradients.unrolled import Unrolled
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.ode_solvers.event import Events, as_events
from implicitcore.ode_solvers.runge_kutta import Tsit5
from implicitcore.ode_solvers.saved import Save
from implicitcore.ode_solvers.stops import StepAt
from implicitcore.ode_solvers.times import as_times
from implicitcore.options.annotations import PartType
from implicitcore.options.option import Option, read_part
from implicitcore.options.types import OnFailure, Spec
from implicitcore.root_solvers.anderson import Anderson
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.broyden import Broyden
from implicitcore.solution import Solution, Trajectory
from implicitcore.system.repeated import owner_of

_Result = TypeVar("_Result", Solution, Trajectory)
_SOLVERS = ("root_solver", "ode_solver")
_ROOT = PartType(("root_solver",), optional=True)
_TRAJECTORY = PartType(("ode_solver",), optional=True)
_GRADIENT = PartType(("gradient",), optional=True)
_BACKEND = PartType(("backend",), optional=True)

# The defaults, made once: a small solve takes ten times as long as making one.
_ANDERSON, _BROYDEN, _TSIT5 = Anderson(), Broyden(), Tsit5()
_IMPLICIT, _UNROLLED = Implicit(), Unrolled()


def fixed_point(  # noqa: PLR0913 - keyword options
    f: Callable[[Any, Any], Any],
    z0: Any,
    x: Any = None,
    *,
    solver: RootSolver | Spec | None = None,
    gradient: GradientStrategy | Spec | None = None,
    backend: Backend | Spec | None = None,
    on_failure: OnFailure = "warn",
    coupled: bool = False,
) -> Solution:
    """Solve f(z, x) = z for each sample of a batch.

    Arguments:
        f: the map, a module or function; returns a state shaped like z.
        z0: the start, any pytree of tensors ``[batch, ...]``, each of a dtype of its own.
        x: the input, any pytree; tensors in it have the batch first, or are marked by
            :func:`shared`.
        solver: as every part its name, a mapping with ``name`` and options, or an object; default
            ``Anderson()``; stops where ``|f(z, x) - z| <= tol |f(z, x)|``, per sample,
            in the 2-norm.
        gradient: default ``Implicit()``.
        backend: default torch.
        on_failure: what becomes of samples that do not converge, as in :class:`ImplicitLayer`: a
            warning, and an error where a value is not finite; ``"ignore"`` leaves it to
            ``solution.status``.
        coupled: the samples depend on each other (nodes of a graph, batch norm in training,
            attention over the batch): the batch is solved as one, with one norm, one step and one
            stop test, and all of x belongs to it; else such a batch is an error where it is found.

    Returns:
        The solution; ``solution.z`` is shaped like z0 and differentiable with respect to x and what
        f depends on.

    Raises:
        SolveError: a sample failed, and ``on_failure`` says so; by default where it is not finite.
        ConfigError: a part cannot be made or used; lists every problem.
        InputError: z0 cannot be packed, a tensor in x is neither per sample nor marked as shared,
            or f returns another structure, shape or dtype.

    Example:
        >>> import torch, implicitcore as ic
        >>> x = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
        >>> f = lambda z, x: torch.cos(x * z)
        >>> solution = ic.fixed_point(f, torch.zeros_like(x), x, solver=ic.Anderson(tol=1e-10))
        >>> round(solution.z.item(), 6)
        0.739085
        >>> round(torch.autograd.grad(solution.z.sum(), x)[0].item(), 6)
        -0.297474
    """
    chosen, strategy, kernels = _parts(_ROOT, solver, gradient, backend)
    solve, strategy = Solve(chosen or _ANDERSON), strategy or _IMPLICIT
    options = _options(kernels, on_failure, coupled)
    dynamics = FixedPoint(f)
    found = _returned(Solution, run(dynamics, z0, x, solve, strategy, **options), strategy)
    report(found, on_failure, "fixed_point", owner_of(dynamics))
    return found


def find_root(  # noqa: PLR0913 - keyword options
    g: Callable[[Any, Any], Any],
    z0: Any,
    x: Any = None,
    *,
    solver: RootSolver | Spec | None = None,
    gradient: GradientStrategy | Spec | None = None,
    backend: Backend | Spec | None = None,
    on_failure: OnFailure = "warn",
    coupled: bool = False,
) -> Solution:
    """Solve g(z, x) = 0 for each sample of a batch.

    Arguments:
        g: the residual, a module or function; returns a state shaped like z. Its sign is
            that of dz/dt: ``Picard``, ``Anderson``, ``SteadyState`` and ``PseudoTransient`` follow
            g to a root that it points to (dg/dz negative: ``a - z``, not ``z - a``; else give -g);
            to ``Newton`` both signs are one problem.
        z0: the start, any pytree of tensors ``[batch, ...]``, each of a dtype of its own.
        x: the input, any pytree; tensors in it have the batch first, or are marked by
            :func:`shared`.
        solver: a name, a mapping or an object; default ``Broyden()``; stops where ``|g(z, x)| <=
            tol max(1, min(|g(z0, x)|, |z + g(z, x)|)) + atol``, per sample, in the 2-norm: give
            ``tol=0`` and an ``atol`` where g has units of its own.
        gradient: default ``Implicit()``.
        backend: default torch.
        on_failure: what becomes of samples that do not converge, as in :class:`ImplicitLayer`: a
            warning, and an error where a value is not finite; ``"ignore"`` leaves it to
            ``solution.status``.
        coupled: the samples depend on each other (nodes of a graph, batch norm in training,
            attention over the batch): the batch is solved as one, with one norm, one step and one
            stop test, and all of x belongs to it; else such a batch is an error where it is found.

    Returns:
        The solution, as :func:`fixed_point`.

    Raises:
        SolveError: a sample failed, and ``on_failure`` says so; by default where it is not finite.
        ConfigError: a part cannot be made or used; lists every problem.
        InputError: z0 cannot be packed, a tensor in x is neither per sample nor marked as shared,
            or g returns another structure, shape or dtype.
    """
    chosen, strategy, kernels = _parts(_ROOT, solver, gradient, backend)
    dynamics, solve = VectorField(g, autonomous=True), Solve(chosen or _BROYDEN)
    strategy, options = strategy or _IMPLICIT, _options(kernels, on_failure, coupled)
    found = _returned(Solution, run(dynamics, z0, x, solve, strategy, **options), strategy)
    report(found, on_failure, "find_root", owner_of(dynamics))
    return found


def integrate(  # noqa: PLR0913 - keyword options
    v: Callable[..., Any],
    z0: Any,
    x: Any = None,
    *,
    times: Tensor | Sequence[float] | Sequence[Sequence[float]],
    solver: ODESolver | Spec | None = None,
    gradient: GradientStrategy | Spec | None = None,
    dense: bool = False,
    event: Events | None = None,
    hit_times: bool = False,
    step_at: StepAt | None = None,
    save: Callable[..., Any] | None = None,
    exact_time: bool = False,
    backend: Backend | Spec | None = None,
    on_failure: OnFailure = "warn",
    coupled: bool = False,
) -> Trajectory:
    """Integrate dz/dt = v(t, z, x) from z(times[0]) = z0 for each sample of a batch.

    Arguments:
        v: the vector field, a module or function of (t, z, x) or, as its signature says, of (z, x);
            t comes as ``[batch, 1, ..., 1]`` and broadcasts against z.
        z0: the start, any pytree of tensors ``[batch, ...]``, each of a dtype of its own.
        x: the input, any pytree; tensors in it have the batch first, or are marked by
            :func:`shared`.
        times: output times ``[T]``, or ``[batch, T]``, those of each sample; a tensor in a dtype of
            its own or numbers, increasing or decreasing, for each sample by itself. The same time
            may come several times; where all are the same, z stays z0. They get a gradient where
            they require one, a first derivative, at one evaluation for each of the T.
        solver: a name, a mapping or an object; default ``Tsit5()``.
        gradient: default ``Unrolled()``.
        dense: keep the trajectory between the times too: ``trajectory.interpolate(t)``.
        event: e(t, z, x) or e(z, x) -> ``[batch]``; a sample ends where its e changes sign (a zero
            at the start is no change), or where it turns True if it gives booleans. With a
            direction an :class:`Event`. Of several, in a list, the first that happens counts, and
            of those at one time the first in the list. Two changes within one step are not seen:
            ``max_step`` of an adaptive solver bounds the steps.
        hit_times: end a step at each output time, which is then as accurate as a step's end and
            costs at least a step each. Else no step is shortened for one: z there is interpolated
            by the solver's own continuous extension, and output times are nearly free. Its error is
            that of the steps up to order 3, and of Adams; where the field forgets errors it can be
            2 to 4 times it with RK4, RK38, ESDIRK and KenCarp4, and 3 to 28 times with pairs of
            order 5 and more, whose steps are the better. ``dt`` and ``max_steps`` then count over
            all of them.
        step_at: times ``[S]`` at which v jumps (a switch, a dose), with times ``[T]``. A step ends
            just before each and the next begins just behind it: no stage sees the other side.
        save: s(t, z, x) or s(z, x) -> any pytree of ``[batch, ...]``, kept at each output time in
            place of z: memory holds T of these and one state. Needs a solver that shows its steps;
            differentiable with ``Unrolled`` and ``Checkpointed``, times without a gradient.
        exact_time: v, event and save receive t in the dtype of the times. Else it is rounded to the
            real dtype of z, float32 at least, so that it mixes with z: too coarse for a field of t
            whose float64 times are far from zero.
        backend: default torch.
        on_failure: what becomes of samples that do not converge, as in :class:`ImplicitLayer`: a
            warning, and an error where a value is not finite; ``"ignore"`` leaves it to
            ``solution.status``.
        coupled: the samples depend on each other (nodes of a graph, batch norm in training,
            attention over the batch): the batch is solved as one, with one norm, one step and one
            stop test, and all of x belongs to it; else such a batch is an error where it is found.

    Returns:
        The trajectory; its ``z`` is ``[T, batch, ...]`` with ``z[0] = z0``; with ``save`` what that
        gave, and ``final().z`` the state to go on from. Where an event happened, ``event_times``
        has its time, ``event_index`` says which it was, and z at the later times is the state
        there: so ``z[-1]`` is the state at the event. Time and state have the gradient of the
        implicit function that e(t, z(t), x) = 0 defines, with ``Unrolled``, ``Checkpointed`` and
        ``Adjoint``; those two evaluate each event twice more for it, and v not at all. At a boolean
        event the state has the gradient of that at a fixed time.

    Raises:
        SolveError: a sample failed, and ``on_failure`` says so; by default where it is not finite.
        ConfigError: a part cannot be made or used; lists every problem.
        InputError: z0, times or event cannot be used, a tensor in x is neither per sample nor
            marked as shared, or v, event or save takes or returns something else.
        GradientError: dense output with a strategy other than ``Unrolled``; an event or ``save``
            with one that gives it no gradient, or an event with ``Adjoint`` and ``step_at``; an
            event whose derivative along the trajectory is zero, where a gradient is wanted.

    Example:
        A ball that falls from a height of 1 m; gravity is x.

        >>> import torch, implicitcore as ic
        >>> z0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        >>> g = torch.tensor([[9.81]], dtype=torch.float64, requires_grad=True)
        >>> fall = lambda t, z, g: torch.cat((z[:, 1:], -g), 1)
        >>> times, ground = torch.tensor([0.0, 5.0]), lambda t, z, g: z[:, 0]
        >>> trajectory = ic.integrate(fall, z0, g, times=times, event=ground)
        >>> round(trajectory.event_times.item(), 6)  # sqrt(2 / g)
        0.451524
        >>> round(torch.autograd.grad(trajectory.event_times.sum(), g)[0].item(), 6)
        -0.023013
    """
    chosen, strategy, kernels = _parts(_TRAJECTORY, solver, gradient, backend)
    strategy = strategy or _UNROLLED
    events = as_events(event)
    kept = save if save is None else Save(save)
    check_between(strategy, dense=dense, event=bool(events), save=save is not None)
    solve = Solve(chosen or _TSIT5, as_times(times), dense, events, hit_times, step_at, kept)
    options, field = _options(kernels, on_failure, coupled), VectorField(v, exact_time=exact_time)
    found = _returned(Trajectory, run(field, z0, x, solve, strategy, **options), strategy)
    report(found, on_failure, "integrate", owner_of(field))
    return found


def _options(backend: Backend | None, on_failure: OnFailure, coupled: bool) -> RunOptions:
    """The options of a call, read.

    Raises:
        ConfigError: ``on_failure`` is none of its words.
    """
    if on_failure not in get_args(OnFailure):
        raise ConfigError(Option("on_failure", OnFailure).read(on_failure)[1])
    return {"backend": backend, "on_failure": on_failure, "coupled": coupled}


def _returned(
    kind: type[_Result], found: Solution | Trajectory, strategy: GradientStrategy
) -> _Result:
    """What a strategy returned, which is of this kind."""
    if not isinstance(found, kind):
        raise InputError(
            f"{type(strategy).__name__}.run returned a {type(found).__name__}: expected a "
            f"{kind.__name__}"
        )
    return found


def _parts(kind: PartType, solver: Any, gradient: Any, backend: Any) -> tuple[Any, Any, Any]:
    """The parts of a call; objects go straight through, names and mappings are read.

    A solver of the other kind is left to the gradient strategy, which says what to use in its
    place.
    """
    if getattr(type(solver), "kind", None) in _SOLVERS:
        kind = PartType(_SOLVERS)
    given = (("solver", kind, solver), ("gradient", _GRADIENT, gradient))
    read = [
        read_part(value, slot, name)
        for name, slot, value in (*given, ("backend", _BACKEND, backend))
    ]
    problems = [line for _, found in read for line in found]
    if problems:
        raise ConfigError(problems)
    return read[0][0], read[1][0], read[2][0]
