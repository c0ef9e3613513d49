"""Build every distribution, check them, and run the README on the wheels alone.

    python .ci/wheels.py build           wheels and source distributions in dist/, checked by twine
    python .ci/wheels.py try [PAGE ...]  installs implicitcore[all,test] from dist/ into a new
                                         environment, far from here, and runs the blocks of
                                         README.md and of these pages there

Needs ``implicitcore[release]``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
# What the test of the README reads; nothing of the packages.
NEEDED = (
    *("README.md", "pyproject.toml", "Makefile", "constraints.txt", ".ci/torch_build.py"),
    *("conftest.py", "tests/conftest.py", "tests/support", "tests/test_readme.py"),
)


def projects() -> list[Path]:
    """The folders of the distributions, the core first."""
    return [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]


def run(*command: str | Path, folder: Path = ROOT) -> None:
    """Run a command without the caller's Python settings."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([*map(str, command)], cwd=folder, env=environment, check=True)


def build() -> None:
    """Both forms of each distribution, from a clean folder; the wheel is made of the sdist."""
    check_tag(ROOT, _settings(ROOT)["version"])
    shutil.rmtree(DIST, ignore_errors=True)
    for folder in projects():
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", DIST, folder)
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted(DIST.iterdir()))
    names = {path.name.split("-")[0] for path in DIST.iterdir()}
    expected = {_settings(folder)["name"].replace("-", "_") for folder in projects()}
    if names != expected or len(list(DIST.iterdir())) != 2 * len(expected):
        raise SystemExit(f"dist/ holds {sorted(names)}, expected {sorted(expected)}, each twice")
    print(f"{len(expected)} wheels and as many source distributions in {DIST}")


def check_tag(folder: Path, version: str) -> None:
    """Refuse a commit whose tags name other versions than its files do."""
    listing = ("git", "tag", "--list", "v*", "--points-at", "HEAD")
    try:
        found = subprocess.run(listing, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:  # no git: an archive
        return
    tags = found.stdout.split()
    if tags and f"v{version}" not in tags:
        raise SystemExit(f"the tag {', '.join(tags)} is on a commit that has the version {version}")


def _settings(folder: Path) -> dict[str, str]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def try_out(folder: Path, pages: list[str]) -> None:
    """Install the wheels alone, and do what the README and these pages say.

    What they depend on comes as a user gets it, torch in the build that fits the machine.
    """
    venv.create(folder / "venv", with_pip=True, symlinks=os.name != "nt")
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    constraint = ("--constraint", ROOT / "constraints.txt")
    run(python, ROOT / ".ci" / "torch_build.py", "install", *constraint)
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, *constraint, "--find-links", DIST, "implicitcore[all,test]", folder=folder)
    for name in (*NEEDED, *pages):
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)
    test = "tests/test_readme.py::test_every_block_runs"
    run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", test, folder=folder)
    run(python.with_name("implicitcore"), "plugins", "list", folder=folder)
    where = "import implicitcore; print(implicitcore.__file__)"
    found = subprocess.run([python, "-c", where], cwd=folder, capture_output=True, text=True)
    if str(folder) not in found.stdout:
        raise SystemExit(f"the pages ran on {found.stdout.strip()}, not on the wheels")
    print(f"{', '.join(['README.md', *pages])}: run on the wheels alone")


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build")
    commands.add_parser("try").add_argument("pages", nargs="*", metavar="PAGE")
    options = parser.parse_args()
    if options.command == "build":
        build()
        return
    with tempfile.TemporaryDirectory(prefix="wheels-") as folder:
        try_out(Path(folder).resolve(), options.pages)


if __name__ == "__main__":
    main()
