"""The options of ``get_deq``, read as TorchDEQ reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from implicitcore.errors import ConfigError, did_you_mean, show
from implicitcore.registry.registry import REGISTRY
from implicitcore.root_solvers.anderson import Anderson
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.broyden import Broyden
from implicitcore.root_solvers.picard import Picard

TINY = 1e-30
"""A tolerance that no residual but zero meets."""

NAMES = ("fixed_point_iter", "simple_fixed_point_iter", "anderson", "broyden")

_NOT_CARRIED = {
    "return_final": "what is returned is the iterate that was judged, the best one",
    "ls": "Broyden has no line search; implicitcore.Newton has one",
    "lam": "the regularization of implicitcore.Anderson is relative: give f_solver=Anderson(...)",
    "no_stat": "statistics cost nothing here: info always has them",
}
# Of add_deq_args, and read elsewhere: by apply_norm and by the losses.
_ELSEWHERE = (
    "norm_type",
    "norm_no_scale",
    "norm_clip",
    "norm_clip_value",
    "norm_target_norm",
    "sn_n_power_iters",
    "gamma",
    "jac_loss_weight",
    "jac_loss_freq",
    "jac_incremental",
    "sradius_mode",
)


@dataclass(frozen=True, kw_only=True)
class ForwardSolver:
    """A solver with TorchDEQ's names of its options.

    Attributes:
        f_solver: a name of TorchDEQ, of a registered root solver, or such a solver.
        f_max_iter: evaluations of f.
        f_tol: the tolerance.
        f_stop_mode: ``"abs"`` or ``"rel"``.
        tau: damping.
        memory: earlier steps that Anderson (``m``) and Broyden (``LBFGS_thres``) keep.
    """

    f_solver: Any = "fixed_point_iter"
    f_max_iter: int = 40
    f_tol: float = 1e-3
    f_stop_mode: Literal["abs", "rel"] = "abs"
    tau: float = 1.0
    memory: int | None = None

    def make(self, steps: int) -> RootSolver:
        """The root solver of ours that takes so many steps at most.

        Raises:
            ConfigError: there is no such solver or stop mode.
        """
        if isinstance(self.f_solver, RootSolver):
            return self.f_solver
        if self.f_stop_mode not in ("abs", "rel"):
            raise ConfigError(
                [f"stop_mode: expected 'abs' or 'rel', received {show(self.f_stop_mode)}"]
            )
        relative = self.f_stop_mode == "rel"
        tol = TINY if self.f_solver == "simple_fixed_point_iter" else max(self.f_tol, TINY)
        stop: dict[str, Any] = {"tol": tol if relative else 0.0, "atol": 0.0 if relative else tol}
        stop["max_steps"] = steps + 1  # the start is an iterate too
        if self.f_solver == "anderson":
            return Anderson(**stop, damping=self.tau, depth=max((self.memory or 6) - 1, 1))
        if self.f_solver == "broyden":
            return Broyden(**stop, memory=self.memory or max(steps, 1))
        if self.f_solver in NAMES:
            return Picard(**stop, damping=self.tau)
        return _registered(self.f_solver, stop)

    def called(self, options: Mapping[str, Any]) -> ForwardSolver:
        """The same with TorchDEQ's ``solver_kwargs`` of one call.

        Raises:
            ConfigError: an option that is unknown, or not carried over.
        """
        known = {"tol": "f_tol", "stop_mode": "f_stop_mode", "max_iter": "f_max_iter"}
        known |= {"tau": "tau", "m": "memory", "LBFGS_thres": "memory"}
        known |= {"f_tol": "f_tol", "f_stop_mode": "f_stop_mode", "f_max_iter": "f_max_iter"}
        refuse(options, known, "solver_kwargs")
        return replace(self, **{known[name]: value for name, value in options.items()})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of a DEQ, as TorchDEQ names them."""

    core: Literal["indexing", "sliced"] = "sliced"
    f_solver: Any = "fixed_point_iter"
    b_solver: Any = "fixed_point_iter"
    f_max_iter: int = 40
    b_max_iter: int = 40
    f_tol: float = 1e-3
    b_tol: float = 1e-6
    f_stop_mode: str = "abs"
    b_stop_mode: str = "abs"
    eval_factor: float = 1.0
    eval_f_max_iter: int = 0
    ift: bool = False
    hook_ift: bool = False
    grad: Any = 1
    tau: float = 1.0
    sup_gap: int = -1
    sup_loc: Any = None
    n_states: int = 1
    indexing: Any = None
    coupled: bool = False

    @classmethod
    def read(cls, args: Any, options: Mapping[str, Any]) -> Settings:
        """The settings in ``args``, before those of ``options``.

        Arguments:
            args: a mapping, a namespace or any object with attributes; what it has beside the
                options is left alone.
            options: keyword arguments.

        Raises:
            ConfigError: an option that is unknown, not carried over or without meaning.
        """
        names = [field.name for field in fields(cls)]
        given = args if isinstance(args, Mapping) else _attributes(args, names)
        refuse(options, [*names, *_ELSEWHERE], "get_deq")
        both = {**options, **{name: given[name] for name in names if name in given}}
        settings = cls(**{name: both[name] for name in names if both.get(name) is not None})
        settings.check()
        return settings

    def check(self) -> None:
        """Refuse what has no meaning.

        Raises:
            ConfigError: lists every problem.
        """
        problems = []
        if self.core not in ("indexing", "sliced"):
            problems.append(f"core: expected 'indexing' or 'sliced', received {show(self.core)}")
        for name in ("f_max_iter", "b_max_iter", "n_states"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                problems.append(
                    f"{name}: expected a whole number of at least 1, received "
                    f"{show(getattr(self, name))}"
                )
        if not all(isinstance(count, int) and count > 0 for count in listed(self.grad)):
            problems.append(f"grad: expected numbers of at least 1, received {show(self.grad)}")
        if problems:
            raise ConfigError(problems)

    @property
    def implicit(self) -> bool:
        """Whether the last state is differentiated implicitly."""
        return self.ift or self.hook_ift

    @property
    def forward(self) -> ForwardSolver:
        """The forward solver."""
        return ForwardSolver(
            f_solver=self.f_solver,
            f_max_iter=self.f_max_iter,
            f_tol=self.f_tol,
            f_stop_mode=self.f_stop_mode,  # pyright: ignore[reportArgumentType] - checked by make
        )

    @property
    def backward(self) -> RootSolver:
        """The solver of the backward pass; its tolerance is relative to the incoming gradient."""
        solver = ForwardSolver(f_solver=self.b_solver, f_tol=self.b_tol, f_stop_mode="rel")
        return solver.make(self.b_max_iter)

    def states(self, steps: int, indexing: Any) -> list[int]:
        """After how many steps states are sampled; the last is that of the solution."""
        if self.n_states > 1:
            gap = steps // self.n_states
            return [steps - gap * k for k in reversed(range(self.n_states))]
        chosen = listed(self.indexing if indexing is None else indexing)
        return [*sorted(count for count in chosen if count < steps), steps]

    def slices(self, steps: int, indexing: Any) -> list[int]:
        """How many steps each slice has."""
        if self.n_states > 1:
            return [steps // self.n_states] * self.n_states
        ends = [*listed(self.indexing if indexing is None else indexing), steps]
        return [max(end - begin, 0) for begin, end in zip([0, *ends], ends, strict=False)]

    def phantom_steps(self, states: int) -> list[int]:
        """The steps with a graph from each state.

        Raises:
            ConfigError: there are other than one or as many as states.
        """
        counts = listed(self.grad)
        if len(counts) == 1:
            return counts * states
        if len(counts) != states:
            raise ConfigError(
                [f"grad: expected one number or {states}, one for each state, received {counts}"]
            )
        return counts

    def sampled(self, steps: int) -> list[int]:
        """Which of the steps with a graph are returned."""
        if self.sup_gap > 0:
            return list(range(self.sup_gap, steps + 1, self.sup_gap))
        return [*(k for k in listed(self.sup_loc) if 0 < k <= steps), steps]


def listed(value: Any) -> list[Any]:
    """A list of what may be one number, several, or None."""
    if value is None:
        return []
    return list(value) if isinstance(value, Iterable) else [value]


def refuse(options: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Refuse options that nobody reads.

    Raises:
        ConfigError: lists them, with the reason or the near matches.
    """
    problems = []
    for name in options:
        if name in _NOT_CARRIED:
            problems.append(f"{name}: is not carried over from TorchDEQ: {_NOT_CARRIED[name]}")
        elif name not in known:
            problems.append(f"{name}: unknown option of {where}{did_you_mean(name, known)}")
    if problems:
        raise ConfigError(problems)


def _attributes(args: Any, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def _registered(name: Any, stop: Mapping[str, Any]) -> RootSolver:
    names = sorted({part.name for part in REGISTRY.parts("root_solver")})
    if not isinstance(name, str) or name not in names:
        near = did_you_mean(str(name), [*NAMES, *names])
        raise ConfigError(
            [f"f_solver: there is no {show(name)}{near}; there are {', '.join([*NAMES, *names])}"]
        )
    found = REGISTRY.find("root_solver", name).load()
    known = {field.name for field in fields(found)}
    return found(**{option: value for option, value in stop.items() if option in known})
