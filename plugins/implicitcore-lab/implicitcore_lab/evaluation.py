"""What a model reaches without training, and what a step of it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from implicitcore import Solution, SolveResult
from implicitcore_lab.data import Split
from implicitcore_lab.engine import Engine
from implicitcore_lab.measures import norms
from implicitcore_lab.memory import peak_bytes
from implicitcore_lab.models import Classifier
from implicitcore_lab.records import Evaluation

Read = tuple[Tensor, Tensor, SolveResult]
"""Logits, those read out of the start without the solve, and the solution."""
Solve = Callable[[Tensor], Read]


def evaluate(
    model: nn.Module,
    split: Split,
    batch_size: int,
    solve: Solve | None = None,
    engine: Engine | None = None,
) -> Evaluation:
    """Classify every image of a split.

    Arguments:
        model: the classifier, on the device of ``split``.
        split: the images and labels.
        batch_size: images at a time.
        solve: how, where it is not ``model.solve``.
        engine: the processes that share the work; None is this one alone.

    Returns:
        The counts, the loss, and the worst residual over all samples.
    """
    solve = solve or partial(_solve, cast(Classifier, model))
    counts = torch.zeros(4, dtype=torch.float64, device=split.labels.device)
    residuals = [torch.zeros(1, device=split.labels.device)]
    rows = torch.arange(len(split), device=split.labels.device)
    has_residual = False
    with torch.no_grad(), evaluation_mode(model):
        for batch in rows.split(batch_size):
            mine, count = engine.share(batch) if engine else (batch, len(batch))
            logits, explicit, solution = solve(split.images[mine])
            logits, labels = logits[:count].float(), split.labels[mine][:count]
            counts[0] += (logits.argmax(1) == labels).sum()
            counts[1] += (~solution.converged[:count]).sum()
            counts[2] += cross_entropy(logits, labels, reduction="sum")
            counts[3] += (explicit[:count].argmax(1) == labels).sum()
            if isinstance(solution, Solution):
                has_residual = True
                residuals.append(relative_residual(solution, solution.residual)[:count])
    correct, unconverged, loss, explicit = (engine.total(counts) if engine else counts).tolist()
    worst = torch.cat(residuals).max().item() if has_residual else None
    if engine and worst is not None:
        worst = engine.largest(worst)
    return Evaluation(
        correct=int(correct),
        samples=len(split),
        worst_residual=worst,
        unconverged=int(unconverged),
        loss=loss / len(split),
        explicit_correct=int(explicit),
    )


def _solve(model: Classifier, images: Tensor) -> Read:
    logits, solution = model.solve(images)
    return logits, model.head(solution.start), solution


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model as it predicts, and as it was afterwards."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


def relative_residual(solution: SolveResult, residual: Tensor) -> Tensor:
    """``[..., batch]`` residuals over the size of each sample's state."""
    return residual / norms(solution.z)


def residual_curve(model: Classifier, images: Tensor) -> list[float]:
    """The worst relative residual of a batch after each iteration of the solver.

    Empty where the layer has none.
    """
    with torch.no_grad(), evaluation_mode(model):
        _, solution = model.solve(images, trace=True)
    if not isinstance(solution, Solution) or solution.trace is None:
        return []
    return relative_residual(solution, solution.trace).amax(1).tolist()


def step_memory(model: Classifier, images: Tensor, labels: Tensor) -> int:
    """Peak bytes of one forward and backward pass, beyond the weights and the images.

    The weights stay as they are.
    """

    def work() -> None:
        logits, solution = model.solve(images)
        (cross_entropy(logits, labels) + model.layer.regularizer(solution)).backward()

    model.zero_grad(set_to_none=True)
    peak = peak_bytes(work, images.device)
    model.zero_grad(set_to_none=True)
    return peak
