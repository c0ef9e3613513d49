"""Trainings that take turns in one process, a step of each, so that none has a quieter machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from implicitcore_lab.data import Dataset
from implicitcore_lab.engine import Engine
from implicitcore_lab.errors import Interrupted, RunError
from implicitcore_lab.experiment import outcome_of
from implicitcore_lab.keeper import Checkpoints
from implicitcore_lab.models import build_classifier
from implicitcore_lab.optimisation import copy_weights
from implicitcore_lab.papers.figures import figures
from implicitcore_lab.papers.table import Job, Row
from implicitcore_lab.records import Epoch
from implicitcore_lab.results import result
from implicitcore_lab.runs import RunDirectory
from implicitcore_lab.settings import RUN_ONLY, Settings
from implicitcore_lab.state import State, random_state, set_random_state
from implicitcore_lab.training import Keeper, Training
from implicitcore_lab.transaction import Transaction

LINE_SECONDS = 30.0
"""Between two lines of progress."""
BESIDE, LOAD = "beside", "load"
"""In the record of a run: the rows that took turns, and the load average as it ended."""


@dataclass
class RowKeeper:
    """Writes the checkpoints of one of several trainings, which one signal stops all.

    Attributes:
        transaction: of its run.
        signals: knows of the signal.
        seconds: between two checkpoints within an epoch.
    """

    transaction: Transaction
    signals: Keeper
    seconds: float
    last: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        """Whether the last checkpoint is older than the seconds."""
        return time.monotonic() - self.last >= self.seconds

    def stop(self) -> bool:
        """Whether a signal has come."""
        return self.signals.stop()

    def keep(self, state: State, step: int) -> None:
        """Write a checkpoint."""
        self.transaction.keep(state, step)
        self.last = time.monotonic()


class Turn:
    """One training among those that take turns, with the random state that it would have alone.

    Arguments:
        name: of the row.
        settings: of the training.
        data: what to train on, on its device.
        run: where it is written.
        around: the process, and who knows of signals.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        data: Dataset,
        run: Transaction,
        around: tuple[Engine, Keeper],
    ) -> None:
        self.name, self.settings, self.data, self.run = name, settings, data, run
        engine, signals = around
        started = run.begin(settings)
        self.done = started.done
        if self.done:
            return
        run.set_settings(settings)
        model = build_classifier(settings, data.shape, data.classes)
        self.training = Training(model.to(engine.device), data, settings, engine)
        if started.restored:
            self.training.load(*started.restored)
        keeper = RowKeeper(run, signals, 60 * settings.checkpoint_minutes)
        self._steps = self.training.steps(run.lines.step, self._epoch, keeper)
        self._random = random_state(engine.device)
        self._epochs: list[Epoch] = []

    def take(self) -> bool:
        """Train one step; whether there was one.

        Raises:
            Interrupted: a signal came; a checkpoint has been written.
        """
        device = self.training.engine.device
        set_random_state(self._random, device)
        try:
            return next(self._steps, self) is not self
        finally:
            self._random = random_state(device)

    def finish(self, beside: Sequence[str]) -> None:
        """Measure the trained model, and let the run appear.

        Arguments:
            beside: the rows that took turns, this one among them.
        """
        model = build_classifier(self.settings, self.data.shape, self.data.classes)
        copy_weights(model, self.training.weights())
        model = model.to(self.training.engine.device)
        history = self.training.history
        record = {
            **result(outcome_of(model, self.data, self.settings, history), self.data.note),
            "figures": figures(model, self.data, self.settings, history),
            BESIDE: sorted(beside),
            LOAD: os.getloadavg()[0],
        }
        config = self.settings.with_layer(model.layer.config)
        self.run.finish(config, model.state_dict(), record)

    def pop_epochs(self) -> list[Epoch]:
        """The epochs that have ended since the last call."""
        found, self._epochs = self._epochs, []
        return found

    def _epoch(self, epoch: Epoch) -> None:
        self.run.lines.epoch(epoch)
        self._epochs.append(epoch)


def train_in_turns(
    each: dict[str, Settings], data: Dataset, folder: Path, job: Job
) -> dict[str, dict[str, float | None]]:
    """Train several rows with one seed, a step of each in turn.

    Arguments:
        each: the settings of each row, by its name.
        data: what they train on, on its device.
        folder: a run of each row is in it, a folder of its name.
        job: says whether to go on from what is there.

    Returns:
        The figures of each row.

    Raises:
        RunError: a run cannot be read or written, or is of other settings.
        TrainingError: a loss is not finite.
        Interrupted: a signal came; each training has written a checkpoint.
    """
    open_rows = {
        name: settings
        for name, settings in each.items()
        if not (job.resume and _finished(folder / name, settings, data))
    }
    with ExitStack() as stack:
        first = next(iter(each.values()))
        engine = Engine(first)
        signals = stack.enter_context(Checkpoints(None, engine, first.checkpoint_minutes))
        turns = []
        for name, settings in open_rows.items():
            run = stack.enter_context(Transaction(folder / name, resume=job.resume))
            turns.append(Turn(name, settings, data, run, (engine, signals)))
        _take_turns([turn for turn in turns if not turn.done], first.seed, job)
        if signals.stop():
            raise _interrupted(turns, signals, folder)
    return {name: RunDirectory(folder / name).record()["figures"] for name in each}


def _take_turns(turns: Sequence[Turn], seed: int, job: Job) -> None:
    """A step of each at a time, until each has ended or was interrupted."""
    going, last = list(turns), time.monotonic()
    names = [turn.name for turn in turns]
    while going:
        going = [turn for turn in going if _goes_on(turn, names)]
        for turn in turns:
            for epoch in turn.pop_epochs():
                accuracy = f"test accuracy {epoch.test_accuracy:.2%}"
                job.console.print(f"seed {seed}  {turn.name}  epoch {epoch.epoch}  {accuracy}")
        if time.monotonic() - last > LINE_SECONDS:
            last = time.monotonic()
            where = f"seed {seed}  {len(going)} rows  step {_step(turns):,}"
            job.console.print(where, style="dim")


def _goes_on(turn: Turn, beside: Sequence[str]) -> bool:
    try:
        if turn.take():
            return True
    except Interrupted:
        return False
    turn.finish(beside)
    return False


def _step(turns: Sequence[Turn]) -> int:
    """How far the trainings are, what they did before they were resumed included."""
    return max((turn.training.position.step for turn in turns if not turn.done), default=0)


def _interrupted(turns: Sequence[Turn], signals: Checkpoints, folder: Path) -> Interrupted:
    return Interrupted(_step(turns)).by(signals.signal, folder)


def taken_together(rows: Sequence[Row], seeds: Sequence[int], folder: Path) -> list[str]:
    """Which rows took turns with which, a line for each run, where it was not all with all.

    Arguments:
        rows: that were measured.
        seeds: with each.
        folder: the runs of a seed are in its ``seed-N``.
    """
    runs: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    loads: dict[tuple[tuple[str, ...], ...], list[float]] = {}
    for row in rows:
        found = [RunDirectory(folder / f"seed-{seed}" / row.name).record() for seed in seeds]
        together = tuple(tuple(record.get(BESIDE, ())) for record in found)
        runs.setdefault(together, []).append(row.title)
        loads.setdefault(together, []).extend(each[LOAD] for each in found if LOAD in each)
    if len(runs) < 2:
        return []
    first = f"The rows were measured in {len(runs)} runs: times compare within one, not across."
    lines = [
        f"Run {number}{_loads(loads[together])}: {'; '.join(titles)}."
        for number, (together, titles) in enumerate(runs.items(), 1)
    ]
    return [first, *lines]


def _loads(loads: Sequence[float]) -> str:
    return (
        f" (load average {min(loads):.1f} to {max(loads):.1f} as its rows ended)" if loads else ""
    )


def _finished(path: Path, settings: Settings, data: Dataset) -> bool:
    """Whether a run is there; it must be of these settings.

    Raises:
        RunError: it is of others.
    """
    run = RunDirectory(path)
    if not run.finished:
        return False
    wanted, has = (dict(_trained(each, data)) for each in (settings, run.settings()))
    different = sorted(name for name in wanted if wanted[name] != has[name])
    if different:
        raise RunError(
            f"{path} holds a run of other settings ({', '.join(different)}); give another "
            "--output, or leave out --resume to begin anew"
        )
    return True


def _trained(settings: Settings, data: Dataset) -> Iterator[tuple[str, Any]]:
    """The settings but for where a run runs, with every option of the layer, as JSON has them."""
    model = build_classifier(settings, data.shape, data.classes)
    for name, value in settings.with_layer(model.layer.config).as_data().items():
        if name not in RUN_ONLY:
            yield name, _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
