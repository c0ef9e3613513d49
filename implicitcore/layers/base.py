"""The implicit layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from implicitcore.backends.base import Backend
from implicitcore.backends.torch import TORCH
from implicitcore.dynamics.base import Dynamics
from implicitcore.errors import ConfigError
from implicitcore.gradients.base import GradientStrategy, Solve
from implicitcore.gradients.failures import report
from implicitcore.gradients.implicit import Implicit
from implicitcore.gradients.run import RunOptions, packed
from implicitcore.gradients.unrolled import Unrolled
from implicitcore.layers import observers
from implicitcore.layers.call import Result, saving, solver_of_call, times_of
from implicitcore.layers.distributed import SharedGroup, group_of
from implicitcore.layers.initial import InitialGuess, Zeros
from implicitcore.layers.options import LayerMeta, LayerOption, assign, replaced
from implicitcore.lazy import provided
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.ode_solvers.times import Times
from implicitcore.options.types import OnFailure, Positive, Spec
from implicitcore.root_solvers.base import RootSolver
from implicitcore.solution import FinalState, Solution, SolveResult, Trajectory
from implicitcore.system.current import current
from implicitcore.system.scope import SolveContext
from implicitcore.tensors.shared import unwrapped
from implicitcore.tensors.transforms import eager, in_backward

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def _default_gradient(layer: ImplicitLayer) -> GradientStrategy:
    return Implicit() if isinstance(layer.solver, RootSolver) else Unrolled()


class ImplicitLayer(nn.Module, metaclass=LayerMeta):
    """Dynamics, a solver, a gradient strategy and a start, as one module.

    With a root solver the output is an equilibrium of the dynamics; with an ODE solver it is the
    state at ``horizon``, integrated from time 0. Nothing is remembered on the layer between calls.
    Every option is an attribute that can be assigned: the next call and ``config`` follow it.

    Arguments:
        dynamics: what is solved.
        solver: a root solver or an ODE solver; as every part its name, a mapping with ``name`` and
            options, or an object.
        gradient: default ``Implicit()`` with a root solver, ``Unrolled()`` with an ODE solver.
        start: where z0 comes from; default zeros shaped like x.
        horizon: the end time of an ODE solver.
        backend: the kernels of the inner loop; default torch.
        on_failure: what becomes of samples that do not converge. ``"warn"`` gives their best
            iterates with a warning, once and then at intervals, but raises where a value is not
            finite; ``"raise"`` raises for any; ``"mask"`` gives their finite start and stops their
            gradient, with the others solved apart from them (one more solve, where a sample
            failed); ``"ignore"`` says nothing: the status of the :class:`~implicitcore.Solution`
            does. The gradient of a sample that is not finite is zero, of all samples too.
        coupled: the samples depend on each other (nodes of a graph, batch norm in training,
            attention over the batch): the batch is solved as one, with one norm, one step and one
            stop test, and all of x belongs to it; else such a batch is an error where it is found.

    Example:
        >>> import torch, implicitcore as ic
        >>> weight = torch.nn.Linear(4, 4)
        >>> dynamics = ic.FixedPoint(lambda z, x: torch.tanh(0.5 * weight(z) + x))
        >>> layer = ic.ImplicitLayer(dynamics, solver=ic.Anderson(tol=1e-5))
        >>> layer(torch.ones(3, 4)).shape
        torch.Size([3, 4])
        >>> layer.solver = {"name": "picard", "tol": 1e-5}
        >>> layer.solver
        Picard(tol=1e-05, atol=0.0, max_steps=50, compact=False, min_steps=1, damping=1.0)
    """

    kind: ClassVar[str] = "layer"
    dynamics: LayerOption[Dynamics] = LayerOption("dynamics")
    solver: LayerOption[RootSolver | ODESolver] = LayerOption("solver")
    gradient: LayerOption[GradientStrategy] = LayerOption("gradient", _default_gradient)
    start: LayerOption[InitialGuess] = LayerOption("start", lambda layer: Zeros())
    horizon: LayerOption[float] = LayerOption("horizon")
    backend: LayerOption[Backend] = LayerOption("backend", lambda layer: TORCH)
    on_failure: LayerOption[OnFailure] = LayerOption("on_failure")
    coupled: LayerOption[bool] = LayerOption("coupled")

    def __init__(  # noqa: PLR0913 - keyword options
        self,
        dynamics: Dynamics,
        *,
        solver: RootSolver | ODESolver | Spec,
        gradient: GradientStrategy | Spec | None = None,
        start: InitialGuess | Spec | None = None,
        horizon: Positive = 1.0,
        backend: Backend | Spec | None = TORCH,
        on_failure: OnFailure = "warn",
        coupled: bool = False,
    ) -> None:
        super().__init__()
        self.dynamics = dynamics
        self.solver = solver
        self.gradient = gradient
        self.start = start
        self.horizon = horizon
        self.backend = backend
        self.on_failure = on_failure
        self.coupled = coupled
        self._sync: bool | SharedGroup = False

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign an option through its checks; a name that is nearly one is refused."""
        if not assign(self, name, value):
            super().__setattr__(name, value)

    def forward(
        self, x: Any, z0: Any = None, *, keys: Any = None, times: Times = None, **options: Any
    ) -> Any:
        """The solution's z, differentiable.

        Arguments:
            x: the input, any pytree; tensors in it have the batch first, or are marked by
                :func:`shared`.
            z0: begin from here and not from the layer's start.
            keys: int64 ``[batch]``, the number of each sample, for a :class:`WarmStart`.
            times: as :meth:`solve` takes them; z is then ``[T, batch, ...]``.
            options: of the solver, for this call alone: ``layer(x, tol=1e-6)``; and ``save``.

        Raises:
            SolveError: a sample failed, and ``on_failure`` says so.
            ConfigError: the solver has no such option, or not with that value.
        """
        solution = self.solve(x, z0, keys=keys, times=times, **options)
        report(solution, self.on_failure, type(self).__name__, self)
        return solution.z

    @eager
    def solve(  # noqa: PLR0913 - keyword options
        self,
        x: Any,
        z0: Any = None,
        *,
        keys: Any = None,
        times: Times = None,
        save: Callable[..., Any] | None = None,
        trace: bool = False,
        **options: Any,
    ) -> Solution | FinalState | Trajectory:
        """The whole result: z, status per sample, evaluations, and with a root solver the residual.

        A :class:`~implicitcore.Solution`, or with an ODE solver the
        :class:`~implicitcore.FinalState` of the trajectory, whose z is that at ``horizon``. It
        neither warns nor raises on a failed sample.

        Arguments:
            x: the input, any pytree; tensors in it have the batch first, or are marked by
                :func:`shared`.
            z0: begin from here and not from the layer's start: the state of the call before carries
                on where it ended, and ``z0.detach()`` without its gradient.
            keys: int64 ``[batch]``, the number of each sample, for a :class:`WarmStart`: it begins
                the sample where it ended last, and keeps where it ends now.
            times: with an ODE solver the output times ``[T]``, or ``[batch, T]`` those of each
                sample, in place of 0 and ``horizon``: the start is at the first, and the result is
                the :class:`~implicitcore.Trajectory`, z ``[T, batch, ...]``.
            save: what is kept at each of the times in place of z (:func:`integrate`).
            trace: keep the residual after each step.
            options: of the layer's solver, for this call alone, read as its own are.
        """
        solver = solver_of_call(self.solver, options) if options else self.solver
        options = {"solver": solver, "times": times, "save": save, "trace": trace}
        if z0 is None:
            solution = self._scope().call(self._started, x, keys, options)
        else:
            solution = self._scope(begins=False).call(self._run, z0, x, options)
        if keys is not None:
            self.start.keep(keys, solution)
        if observers.active and not in_backward():
            observers.notify(self, solution)
        return solution

    @eager
    def explicit(self, x: Any, *, keys: Any = None) -> Any:
        """z0 alone, without the solve: the layer as an explicit one.

        Where a regularizer keeps the equilibrium near the start (the Skip DEQs) it is what the
        solve would correct, at the cost of the start.

        Arguments:
            x: the input, as :meth:`solve` takes it.
            keys: int64 ``[batch]``, for a :class:`WarmStart`.

        Returns:
            The state, with the gradient that the start gives it.
        """
        return self._scope().call(self._begin, x, keys)

    @property
    def sync_steps(self) -> bool | ProcessGroup:
        """Whether processes take equally many steps, so that f may communicate: False at first.

        True is for all processes of ``torch.distributed``, a process group for those in it. It
        needs a stepwise root solver (Picard, Anderson, Broyden) in the layer and in its gradient.
        As the device, it belongs to a run and not to the layer's ``config``.
        """
        return self._sync.group if isinstance(self._sync, SharedGroup) else self._sync

    @sync_steps.setter
    def sync_steps(self, setting: bool | ProcessGroup) -> None:
        self._sync = setting if isinstance(setting, bool) else SharedGroup(setting)

    def regularizer(self, solution: SolveResult) -> Tensor:
        """The layer's own loss term, a scalar: 0 here."""
        return pytree.tree_leaves(solution.z)[0].new_zeros(())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The layer's parameters by the role they have, as ``torch.optim`` takes them.

        A layer with roles of its own overrides it.

        Returns:
            One ``{"role": ..., "params": [...]}`` for each role that has parameters: ``dynamics``,
            and ``start`` for those that only the initial guess has.

        Example:
            >>> import torch, implicitcore as ic
            >>> cell = torch.nn.Linear(4, 4)
            >>> layer = ic.ImplicitLayer(
            ...     ic.FixedPoint(lambda z, x: 0.1 * z + x),
            ...     solver=ic.Picard(tol=1e-3),
            ...     start=ic.Predictor(cell),
            ... )
            >>> [(group["role"], len(group["params"])) for group in layer.parameter_groups()]
            [('start', 2)]
        """
        learned = set(self.dynamics.parameters())
        start = [parameter for parameter in self.start.parameters() if parameter not in learned]
        others = set(start)
        rest = [parameter for parameter in self.parameters() if parameter not in others]
        groups = {"dynamics": rest, "start": start}
        return [{"role": role, "params": params} for role, params in groups.items() if params]

    @property
    def config(self) -> dict[str, Any]:
        """The layer as data: ``implicitcore.build(layer.config, cell)`` builds its equal.

        Raises:
            ConfigError: a part of the layer is not registered, or its dynamics or start was
                replaced by one of another class.
        """
        built = vars(self)["_built_with"]
        changed = [part for part in built if type(getattr(self, part)) is not built[part]]
        if changed:
            raise ConfigError([f"{part}: {replaced(self, part)}" for part in changed])
        return provided("describe")(self)

    def extra_repr(self) -> str:
        """The parts that are not modules."""
        return (
            f"solver={self.solver}, gradient={self.gradient}, backend={type(self.backend).__name__}"
        )

    def _scope(self, begins: bool = True) -> SolveContext:
        scope = current() or SolveContext()
        group = group_of(self) if self._sync else None
        if group is not scope.group:
            scope = scope.stopping_with(group)
        scope.cache_weights(self.dynamics)
        if begins:
            scope.cache_weights(self.start)
        return scope

    def _begin(self, x: Any, keys: Any) -> Any:
        return self.start(unwrapped(x)) if keys is None else self.start.keyed(unwrapped(x), keys)

    def _started(self, x: Any, keys: Any, call: Mapping[str, Any]) -> Result:
        """The solve from the layer's own start."""
        start, guess = self._begin(x, keys), self.start
        spent = guess.evaluations
        begin = pytree.tree_map(torch.detach, start) if guess.detached else start
        solution = self._run(begin, x, call)
        if spent or start is not begin:
            solution = solution.amended(start=start, evaluations=solution.evaluations + spent)
        return solution

    def _run(self, begin: Any, x: Any, call: Mapping[str, Any]) -> Result:
        solver, times, save = call["solver"], call["times"], call["save"]
        solve = Solve(solver, times_of(solver, begin, times, self.horizon))
        if save is not None:
            solve = saving(solve, save, times, self.gradient)
        options: RunOptions = {"backend": self.backend, "trace": call["trace"]}
        options |= {"coupled": self.coupled, "on_failure": self.on_failure}
        found = packed(self.dynamics, begin, x, solve, self.gradient, options)
        return found.final() if times is None and isinstance(found, Trajectory) else found
