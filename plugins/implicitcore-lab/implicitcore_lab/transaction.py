"""Writing a run: all of it appears at once, and a run that is cut short can go on.

The files are written into ``DIRECTORY.partial``, which is locked meanwhile and renamed when all of
them are whole. A run that is there already is replaced in the same moment, and not before.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors.torch import save
from torch import Tensor

from implicitcore_lab.errors import RunError
from implicitcore_lab.measured import MeasuredLines
from implicitcore_lab.records import History
from implicitcore_lab.runs import (
    CONFIG,
    RECORDED,
    RESULT,
    WEIGHTS,
    RunDirectory,
)
from implicitcore_lab.settings import RUN_ONLY, Settings, read_settings, within
from implicitcore_lab.state import SCHEMA, State, checkpoints, read_state, write_state
from implicitcore_lab.storage import (
    DirectoryLock,
    digest,
    exchange,
    storing,
    sync_directory,
    write_atomic,
)

PARTIAL = ".partial"
REPLACED = ".replaced"
READY = "ready"
"""An empty file that says that the directory is whole and only has to appear."""
OWN = {*RECORDED, RESULT, READY}


@dataclass(frozen=True)
class Started:
    """What a transaction found.

    Attributes:
        done: the run was whole, and is in its place now.
        notes: what the user should know.
        restored: the newest whole checkpoint, and what was measured until it.
    """

    done: bool
    notes: list[str]
    restored: tuple[State, History] | None = None


class Transaction:
    """One run while it is written; a context manager that holds the lock.

    Arguments:
        path: the directory that the run will be.
        overwrite: replace the run that it holds, once this one has ended well.
        resume: go on from what an earlier run left.

    Raises:
        RunError: the directory holds a run or other files; another process writes to it; it cannot
            be written.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, resume: bool = False) -> None:
        self.path = RunDirectory(path).path
        if not self.path.name or self.path.name == "..":
            raise RunError(f"{path}: expected a directory that can be renamed, as runs/first")
        self.partial = self.path.with_name(self.path.name + PARTIAL)
        self._overwrite = overwrite
        self.lines = MeasuredLines(self.partial)
        with storing(self.path):
            self._recover()
            self._check_target()
            self._lock = DirectoryLock(self.partial)
        try:
            with storing(self.partial):
                self._begin(resume)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.lines.__exit__(kind, error, trace)
        self._lock.release()
        with suppress(OSError):  # nothing was written: leave nothing
            self.partial.rmdir()

    def begin(self, settings: Settings) -> Started:
        """What there is to go on from.

        Raises:
            RunError: what an earlier run left cannot be read, or is of other settings.
        """
        if self.ready:
            self.appear()
            return Started(True, ["the run was whole already, and is in its place now"])
        started = unfinished_settings(self.path)
        if started and _trained(started) != _trained(settings):
            raise RunError(f"{self.partial}: its settings have changed while they were read")
        with storing(self.partial):
            restored, problems = self._restore()
        notes = [f"an older checkpoint is used: {problem}" for problem in problems]
        return Started(False, notes, restored)

    def set_settings(self, settings: Settings) -> None:
        """Write the settings of this run."""
        with storing(self.partial):
            write_atomic(self.partial / CONFIG, _json(settings.as_data()))

    def _restore(self) -> tuple[tuple[State, History] | None, list[str]]:
        """The newest whole checkpoint with its history, and what is wrong with newer ones."""
        problems: list[str] = []
        for path in checkpoints(self.partial):
            try:
                state = read_state(path)
                return (state, self.lines.history(state.data["lines"])), problems
            except RunError as error:
                problems.append(str(error))
        if problems:
            raise RunError("; ".join(problems))
        self.lines.clear()
        return None, []

    def keep(self, state: State, step: int) -> None:
        """Write a checkpoint, after the lines that belong to it.

        Raises:
            RunError: it cannot be written; the one before it is as it was.
        """
        with storing(self.partial):
            state.data["lines"] = self.lines.sync()
            write_state(self.partial, step, state)

    def finish(
        self, settings: Settings, weights: dict[str, Tensor], result: dict[str, Any]
    ) -> None:
        """Write what is missing, and let the directory appear.

        Raises:
            RunError: it cannot be written; a run that was there is as it was.
        """
        with storing(self.partial):
            self.lines.sync()
            write_atomic(self.partial / WEIGHTS, save(_contiguous(weights)))
            write_atomic(self.partial / CONFIG, _json(settings.as_data()))
            files = {name: digest((self.partial / name).read_bytes()) for name in RECORDED}
            record = {"schema": SCHEMA, "files": files, **result}
            write_atomic(self.partial / RESULT, _json(record))
            write_atomic(self.partial / READY, b"")
            for name in checkpoints(self.partial):
                name.unlink()
        self.appear()

    @property
    def ready(self) -> bool:
        """Whether an earlier process wrote everything, and ended before the directory appeared."""
        return (self.partial / READY).exists()

    def appear(self) -> None:
        """Rename the directory to what it was asked for, in the place of a run that is there.

        Raises:
            RunError: the file system refuses.
        """
        with storing(self.path):
            self._appear()

    def _recover(self) -> None:
        """Finish what a process that ended between two renames has left."""
        replaced = self.path.with_name(self.path.name + REPLACED)
        if replaced.exists() and not self.path.exists():
            replaced.rename(self.path)
        if (self.path / READY).exists():
            (self.path / READY).unlink()

    def _check_target(self) -> None:
        run = RunDirectory(self.path)
        if run.finished:
            if not self._overwrite:
                raise RunError(
                    f"{self.path} holds a run already; give another --out, or --overwrite"
                )
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise RunError(f"{self.path} is not empty and holds no run; give another --out")

    def _begin(self, resume: bool) -> None:
        if resume:
            return
        found = checkpoints(self.partial)
        if found and not self._overwrite:
            raise RunError(
                f"{self.partial} has a run that was cut short; go on with --resume, or begin anew "
                "with --overwrite"
            )
        for path in [*found, *(self.partial / name for name in OWN)]:
            path.unlink(missing_ok=True)

    def _appear(self) -> None:
        parent = self.path.parent
        if not self.path.exists() or not any(self.path.iterdir()):
            self.partial.rename(self.path)
        else:
            replaced = self.path.with_name(self.path.name + REPLACED)
            if exchange(self.partial, self.path):
                self.partial.rename(replaced)
            else:
                self.path.rename(replaced)
                self.partial.rename(self.path)
            self._discard(replaced)
        (self.path / READY).unlink()
        sync_directory(parent)

    def _discard(self, replaced: Path) -> None:
        """Drop the run that was replaced; what else lay in its directory is kept."""
        for entry in replaced.iterdir():
            if entry.name not in OWN:
                entry.rename(self.path / entry.name)
        shutil.rmtree(replaced)


def unfinished_settings(path: Path) -> Settings | None:
    """The settings of the run for that directory that was cut short; None where there is none.

    Raises:
        RunError: they cannot be read.
        ConfigError: they cannot be used here.
    """
    file = RunDirectory(path).path.with_name(path.name + PARTIAL) / CONFIG
    with storing(path):
        if not file.exists():
            return None
        content = file.read_bytes()
    try:
        return read_settings(json.loads(content))
    except (ValueError, AttributeError) as error:
        raise RunError(f"{file}: not the settings of a run ({error})") from error


def resumed(given: Settings, path: Path, values: Mapping[str, Any]) -> Settings:
    """The settings that a run goes on with: its own, but for where it runs.

    Arguments:
        given: what was asked for, with the defaults.
        path: the run directory.
        values: what was asked for.

    Raises:
        RunError: something else was asked for than what the run was started with.
    """
    stored = unfinished_settings(path)
    if stored is None:
        return given
    whole = (path.with_name(path.name + PARTIAL) / WEIGHTS).exists()
    for name in values:
        wanted, has = getattr(given, name), getattr(stored, name)
        # Beside the weights the layer is written with all of its options.
        if name not in RUN_ONLY and wanted != has and not (whole and within(wanted, has)):
            raise RunError(
                f"{name}: the run in {path} was started with {has!r}, received {wanted!r}: "
                "--resume goes on with the settings of the run"
            )
    return replace(stored, **{name: getattr(given, name) for name in RUN_ONLY if name in values})


def _trained(settings: Settings) -> Settings:
    """The settings but for where the run runs."""
    return replace(settings, **{name: getattr(Settings(), name) for name in RUN_ONLY})


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _contiguous(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
