"""One experiment: build a classifier, train it, and measure what the reports show."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from implicitcore import ConfigError
from implicitcore_lab.data import Dataset
from implicitcore_lab.display import Display
from implicitcore_lab.engine import Engine
from implicitcore_lab.evaluation import evaluate, residual_curve, step_memory
from implicitcore_lab.models import Classifier, build_classifier, check_size
from implicitcore_lab.optimisation import copy_weights
from implicitcore_lab.records import Epoch, Evaluation, History, Step, Watcher
from implicitcore_lab.settings import Settings, read_settings
from implicitcore_lab.state import State
from implicitcore_lab.training import Keeper, Training

PLACEHOLDER_SHAPE = (1, 8, 8)


@dataclass(frozen=True)
class Outcome:
    """What a trained layer reached and what it cost; one row of the table.

    Attributes:
        layer: its name.
        seed: it was trained with.
        config: its full configuration.
        parameters: trainable numbers of the whole classifier.
        history: every step and epoch of the training.
        test: the test set after training.
        peak_bytes: of one forward and backward pass.
        residuals: worst relative residual of one test batch after each iteration; empty where the
            layer has none.
    """

    layer: str
    seed: int
    config: dict[str, Any]
    parameters: int
    history: History
    test: Evaluation
    peak_bytes: int
    residuals: list[float]


def check_settings(
    values: dict[str, Any], layers: Sequence[str | dict[str, Any]]
) -> list[Settings]:
    """Settings for each layer, after everything that can be wrong with them has been looked for.

    Arguments:
        values: the settings but for the layer.
        layers: what to train, one after the other.

    Raises:
        ConfigError: lists the problems of the settings and of all layers together.
    """
    problems: list[str] = []
    try:
        settings = read_settings(values)
    except ConfigError as error:
        problems += error.problems
        settings = Settings()
    for layer in layers:
        try:
            check_size(settings)
            build_classifier(settings.with_layer(layer), PLACEHOLDER_SHAPE, 1)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return [settings.with_layer(layer) for layer in layers]


@contextmanager
def cpu_threads(settings: Settings) -> Iterator[None]:
    """Give torch the threads of the settings, and what it had before afterwards.

    No more than there are cores: each further one would only wait.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(min(settings.threads or before, max(os.cpu_count() or 1, before)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Surroundings:
    """What a training has around it; all of it may be left out.

    Attributes:
        engine: the processes; None is this one alone.
        watchers: called after each step and epoch.
        keeper: writes checkpoints.
        restored: the state to go on from, and what was measured until then.
    """

    engine: Engine | None = None
    watchers: Sequence[Watcher] = ()
    keeper: Keeper | None = None
    restored: tuple[State, History] | None = None


def run(
    settings: Settings, data: Dataset, console: Console, around: Surroundings = Surroundings()
) -> tuple[Classifier, Outcome]:
    """Train one layer and measure it.

    Arguments:
        settings: what to train and how.
        data: what to train on, on its device.
        console: where progress is shown.
        around: processes, watchers and checkpoints.

    Returns:
        The trained classifier and its outcome.

    Raises:
        ConfigError: the layer or its options cannot be used.
        TrainingError: the loss became infinite or not a number.
        Interrupted: the keeper says to stop.
    """
    device = data.train.labels.device
    model = build_classifier(settings, data.shape, data.classes).to(device)
    if settings.compile:
        compile_parts(model)
    training = Training(model, data.holding_out(settings.validation), settings, around.engine)
    if around.restored:
        training.load(*around.restored)
    steps = settings.epochs * training.steps_per_epoch
    display = Display(console, settings.layer_name, epochs=settings.epochs, steps=steps)
    display.skip(training.position.step)
    everyone = (display, *around.watchers)

    def step_done(step: Step) -> None:
        for watcher in everyone:
            watcher.step(step)

    def epoch_done(epoch: Epoch) -> None:
        for watcher in everyone:
            watcher.epoch(epoch)

    with ExitStack() as stack:
        for watcher in everyone:
            stack.enter_context(watcher)
        history = training.run(step_done, epoch_done, around.keeper)
    trained = build_classifier(settings, data.shape, data.classes).to(device)
    copy_weights(trained, training.weights())
    return trained, outcome_of(trained, data, settings, history)


def compile_parts(model: Classifier) -> None:
    """Compile what is called once a batch or an iteration; the solver's loop stays as it is."""
    for part in (model.encoder, *model.layer.dynamics.children(), model.head):
        part.compile()


def outcome_of(model: Classifier, data: Dataset, settings: Settings, history: History) -> Outcome:
    """Measure a trained classifier.

    Arguments:
        model: the classifier, on the device of the data.
        data: what it was trained on.
        settings: of the training.
        history: its steps and epochs.
    """
    batch = slice(settings.batch_size)
    return Outcome(
        layer=settings.layer_name,
        seed=settings.seed,
        config=model.layer.config,
        parameters=sum(
            parameter.numel() for parameter in model.parameters() if parameter.requires_grad
        ),
        history=history,
        test=evaluate(model, data.test, settings.batch_size),
        peak_bytes=step_memory(model, data.train.images[batch], data.train.labels[batch]),
        residuals=residual_curve(model, data.test.images[batch]),
    )
