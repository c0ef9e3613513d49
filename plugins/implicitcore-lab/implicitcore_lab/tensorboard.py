"""What the solves of a training took and reached, and how the training goes, in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from implicitcore import (
    ConfigError,
    ImplicitLayer,
    ObserverHandle,
    Solution,
    SolveResult,
    Status,
    observe,
)
from implicitcore_lab.records import Epoch, Step

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from implicitcore.extend import Backward


def open_writer(folder: Path | str) -> SummaryWriter:
    """A writer of event files in that folder.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            [
                f"tensorboard: it cannot be imported ({error}): pip install "
                "'implicitcore-lab[tensorboard]'"
            ]
        ) from error
    return SummaryWriter(str(folder))


class TensorBoardObserver:
    """Writes what each solve took and reached.

    ``with implicitcore.observe(TensorBoardObserver(writer)):``. For each layer, under its name:
    ``steps`` (the mean over the samples, and their histogram), ``evaluations``, ``residual_max``
    and ``residual_median`` where there is a residual, ``converged`` (the share of the samples),
    ``status/...`` (how many samples ended how), and, once the next solve or :meth:`flush` comes,
    what the backward pass spent: ``backward_products`` and ``backward_evaluations``. The step is a
    count of the layer's own solves; those in evaluation mode are counted and named apart,
    ``NAME/evaluation``.

    Arguments:
        writer: a ``torch.utils.tensorboard.SummaryWriter``.
        model: the layers in it are called by their path there; others, and all without it, by their
            class: DEQ, DEQ_2.
        every: write one solve of so many. That one waits for the device once; the others read no
            tensor.
    """

    def __init__(
        self, writer: SummaryWriter, *, model: nn.Module | None = None, every: int = 1
    ) -> None:
        if every < 1:
            raise ConfigError(
                [f"every: expected a number greater than or equal to 1, received {every}"]
            )
        self.writer, self.every = writer, every
        self._paths = (
            {id(module): path for path, module in model.named_modules() if path} if model else {}
        )
        self._names: set[str] = set()
        self._tracks: WeakKeyDictionary[ImplicitLayer, dict[bool, _Track]] = WeakKeyDictionary()

    def implicitcore_after_solve(self, layer: ImplicitLayer, solution: SolveResult) -> None:
        """Take note of a solve, and write it where it is its turn."""
        track = self._track(layer)
        track.settle(self.writer)
        if track.solves % self.every == 0 and len(solution.status):
            _write(self.writer, track.name, track.solves, solution)
            track.waiting = track.solves, solution.backward
        track.solves += 1

    def flush(self) -> None:
        """Write what the last backward passes spent, and see everything on the disk."""
        for tracks in self._tracks.values():
            for track in tracks.values():
                track.settle(self.writer)
        self.writer.flush()

    def _track(self, layer: ImplicitLayer) -> _Track:
        if layer not in self._tracks:
            name = self._name(layer)
            self._tracks[layer] = {True: _Track(name), False: _Track(f"{name}/evaluation")}
        return self._tracks[layer][layer.training]

    def _name(self, layer: ImplicitLayer) -> str:
        wanted = name = self._paths.get(id(layer), type(layer).__name__)
        number = 1
        while name in self._names:
            number += 1
            name = f"{wanted}_{number}"
        self._names.add(name)
        return name


class TensorBoardLog:
    """A watcher that writes a training's loss, accuracies and solves.

    It closes the writer when the training ends.

    Arguments:
        writer: a ``torch.utils.tensorboard.SummaryWriter``.
    """

    def __init__(self, writer: SummaryWriter) -> None:
        self._writer, self._observer = writer, TensorBoardObserver(writer)
        self._handle: ObserverHandle | None = None
        self._steps = 0

    def __enter__(self) -> TensorBoardLog:
        self._handle = observe(self._observer)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle:
            self._handle.remove()
        self._observer.flush()
        self._writer.close()

    def step(self, step: Step) -> None:
        """Loss and accuracy of the step."""
        self._writer.add_scalar("train/loss", step.loss, self._steps)
        self._writer.add_scalar("train/accuracy", step.correct / step.samples, self._steps)
        self._steps += 1

    def epoch(self, epoch: Epoch) -> None:
        """Accuracy on the test set, at the step that ended the epoch."""
        self._writer.add_scalar("test/accuracy", epoch.test_accuracy, self._steps - 1)


class _Track:
    """How far the solves of one layer are."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.solves = 0
        self.waiting: tuple[int, Backward] | None = None

    def settle(self, writer: SummaryWriter) -> None:
        """Write what the backward pass of the last solve written has spent, if there was one."""
        if self.waiting is not None:
            step, backward = self.waiting
            self.waiting = None
            if backward.vjps or backward.evaluations:
                writer.add_scalar(f"{self.name}/backward_products", backward.vjps, step)
                writer.add_scalar(f"{self.name}/backward_evaluations", backward.evaluations, step)


def _write(writer: SummaryWriter, name: str, step: int, solution: SolveResult) -> None:
    status, steps, residual = _on_cpu(solution)
    figures = {
        "steps": steps.mean().item(),
        "evaluations": solution.evaluations,
        "converged": (status == Status.CONVERGED).float().mean().item(),
    }
    if residual is not None:
        figures |= {
            "residual_max": residual.max().item(),
            "residual_median": residual.median().item(),
        }
    figures |= {f"status/{ending.name.lower()}": int((status == ending).sum()) for ending in Status}
    for figure, value in figures.items():
        writer.add_scalar(f"{name}/{figure}", value, step)
    writer.add_histogram(f"{name}/steps_of_samples", steps, step)


def _on_cpu(solution: SolveResult) -> tuple[Tensor, Tensor, Tensor | None]:
    """Status, steps and residual of each sample, in one copy."""
    kept = [
        solution.status,
        solution.steps,
        *([solution.residual.detach()] if isinstance(solution, Solution) else []),
    ]
    status, steps, *residual = torch.stack([row.float() for row in kept]).cpu()
    return status, steps, residual[0] if residual else None
