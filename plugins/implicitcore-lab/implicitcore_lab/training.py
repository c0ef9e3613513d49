"""The one training loop, used for every layer alike; it can end anywhere and go on from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from implicitcore import SolveResult, WarmStart
from implicitcore_lab.augment import augmented
from implicitcore_lab.data import Dataset, Split
from implicitcore_lab.diagnostics import diagnose
from implicitcore_lab.engine import Engine, whole
from implicitcore_lab.errors import Interrupted, TrainingError
from implicitcore_lab.evaluation import Read, evaluate
from implicitcore_lab.meter import Meter, Reading, check_finite
from implicitcore_lab.models import Classifier
from implicitcore_lab.objective import Objective, check_equilibrium
from implicitcore_lab.optimisation import (
    AveragedWeights,
    build_optimizers,
    copy_weights,
    rate_factor,
    set_rate,
)
from implicitcore_lab.progress import Best, Position, capture, restore
from implicitcore_lab.records import Epoch, Evaluation, History, Step, summary
from implicitcore_lab.settings import Settings
from implicitcore_lab.state import State

SEED_STRIDE = 1_000_003
"""Between the seeds of the processes, whose dropout masks must differ."""


class Keeper(Protocol):
    """Says when to write a checkpoint or to stop, and writes it."""

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        ...

    def stop(self) -> bool:
        """Whether the training was told to stop."""
        ...

    def keep(self, state: State, step: int) -> None:
        """Write a checkpoint."""
        ...


class Training:
    """One training and how far it is.

    Arguments:
        model: the classifier, on the device of ``data``.
        data: what to train and test on.
        settings: everything about the loss, the optimisers, the schedule and the data's order.
        engine: the processes and the precision; one process in float32 by default.

    Attributes:
        history: the steps and epochs measured.
    """

    def __init__(
        self, model: Classifier, data: Dataset, settings: Settings, engine: Engine | None = None
    ) -> None:
        check_equilibrium(model, settings)
        self.model, self.data, self.settings = model, data, settings
        self.engine = engine or Engine(settings)
        self.warm = WarmStart(len(data.train), model.layer.start) if settings.warm_start else None
        if self.warm and self.engine.world > 1:
            raise TrainingError(
                "warm_start: each process would know its own samples alone; train with one process"
            )
        self.objective = self.engine.module(Objective(model, settings, self.warm))
        self.optimizers = self.engine.optimizers(build_optimizers(model, settings))
        self.average = AveragedWeights(model, settings.ema) if settings.ema else None
        self.history = History()
        self.position = Position()
        self.best = Best()
        self.samples = settings.batch_size * settings.accumulate
        self.steps_per_epoch = -(-len(data.train) // self.samples)
        torch.manual_seed(settings.seed + SEED_STRIDE * self.engine.rank)

    def state(self) -> State:
        """Everything that the training goes on from, whole on every process."""
        return capture(self)

    def load(self, state: State, history: History) -> None:
        """Go on from a state, after what was measured until then."""
        restore(self, state)
        self.history = history

    def run(
        self,
        on_step: Callable[[Step], None] = lambda step: None,
        on_epoch: Callable[[Epoch], None] = lambda epoch: None,
        keeper: Keeper | None = None,
    ) -> History:
        """Train to the end, and leave the model with the weights that were best.

        Arguments:
            on_step: called after each step.
            on_epoch: called after each epoch.
            keeper: writes checkpoints.

        Returns:
            The steps and epochs measured.

        Raises:
            TrainingError: the loss is not finite.
            Interrupted: the keeper says to stop; a checkpoint has been written.
        """
        for _ in self.steps(on_step, on_epoch, keeper):
            pass
        return self.history

    def steps(
        self,
        on_step: Callable[[Step], None] = lambda step: None,
        on_epoch: Callable[[Epoch], None] = lambda epoch: None,
        keeper: Keeper | None = None,
    ) -> Iterator[None]:
        """The same as :meth:`run`, one step at each turn, so that trainings can take turns.

        They share torch's global generator: who lets them take turns gives each its own state.
        """
        order = torch.Generator().manual_seed(self.settings.seed)
        for _ in range(self.position.epoch):
            torch.randperm(len(self.data.train), generator=order)
        while self.position.epoch < self.settings.epochs and not self._out_of_patience():
            rows = torch.randperm(len(self.data.train), generator=order)
            yield from self._epoch(rows.split(self.samples), on_step, keeper)
            on_epoch(self._finish_epoch())
            if keeper:
                keeper.keep(self.state(), self.position.step)
        if self.best.weights:
            copy_weights(self.model, self.best.weights)
        elif self.average:
            copy_weights(self.model, self.average.weights)

    def _epoch(
        self,
        batches: tuple[Tensor, ...],
        on_step: Callable[[Step], None],
        keeper: Keeper | None,
    ) -> Iterator[None]:
        waiting: list[Reading] = []
        late = 1 if self.engine.device.type == "cuda" else 0
        while self.position.batch < len(batches):
            rows = batches[self.position.batch].to(self.data.train.labels.device)
            waiting.append(self._step(rows, keeper))
            self.position.batch += 1
            self.position.step += 1
            last = self.position.batch == len(batches)
            ready = waiting[: len(waiting) - (0 if last else late)]
            stop, due = self._take(ready, on_step)
            waiting = waiting[len(ready) :]
            if keeper and (stop or due):
                self._take(waiting, on_step)
                waiting = []
                keeper.keep(self.state(), self.position.step)
            if stop:
                raise Interrupted(self.position.step)
            yield

    def _take(self, readings: list[Reading], on_step: Callable[[Step], None]) -> tuple[bool, bool]:
        """Add steps to the history; whether to stop, and whether a checkpoint is due."""
        stop = due = False
        for reading in readings:
            step, stops, dues = self._read(reading)
            stop, due = stop or stops, due or dues
            self.history.steps.append(step)
            on_step(step)
        return stop, due

    def _step(self, rows: Tensor, keeper: Keeper | None) -> Reading:
        self._set_rates()
        engine, settings = self.engine, self.settings
        meter = Meter(engine, bool(keeper and keeper.stop()), bool(keeper and keeper.due()))
        unrolled = self.position.step < settings.unrolled_steps
        batches = rows.split(settings.batch_size)
        for index, batch in enumerate(batches):
            mine, count = engine.share(batch)
            images, labels = self.data.train.images[mine], self.data.train.labels[mine]
            images = augmented(images, settings, (self.position.step, index, engine.rank))
            with engine.unsynchronised(self.objective, index + 1 < len(batches)):
                meter.mark()
                loss, logits, held, _ = self.objective(images, labels, unrolled, mine)
                meter.mark()
                self._check(loss, held.solution)
                engine.backward(loss * (count * engine.world / len(rows)))
                meter.mark()
            meter.add(loss, logits, labels[:count], held.solution)
        self._update()
        return meter.close()

    def _update(self) -> None:
        for index, optimizer in enumerate(self.optimizers):
            if index and (self.position.step + 1) % self.settings.start_every:
                continue
            if self.settings.clip:
                self.engine.clip(self.objective, optimizer, self.settings.clip)
            optimizer.step()
        self.objective.zero_grad(set_to_none=True)
        if self.average:
            self.average.update()

    def _set_rates(self) -> None:
        factor = rate_factor(self.settings, self.position.step, self.steps_per_epoch)
        rates = self.settings.learning_rate, self.settings.start_learning_rate
        for optimizer, rate in zip(self.optimizers, rates, strict=False):
            set_rate(optimizer, rate * factor)

    def _check(self, loss: Tensor, solution: SolveResult) -> None:
        """Before the backward pass, where looking makes no device wait."""
        if loss.device.type == "cpu":
            with self._naming_the_step():
                check_finite(loss.item(), solution.status)

    def _read(self, reading: Reading) -> tuple[Step, bool, bool]:
        with self._naming_the_step():
            return reading.read()

    @contextmanager
    def _naming_the_step(self) -> Iterator[None]:
        try:
            yield
        except FloatingPointError as error:
            place = f"step {len(self.history.steps) + 1} (epoch {self.position.epoch + 1})"
            raise TrainingError(
                f"{self.settings.layer_name}: {error} at {place}; try a lower learning_rate"
            ) from error

    def _finish_epoch(self) -> Epoch:
        with self.average.in_use() if self.average else nullcontext():
            test, held_out, extra = self._measure()
        epoch = summary(self.position.epoch + 1, self.history, test, held_out, extra)
        self.history.epochs.append(epoch)
        self.position.epoch += 1
        self.position.batch = 0
        if self.settings.patience and held_out:
            self._remember(held_out)
        return epoch

    def _measure(self) -> tuple[Evaluation, Evaluation | None, dict[str, Any]]:
        """The test images, the validation images, and the solver on a test batch."""
        test = self.evaluate(self.data.test)
        held_out = self.evaluate(self.data.validation) if self.data.validation else None
        batch = self.data.test.first(self.settings.batch_size)
        divided = self.engine.world > 1 and self.settings.strategy == "fsdp"
        extra = diagnose(self.model, batch) if self.engine.rank == 0 and not divided else {}
        return test, held_out, extra | {"learning_rate": self.optimizers[0].param_groups[0]["lr"]}

    def evaluate(self, split: Split) -> Evaluation:
        """Measure the model on a split, all processes together."""

        def solve(images: Tensor) -> Read:
            labels = images.new_zeros(len(images), dtype=torch.int64)
            _, logits, held, explicit = self.objective(images, labels)
            return logits, explicit, held.solution

        return evaluate(self.objective, split, self.settings.batch_size, solve, self.engine)

    def _remember(self, held_out: Evaluation) -> None:
        if held_out.accuracy > self.best.accuracy:
            source = self.average.weights if self.average else self.model.state_dict()
            weights = {name: value.detach().clone() for name, value in source.items()}
            self.best = Best(held_out.accuracy, self.position.epoch, weights)

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return bool(patience and self.position.epoch - self.best.epoch >= patience)

    def weights(self) -> dict[str, Tensor]:
        """The model's weights, whole and on the CPU, on every process."""
        return {name: whole(value) for name, value in self.model.state_dict().items()}


def fit(
    model: Classifier,
    data: Dataset,
    settings: Settings,
    *,
    on_step: Callable[[Step], None] = lambda step: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> History:
    """Train a classifier on this process alone; see :class:`Training`.

    Raises:
        TrainingError: the loss is not finite.
    """
    return Training(model, data, settings).run(on_step, on_epoch)
