"""The options of ``get_deq``, read as TorchDEQ reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

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
class SolverOptions:
    """A solver with TorchDEQ's options.

    Attributes:
        solver: a name of TorchDEQ, of a registered root solver, or such a solver.
        max_iter: evaluations of f.
        tol: the tolerance.
        stop_mode: ``"abs"`` or ``"rel"``.
        tau: damping.
        memory: earlier steps that Anderson (``m``) and Broyden (``LBFGS_thres``) keep.
    """

    solver: Any = "fixed_point_iter"
    max_iter: int = 40
    tol: float = 1e-3
    stop_mode: str = "abs"
    tau: float = 1.0
    memory: int | None = None

    def make(self, steps: int) -> RootSolver:
        """The root solver of ours that takes so many steps at most.

        Raises:
            ConfigError: there is no such solver or stop mode.
        """
        if isinstance(self.solver, RootSolver):
            return self.solver
        if self.stop_mode not in ("abs", "rel"):
            raise ConfigError(
                [f"stop_mode: expected 'abs' or 'rel', received {show(self.stop_mode)}"]
            )
        relative = self.stop_mode == "rel"
        tol = TINY if self.solver == "simple_fixed_point_iter" else max(self.tol, TINY)
        stop: dict[str, Any] = {"tol": tol if relative else 0.0, "atol": 0.0 if relative else tol}
        stop["max_steps"] = steps + 1  # the start is an iterate too
        if self.solver == "anderson":
            return Anderson(**stop, damping=self.tau, depth=max((self.memory or 6) - 1, 1))
        if self.solver == "broyden":
            return Broyden(**stop, memory=self.memory or max(steps, 1))
        if self.solver in NAMES:
            return Picard(**stop, damping=self.tau)
        return _registered(self.solver, stop)

    def called(self, options: Mapping[str, Any]) -> SolverOptions:
        """The same with TorchDEQ's ``solver_kwargs`` of one call.

        Raises:
            ConfigError: an option that is unknown, or not carried over.
        """
        refuse(options, _CALL, "solver_kwargs")
        return replace(self, **{_CALL[name]: value for name, value in options.items()})


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which states are returned, and the phantom steps from each.

    Attributes:
        n_states: so many, evenly spaced.
        indexing: after so many steps, where ``n_states`` is 1.
        grad: phantom steps, of all states or of each.
        tau: their damping.
        sup_gap: return every so many of them.
        sup_loc: return these.
    """

    n_states: int = 1
    indexing: Any = None
    grad: Any = 1
    tau: float = 1.0
    sup_gap: int = -1
    sup_loc: Any = None

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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of a DEQ.

    Attributes:
        core: all states from one solve, ``"indexing"``, or one slice after the other, ``"sliced"``.
        forward: the solver.
        backward: that of the implicit gradient; its tolerance is relative to the incoming gradient.
        sampling: which states are returned.
        eval_factor: times ``f_max_iter``, in ``eval()``.
        eval_f_max_iter: ``f_max_iter`` in ``eval()``, where it is not 0.
        implicit: differentiate the solution implicitly.
        coupled: the samples depend on each other.
    """

    core: str = "sliced"
    forward: SolverOptions = SolverOptions()
    backward: SolverOptions = SolverOptions(tol=1e-6, stop_mode="rel")
    sampling: Sampling = Sampling()
    eval_factor: float = 1.0
    eval_f_max_iter: int = 0
    implicit: bool = False
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
        refuse(options, [*_DEFAULTS, *_ELSEWHERE], "get_deq")
        given = args if isinstance(args, Mapping) else _attributes(args, _DEFAULTS)
        both = {**options, **{name: given[name] for name in _DEFAULTS if name in given}}
        values = {**_DEFAULTS, **{name: it for name, it in both.items() if it is not None}}
        _check(values)
        forward, backward = (
            {name: values[f"{way}_{name}"] for name in ("solver", "max_iter", "tol")}
            for way in "fb"
        )
        return cls(
            core=values["core"],
            forward=SolverOptions(**forward, stop_mode=values["f_stop_mode"]),
            backward=SolverOptions(**backward, stop_mode="rel"),
            sampling=Sampling(**{field.name: values[field.name] for field in fields(Sampling)}),
            eval_factor=values["eval_factor"],
            eval_f_max_iter=values["eval_f_max_iter"],
            implicit=values["ift"] or values["hook_ift"],
            coupled=values["coupled"],
        )


_DEFAULTS: dict[str, Any] = {
    "core": "sliced",
    "f_solver": "fixed_point_iter",
    "b_solver": "fixed_point_iter",
    "f_max_iter": 40,
    "b_max_iter": 40,
    "f_tol": 1e-3,
    "b_tol": 1e-6,
    "f_stop_mode": "abs",
    "b_stop_mode": "abs",
    "eval_factor": 1.0,
    "eval_f_max_iter": 0,
    "ift": False,
    "hook_ift": False,
    "grad": 1,
    "tau": 1.0,
    "sup_gap": -1,
    "sup_loc": None,
    "n_states": 1,
    "indexing": None,
    "coupled": False,
}

# TorchDEQ's names of the options of one call.
_CALL = {
    "tol": "tol",
    "stop_mode": "stop_mode",
    "max_iter": "max_iter",
    "f_tol": "tol",
    "f_stop_mode": "stop_mode",
    "f_max_iter": "max_iter",
    "tau": "tau",
    "m": "memory",
    "LBFGS_thres": "memory",
}


def _check(values: Mapping[str, Any]) -> None:
    """Refuse what has no meaning."""
    problems = []
    if values["core"] not in ("indexing", "sliced"):
        problems.append(f"core: expected 'indexing' or 'sliced', received {show(values['core'])}")
    for name in ("f_max_iter", "b_max_iter", "n_states"):
        if not isinstance(values[name], int) or values[name] < 1:
            problems.append(
                f"{name}: expected a whole number of at least 1, received {show(values[name])}"
            )
    if not all(isinstance(count, int) and count > 0 for count in listed(values["grad"])):
        problems.append(f"grad: expected numbers of at least 1, received {show(values['grad'])}")
    if problems:
        raise ConfigError(problems)


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
