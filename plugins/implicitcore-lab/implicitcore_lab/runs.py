"""A run directory: what was trained, its weights, and what was measured.

``config.json`` the settings with the layer's full configuration; ``train --config`` takes it again
``metrics.jsonl`` one line per epoch, ``steps.jsonl`` one line per step, written as they end
``weights.safetensors`` the trained classifier
``result.json`` the record: schema version, the SHA-256 of the files above, the final figures

It appears whole, when the run has ended well. Until then ``DIRECTORY.partial`` beside it has what
there is, and the last checkpoints; see :mod:`implicitcore_lab.transaction`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from implicitcore import load_config
from implicitcore_lab.errors import RunError
from implicitcore_lab.optimisation import copy_weights
from implicitcore_lab.settings import Settings, read_settings
from implicitcore_lab.state import check_schema
from implicitcore_lab.storage import digest, reason, usable

PARTIAL = ".partial"
CONFIG = "config.json"
METRICS = "metrics.jsonl"
STEPS = "steps.jsonl"
WEIGHTS = "weights.safetensors"
RESULT = "result.json"
RECORDED = (CONFIG, METRICS, STEPS, WEIGHTS)
"""The files whose SHA-256 is in the record."""


class RunDirectory:
    """Reads the files of a run that has ended well.

    Arguments:
        path: the directory.

    Raises:
        RunError: a path cannot be like that.
    """

    def __init__(self, path: Path) -> None:
        self.path = usable(path)

    @property
    def partial(self) -> Path:
        """Where the run is while it is written.

        Raises:
            RunError: the directory cannot be renamed.
        """
        if not self.path.name or self.path.name == "..":
            raise RunError(f"{self.path}: expected a directory that can be renamed, as runs/first")
        return self.path.with_name(self.path.name + PARTIAL)

    @property
    def finished(self) -> bool:
        """Whether it holds a run."""
        try:
            return (self.path / RESULT).exists()
        except OSError as error:
            raise RunError(f"{self.path} cannot be read: {reason(error)}") from error

    def settings(self) -> Settings:
        """The settings of the run.

        Raises:
            RunError: there is no run here, or a file of it was changed.
            ConfigError: the configuration cannot be used here.
        """
        self.check()
        return read_settings(load_config(self.path / CONFIG))

    def check(self) -> None:
        """Require that what can be read without the weights is as the run left it.

        Raises:
            RunError: there is no run here, or a file of it was changed.
        """
        for name in (CONFIG, METRICS, STEPS):
            self._checked(name)

    def load_weights(self, model: nn.Module) -> None:
        """Give a classifier built from :meth:`settings` the trained weights.

        Raises:
            RunError: the weights are missing, damaged, or of another classifier.
        """
        path = self.path / WEIGHTS
        weights = _parse(self._checked(WEIGHTS), path)
        expected = {name: value for name, value in model.state_dict().items()}
        if shapes(weights) != shapes(expected):
            raise RunError(f"{path}: not the weights of this configuration")
        copy_weights(model, weights)

    def record(self) -> dict[str, Any]:
        """The record of the run.

        Raises:
            RunError: it is missing or damaged, or of another schema version.
        """
        path = self.path / RESULT
        content = self._content(RESULT)
        try:
            record = json.loads(content)
            found, files = record.get("schema"), record["files"]
            int(record["test_correct"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RunError(f"{path}: expected JSON with test_correct ({error!r})") from error
        check_schema(found, path)
        if not isinstance(files, dict):
            raise RunError(f"{path}: files: expected the SHA-256 of each, received {files!r}")
        return record

    def correct(self) -> int:
        """How many test images the run classified correctly.

        Raises:
            RunError: the record is missing or damaged.
        """
        return int(self.record()["test_correct"])

    def _checked(self, name: str) -> bytes:
        """The content of a file whose SHA-256 is the recorded one."""
        recorded = self.record()["files"].get(name)
        content = self._content(name)
        if digest(content) != recorded:
            raise RunError(
                f"{self.path / name}: damaged or not of this run: its SHA-256 is "
                f"{digest(content)[:12]}..., {RESULT} has {str(recorded)[:12]}..."
            )
        return content

    def _content(self, name: str) -> bytes:
        path = self.path / name
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunError(
                f"{path}: no such file; expected a directory written by `implicitcore train`"
            ) from error
        except OSError as error:
            raise RunError(f"{path} cannot be read: {reason(error)}") from error


def shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each weight, by name."""
    return {name: tuple(value.shape) for name, value in weights.items()}


def _parse(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return load(content)
    except SafetensorError as error:
        raise RunError(f"{path}: not the weights of this configuration ({error})") from error
