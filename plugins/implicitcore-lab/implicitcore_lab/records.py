"""What training and evaluation measure."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from types import TracebackType
from typing import Protocol


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
    """

    samples: int
    loss: float
    correct: int
    evaluations: int
    backward: int
    unconverged: int
    seconds: float


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
    """

    epoch: int
    seconds: float
    loss: float
    train_accuracy: float
    test_accuracy: float
    evaluations: float
    backward: float
    unconverged: int


@dataclass(frozen=True)
class Evaluation:
    """A pass over a split without training.

    Attributes:
        correct: images classified correctly.
        samples: images in the split.
        worst_residual: largest ``|f(z) - z| / |z|`` over the samples; None where the layer has no
            residual.
        unconverged: samples whose solve missed its tolerance.
    """

    correct: int
    samples: int
    worst_residual: float | None
    unconverged: int

    @property
    def accuracy(self) -> float:
        """Fraction of the images classified correctly."""
        return self.correct / self.samples


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
