"""``get_deq``: a module that solves z = f(z) for a closure f, in TorchDEQ's form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from implicitcore.compat.torchdeq.settings import Settings, SolverOptions, refuse
from implicitcore.dynamics.fixed_point import FixedPoint
from implicitcore.errors import ConfigError, InputError
from implicitcore.gradients.base import GradientStrategy, Solve
from implicitcore.gradients.implicit import Implicit
from implicitcore.gradients.run import run
from implicitcore.gradients.unrolled import Unrolled
from implicitcore.layers.stability import spectral_radius
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.picard import Picard
from implicitcore.solution import Solution
from implicitcore.system.scope import frozen_randomness

# One iterate, the start itself: what the gradient at a known state is asked with.
_STAND = Picard(tol=1.0, max_steps=1)


def get_deq(args: Any = None, **kwargs: Any) -> DEQ:
    """A DEQ module, with TorchDEQ's options.

    Arguments:
        args: options as a namespace, a mapping or an object; they go before the keywords.
        **kwargs: ``core``, ``f_solver``, ``b_solver``, ``f_max_iter``, ``b_max_iter``, ``f_tol``,
            ``b_tol``, ``f_stop_mode``, ``eval_factor``, ``eval_f_max_iter``, ``ift``, ``hook_ift``,
            ``grad``, ``tau``, ``sup_gap``, ``sup_loc``, ``n_states``, ``indexing``; and ``coupled``
            of ours.

    Returns:
        The module; call it with f and z0.

    Raises:
        ConfigError: an option is unknown, not carried over, or has no meaning.

    Example:
        >>> import torch
        >>> from implicitcore.compat.torchdeq import get_deq
        >>> deq = get_deq(f_solver="anderson", f_tol=1e-6)
        >>> zs, info = deq(lambda z: torch.cos(z), torch.zeros(2, 1))
        >>> len(zs), round(zs[-1][0].item(), 5)
        (1, 0.73909)
    """
    return DEQ(Settings.read(args, kwargs))


def reset_deq(model: nn.Module) -> None:
    """Nothing: f is made one function at each call, and no mask or weight outlives it."""


class SolverStat(dict[str, Any]):
    """What TorchDEQ calls ``info``: the statistics of a solve by their names."""

    def __missing__(self, key: str) -> NoReturn:
        reason = "" if key != "rel_trace" else " is not carried over: 'abs_trace' is kept;"
        raise KeyError(f"{key!r}{reason} there are {', '.join(map(repr, self))}")


class DEQ(nn.Module):
    """Solves z = f(z), and gives states with a gradient in training.

    Arguments:
        settings: the options.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings

    def extra_repr(self) -> str:
        """The options."""
        return repr(self.settings)

    def forward(  # noqa: PLR0913 - TorchDEQ's signature
        self,
        func: Callable[..., Any],
        z_init: Any,
        solver_kwargs: Mapping[str, Any] | None = None,
        sradius_mode: bool = False,
        backward_writer: Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> tuple[list[Any], SolverStat]:
        """Solve z = f(z).

        Arguments:
            func: f, a function of one tensor, or of as many as the state has; what it depends on it
                has from its closure.
            z_init: the start, a tensor ``[batch, ...]`` or a tuple or list of them; it gets no
                gradient.
            solver_kwargs: options of the forward solver in this call: ``tol``, ``stop_mode``,
                ``max_iter``, ``tau``, ``m``, ``LBFGS_thres``.
            sradius_mode: in ``eval()``, measure the spectral radius of each sample.
            backward_writer: not carried over.
            **kwargs: ``f_max_iter`` and ``indexing`` of this call.

        Returns:
            The states, the solution last: in training those that ``n_states``, ``indexing`` or
            ``sup_loc`` ask for, with their gradients, in ``eval()`` the solution alone. And what is
            known of the solve: ``abs_lowest``, ``rel_lowest``, ``nstep`` and ``sradius``
            ``[batch]``, ``abs_trace`` ``[batch, steps]``, and ``solution`` of ours.

        Raises:
            InputError: z_init or f cannot be used, or ``backward_writer`` is given.
            ConfigError: an option is unknown or not carried over.
        """
        if backward_writer is not None:
            raise InputError(
                "backward_writer is not carried over from TorchDEQ: after the backward pass "
                "info['solution'].backward has its products, residuals and status"
            )
        refuse(kwargs, ("f_max_iter", "indexing"), "a call of the DEQ")
        solver = self.settings.forward.called(solver_kwargs or {})
        if kwargs.get("f_max_iter") is not None:
            solver = solver.called({"f_max_iter": kwargs["f_max_iter"]})
        call = _Call(func, z_init, solver, self.settings)
        with frozen_randomness():
            if not self.training:
                return self._evaluate(call, sradius_mode)
            build = self._sliced if self.settings.core == "sliced" else self._indexing
            states, info = build(call, kwargs.get("indexing"))
        if not states:
            gap, grad = self.settings.sampling.sup_gap, self.settings.sampling.grad
            raise ConfigError([f"sup_gap: {gap} samples none of {grad} phantom steps"])
        return states, info

    def _evaluate(self, call: _Call, sradius_mode: bool) -> tuple[list[Any], SolverStat]:
        settings, steps = self.settings, call.solver.max_iter
        most = settings.eval_f_max_iter or int(steps * settings.eval_factor)
        solution = call.solve(call.z0, most)
        radius = spectral_radius(call.cell, solution.z) if sradius_mode else None
        return [call.shown(solution.z)], _statistics(solution, radius)

    def _indexing(self, call: _Call, indexing: Any) -> tuple[list[Any], SolverStat]:
        """All states from one solve, with a gradient beside it."""
        steps = call.solver.max_iter
        counts = self.settings.sampling.states(steps, indexing)
        if self.settings.implicit and len(counts) == 1:
            solution = call.solve(
                call.z0,
                steps,
                call.strategy,
            )
            return [call.shown(solution.z)], _statistics(solution)
        solution = call.solve(call.z0, steps, Unrolled(iterates=tuple(counts[:-1])))
        earlier = [
            pytree.tree_map(lambda leaf, k=k: leaf[k], solution.iterates)
            for k in range(len(counts) - 1)
        ]
        states, last = self._differentiate(call, [*earlier, solution.z])
        return states, _statistics(
            solution if last is None else solution.amended(backward=last.backward)
        )

    def _sliced(self, call: _Call, indexing: Any) -> tuple[list[Any], SolverStat]:
        """Each state from a solve that goes on from the one before, gradient steps included."""
        slices = self.settings.sampling.slices(call.solver.max_iter, indexing)
        counts = self.settings.sampling.phantom_steps(len(slices))
        z, states, solutions = call.z0, [], []
        for index, (steps, grad) in enumerate(zip(slices, counts, strict=True)):
            if index == len(slices) - 1 and self.settings.implicit:
                solutions.append(call.solve(z, steps, call.strategy))
                states.append(call.shown(solutions[-1].z))
                break
            solutions.append(call.solve(z, steps))
            way = call.phantom(solutions[-1].z, grad)
            states += [call.shown(way[k - 1]) for k in self.settings.sampling.sampled(grad)]
            z = pytree.tree_map(torch.detach, way[-1])
        return states, _statistics(solutions[-1])

    def _differentiate(
        self, call: _Call, points: Sequence[Any]
    ) -> tuple[list[Any], Solution | None]:
        """A gradient for each state: phantom steps, or the implicit one for the last."""
        counts = self.settings.sampling.phantom_steps(len(points))
        states, last = [], None
        for index, (z, grad) in enumerate(zip(points, counts, strict=True)):
            if index == len(points) - 1 and self.settings.implicit:
                last = call.implicit(z)
                states.append(call.shown(last.z))
            else:
                way = call.phantom(z, grad)
                states += [call.shown(way[k - 1]) for k in self.settings.sampling.sampled(grad)]
        return states, last


@dataclass
class _Call:
    """One call of a DEQ: f and the start in our form."""

    func: Callable[..., Any]
    z_init: Any
    solver: SolverOptions
    settings: Settings

    def __post_init__(self) -> None:
        self.single = isinstance(self.z_init, Tensor)
        state = self.z_init if self.single else tuple(self.z_init)
        self.z0 = pytree.tree_map(torch.detach, state)
        self.cell = _cell(self.func, self.single)
        self.dynamics = FixedPoint(self.cell)

    def solve(self, z0: Any, steps: int, gradient: GradientStrategy | None = None) -> Solution:
        """A solve from z0; without a graph where the gradient is none or keeps iterates alone."""
        solver = self.solver.make(steps)
        if isinstance(gradient, Implicit):
            return self._run(solver, z0, gradient)
        with torch.no_grad():
            return self._run(solver, z0, gradient or Unrolled())

    def implicit(self, z: Any) -> Solution:
        """The implicit gradient at a state."""
        return self._run(_STAND, z, self.strategy)

    @property
    def strategy(self) -> Implicit:
        """The implicit gradient, by the backward solver."""
        backward = self.settings.backward
        return Implicit(backward.make(backward.max_iter))

    def phantom(self, z: Any, steps: int) -> list[Any]:
        """The states of damped steps with a graph, from a state without one."""
        tau, way = self.settings.sampling.tau, []
        for _ in range(steps):
            fz = self.cell(z, None)
            z = fz if tau == 1 else pytree.tree_map(lambda a, b: torch.lerp(a, b, tau), z, fz)
            way.append(z)
        return way

    def shown(self, z: Any) -> Any:
        """A state in TorchDEQ's form: a tensor, or a list of tensors."""
        return z if self.single else list(z)

    def _run(self, solver: RootSolver, z0: Any, gradient: GradientStrategy) -> Solution:
        found = run(
            self.dynamics,
            z0,
            None,
            Solve(solver),
            gradient,
            trace=True,
            coupled=self.settings.coupled,
        )
        if not isinstance(found, Solution):
            raise InputError(f"expected an equilibrium, received a {type(found).__name__}")
        return found


def _cell(func: Callable[..., Any], single: bool) -> Callable[[Any, Any], Any]:
    """f of one or several tensors as f(z, x)."""

    def cell(z: Any, x: None) -> Any:
        del x
        found = func(z) if single else func(*z)
        return found if single else tuple(found)

    return cell


def _statistics(solution: Solution, radius: Tensor | None = None) -> SolverStat:
    trace, residual = solution.trace, solution.residual
    sizes = [leaf.detach().flatten(1).norm(dim=1) for leaf in pytree.tree_leaves(solution.z)]
    size = torch.stack(sizes).norm(dim=0).clamp(min=torch.finfo(residual.dtype).tiny)
    return SolverStat(
        abs_lowest=residual.detach(),
        rel_lowest=residual.detach() / size,
        abs_trace=residual[:, None] if trace is None else trace.T,
        nstep=solution.steps.to(residual.dtype),
        sradius=torch.zeros_like(residual) if radius is None else radius,
        solution=solution,
    )
