"""When a checkpoint is written: each epoch, every so many minutes, on SIGTERM and SIGINT."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from implicitcore_lab.engine import Engine
from implicitcore_lab.state import State
from implicitcore_lab.transaction import Transaction

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Checkpoints:
    """Writes the checkpoints of a training, and turns the signals to stop into one.

    A context manager: within it the first SIGTERM or SIGINT lets the step end and writes a
    checkpoint; a second SIGINT ends at once.

    Arguments:
        transaction: the run that they belong to; None on all processes but the first.
        engine: the processes.
        minutes: between two checkpoints within an epoch.
    """

    def __init__(self, transaction: Transaction | None, engine: Engine, minutes: float) -> None:
        self._transaction, self._engine = transaction, engine
        self._seconds = 60 * minutes
        self._last = time.monotonic()
        self._before: dict[int, Any] = {}
        self.signal: int | None = None

    def __enter__(self) -> Checkpoints:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._received) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def due(self) -> bool:
        """Whether the last checkpoint is older than the minutes."""
        return time.monotonic() - self._last >= self._seconds

    def stop(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    def keep(self, state: State, step: int) -> None:
        """Write a checkpoint, on the first process.

        Raises:
            RunError: it cannot be written.
        """
        transaction = self._transaction
        self._engine.on_main(lambda: transaction.keep(state, step) if transaction else None)
        self._last = time.monotonic()

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
