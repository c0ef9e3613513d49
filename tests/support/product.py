"""Every combination of layer, solver, solver inside the solver, gradient and backend; and one step
of training with each."""

from __future__ import annotations

import itertools
import random
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import implicitcore as ic
from implicitcore.options.option import Option
from implicitcore.options.options import options_of
from implicitcore.registry.part import Part
from implicitcore.registry.registry import REGISTRY

BATCH, N = 2, 3
REFERENCE = "implicitcore:torch"
PAIRS = 4
"""Numbers of a state of positions and momenta."""
RATE = 0.1
LOOSE: dict[str, dict[str, float]] = {
    "root_solver": {"tol": 1e-3, "max_steps": 100},
    "ode_solver": {"rtol": 1e-2, "atol": 1e-3, "dt": 0.25, "max_order": 4, "max_steps": 200},
}
"""Options of the solvers that have them."""
STEADY = {**LOOSE, "ode_solver": {**LOOSE["ode_solver"], "rtol": 1e-3, "atol": 1e-4}}
"""The same inside another solver: a steady state is out of reach of some methods whose steps are as
long as they are stable."""
PATH = {**LOOSE, "ode_solver": {**LOOSE["ode_solver"], "rtol": 0.1, "atol": 0.1}}
"""Inside a homotopy, which draws the state to its path and corrects it at the end."""
PATH_OF_A_STAGE = {"name": "euler", "dt": 100.0}
"""What integrates the path where a homotopy is itself inside another solver: it solves stages in
units of the error that a step may make, so that their paths are hundreds long. With shorter steps
Kvaerno5 refuses most of its own, at ten times the evaluations."""
TIGHT = {
    "root_solver": {"name": "picard", "tol": 1e-6, "max_steps": 200},
    "ode_solver": {"name": "tsit5", "rtol": 1e-6, "atol": 1e-8},
}
FAR = 0.25
"""How far a gradient may be from the exact one, relative, in the 2-norm: the phantom gradient of
this cell is off by 0.17."""


@dataclass(frozen=True)
class Combination:
    """The qualified names of the parts; ``inner`` is the solver inside the solver, or empty."""

    layer: str
    solver: str
    inner: str
    gradient: str
    backend: str

    @property
    def spec(self) -> dict[str, Any]:
        """The configuration of the layer."""
        slot = _solver_slot(_part("layer", self.layer))
        chosen = _part(slot.name, self.solver)
        solver = _named(chosen, LOOSE)
        if inside := _inner_slot(chosen):
            follows = self.solver.endswith(":homotopy")
            inner = _named(_part(inside.name, self.inner), PATH if follows else STEADY)
            if self.inner.endswith(":homotopy"):
                inner["ode_solver"] = PATH_OF_A_STAGE
            solver[inside.name] = inner
        return {
            "name": self.layer,
            slot.name: solver,
            "gradient": self.gradient,
            "backend": self.backend,
        }

    @property
    def separable(self) -> bool:
        """The solver takes fields of positions and momenta alone."""
        return any(getattr(cls, "separable", False) for cls in self.classes)

    @property
    def classes(self) -> list[type]:
        """Of the solvers."""
        return [
            _part(kind, name).load()
            for kind in LOOSE
            for name in (self.solver, self.inner)
            if name in _parts(kind)
        ]


def combinations(providers: Collection[str]) -> Iterator[Combination]:
    """All combinations of the parts of those distributions."""

    def names(kind: str) -> list[str]:
        return [name for name, part in _parts(kind).items() if part.provider in providers]

    for layer in names("layer"):
        kind = _solver_slot(_part("layer", layer)).name
        for solver in names(kind):
            inside = _inner_slot(_part(kind, solver))
            for rest in itertools.product(
                names(inside.name) if inside else [""], names("gradient"), names("backend")
            ):
                yield Combination(layer, solver, *rest)


def pairwise(everything: Iterable[Combination]) -> list[Combination]:
    """Some that have each pair of parts that occurs together in any of them."""
    seen: set[Any] = set()
    order, found = list(everything), []
    random.Random(0).shuffle(order)
    order.sort(
        key=lambda combination: not can_run(combination.backend)
    )  # a pair is no better for being refused with its backend
    for combination in order:
        if not seen.issuperset(pairs := _pairs(combination)):
            seen |= pairs
            found.append(combination)
    return found


def in_one_layer(everything: Iterable[Combination]) -> list[Combination]:
    """All on the reference backend; on another, each solver and gradient in one layer of several.

    A backend takes over iterations and steps: it knows no layer.
    """
    several: dict[Combination, list[Combination]] = {}
    for combination in everything:
        is_reference = combination.backend == REFERENCE
        key = combination if is_reference else replace(combination, layer="")
        several.setdefault(key, []).append(combination)
    choose = random.Random(0).choice
    return [choose(found) for found in several.values()]


@cache
def can_run(backend: str) -> bool:
    """Whether the backend is available here."""
    return _part("backend", backend).load()().unavailable_reason() is None


def train(combination: Combination) -> str:
    """One step of training; empty, or why the combination is refused.

    Raises:
        AssertionError: a gradient is missing, zero or far from the exact one, or the step did
            nothing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ic.ConvergenceWarning)
            _train(combination)
    except ic.ImplicitCoreError as error:
        return _reason(error, combination)
    return ""


def _train(combination: Combination) -> None:
    separable = combination.separable
    layer, x = _build(combination.spec, separable), _input(combination.layer, separable)
    loss = _loss(layer, x)
    found = _gradients(layer, x, loss)
    expected = _expected(combination.layer, separable)
    error = ((_flat(found) - _flat(expected)).norm() / _flat(expected).norm()).item()
    assert error < FAR, f"the gradient is off by {error:.2g}"
    with torch.no_grad():
        for parameter, gradient in zip(layer.parameters(), found, strict=False):
            parameter.sub_(RATE * gradient)
    after = _loss(layer, x)
    assert after.isfinite(), "the step made the loss infinite"
    assert after != loss, "the step changed nothing"


def _gradients(layer: ic.ImplicitLayer, x: Tensor, loss: Tensor) -> list[Tensor]:
    """Of the parameters and of x, all there and none zero."""
    assert loss.isfinite()
    wrt = {**dict(layer.named_parameters()), "x": x}
    found = dict(
        zip(wrt, torch.autograd.grad(loss, list(wrt.values()), allow_unused=True), strict=True)
    )
    for name, gradient in found.items():
        assert gradient is not None, f"{name} has no gradient"
        assert gradient.isfinite().all(), f"the gradient of {name} is not finite"
        assert gradient.any(), f"the gradient of {name} is zero"
    return list(found.values())


def _loss(layer: ic.ImplicitLayer, x: Tensor) -> Tensor:
    solution = layer.solve(x).raise_if_failed()
    squares = sum(leaf.square().sum() for leaf in pytree.tree_leaves(solution.z))
    return squares + layer.regularizer(solution)


@cache
def _expected(name: str, separable: bool) -> list[Tensor]:
    """The gradients by backpropagation through a solve to tight tolerances."""
    slot = _solver_slot(_part("layer", name)).name
    spec = {"name": name, slot: TIGHT[slot], "gradient": "unrolled"}
    layer, x = _build(spec, separable), _input(name, separable)
    return _gradients(layer, x, _loss(layer, x))


class Cell(nn.Module):
    """f(z, x), a contraction in z, of a state of any shapes with ``size`` numbers in all."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, z: Any, x: Tensor) -> Any:
        leaves, spec = pytree.tree_flatten(z)
        flat = torch.cat([leaf.flatten(1) for leaf in leaves], 1)
        given = nn.functional.pad(x.flatten(1), (0, flat.shape[1] - x[0].numel()))
        f = torch.tanh(0.4 * self.linear(flat) + given)
        parts = f.split([leaf[0].numel() for leaf in leaves], 1)
        pairs = zip(parts, leaves, strict=True)
        return pytree.tree_unflatten([part.reshape(leaf.shape) for part, leaf in pairs], spec)


class SeparableCell(nn.Module):
    """A separable field of positions and momenta, the halves of the state."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.kinetic, self.potential = (nn.Linear(size // 2, size // 2) for _ in range(2))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        q, p = z.tensor_split(2, 1)
        given = nn.functional.pad(x, (0, z.shape[1] - x.shape[1])).tensor_split(2, 1)
        velocity, force = self.kinetic(p) + given[0], self.potential(q) + given[1]
        return torch.cat((torch.tanh(velocity), -torch.tanh(force)), 1)


class Pyramid(nn.Module):
    """A state at two resolutions, made of x."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine, coarse = self.linear(x.flatten(1)).split([4, 1], 1)
        return fine.reshape(x.shape), coarse.reshape(-1, 1, 1, 1)


def _build(spec: dict[str, Any], separable: bool = False) -> ic.ImplicitLayer:
    """The layer, with what its class asks for beside a cell."""
    torch.manual_seed(0)
    n, extra, of_size = (PAIRS, 2, SeparableCell) if separable else (N, 1, Cell)
    if _multiscale(spec["name"]):  # states [batch, 1, 2, 2] and [batch, 1, 1, 1]
        cell, given = Cell(5), {"predictor": Pyramid(), "channels": (1, 1)}
    else:
        cell, given = of_size(n), {"predictor": nn.Linear(n, n), "channels": n, "extra": extra}
    known = options_of(REGISTRY.find("layer", spec["name"]).load())
    if "extra" in known:
        cell = of_size(n + extra)
    return ic.build(spec, cell, **{name: value for name, value in given.items() if name in known})


def _multiscale(layer: str) -> bool:
    return "multiscale" in layer


def _input(layer: str, separable: bool = False) -> Tensor:
    shape = (BATCH, 1, 2, 2) if _multiscale(layer) else (BATCH, PAIRS if separable else N)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _reason(error: ic.ImplicitCoreError, combination: Combination) -> str:
    """The message up to its advice, without the names of the solvers."""
    text = error.problems[0] if isinstance(error, ic.ConfigError) else str(error)
    for cls in combination.classes:
        text = re.sub(rf"\b{cls.__name__}\b", getattr(cls, "kind", ""), text)
    return f"{type(error).__name__}: {re.split('[:;]', text)[0]}"


@cache
def _parts(kind: str) -> dict[str, Part]:
    return {part.qualified_name: part for part in REGISTRY.parts(kind)}


def _part(kind: str, name: str) -> Part:
    return _parts(kind)[name]


def _named(part: Part, options: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    known = options_of(part.load())
    return {
        "name": part.qualified_name,
        **{name: value for name, value in options[part.kind].items() if name in known},
    }


def _solver_slot(layer: Part) -> Option:
    """The option of a layer that holds its solver; its name is the kind."""
    return next(option for option in options_of(layer.load()).values() if option.name in LOOSE)


def _inner_slot(solver: Part) -> Option | None:
    """The option of a solver that holds one of the other family; its name is the kind."""
    return next(
        (
            option
            for option in options_of(solver.load()).values()
            if option.name in LOOSE.keys() - {solver.kind}
        ),
        None,
    )


def _pairs(combination: Combination) -> set[Any]:
    return set(itertools.combinations(enumerate(astuple(combination)), 2))
