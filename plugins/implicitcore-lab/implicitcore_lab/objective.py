"""What training minimises: the loss of a batch, in one call that processes can share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils import _pytree as pytree

from implicitcore import RootSolver, Solution, SolveResult, WarmStart, jacobian_regularizer
from implicitcore_lab.errors import TrainingError
from implicitcore_lab.models import Classifier
from implicitcore_lab.settings import Settings


class Held:
    """A solution on its way through wrappers that would copy a dataclass."""

    def __init__(self, solution: SolveResult) -> None:
        self.solution = solution


class Losses(NamedTuple):
    """What :class:`Objective` returns.

    Attributes:
        loss: a scalar, the mean over the batch.
        logits: ``[batch, classes]``.
        held: the solution they were read from.
        explicit: logits read out of the start, without the solve; None while training.
    """

    loss: Tensor
    logits: Tensor
    held: Held
    explicit: Tensor | None


class Objective(nn.Module):
    """Cross entropy + the layer's own term + the Jacobian term, each with its weight.

    Arguments:
        model: the classifier.
        settings: label_smoothing, regularizer_weight, jacobian_weight and unrolled_depth.
        warm: where each training sample begins; None leaves it to the layer.
    """

    def __init__(
        self, model: Classifier, settings: Settings, warm: WarmStart | None = None
    ) -> None:
        super().__init__()
        self.model, self.warm = model, warm
        self.smoothing = settings.label_smoothing
        self.regularizer_weight = settings.regularizer_weight
        self.jacobian_weight = settings.jacobian_weight
        self.depth = settings.unrolled_depth

    def forward(
        self, images: Tensor, labels: Tensor, unrolled: bool = False, rows: Tensor | None = None
    ) -> Losses:
        """The loss of a batch.

        Arguments:
            images: ``[batch, channels, height, width]``.
            labels: int64 ``[batch]``.
            unrolled: iterate the cell ``unrolled_depth`` times in place of the solve.
            rows: int64 ``[batch]``, which training samples they are; None for others.

        Returns:
            The loss, the logits, the solution, and what its start alone says.
        """
        x = self.model.encoder(images)
        solution = self._unrolled(x) if unrolled else self._solve(x, rows)
        logits = self.model.head(solution.z)
        loss = cross_entropy(logits, labels, label_smoothing=self.smoothing)
        if self.regularizer_weight:
            loss = loss + self.regularizer_weight * self.model.layer.regularizer(solution)
        if self.jacobian_weight and self.training and isinstance(solution, Solution):
            loss = loss + self.jacobian_weight * jacobian_regularizer(self.model.layer, solution, x)
        explicit = None if self.training else self.model.head(solution.start)
        return Losses(loss, logits, Held(solution), explicit)

    def _solve(self, x: Tensor, rows: Tensor | None) -> SolveResult:
        layer, warm = self.model.layer, self.warm
        if warm is None or rows is None:
            return layer.solve(x)
        solution = layer.solve(x, warm.keyed(x, rows))
        warm.keep(rows, solution)
        return solution

    def _unrolled(self, x: Tensor) -> SolveResult:
        """The state after a few plain iterations, with their graph.

        Reference:
            Bai, Kolter, Koltun, Deep Equilibrium Models, arXiv 1909.01377, section 4.1 (weight-tied
            pre-training).
        """
        layer = self.model.layer
        start = layer.start(x)
        z = pytree.tree_map(torch.detach, start) if layer.start.detached else start
        for _ in range(self.depth):
            z = layer.dynamics.update(z, x)
        first = pytree.tree_leaves(z)[0]
        none = torch.zeros(len(first), dtype=torch.int8, device=first.device)
        return SolveResult(
            z=z,
            start=start,
            status=none,
            steps=torch.full_like(none, self.depth, dtype=torch.int64),
            evaluations=self.depth + layer.start.evaluations,
        )


def check_equilibrium(model: Classifier, settings: Settings) -> None:
    """Refuse what is for equilibria alone: unrolled pre-training, the Jacobian term, warm starts.

    Raises:
        TrainingError: the layer integrates to a fixed time, or has a start of its own.
    """
    layer = model.layer
    if not isinstance(layer.solver, RootSolver):
        for name in ("unrolled_steps", "jacobian_weight", "warm_start"):
            if getattr(settings, name):
                raise TrainingError(
                    f"{settings.layer_name}: {name} needs a layer with a root solver; "
                    f"{type(layer).__name__} integrates to a fixed time"
                )
    if settings.warm_start and (layer.start.detached or layer.start.evaluations):
        raise TrainingError(
            f"{settings.layer_name}: its loss compares the equilibrium with where its own start "
            f"({type(layer.start).__name__}) begins; warm_start is for layers that begin at zero"
        )
