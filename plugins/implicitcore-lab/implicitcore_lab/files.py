"""Public data files: where they come from, their official md5, and how they reach this machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import wrap_file

from implicitcore_lab.errors import DataError

TIMEOUT = 60.0


@dataclass(frozen=True)
class PublicFile:
    """A file with a public home.

    Arguments:
        name: the file's name, in a data directory and in the cache alike.
        md5: its official md5, in hexadecimal.
        homes: addresses of folders that hold it, tried in this order.
    """

    name: str
    md5: str
    homes: tuple[str, ...] = ()


def cache_dir() -> Path:
    """Where downloads are kept.

    ``$IMPLICITCORE_CACHE``, or ``implicitcore`` below ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """
    if chosen := os.environ.get("IMPLICITCORE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "implicitcore"


def check_md5(path: Path, expected: str) -> None:
    """Require that a file is the official one.

    Raises:
        DataError: the file's md5 is not ``expected``, or it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    received = digest.hexdigest()
    if received != expected:
        raise DataError(
            f"{path}: md5 {received}, expected {expected}: the file is damaged or not the "
            "official one"
        )


def fetch(file: PublicFile, folder: Path) -> Path:
    """The checked file in ``folder``.

    Where it is not there yet, it is downloaded from the first of its homes that answers.

    Arguments:
        file: what to fetch.
        folder: where it is kept.

    Returns:
        The path of the file, whose md5 is the official one.

    Raises:
        DataError: no home gave the file, or its md5 is wrong.
    """
    target = folder / file.name
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _download(file, target)
    check_md5(target, file.md5)
    return target


def _download(file: PublicFile, target: Path) -> None:
    part = target.with_name(target.name + ".part")
    failures = []
    for home in file.homes:
        address = home + file.name
        try:
            _copy(address, part)
            check_md5(part, file.md5)
        except (OSError, DataError) as error:
            failures.append(f"{address}: {error}")
        else:
            part.replace(target)
            return
    part.unlink(missing_ok=True)
    raise DataError(
        f"{file.name} could not be downloaded (--data-dir reads it from a folder of yours):\n  "
        + "\n  ".join(failures)
    )


def _copy(address: str, part: Path) -> None:
    console = Console(stderr=True)
    with urllib.request.urlopen(address, timeout=TIMEOUT) as response, part.open("wb") as out:
        total = int(response.headers.get("Content-Length") or 0)
        quiet = not console.is_terminal
        with wrap_file(
            response, total, description=part.stem, console=console, disable=quiet, transient=True
        ) as stream:
            shutil.copyfileobj(stream, out)
    if part.stat().st_size < total:
        raise urllib.error.ContentTooShortError(
            f"received {part.stat().st_size} bytes, expected {total}", ("", response.headers)
        )
