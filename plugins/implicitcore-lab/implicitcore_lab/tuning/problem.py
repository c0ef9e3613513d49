"""What is tuned: one layer on one batch, and what a training step of it is."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore import ImplicitLayer, RootSolver, SolveResult, Status

Gradients = list[Tensor | None]
Loss = Callable[[SolveResult], Tensor]
SMALLEST_PART = 1e-6
"""A gradient below this part of the whole has no relative error of its own."""


@dataclass(frozen=True, eq=False)
class Problem:
    """One layer on one batch.

    Attributes:
        layer: with the configuration that others are compared with; it is left as it is.
        x: its input, whose floating-point tensors take a gradient.
        loss: solution -> a scalar, to which the layer's own term is added.
        seed: of torch's generator in each step, for cells that draw random numbers.
    """

    layer: ImplicitLayer
    x: Any
    loss: Loss
    seed: int = 0

    @property
    def device(self) -> torch.device:
        """Where the batch is."""
        return next(leaf.device for leaf in pytree.tree_leaves(self.x) if isinstance(leaf, Tensor))

    @property
    def is_equilibrium(self) -> bool:
        """Whether the layer finds a root, and not the state at a fixed time."""
        return isinstance(self.layer.solver, RootSolver)

    @property
    def leaves(self) -> list[Tensor]:
        """What the gradient is taken of: the layer's parameters and x."""
        held = [*self.layer.parameters(), *pytree.tree_leaves(self.x)]
        return [leaf for leaf in held if isinstance(leaf, Tensor) and leaf.requires_grad]

    def variant(self, parts: Mapping[str, Any]) -> ImplicitLayer:
        """The layer with other parts around the same cell.

        Arguments:
            parts: ``solver``, ``gradient`` and ``backend``, as configurations.

        Raises:
            ConfigError: lists every problem with them.
        """
        layer = copy.copy(self.layer)
        for name, part in parts.items():
            setattr(layer, name, part)
        return layer

    def step(self, layer: ImplicitLayer) -> tuple[SolveResult, Gradients]:
        """Solve, and pull the loss back."""
        solution = layer.solve(self.x)
        loss = self.loss(solution) + layer.regularizer(solution)
        return solution, list(torch.autograd.grad(loss, self.leaves, allow_unused=True))

    def seeded_step(self, layer: ImplicitLayer) -> tuple[SolveResult, Gradients]:
        """The step with the random numbers that every other one has, without warnings.

        What they would say is in the status.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(self.seed)
            return self.step(layer)


def make_problem(layer: ImplicitLayer, x: Any, loss: Loss | None = None) -> Problem:
    """The problem of a layer on a batch.

    Arguments:
        layer: the layer.
        x: its input; the gradient is that of its values as they are.
        loss: solution -> a scalar; None is the inner product of z with random numbers.
    """
    x = pytree.tree_map(_leaf, x)
    return Problem(layer, x, loss or _random_loss)


def _leaf(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    floats = value.is_floating_point() or value.is_complex()
    return value.detach().clone().requires_grad_(floats)


def _random_loss(solution: SolveResult) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    parts = []
    for z in pytree.tree_leaves(solution.z):
        drawn = torch.randn(z.shape, generator=generator)
        parts.append((z * drawn.to(z)).sum().real)
    return torch.stack(parts).sum()


def failure(solution: SolveResult) -> str:
    """What went wrong in a step, forward or backward; empty where nothing did."""
    backward = solution.backward.status
    for name, status in (("forward", solution.status), ("backward", backward)):
        if status is not None and bool(status.any()):
            codes = status.tolist()
            counts = {Status(code).name.lower(): codes.count(code) for code in sorted(set(codes))}
            told = ", ".join(f"{count} {word}" for word, count in counts.items())
            return f"{name}: {told} of {len(codes)} samples"
    return ""


def gradient_error(found: Sequence[Tensor | None], exact: Sequence[Tensor | None]) -> float:
    """The largest relative error of the gradient of any leaf, in the 2-norm.

    Arguments:
        found: what is judged; None is no gradient.
        exact: the reference, in the same order.
    """
    norms = [0.0 if right is None else _norm(right) for right in exact]
    least = SMALLEST_PART * math.hypot(*norms)
    worst = 0.0
    for leaf, right, norm in zip(found, exact, norms, strict=True):
        error = _norm(_difference(leaf, right))
        worst = max(worst, error / max(norm, least) if error else 0.0)
        if not math.isfinite(error):
            return math.inf
    return worst


def _difference(found: Tensor | None, exact: Tensor | None) -> Tensor:
    if found is None or exact is None:
        left = exact if found is None else found
        return torch.zeros(()) if left is None else left
    wide = torch.promote_types(exact.dtype, found.dtype)
    return found.to(wide) - exact.to(wide)


def _norm(values: Tensor) -> float:
    return torch.linalg.vector_norm(values.detach().flatten()).item()
