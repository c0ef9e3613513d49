"""One experiment: build a classifier, train it, and measure what the reports show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from implicitcore import ConfigError
from implicitcore_lab.data import Dataset
from implicitcore_lab.display import Display
from implicitcore_lab.models import Classifier, build_classifier
from implicitcore_lab.records import Epoch, Evaluation, History, Step, Watcher
from implicitcore_lab.settings import Settings, read_settings
from implicitcore_lab.training import evaluate, fit, residual_curve, step_memory

PLACEHOLDER_SHAPE = (1, 8, 8)


@dataclass(frozen=True)
class Outcome:
    """What a trained layer reached and what it cost; one row of the table.

    Attributes:
        layer: its name.
        config: its full configuration.
        parameters: trainable numbers of the whole classifier.
        history: every step and epoch of the training.
        test: the test set after training.
        peak_bytes: of one forward and backward pass.
        residuals: worst relative residual of one test batch after each iteration; empty where the
            layer has none.
    """

    layer: str
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
            build_classifier(settings.with_layer(layer), PLACEHOLDER_SHAPE, 1)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return [settings.with_layer(layer) for layer in layers]


def choose_device(settings: Settings) -> torch.device:
    """The device that the settings mean.

    Raises:
        ConfigError: CUDA was asked for and there is none.
    """
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise ConfigError(["device: cuda was asked for, but torch finds no CUDA device here"])
    return torch.device("cuda" if available and settings.device != "cpu" else "cpu")


@contextmanager
def cpu_threads(settings: Settings) -> Iterator[None]:
    """Give torch the threads of the settings, and what it had before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(
    settings: Settings, data: Dataset, console: Console, watchers: Sequence[Watcher] = ()
) -> tuple[Classifier, Outcome]:
    """Train one layer and measure it.

    Arguments:
        settings: what to train and how.
        data: what to train on, on its device.
        console: where progress is shown.
        watchers: who hears of the training besides.

    Returns:
        The trained classifier and its outcome.

    Raises:
        ConfigError: the layer or its options cannot be used.
        TrainingError: the loss became infinite or not a number.
    """
    device = data.train.labels.device
    model = build_classifier(settings, data.shape, data.classes).to(device)
    steps = settings.epochs * -(-len(data.train) // settings.batch_size)
    everyone = (
        Display(console, settings.layer_name, epochs=settings.epochs, steps=steps),
        *watchers,
    )

    def step_done(step: Step) -> None:
        for watcher in everyone:
            watcher.step(step)

    def epoch_done(epoch: Epoch) -> None:
        for watcher in everyone:
            watcher.epoch(epoch)

    with ExitStack() as stack:
        for watcher in everyone:
            stack.enter_context(watcher)
        history = fit(model, data, settings, on_step=step_done, on_epoch=epoch_done)
    batch = slice(settings.batch_size)
    outcome = Outcome(
        layer=settings.layer_name,
        config=model.layer.config,
        parameters=sum(
            parameter.numel() for parameter in model.parameters() if parameter.requires_grad
        ),
        history=history,
        test=evaluate(model, data.test, settings.batch_size),
        peak_bytes=step_memory(model, data.train.images[batch], data.train.labels[batch]),
        residuals=residual_curve(model, data.test.images[batch]),
    )
    return model, outcome
