"""The contenders on equilibrium problems: this library, TorchDEQ where it is installed, and loops
written by hand."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import implicitcore as ic
from benchmarks import jax_peers, plain
from benchmarks.harness import EXACT, OURS
from benchmarks.problem import Contender, Outcome, Problem, Step
from benchmarks.root_problems import CONV, HETEROGENEOUS, MLP_32, MLP_256, RESOLUTIONS
from implicitcore.extend import LinearRootSolver
from implicitcore.registry.registry import REGISTRY

TORCHDEQ, PLAIN = "torchdeq", "plain loop"
METHODS = {"picard": ic.Picard, "anderson": ic.Anderson, "broyden": ic.Broyden}
COMPACT, CPP, COMPILED, SKIP = "compact", "cpp", "compiled", "skip_deq"
COMPILES = (MLP_32, MLP_256, CONV, HETEROGENEOUS, RESOLUTIONS)
"""The problems on which ours is compiled too."""
LAYERS = {
    "deq": "DEQ",
    "continuous_deq": "ContinuousDEQ",
    SKIP: "SkipDEQ",
    "skip_reg_deq": "SkipRegDEQ",
}
SMALLEST = 2e-7
"""The least relative residual that is asked for in float32: its own rounding is half of that."""
HALVES, CLOSE = 7, 1.1
"""How often a backward tolerance is halved, and how near to the least error is near enough: where
the forward solve's error is most of it, no tolerance makes it less."""


def contenders(problem: Problem, quick: bool) -> list[Contender]:
    """All that can run here. The backward solve uses the forward method, and GMRES in ours
    besides. Compiling takes minutes: no quick run does."""
    found = [_ours(method, backward) for method in METHODS for backward in (method, "gmres")]
    found += [_ours(method, method, compact=True) for method in METHODS if _compacts(method)]
    found.append(_ours("anderson", "anderson", plain_rate=0.3))
    found += [_with_cpp(method) for method in METHODS] if runs(CPP) else []
    backends = (None, CPP) if runs(CPP) else (None,)
    if not quick and problem.name in COMPILES:
        found += [_compiled(method, way) for way in backends for method in METHODS]
    found += [
        Contender(OURS, _with(title, way), "implicit, as built", partial(_layer, name, way))
        for way in backends
        for name, title in LAYERS.items()
    ]
    found += [
        Contender(PLAIN, name, f"implicit {name}", partial(plain.implicit, getattr(plain, name)))
        for name in ("picard", "anderson")
    ]
    if find_spec("torchdeq"):
        found += [
            Contender(TORCHDEQ, method, f"implicit {method}", partial(torchdeq, method))
            for method in METHODS
        ]
        found += [
            Contender(
                OURS,
                _with(f"{method}, {EXACT}", way),
                f"implicit {method}",
                AsExact(method, way, problem),
            )
            for way in backends
            for method in METHODS
        ]
    return found if quick else found + jax_peers.equilibria()


def runs(backend: str) -> bool:
    """Whether a backend is installed, and built, here."""
    found = [part.load()() for part in REGISTRY.parts("backend") if part.name == backend]
    return any(backend.unavailable_reason() is None for backend in found)


def _with(name: str, backend: str | None) -> str:
    return f"{name}, {backend}" if backend else name


def _with_cpp(method: str) -> Contender:
    """Ours with each iteration one call of the C++ backend."""
    prepare = partial(_implicitcore, METHODS[method], METHODS[method], {}, backend=CPP)
    return Contender(OURS, _with(method, CPP), f"implicit {method}", prepare)


def _compiled(method: str, backend: str | None) -> Contender:
    """Ours by ``ic.compile``, with a backend where it has iterations for a graph.

    Counts and memory are those of the eager run, neither shows in compiled code.
    """
    eager = partial(_implicitcore, METHODS[method], METHODS[method], {}, backend=backend)

    def prepare(problem: Problem, tol: float) -> Step:
        solver = METHODS[method](tol=tol, max_steps=problem.budget)
        layer = ic.ImplicitLayer(
            ic.FixedPoint(problem.f),
            solver=solver,
            gradient=ic.Implicit(solver),
            backend=backend,
        )
        return compiled_step(layer, problem)

    name = _with(f"{method}, {COMPILED}", backend)
    return Contender(OURS, name, f"implicit {method}", prepare, counts=eager)


def compiled_step(layer: ic.ImplicitLayer, problem: Problem) -> Step:
    """The step of a compiled layer, and the time of its first call."""
    compiled = ic.compile(layer)

    def step() -> Outcome:
        solution = compiled.solve(problem.x, problem.z0)
        return Outcome(solution.z, problem.gradients(solution.z), solution.steps)

    begin = time.perf_counter()
    step()
    return Step(step, compile_seconds=time.perf_counter() - begin)


class Prediction(nn.Module):
    """What a predictor gives that has learned: the equilibrium, each entry off by a tenth."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        z = problem.reference.z.detach().to(problem.z0.dtype)
        generator = torch.Generator().manual_seed(0)
        self.z = z + 0.1 * z * torch.randn(z.shape, generator=generator, dtype=z.dtype)

    def forward(self, x: Any) -> Tensor:
        return self.z


def _layer(name: str, backend: str | None, problem: Problem, tol: float) -> Callable[[], Outcome]:
    """A layer as it is built by name, but for the tolerance and the budget of its solver."""
    z0: Any = {"shape": tuple(problem.z0.shape[1:])}
    if name == SKIP:
        z0 = {"predictor": Prediction(problem)}
    layer: Any = ic.build(name, problem.f, backend=backend, **z0)
    layer.solver = replace(layer.solver, tol=tol, max_steps=problem.budget)

    def step() -> Outcome:
        solution = layer.solve(problem.x)
        return Outcome(solution.z, problem.gradients(solution.z), solution.steps)

    return step


def _compacts(method: str) -> bool:
    return COMPACT in {option.name for option in fields(METHODS[method])}


def _ours(method: str, backward: str, **options: Any) -> Contender:
    prepare = partial(
        _implicitcore, METHODS[method], {**METHODS, "gmres": ic.GMRES}[backward], options
    )
    return Contender(OURS, ", ".join([method, *options]), f"implicit {backward}", prepare)


def _limited(
    kind: type[ic.RootSolver], tol: float, most: int, options: dict[str, Any]
) -> ic.RootSolver:
    """A solver that may take so many steps; of a linear one, products."""
    limit = "max_products" if issubclass(kind, LinearRootSolver) else "max_steps"
    return kind(**{"tol": tol, limit: most, **options})


def _implicitcore(  # noqa: PLR0913 - options of a contender
    method: type[ic.RootSolver],
    backward: type[ic.RootSolver],
    options: dict[str, Any],
    problem: Problem,
    tol: float,
    backend: str | None = None,
    backward_tol: float | None = None,
) -> Callable[[], Outcome]:
    """``backward_tol`` is by default that of the forward solve."""
    solver = _limited(method, tol, problem.budget, options)
    adjoint = _limited(backward, backward_tol or tol, problem.budget, options)
    dynamics, gradient = ic.FixedPoint(problem.f), ic.Implicit(adjoint)
    layer = ic.ImplicitLayer(dynamics, solver=solver, gradient=gradient, backend=backend)

    def step() -> Outcome:
        solution = layer.solve(problem.x, problem.z0)
        return Outcome(solution.z, problem.gradients(solution.z), solution.steps)

    return step


def torchdeq(method: str, problem: Problem, tol: float) -> Callable[[], Outcome]:
    """Relative tolerances and the budget; all else is its default."""
    solver = "fixed_point_iter" if method == "picard" else method
    way = {"solver": solver, "tol": tol, "max_iter": problem.budget, "stop_mode": "rel"}
    options = {f"{side}_{key}": value for side in "fb" for key, value in way.items()}
    deq = importlib.import_module("torchdeq").get_deq(ift=True, **options)

    def step() -> Outcome:
        z = deq(lambda z: problem.f(z, problem.x), problem.z0)[0][-1]
        return Outcome(z, problem.gradients(z))

    return step


@dataclass(frozen=True)
class AsExact:
    """Ours to the residual and the gradient error that TorchDEQ's same method reaches at a
    tolerance: it goes on for an evaluation or two.

    Arguments:
        problem: the same as that of the steps, whose f may count.
    """

    method: str
    backend: str | None
    problem: Problem
    known: dict[float, tuple[float, float]] = field(default_factory=dict)

    def __call__(self, problem: Problem, tol: float) -> Callable[[], Outcome]:
        if tol not in self.known:
            self.known[tol] = self._tolerances(tol)
        return self._step(problem, *self.known[tol])

    def _step(self, problem: Problem, forward: float, backward: float) -> Callable[[], Outcome]:
        kind = METHODS[self.method]
        return _implicitcore(kind, kind, {}, problem, forward, self.backend, backward)

    def _tolerances(self, tol: float) -> tuple[float, float]:
        """Of the forward and of the backward solve."""
        silent, reference = (
            replace(self.problem, f=deepcopy(self.problem.f)),
            self.problem.reference,
        )
        theirs = torchdeq(self.method, silent, tol)()
        forward = min(tol, max(reference.residual(theirs.z.detach()), SMALLEST))
        most = max(reference.gradient_error(theirs.gradients), SMALLEST)
        errors = {
            backward: reference.gradient_error(self._step(silent, forward, backward)().gradients)
            for backward in (max(tol / 2**k, SMALLEST) for k in range(HALVES))
        }
        most = max(most, CLOSE * min(errors.values()))
        return forward, next(backward for backward, error in errors.items() if error <= most)
