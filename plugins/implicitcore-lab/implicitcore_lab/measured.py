"""The lines of a run, JSON Lines as they happen: one per step and one per epoch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from implicitcore_lab.errors import RunError
from implicitcore_lab.records import Epoch, History, Step
from implicitcore_lab.runs import METRICS, STEPS
from implicitcore_lab.storage import storing, write_atomic

KINDS = {STEPS: Step, METRICS: Epoch}


class MeasuredLines:
    """A watcher that adds a line for each step and epoch; a checkpoint says how many count.

    Arguments:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._streams: dict[str, BinaryIO] = {}

    def __enter__(self) -> MeasuredLines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for stream in self._streams.values():
            with suppress(OSError):  # the checkpoint before says what is there
                stream.close()
        self._streams = {}

    def step(self, step: Step) -> None:
        """Add the line of a step."""
        self._line(STEPS, step)

    def epoch(self, epoch: Epoch) -> None:
        """Add the line of an epoch, at once in the file for whoever looks."""
        self._line(METRICS, epoch)
        with storing(self._folder):
            for stream in self._open().values():
                stream.flush()

    def sync(self) -> dict[str, int]:
        """Bring all lines to the disk; how many bytes each file has.

        Raises:
            OSError: they cannot be written.
        """
        ends = {}
        for name, stream in self._open().items():
            stream.flush()
            os.fsync(stream.fileno())
            ends[name] = stream.tell()
        return ends

    def clear(self) -> None:
        """Drop all lines."""
        for name in KINDS:
            (self._folder / name).unlink(missing_ok=True)

    def history(self, ends: dict[str, Any]) -> History:
        """What was measured until a checkpoint; later lines are cut off.

        Arguments:
            ends: how many bytes each file had.

        Raises:
            RunError: a file is shorter, or a line is damaged.
            OSError: a file cannot be read or cut off.
        """
        found: dict[str, list[Any]] = {}
        for name, kind in KINDS.items():
            path = self._folder / name
            content = path.read_bytes() if path.exists() else b""
            end = ends.get(name)
            if not isinstance(end, int) or len(content) < end:
                raise RunError(f"{path}: {len(content)} bytes, its checkpoint has {end}")
            found[name] = _records(content[:end], kind, path)
            if len(content) > end:
                write_atomic(path, content[:end])
        return History(found[STEPS], found[METRICS])

    def _open(self) -> dict[str, BinaryIO]:
        if not self._streams:
            self._streams = {name: (self._folder / name).open("ab") for name in KINDS}
        return self._streams

    def _line(self, name: str, record: Step | Epoch) -> None:
        with storing(self._folder / name):
            self._open()[name].write(json.dumps(asdict(record)).encode() + b"\n")


def _records(content: bytes, kind: Callable[..., Any], path: Path) -> list[Any]:
    try:
        return [kind(**json.loads(line)) for line in content.splitlines()]
    except (ValueError, TypeError) as error:
        raise RunError(f"{path}: a damaged line ({error})") from error
