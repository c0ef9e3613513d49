"""What is tried: registered parts, and values of their options within their declared bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from optuna.trial import Trial

from implicitcore.extend import REGISTRY, options_of

ROOT_SOLVERS = ("anderson", "broyden", "newton", "picard", "steady_state")
ODE_SOLVERS = ("adams", "bosh3", "dop853", "dopri5", "euler", "heun", "midpoint", "rk4", "tsit5")
BACKWARD = ("anderson", "bicgstab", "broyden", "gmres", "picard")
FLOWS = ("adams", "bosh3", "tsit5")
ROOT_GRADIENTS = ("implicit", "neumann", "phantom", "shine", "unrolled")
ODE_GRADIENTS = ("adjoint", "checkpointed", "unrolled")

LIMITS = ("max_steps", "max_products")
"""They cost nothing where they are not reached: tried are ``SLACK`` times their defaults."""
SLACK = 4
KEPT = (
    *LIMITS,
    *("atol", "backtracks", "checkpoints", "dense_below", "drift", "first_step", "iterates"),
    *("max_step", "measure", "min_step", "min_steps", "patience", "solver"),
)
"""Options that keep their default: limits, and what moves memory or the hardest samples alone."""
RANGES: Mapping[str, tuple[float, float, bool]] = {  # least, most, logarithmic
    "tol": (1e-6, 1e-1, True),
    "rtol": (1e-6, 1e-1, True),
    "dt": (1e-2, 0.5, True),
    "depth": (2, 10, False),
    "memory": (5, 40, True),
    "damping": (0.5, 1.0, False),
    "restart": (5, 50, True),
    "steps": (1, 20, True),
    "max_order": (2, 8, False),
}
FLOW_ERROR = (1e-2, 0.5)
"""The error of a step on the way to a steady state, which moves the cost and not the result."""
SPREAD = 4
"""An option that is not in ``RANGES`` is tried up to so many times its default."""
TIGHTER = 1 / 3
ATOL = 1e-3
"""The absolute tolerance of an ODE solver, as a part of the relative one."""


@dataclass(frozen=True)
class Space:
    """The parts that are tried, by their names.

    Attributes:
        kind: ``root_solver`` or ``ode_solver``.
        solvers: of that kind.
        gradients: strategies.
        backward: root solvers for the backward solve of ``implicit``.
        backends: that run on the device.
    """

    kind: str
    solvers: tuple[str, ...]
    gradients: tuple[str, ...]
    backward: tuple[str, ...]
    backends: tuple[str, ...]

    def as_data(self) -> dict[str, Any]:
        """The names as JSON has them."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: it if isinstance(it, str) else list(it) for name, it in held.items()}

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """The parts of a trial, as configurations."""
        solver = self._part(trial, self.kind, self.kind, self.solvers)
        gradient = self._part(trial, "gradient", "gradient", self.gradients)
        backend = trial.suggest_categorical("backend", self.backends)
        return {"solver": solver, "gradient": gradient, "backend": backend}

    def usual(self, tol: float) -> list[dict[str, Any]]:
        """Where a search begins: each solver with its default options.

        Arguments:
            tol: of the layer; forward and backward a little less, so that the error is no larger.
        """
        low, high, _ = RANGES["tol"]
        tol = min(max(tol * TIGHTER, low), high)
        return [self._usual(solver, tol) for solver in self.solvers]

    def _usual(self, solver: str, tol: float) -> dict[str, Any]:
        found = {self.kind: solver, **_defaults(self.kind, solver, f"{self.kind}.{solver}", tol)}
        if self.kind == "ode_solver":
            return {**found, "gradient": "unrolled"}
        at, backward = "gradient.implicit.solver", solver if solver in self.backward else "gmres"
        options = _defaults("root_solver", backward, f"{at}.{backward}", tol)
        return {**found, "gradient": "implicit", at: backward, **options}

    def _part(self, trial: Trial, path: str, kind: str, names: Sequence[str]) -> dict[str, Any]:
        name = trial.suggest_categorical(path, names)
        place = f"{path}.{name}"
        found = {"name": name, **suggest_options(trial, place, REGISTRY.find(kind, name).load())}
        if place == "gradient.implicit":
            found["solver"] = self._part(trial, f"{place}.solver", "root_solver", self.backward)
        if place == "root_solver.steady_state":
            flow = trial.suggest_categorical(f"{place}.ode_solver", FLOWS)
            error = trial.suggest_float(f"{place}.ode_solver.rtol", *FLOW_ERROR, log=True)
            found["ode_solver"] = {"name": flow, "rtol": error, "atol": error}
        return found


def make_space(kind: str, named: Mapping[str, Sequence[str]], device: torch.device) -> Space:
    """The curated parts of a kind, and those that a user names.

    Arguments:
        kind: ``root_solver`` or ``ode_solver``.
        named: further parts by their kind.
        device: whose backends are tried.

    Raises:
        UnknownPartError: there is no part of that name.
        PluginError: its code cannot be imported.
    """
    for other, names in named.items():
        for name in names:
            REGISTRY.find(other, name).load()
    is_root = kind == "root_solver"
    solvers = ROOT_SOLVERS if is_root else ODE_SOLVERS
    gradients = ROOT_GRADIENTS if is_root else ODE_GRADIENTS
    further = tuple(named.get(kind, ()))
    return Space(
        kind,
        _union(solvers, further),
        _union(gradients, named.get("gradient", ())),
        _union(BACKWARD, further if is_root else ()),
        _backends(device),
    )


def suggest_options(trial: Trial, path: str, cls: type) -> dict[str, Any]:
    """Values for the options of a part, as its declaration allows them."""
    options = options_of(cls)
    found = {name: SLACK * options[name].default for name in LIMITS if name in options}
    for option in _tried(cls):
        value = _suggest(trial, f"{path}.{option.name}", option.schema or {}, option.default)
        if value is not None:
            found[option.name] = value
    if "rtol" in found and "atol" in options:
        found["atol"] = ATOL * found["rtol"]
    return found


def _tried(cls: type) -> Iterator[Any]:
    """The options of a part that are tried."""
    for option in options_of(cls).values():
        if option.name not in KEPT and option.schema and option.default is not None:
            yield option


def _defaults(kind: str, name: str, path: str, tol: float) -> dict[str, Any]:
    """The parameters that a trial has where it takes a part's default options."""
    tolerances = {"tol": tol, "rtol": tol}
    options = _tried(REGISTRY.find(kind, name).load())
    return {f"{path}.{it.name}": tolerances.get(it.name, it.default) for it in options}


def _suggest(trial: Trial, path: str, schema: Mapping[str, Any], default: Any) -> Any:
    """A value of one option; None leaves it at its default."""
    if isinstance(default, bool):
        return trial.suggest_categorical(path, [False, True])
    if "enum" in schema:
        return trial.suggest_categorical(path, schema["enum"])
    if not isinstance(default, int | float):
        return None
    low, high, log = _range(path.rpartition(".")[2], schema, default)
    if not low < high:
        return None
    whole = schema.get("type") == "integer"
    if whole:
        return trial.suggest_int(path, int(low), int(high), log=log)
    return trial.suggest_float(path, low, high, log=log)


def _range(name: str, schema: Mapping[str, Any], default: float) -> tuple[float, float, bool]:
    """The curated range of an option, or one about its default; within its bounds."""
    known = (default / SPREAD, default * SPREAD, default > 0)
    low, high, log = RANGES.get(name, known)
    whole = schema.get("type") == "integer"
    least = schema.get("minimum", schema.get("exclusiveMinimum", low))
    most = schema.get("maximum", schema.get("exclusiveMaximum", high))
    open_end = "exclusiveMaximum" in schema and high >= most
    high = min(high, most - 1 if whole and open_end else most)
    if open_end and not whole:
        high = default + 0.9 * (high - default)  # just within
    low = max(low, least, 1 if whole and log else least)
    return low, high, log and low > 0


def _union(some: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*some, *others)))


def _backends(device: torch.device) -> tuple[str, ...]:
    found = []
    for part in REGISTRY.parts("backend"):
        try:
            backend = part.load()()
            usable = device.type in backend.device_types and backend.unavailable_reason() is None
        except Exception:  # noqa: S112 - a plugin's; `plugins doctor` says what is wrong with it
            continue
        if usable:
            found.append(part.name)
    return tuple(found)
