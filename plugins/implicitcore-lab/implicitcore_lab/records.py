"""What training and evaluation measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from types import TracebackType
from typing import Annotated, Any, Protocol

from annotated_types import Ge, MinLen


@dataclass(frozen=True)
class Step:
    """What one training step did.

    Attributes:
        samples: images in it.
        loss: cross entropy plus the layer's own term.
        correct: images classified correctly, before the update.
        evaluations: of the cell, in the forward solve.
        backward: vector-Jacobian products and evaluations of the cell, in the backward pass.
        unconverged: samples whose solve missed its tolerance.
        seconds: how long it took.
        forward_ms: of the forward passes; CPU time of the process, or the CUDA stream's.
        backward_ms: of the backward passes, likewise.
        step_ms: of the whole step, the update included, likewise.
        start_distance: mean of ``|z* - z0| / |z*|`` over the samples.
        peak_bytes: the CUDA allocator's peak of this epoch so far; on a CPU the process's largest
            resident memory.
    """

    samples: int
    loss: float
    correct: int
    evaluations: float
    backward: float
    unconverged: int
    seconds: float
    forward_ms: float = 0.0
    backward_ms: float = 0.0
    step_ms: float = 0.0
    start_distance: float | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Epoch:
    """One line of ``metrics.jsonl``: means over an epoch's steps, and the test set after it.

    Attributes:
        epoch: 1, 2, ...
        seconds: time spent training since the beginning, evaluation left out.
        loss: mean over the training images.
        train_accuracy: fraction, measured while the weights changed.
        test_accuracy: fraction, after the epoch.
        evaluations: mean per step, forward.
        backward: mean per step, backward.
        unconverged: training samples whose solve missed its tolerance.
        steps: how many steps it had.
        forward_ms: mean per step.
        backward_ms: mean per step.
        validation_accuracy: fraction of the images held out; None where there are none.
        validation_loss: mean cross entropy of them.
        test_loss: mean cross entropy of the test images.
        peak_bytes: the CUDA allocator's peak; on a CPU the process's largest resident memory.
        spectral_radius: of J = df/dz at the equilibria of a test batch, the largest; None for a
            layer without equilibria.
        start_distance: mean of ``|z* - z0| / |z*|`` over that batch.
        explicit_accuracy: of the test images, read out of z0 without the solve.
        learning_rate: of the last step.
    """

    epoch: int
    seconds: float
    loss: float
    train_accuracy: float
    test_accuracy: float
    evaluations: float
    backward: float
    unconverged: int
    steps: int = 0
    forward_ms: float = 0.0
    backward_ms: float = 0.0
    validation_accuracy: float | None = None
    validation_loss: float | None = None
    test_loss: float = 0.0
    peak_bytes: int | None = None
    spectral_radius: float | None = None
    start_distance: float | None = None
    explicit_accuracy: float | None = None
    learning_rate: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """A pass over a split without training.

    Attributes:
        correct: images classified correctly.
        samples: images in the split.
        worst_residual: largest ``|f(z) - z| / |z|`` over the samples; None where the layer has no
            residual.
        unconverged: samples whose solve missed its tolerance.
        loss: mean cross entropy.
        explicit_correct: images classified correctly by z0, without the solve.
    """

    correct: int
    samples: int
    worst_residual: float | None
    unconverged: int
    loss: float = 0.0
    explicit_correct: int = 0

    @property
    def accuracy(self) -> float:
        """Fraction of the images classified correctly."""
        return self.correct / self.samples


@dataclass(frozen=True)
class Record:
    """What one run reached and what it cost, as ``result.json`` has it.

    Attributes:
        layer: its name.
        seed: of the initial weights and of the order of the images.
        test_accuracy: fraction of the test images.
        test_correct: how many of them.
        test_samples: how many there are.
        tolerance: of the layer's solver; None where it has none.
        seconds_per_step: median.
        evaluations: mean per step, forward.
        evaluations_backward: mean per step.
        peak_bytes: of one forward and backward pass.
        parameters: trainable numbers of the whole classifier.
        worst_residual: largest ``|f(z) - z| / |z|`` on the test images; None without a residual.
        unconverged_train: training samples whose solve missed its tolerance.
        unconverged_test: test samples, likewise.
        config: the layer's full configuration.
        epochs: one line each.
        residuals: worst relative residual of a test batch after each iteration.
    """

    layer: str
    seed: int
    test_accuracy: float
    test_correct: int
    test_samples: Annotated[int, Ge(1)]
    tolerance: float | None
    seconds_per_step: float
    evaluations: float
    evaluations_backward: float
    peak_bytes: int
    parameters: int
    worst_residual: float | None
    unconverged_train: int
    unconverged_test: int
    config: dict[str, Any]
    epochs: Annotated[list[Epoch], MinLen(1)]
    residuals: list[float]


@dataclass
class History:
    """Everything measured while training: the steps of all epochs, and one line per epoch."""

    steps: list[Step] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)

    @property
    def seconds_per_step(self) -> float:
        """Median over all steps."""
        return median(step.seconds for step in self.steps)

    @property
    def samples(self) -> int:
        """Images trained on, each counted in every epoch."""
        return sum(step.samples for step in self.steps)

    @property
    def unconverged(self) -> int:
        """How many of them had a solve that missed its tolerance."""
        return sum(step.unconverged for step in self.steps)

    def mean(self, name: str) -> float:
        """Mean of a figure over all steps."""
        return sum(getattr(step, name) for step in self.steps) / len(self.steps)


def summary(
    number: int,
    history: History,
    test: Evaluation,
    validation: Evaluation | None,
    extra: Mapping[str, Any],
) -> Epoch:
    """The line of an epoch whose steps are those that no epoch of the history has counted yet.

    Arguments:
        number: 1, 2, ...
        history: all steps, and the epochs before.
        test: the test images after the epoch.
        validation: the images held out, where there are some.
        extra: the other figures, by their names.
    """
    steps = history.steps[sum(epoch.steps for epoch in history.epochs) :]
    samples = sum(step.samples for step in steps)

    def mean(name: str) -> float:
        return sum(getattr(step, name) for step in steps) / len(steps)

    return Epoch(
        epoch=number,
        seconds=sum(step.seconds for step in history.steps),
        loss=sum(step.loss * step.samples for step in steps) / samples,
        train_accuracy=sum(step.correct for step in steps) / samples,
        test_accuracy=test.accuracy,
        test_loss=test.loss,
        explicit_accuracy=test.explicit_correct / test.samples,
        validation_accuracy=validation.accuracy if validation else None,
        validation_loss=validation.loss if validation else None,
        evaluations=mean("evaluations"),
        backward=mean("backward"),
        unconverged=sum(step.unconverged for step in steps),
        steps=len(steps),
        forward_ms=mean("forward_ms"),
        backward_ms=mean("backward_ms"),
        **extra,
    )


class Watcher(Protocol):
    """Hears of the steps and epochs of one training, which runs inside its ``with`` block."""

    def __enter__(self) -> object: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def step(self, step: Step) -> None:
        """After each step."""
        ...

    def epoch(self, epoch: Epoch) -> None:
        """After each epoch."""
        ...
