"""The house: CONTRIBUTING's map is complete, and plugins come in by the public doors."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.sites import ROOT

from implicitcore.cli.new_plugin import render
from implicitcore.lazy import read_stub
from implicitcore.options.kinds import NAMED_KINDS

DOORS = {"implicitcore", "implicitcore.extend", "implicitcore.plots", "implicitcore.testing"}
COMMAND_LINE = "implicitcore.cli"  # a test of a command runs it in its own process
TESTS = sorted([*ROOT.glob("tests/**/*.py"), *ROOT.glob("plugins/*/tests/**/*.py")])
PLUGINS = sorted(ROOT.glob("plugins/*/**/*.py"))


def floors() -> list[list[str]]:
    """The floors of the import contract, from the top."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [house] = [
        contract
        for contract in settings["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers" and contract.get("containers") == ["implicitcore"]
    ]
    assert house["exhaustive"]
    return [re.split(r" *[:|] *", floor) for floor in house["layers"]]


def test_the_map_has_every_floor_in_the_order_of_the_import_contract():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page.partition("| floor |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.M)
    assert [re.findall(r"`(\w+)`", row) for row in rows] == floors()


def test_the_map_names_every_room():
    rooms = {
        path.stem
        for path in (ROOT / "implicitcore").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__", "__main__"} == {room for floor in floors() for room in floor}


def imported(source: str) -> Iterator[str]:
    """The modules of implicitcore that a source imports, for type checkers too."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "implicitcore":
                public = {name for name, *_ in read_stub(str(ROOT / "implicitcore/__init__.py"))}
                names += [
                    f"implicitcore.{alias.name}"
                    for alias in node.names
                    if alias.name not in public | {"__version__"}
                ]
        yield from (name for name in names if name.split(".")[0] == "implicitcore")


@pytest.mark.parametrize("file", PLUGINS, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_a_plugin_imports_the_public_pages_only(file: Path):
    found = set(imported(file.read_text(encoding="utf-8")))
    if "tests" in file.parts or file.name == "conftest.py":  # the modules of implicitcore.testing
        found = {name for name in found if not name.startswith("implicitcore.testing.")}
        found -= {COMMAND_LINE}
    assert found <= DOORS


@pytest.mark.parametrize("file", PLUGINS, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_a_plugin_uses_no_helper_of_this_repository(file: Path):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    froms = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not {str(name).split(".")[0] for name in froms | names} & {
        "support",
        "benchmarks",
        "tests",
    }


def developers_only() -> set[str]:
    """The packages that only make install-dev brings, by the names that they are imported by."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = settings["project"]["optional-dependencies"]
    names = {re.split(r"[^\w-]", line, maxsplit=1)[0] for line in extras["lint"] + extras["docs"]}
    both = {"networkx", "scikit-learn"}  # torch and the lab bring them, too
    return {name.replace("-", "_").lower() for name in names - both}


@pytest.mark.parametrize("file", TESTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_test_module_can_be_collected_without_the_developers_tools(file: Path):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    froms = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    names = {
        alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    }
    assert not {str(name).split(".")[0] for name in froms | names} & developers_only()


@pytest.mark.parametrize("kind", NAMED_KINDS)
def test_a_new_plugin_imports_the_public_pages_only(kind: str):
    sources = [text for path, text in render("fast", kind).items() if path.endswith(".py")]
    found = {name for source in sources for name in imported(source)}
    assert {"implicitcore", "implicitcore.extend"} <= found <= DOORS


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from implicitcore.tensors.norms import norm", ["implicitcore.tensors.norms"]),
        ("def f():\n    import implicitcore.lazy", ["implicitcore.lazy"]),
        ("from implicitcore import Picard, tensors", ["implicitcore", "implicitcore.tensors"]),
        ("from implicitcore_scipy import Hybr", []),
    ],
)
def test_a_deep_import_is_seen(source: str, found: list[str]):
    assert list(imported(source)) == found
