"""Files that are whole or absent: atomic writes, digests, a directory's lock and its exchange."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from implicitcore_lab.errors import RunError

AT_FDCWD = -100
RENAME_EXCHANGE = 2
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn what the operating system says of writing to ``path`` into one sentence.

    Raises:
        RunError: the disk is full, the folder is read-only, the name is too long, ...
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} cannot be written: {reason(error)}") from error


def reason(error: OSError) -> str:
    """What went wrong, in words: ``No space left on device``."""
    return error.strerror or str(error)


def usable(path: Path) -> Path:
    """The path, where a file system can hold one like it.

    Raises:
        RunError: it contains a NUL.
    """
    if "\0" in str(path):
        raise RunError(f"{str(path)!r}: a path cannot contain the character NUL")
    return path


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file that is either the old one or the new one, whatever happens meanwhile.

    Arguments:
        path: the file.
        content: all of it.

    Raises:
        OSError: it could not be written; the old file, if there was one, is as it was.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames in a directory outlast a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(content: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


class DirectoryLock:
    """The exclusive lock on a directory, which ends with the process that holds it.

    Arguments:
        path: the directory; it is made where there is none.

    Raises:
        RunError: another process holds it.
        OSError: the directory cannot be made or opened.
    """

    def __init__(self, path: Path) -> None:
        while True:
            path.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(self._descriptor, path):
                    return
            except BlockingIOError as error:
                self.release()
                raise RunError(f"{path}: another process is training into it") from error
            except BaseException:
                self.release()
                raise
            self.release()  # the other process has renamed it since: look again

    def release(self) -> None:
        """Let others have it."""
        os.close(self._descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def exchange(new: Path, old: Path) -> bool:
    """Swap two directories in one operation of the file system.

    Returns:
        Whether the file system can; where it cannot, nothing has changed.

    Raises:
        OSError: it can, and failed.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(new))
