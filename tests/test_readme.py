"""Every code block of README.md and docs/ is run, so that no page promises what does not work.

What is done with a block depends on its language:

    python          executed; the blocks of a page share one namespace, in page order
    yaml, toml      parsed
    bash, console   `implicitcore ...` is run, `make TARGET ...` is looked up, `pip install ./FOLDER` installs for this page alone
    text            shown to the reader as output; not run

A comment in the line above a block changes that:

    <!-- file: NAME -->         the block is written to the file NAME in the page's working directory; Python is then not executed
    <!-- not run: REASON -->    the block is only read; each reason, and how often it may be given, is listed in NOT_RUN
"""

import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import yaml
from markdown_it import MarkdownIt

from implicitcore import observers
from implicitcore.registry import REGISTRY

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/README.md")])
NOT_RUN = {"changes the environment that runs the tests": 2}
PIP_OPTIONS = ["--no-index", "--no-deps", "--no-build-isolation", "--target", "site"]
MARK = re.compile(r"<!--\s*(file|not run):\s*(.+?)\s*-->")


class Block(NamedTuple):
    language: str
    line: int
    source: str
    file: str | None
    not_run: str | None


def blocks(page: Path) -> Iterator[Block]:
    """The page's fenced blocks, but for MyST directives, which the documentation builder runs."""
    above = ""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "fence" and token.map and not token.info.startswith("{"):
            mark = MARK.fullmatch(above)
            kind, value = mark.groups() if mark else (None, None)
            language = token.info.split()[0] if token.info else ""
            file, not_run = (value if kind == name else None for name in ("file", "not run"))
            yield Block(language, token.map[0] + 1, token.content, file, not_run)
        above = token.content.strip() if token.type == "html_block" else ""


def run_command(line: str) -> None:
    words = shlex.split(line.removeprefix("$ "))
    match words:
        case ["implicitcore", *options]:
            command = [Path(sys.executable).with_name("implicitcore"), *options]
        case ["make", *options]:
            command = ["make", "--dry-run", "--directory", ROOT, *options]
        case ["pip", "install", folder] if folder.startswith("./"):
            command = [sys.executable, "-m", "pip", "install", *PIP_OPTIONS, folder]
        case _:
            pytest.fail(f"no rule to run {line!r}: mark its block `not run`, or give this test a rule")
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=250, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def run_shell(source: str) -> None:
    prompted = "$ " in source  # then the other lines are output
    for line in source.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#") and (line.startswith("$ ") or not prompted):
            run_command(line)


def run_block(page: Path, block: Block, namespace: dict[str, object]) -> None:
    if block.file:
        target = Path(block.file)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.source, encoding="utf-8")
    match block.language:
        case "python" if block.file:
            compile(block.source, block.file, "exec")
        case "python":
            # The empty lines make a traceback point into the page.
            exec(compile("\n" * block.line + block.source, str(page), "exec"), namespace)
        case "yaml":
            yaml.safe_load(block.source)
        case "toml":
            tomllib.loads(block.source)
        case "bash" | "console":
            run_shell(block.source)
        case "text":
            pass
        case other:
            pytest.fail(f"{page.name}:{block.line}: no rule for a block in {other or 'no language'!r}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_runs(page, tmp_path, monkeypatch):
    site = tmp_path / "site"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", os.fspath(site))
    module = ModuleType("page")
    for name in ("active", "_of_plugins"):
        monkeypatch.setattr(observers, name, ())  # a page may install a plugin that observes
    monkeypatch.setitem(sys.modules, "page", module)  # dataclasses and pickle look a class's module up
    for block in blocks(page):
        if block.not_run is None:
            importlib.invalidate_caches()
            monkeypatch.setattr(REGISTRY, "_plugins", None)  # the block above may have installed one
            run_block(page, block, vars(module))


def test_blocks_that_are_not_run_are_counted():
    reasons = Counter(block.not_run for page in PAGES for block in blocks(page) if block.not_run)
    assert reasons == Counter(NOT_RUN)
