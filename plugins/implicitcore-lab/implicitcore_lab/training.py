"""The one training loop, used for every layer alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from implicitcore import Solution, SolveResult, Status
from implicitcore_lab.data import Dataset, Split
from implicitcore_lab.errors import TrainingError
from implicitcore_lab.memory import peak_bytes
from implicitcore_lab.models import Classifier
from implicitcore_lab.records import Epoch, Evaluation, History, Step
from implicitcore_lab.settings import Settings


def fit(
    model: Classifier,
    data: Dataset,
    settings: Settings,
    *,
    on_step: Callable[[Step], None] = lambda step: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> History:
    """Train with Adam on cross entropy plus the layer's own loss term.

    Arguments:
        model: the classifier, on the device of ``data``.
        data: what to train and test on.
        settings: epochs, batch size, learning rate and seed.
        on_step: called after each step.
        on_epoch: called after each epoch.

    Returns:
        The steps and epochs measured.

    Raises:
        TrainingError: the loss is not finite.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    order = torch.Generator().manual_seed(settings.seed)
    history = History()
    for epoch in range(1, settings.epochs + 1):
        first_step = len(history.steps)
        for rows in (
            torch.randperm(len(data.train), generator=order)
            .to(data.train.labels.device)
            .split(settings.batch_size)
        ):
            try:
                step = _step(model, optimizer, data.train.images[rows], data.train.labels[rows])
            except FloatingPointError as error:
                place = f"step {len(history.steps) + 1} (epoch {epoch})"
                raise TrainingError(
                    f"{settings.layer_name}: {error} at {place}; try a lower learning_rate"
                ) from error
            history.steps.append(step)
            on_step(step)
        test = evaluate(model, data.test, settings.batch_size)
        history.epochs.append(_summary(epoch, history, first_step, test))
        on_epoch(history.epochs[-1])
    return history


def evaluate(model: Classifier, split: Split, batch_size: int) -> Evaluation:
    """Classify every image of a split.

    Arguments:
        model: the classifier, on the device of ``split``.
        split: the images and labels.
        batch_size: images at a time.

    Returns:
        The counts, and the worst residual over all samples.
    """
    correct = unconverged = 0
    residuals = []
    with torch.no_grad(), evaluation_mode(model):
        for images, labels in zip(
            split.images.split(batch_size), split.labels.split(batch_size), strict=True
        ):
            logits, solution = model.solve(images)
            correct += _correct(logits, labels)
            unconverged += _unconverged(solution)
            if isinstance(solution, Solution):
                residuals.append(relative_residual(solution, solution.residual).max().item())
    return Evaluation(correct, len(split), max(residuals) if residuals else None, unconverged)


@contextmanager
def evaluation_mode(model: Classifier) -> Iterator[None]:
    """The model as it predicts, and as it was afterwards."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


def relative_residual(solution: SolveResult, residual: Tensor) -> Tensor:
    """``[..., batch]`` residuals over the size of each sample's state."""
    return residual / solution.z.flatten(1).norm(dim=1).clamp(min=torch.finfo(residual.dtype).tiny)


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
        _loss(model, images, labels)[0].backward()

    model.zero_grad(set_to_none=True)
    peak = peak_bytes(work, images.device)
    model.zero_grad(set_to_none=True)
    return peak


def _loss(model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, SolveResult]:
    logits, solution = model.solve(images)
    return cross_entropy(logits, labels) + model.layer.regularizer(solution), logits, solution


def _step(
    model: Classifier, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> Step:
    begin = time.perf_counter()
    loss, logits, solution = _loss(model, images, labels)
    value = _finite(loss, solution)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return Step(
        samples=len(labels),
        loss=value,
        correct=_correct(logits, labels),
        evaluations=solution.evaluations,
        backward=solution.backward.vjps + solution.backward.evaluations,
        unconverged=_unconverged(solution),
        seconds=time.perf_counter() - begin,
    )


def _finite(loss: Tensor, solution: SolveResult) -> float:
    """The loss as a number, which no failed sample may hide.

    A solver keeps the last finite iterate of one.
    """
    lost = int((solution.status == Status.NON_FINITE).sum())
    if lost:
        raise FloatingPointError(
            f"the solve of {lost} of {len(solution.status)} samples is not finite"
        )
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value}")
    return value


def _summary(epoch: int, history: History, first_step: int, test: Evaluation) -> Epoch:
    steps = history.steps[first_step:]
    samples = sum(step.samples for step in steps)
    return Epoch(
        epoch=epoch,
        seconds=sum(step.seconds for step in history.steps),
        loss=sum(step.loss * step.samples for step in steps) / samples,
        train_accuracy=sum(step.correct for step in steps) / samples,
        test_accuracy=test.accuracy,
        evaluations=sum(step.evaluations for step in steps) / len(steps),
        backward=sum(step.backward for step in steps) / len(steps),
        unconverged=sum(step.unconverged for step in steps),
    )


def _correct(logits: Tensor, labels: Tensor) -> int:
    return int((logits.argmax(1) == labels).sum())


def _unconverged(solution: SolveResult) -> int:
    return int((~solution.converged).sum())
