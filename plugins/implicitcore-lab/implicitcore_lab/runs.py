"""A run directory: what was trained, its weights, and what was measured.

``config.json`` the settings with the layer's full configuration; ``train --config`` takes it again
``metrics.jsonl`` one line per epoch, written as it ends
``weights.safetensors`` the trained classifier
``result.json`` the final figures, among them the accuracy that ``evaluate`` reproduces
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from implicitcore import load_config
from implicitcore_lab.errors import RunError
from implicitcore_lab.experiment import Outcome
from implicitcore_lab.models import Classifier
from implicitcore_lab.records import Epoch, Step
from implicitcore_lab.report import machine, row
from implicitcore_lab.settings import Settings, read_settings

CONFIG = "config.json"
METRICS = "metrics.jsonl"
WEIGHTS = "weights.safetensors"
RESULT = "result.json"


class RunDirectory:
    """Writes and reads the files of one run.

    Arguments:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, *, overwrite: bool = False) -> None:
        """Make the directory.

        Raises:
            RunError: it holds a run already, and ``overwrite`` is not set; or it cannot be written.
        """
        if (self.path / CONFIG).exists() and not overwrite:
            raise RunError(f"{self.path} holds a run already; give another --out, or --overwrite")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in (CONFIG, METRICS, WEIGHTS, RESULT):
                (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error}") from error

    def metrics(self) -> MetricsFile:
        """Writes the file of metrics while a training runs."""
        return MetricsFile(self.path / METRICS)

    def save(self, settings: Settings, model: Classifier, outcome: Outcome, data_note: str) -> None:
        """Write configuration, weights and result."""
        self._write(CONFIG, settings.with_layer(outcome.config).as_data())
        save_model(model, str(self.path / WEIGHTS))
        self._write(RESULT, {"machine": machine(), "data_note": data_note, **row(outcome)})

    def settings(self) -> Settings:
        """The settings of the run.

        Raises:
            RunError: there is no run here.
            ConfigError: the configuration has been changed into something that cannot be used.
        """
        return read_settings(load_config(self._existing(CONFIG)))

    def load_weights(self, model: Classifier) -> None:
        """Give a classifier built from :meth:`settings` the trained weights.

        Every weight must be there.

        Raises:
            RunError: the weights are missing, damaged, or of another classifier.
        """
        path = self._existing(WEIGHTS)
        try:
            load_model(model, path)
        except (SafetensorError, RuntimeError) as error:
            raise RunError(f"{path}: not the weights of this configuration ({error})") from error

    def correct(self) -> int:
        """How many test images the run classified correctly.

        Raises:
            RunError: the result is missing or damaged.
        """
        path = self._existing(RESULT)
        try:
            return int(json.loads(path.read_text())["test_correct"])
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}: expected JSON with test_correct ({error!r})") from error

    def _existing(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise RunError(
                f"{path}: no such file; expected a directory written by `implicitcore train`"
            )
        return path

    def _write(self, name: str, content: dict[str, Any]) -> None:
        (self.path / name).write_text(json.dumps(content, indent=2) + "\n")


class MetricsFile:
    """A watcher that adds a line for each epoch, at once on the disk for whoever looks."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> MetricsFile:
        self._stream = self._path.open("w")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()

    def step(self, step: Step) -> None:
        """Epochs alone have lines."""

    def epoch(self, epoch: Epoch) -> None:
        """Add its line."""
        self._stream.write(json.dumps(asdict(epoch)) + "\n")
        self._stream.flush()
