"""What is solved, by whom, and what is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.counting import Counted, Spent, equilibrium


@dataclass(frozen=True)
class Problem:
    """Solve f(z, x) = z from z0 and pull v back to the leaves: one training step.

    The leaves are the parameters of f and the tensors of x, and z0, that require a gradient.
    ``budget`` is the most iterations that any solver gets, forward and backward.
    """

    compared: ClassVar[str] = "residual"
    """What the z of a step is judged by."""

    name: str
    f: nn.Module
    x: Any
    z0: Tensor
    v: Tensor
    budget: int = 50
    tolerances: tuple[float, ...] = (1e-3, 1e-6)

    @property
    def inputs(self) -> list[Tensor]:
        """The leaves that f depends on by itself."""
        return [
            *self.f.parameters(),
            *(leaf for leaf in pytree.tree_leaves(self.x) if leaf.requires_grad),
        ]

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.inputs, *([self.z0] if self.z0.requires_grad else [])]

    def gradients(self, z: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(z, self.leaves, self.v))

    def double(self) -> Problem:
        """The same problem in float64."""
        return self.to(torch.float64)

    def to(self, where: torch.dtype | torch.device) -> Problem:
        """The same problem in another dtype, or on another device."""
        x, z0 = pytree.tree_map(
            lambda leaf: leaf.detach().to(where).requires_grad_(leaf.requires_grad),
            (self.x, self.z0),
        )
        return replace(self, f=deepcopy(self.f).to(where), x=x, z0=z0, v=self.v.to(where))

    @cached_property
    def reference(self) -> Reference:
        """What the step should return."""
        return Reference.of(self)


@dataclass(frozen=True)
class Outcome:
    """What a step returned: z, the gradients of the leaves, and the evaluations of each sample
    where the library tells them."""

    z: Tensor
    gradients: list[Tensor]
    steps: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """A step that knows more of itself than a function does.

    Attributes:
        run: the step.
        compile_seconds: what it took to compile it.
        peak_bytes: what it takes at its fullest moment, where torch cannot tell.
        seconds: times so many calls, and returns the mean, where another process makes them.
    """

    run: Callable[[], Outcome]
    compile_seconds: float | None = None
    peak_bytes: int | None = None
    seconds: Callable[[int], float] | None = None

    def __call__(self) -> Outcome:
        return self.run()


Prepare = Callable[[Problem, float], Callable[[], Outcome]]


@dataclass(frozen=True)
class Contender:
    """One way to do the step: ``prepare(problem, tol)`` does once what a user does once, and
    returns the step.

    ``spent`` says what a step's counts are made of. Where nothing can be counted in the step
    itself, ``counts`` prepares the same step in a form that shows its evaluations and its memory.
    """

    library: str
    method: str
    gradient: str
    prepare: Prepare
    spent: Callable[[Counted], Spent] = equilibrium
    counts: Prepare | None = None

    def __str__(self) -> str:
        return f"{self.library}, {self.method}, {self.gradient}"


@dataclass(frozen=True)
class Reference:
    """The equilibrium and the gradients in float64, far more exact than any contender."""

    problem: Problem
    z: Tensor
    gradients: list[Tensor]

    @classmethod
    def of(cls, problem: Problem) -> Reference:
        """Picard iterations to the rounding of float64, forward and for the adjoint: nothing of
        what is measured."""
        exact = problem.double()
        with torch.no_grad():
            z = _contract(lambda z: exact.f(z, exact.x), exact.z0)
        point = z.requires_grad_()
        fz = exact.f(point, exact.x)
        u = _contract(
            lambda u: torch.autograd.grad(fz, point, u, retain_graph=True)[0] + exact.v, exact.v
        )
        return cls(exact, z.detach(), list(torch.autograd.grad(fz, exact.leaves, u)))

    def residual(self, z: Tensor) -> float:
        """The worst sample's ``|f(z) - z| / |f(z)|``."""
        return residual(self.problem, z)

    def gradient_error(self, gradients: Sequence[Tensor]) -> float:
        """The largest relative 2-norm error of the gradient of any leaf."""
        return max(
            ((a.double() - b).norm() / b.norm()).item()
            for a, b in zip(gradients, self.gradients, strict=True)
        )


@torch.no_grad()
def residual(exact: Problem, z: Tensor) -> float:
    """The worst sample's ``|f(z) - z| / |f(z)|``, in float64."""
    z = z.double()
    fz = exact.f(z, exact.x)
    return (sample_norm(fz - z) / sample_norm(fz)).max().item()


def sample_norm(z: Tensor) -> Tensor:
    """2-norm of each sample."""
    return torch.linalg.vector_norm(z.flatten(1), dim=1)


def _contract(
    f: Callable[[Tensor], Tensor], z: Tensor, tol: float = 1e-13, limit: int = 5000
) -> Tensor:
    for _ in range(limit):
        z, last = f(z), z
        if bool((sample_norm(z - last) <= tol * sample_norm(z)).all()):
            return z
    raise RuntimeError(f"the float64 reference did not converge in {limit} iterations")
