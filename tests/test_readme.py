"""Every code block of README.md and docs/ is run, so that no page promises what does not work.

What is done with a block depends on its language:

    python          executed; the blocks of a page share one namespace, in page order
    yaml, toml      parsed
    bash, console   `implicitcore ...` and `pytest ...` are run, `make TARGET ...` is looked up,
    `pip install ./FOLDER` (or `-e`)
                    installs for this page alone; what a console shows below `$ ...` must be what
                    the command prints, where `...` in it is anything, and a number in what pytest
                    prints any number
    text            shown to the reader as output; not run

A comment in the line above a block changes that:

    <!-- file: NAME -->         the block is written to the file NAME in the page's working
    directory; Python is then not executed <!-- not run: REASON -->    the block is only read; each
    reason, and how often it may be given, is listed in NOT_RUN

The directive `{code-block}` with the option `:caption: NAME` is a block with a file, whose name the
reader sees.
"""

import importlib
import re
import shlex
import site
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
from markdown_it.token import Token
from support.sites import ROOT, Environment

from implicitcore.registry.registry import REGISTRY
from implicitcore.testing.expect import known

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/README.md")])
NOT_RUN = {
    "changes the environment that runs the tests": 5,
    "starts several processes, as a test of the lab does": 2,
    "trains for minutes": 7,
    "another library's code, beside ours": 7,
}
MARK = re.compile(r"<!--\s*(file|not run):\s*(.+?)\s*-->")
CAPTION = re.compile(r":caption: (.+)\n+")


class Block(NamedTuple):
    language: str
    line: int
    source: str
    file: str | None
    not_run: str | None


def blocks(page: Path) -> Iterator[Block]:
    """The page's fenced blocks, but for MyST directives, which the documentation builder runs; a
    code block is none of them."""
    above = ""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "fence" and token.map:
            yield from captioned(token) if token.info.startswith("{") else marked(token, above)
        above = token.content.strip() if token.type == "html_block" else ""


def marked(token: Token, above: str) -> Iterator[Block]:
    mark = MARK.fullmatch(above)
    kind, value = mark.groups() if mark else (None, None)
    language = token.info.split()[0] if token.info else ""
    file, not_run = (value if kind == name else None for name in ("file", "not run"))
    yield Block(language, known(token.map)[0] + 1, token.content, file, not_run)


def captioned(token: Token) -> Iterator[Block]:
    caption = CAPTION.match(token.content)
    if token.info.startswith("{code-block}") and caption:
        yield Block(
            token.info.split()[1],
            known(token.map)[0] + 1,
            token.content[caption.end() :],
            caption[1],
            None,
        )


def run_command(line: str, environment: Environment) -> str:
    """What the command prints; it must succeed."""
    words = shlex.split(line)
    match words:
        case ["implicitcore", *options]:
            done = environment.run("-m", "implicitcore", *options)
        case ["pytest", *options]:
            done = environment.run("-m", "pytest", "-p", "no:cacheprovider", *options)
        case ["make", *options]:
            done = subprocess.run(
                ["make", "--dry-run", "--directory", ROOT, *options],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        case ["pip", "install", *options, folder] if folder.startswith("./") and set(options) <= {
            "-e"
        }:
            environment.install(*options, folder)
            return ""
        case _:
            pytest.fail(
                f"no rule to run {line!r}: mark its block `not run`, or give this test a rule"
            )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_shell(source: str, environment: Environment) -> None:
    source = source.replace("\\\n", " ")
    if "$ " not in source:
        for line in source.splitlines():
            if line.strip() and not line.startswith("#"):
                run_command(line, environment)
        return
    for command in re.split(r"^\$ ", source, flags=re.MULTILINE)[1:]:
        line, _, shown = command.partition("\n")
        printed = run_command(line, environment)
        if line.startswith("pytest "):
            # A minute and more is also given as (0:01:00).
            shown, printed = (
                re.sub(r"\d+(\.\d+)?s( \([\d:]+\))?|\d+", "0", text) for text in (shown, printed)
            )
        assert not shown.strip() or is_shown(shown, printed), (
            f"$ {line}\n{printed}\nand the page shows:\n{shown}"
        )


def is_shown(shown: str, printed: str) -> bool:
    """Whether that is what a page shows, where ``...`` is anything and one white space as good as
    another."""
    pattern = ".*".join(
        re.escape(piece) for piece in re.split(r" ?\.\.\. ?", " ".join(shown.split()))
    )
    return re.fullmatch(pattern, " ".join(printed.split())) is not None


def run_block(
    page: Path, block: Block, namespace: dict[str, object], environment: Environment
) -> None:
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
            run_shell(block.source, environment)
            site.addsitedir(
                str(environment.packages)
            )  # for the Python of the page: an editable package is a link there
        case "text":
            pass
        case other:
            pytest.fail(
                f"{page.name}:{block.line}: no rule for a block in {other or 'no language'!r}"
            )


LONG = {"tutorial.md", "lab.md", "tuning.md", "command_line.md"}
"""Their blocks make environments, plugins and runs."""


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page,
            id=str(page.relative_to(ROOT)),
            marks=[pytest.mark.slow(20)] * (page.name in LONG),
        )
        for page in PAGES
    ],
)
def test_every_block_runs(page, tmp_path, tmp_path_factory, monkeypatch):
    environment = Environment(tmp_path_factory.mktemp("venv"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    module = ModuleType("page")
    monkeypatch.setitem(
        sys.modules, "page", module
    )  # dataclasses and pickle look a class's module up
    for block in blocks(page):
        if block.not_run is None:
            importlib.invalidate_caches()
            monkeypatch.setattr(
                REGISTRY, "_plugins", None
            )  # the block above may have installed one
            run_block(page, block, vars(module), environment)


@pytest.mark.parametrize(
    ("shown", "same"),
    [
        ("a  b\n", True),
        ("a ...", True),
        ("...\nb", True),
        ("a ... b", True),
        ("a", False),
        ("a c", False),
        ("a ... b ... c", False),
    ],
)
def test_what_a_page_shows_is_compared(shown, same):
    assert is_shown(shown, "a\nb\n") == same


def test_blocks_that_are_not_run_are_counted():
    reasons = Counter(block.not_run for page in PAGES for block in blocks(page) if block.not_run)
    assert reasons == Counter(NOT_RUN)
