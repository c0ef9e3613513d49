"""Folders with real distributions in them, as pip would have left them."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]

HEADER = """
from implicitcore import hookimpl
IMPLICITCORE_API = 1
"""

SOLVER = """
from dataclasses import dataclass
from typing import Annotated
from annotated_types import Gt
from implicitcore import Backend, RootSolver, TorchBackend
from implicitcore.extend import Options

@dataclass(frozen=True, kw_only=True)
class Solver(Options, RootSolver):
    \"\"\"A solver for tests.\"\"\"
    gain: Annotated[float, Gt(0)] = 1.0
    inner: RootSolver | None = None
    backend: Backend = TorchBackend()

    def solve(self, system, z0):
        raise NotImplementedError
"""


def hook(body: str) -> str:
    """The source of a plugin whose hook does that."""
    return f"{HEADER}\n@hookimpl\ndef implicitcore_register(registry):\n    {body}\n"


def registers(name: str, target: str, kind: str = "root_solver", summary: str = "a test") -> str:
    """The source of a plugin that registers one part."""
    return hook(f"registry.register({kind!r}, {name!r}, {target!r}, summary={summary!r})")


class Site:
    """A folder on the path, with distributions in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(
        self,
        distribution: str,
        source: str,
        *,
        entry: str = "",
        version: str = "1.0",
        files: dict[str, str] | None = None,
    ) -> str:
        """Write a distribution whose one entry point names a module with that source; return the
        module's name."""
        module = f"{distribution.replace('-', '_')}_plugin"
        for name, text in {f"{module}.py": source, **(files or {})}.items():
            self.write(name, dedent(text))
        info = f"{distribution.replace('-', '_')}-{version}.dist-info"
        self.write(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
        self.write(
            f"{info}/entry_points.txt", f"[implicitcore]\n{entry or distribution} = {module}\n"
        )
        self.write(f"{info}/RECORD", "")
        return module

    def write(self, name: str, text: str) -> None:
        """Write a file of the site."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def run_python(
    *arguments: str, path: tuple[Site, ...] = (), timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, with the sites in front of its path."""
    folders = [*(str(site.folder) for site in path), str(ROOT)]
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


class Environment:
    """A virtual environment that sees all that is installed in this one, and into which pip
    installs without a network.

    Arguments:
        folder: where it is made.
        path: folders in front of its own packages.
    """

    def __init__(self, folder: Path, path: tuple[Path, ...] = (ROOT,)) -> None:
        venv.create(folder, symlinks=os.name != "nt")
        self.path = path
        self.python, self.packages = (
            Path(sysconfig.get_path(name, "venv", {"base": str(folder)}))
            for name in ("scripts", "purelib")
        )
        self.python /= "python"
        # An environment made from another one does not see it. This also follows the other's own
        # links to source folders.
        link = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (self.packages / "outer.pth").write_text(link, encoding="utf-8")

    def install(self, *arguments: str, folder: Path | None = None) -> None:
        """Let pip install from source folders, given relative to the working directory
        ``folder``."""
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.python),
            "install",
            "--quiet",
            "--no-input",
        ]
        done = self._run(
            *pip, "--no-index", "--no-deps", "--no-build-isolation", *arguments, folder=folder
        )
        assert done.returncode == 0, done.stderr

    def run(self, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run its Python in a working directory."""
        return self._run(str(self.python), *arguments, folder=folder)

    def _run(self, *command: str, folder: Path | None) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([*map(str, self.path), os.environ.get("PYTHONPATH", "")])
        variables = {**os.environ, "PYTHONPATH": path, "COLUMNS": "120"}
        return subprocess.run(
            command,
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=250,
        )


def distributions() -> set[str]:
    """The names of the distributions in this repository."""
    return {"implicitcore", *(file.parent.name for file in ROOT.glob("plugins/*/pyproject.toml"))}
