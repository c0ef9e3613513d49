"""The compiler, and where its result is kept: ``python -m implicitcore_cpp.build``."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch.utils import cpp_extension

NAME = "implicitcore_cpp_kernels"
SOURCES = Path(__file__).parent / "csrc"
FLAGS = (
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-std=c++20",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-w",
)


class BuildError(RuntimeError):
    """The compiler did not build the kernels."""


def compiler() -> str | None:
    """The C++ compiler: that of the variable ``CXX``, or g++, or clang++; None where none is."""
    named = os.environ.get("CXX")
    names = (named,) if named else ("g++", "clang++")
    return next((found for found in map(shutil.which, names) if found), None)


def missing() -> str | None:
    """What keeps the kernels from being built here; None where nothing does."""
    if sys.platform == "win32":
        return "the kernels are not built on Windows"
    if compiler() is None:
        named = os.environ.get("CXX")
        wanted = f"{named} (of the variable CXX)" if named else "g++ or clang++"
        return f"there is no C++ compiler: {wanted} is not on the path"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "the headers of Python are not installed (Python.h; python3-dev on Debian)"
    return None


def target() -> Path:
    """Where the compiled module of these sources, this torch and this processor is kept."""
    home = os.environ.get("IMPLICITCORE_CPP_CACHE")
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) if home else Path(cache_home) / "implicitcore" / "cpp"
    return folder / _key() / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"


def is_built() -> bool:
    """Whether the kernels need no compiler here any more."""
    return target().exists()


def build() -> Path:
    """The compiled module, which is built where it is not there yet.

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    path = target()
    if path.exists():
        return path
    reason = missing()
    if reason:
        raise BuildError(reason)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent / "lock"):
        if not path.exists():
            _compile(path)
    return path


@cache
def load() -> ModuleType:
    """The kernels, built where they are not there yet."""
    spec = importlib.util.spec_from_file_location(NAME, build())
    if spec is None or spec.loader is None:
        raise BuildError(f"Python cannot load {target()}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(path: Path) -> None:
    """Compile beside the path and put the result there at once, complete."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        done = subprocess.run(_command(made), capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{compiler()} failed:\n{done.stderr[-3000:]}")
        made.replace(path)


def _command(out: Path) -> list[str]:
    include = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    libraries = cpp_extension.library_paths()
    linked = ["c10", "torch", "torch_cpu", "torch_python"]
    threads = [] if sys.platform == "darwin" else ["-fopenmp"]
    lenient = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    return [
        str(compiler()),
        *FLAGS,
        *threads,
        *lenient,
        f"-DTORCH_EXTENSION_NAME={NAME}",
        *(f"-I{folder}" for folder in include),
        str(SOURCES / "module.cpp"),
        "-o",
        str(out),
        *(f"-L{folder}" for folder in libraries),
        *(f"-Wl,-rpath,{folder}" for folder in libraries),
        *(f"-l{name}" for name in linked),
    ]


@cache
def _key() -> str:
    """Of all that the compiled module depends on."""
    parts = [source.read_bytes() for source in sorted(SOURCES.iterdir())]
    parts += [
        word.encode()
        for word in (torch.__version__, torch.__file__, sys.version, *FLAGS, _processor())
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> str:
    """What the processor can do: a home may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    names = ("flags", "Features", "model name")
    return " ".join(next((line for line in lines if line.startswith(name)), "") for name in names)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Processes that build at once wait for the first."""
    import fcntl

    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Build ahead of the first use, and say where."""
    if not is_built() and (reason := missing()):
        print(f"implicitcore-cpp is not built: {reason}")
        return 0
    print(f"implicitcore-cpp: {build()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
