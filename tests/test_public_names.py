"""The two pages of public names, whose stubs are the one list, read at run time too."""

import ast
import importlib
import inspect
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from support.sites import ROOT, Site, run_python

import implicitcore as ic
from implicitcore import extend
from implicitcore.lazy import attach_stub, read_stub
from implicitcore.options.kinds import CLASS_KINDS
from implicitcore.registry.registry import REGISTRY

STUBS = [
    *ROOT.glob("implicitcore/*.pyi"),
    *ROOT.glob("plugins/*/implicitcore_*/__init__.pyi"),
]
PUBLIC = [(page, name) for page in (ic, extend) for name in page.__all__]


def as_python_reads(stub: Path) -> list[tuple[str, str]]:
    tree = ast.parse(stub.read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return [(alias.name, str(node.module)) for node in imports for alias in node.names]


@pytest.mark.parametrize("stub", STUBS, ids=lambda stub: stub.relative_to(ROOT).as_posix())
def test_a_stub_is_read_as_python_reads_it(stub: Path):
    found = [(name, module) for name, module, _ in read_stub(str(stub.with_suffix(".py")))]
    assert found == as_python_reads(stub)
    assert len({name for name, _ in found}) == len(found)


@pytest.mark.parametrize(
    "line", ["from a import b", "from a import (", "from a import b as c", "from a import b, c"]
)
def test_another_form_of_import_is_an_error_that_says_so(line: str, tmp_path: Path):
    (tmp_path / "page.pyi").write_text(f'"""A page."""\n\nfrom a import d as d\n{line}\n')
    with pytest.raises(ValueError, match=r"page\.pyi: expected 'from MODULE import NAME as NAME'"):
        attach_stub("page", str(tmp_path / "page.py"))


@pytest.mark.parametrize(("page", "name"), PUBLIC)
def test_every_name_imports_from_the_module_that_the_stub_names(page, name: str):
    [module] = [module for found, module, _ in read_stub(page.__file__) if found == name]
    assert getattr(page, name) is getattr(importlib.import_module(module), name)
    assert name in dir(page)


def test_the_pages_share_the_base_classes_and_the_marker_of_hooks():
    bases = {"Backend", "Dynamics", "GradientStrategy", "ODESolver", "RootSolver"}
    layer = {"ImplicitLayer", "InitialGuess"}
    assert set(vars(ic)["__all__"]) & set(vars(extend)["__all__"]) == bases | layer | {"hookimpl"}


@pytest.mark.parametrize(
    ("page", "misspelt", "near"),
    [(ic, "Andersen", "Anderson"), (ic, "ANDERSON", "Anderson"), (extend, "Stepp", "Step")],
)
def test_a_misspelt_name_gets_its_near_match(page, misspelt: str, near: str):
    message = f"module '{page.__name__}' has no attribute '{misspelt}'; did you mean '{near}'"
    with pytest.raises(AttributeError, match=message):
        getattr(page, misspelt)


def builtin() -> dict[tuple[str, str], type]:
    parts = REGISTRY.parts()
    return {
        (part.kind, part.name): part.load() for part in parts if part.provider == "implicitcore"
    }


def test_the_core_registers_each_part_that_the_stub_lists():
    values = [getattr(ic, name) for name in vars(ic)["__all__"]]
    classes = {value for value in values if inspect.isclass(value)}
    parts = {cls for cls in classes if hasattr(cls, "kind") and not inspect.isabstract(cls)}
    assert parts - {ic.ImplicitLayer} == set(builtin().values())


def test_a_part_lies_in_the_folder_of_its_kind():
    for (kind, name), cls in builtin().items():
        folder = cls.__module__.split(".")[1]
        assert kind in (*CLASS_KINDS, "start")
        assert folder in (kind, f"{kind}s") or (kind, folder) == ("start", "layers"), name
    assert builtin()["root_solver", "anderson"] is ic.Anderson


LIGHT = """
import sys, time
began = time.process_time()
import implicitcore
print(time.process_time() - began)
implicitcore.hookimpl
from implicitcore.extend import hookimpl
print(*sys.modules)
"""


def test_the_import_brings_neither_torch_nor_plugins_and_is_quick():
    runs = [run_python("-c", LIGHT).stdout.splitlines() for _ in range(5)]
    assert min(float(seconds) for seconds, _ in runs) < 0.01
    modules = set(runs[0][1].split())
    assert "implicitcore.registry.hookspecs" in modules
    assert (
        not {
            "torch",
            "pydantic",
            "numpy",
            "implicitcore.registry.registry",
            "implicitcore_layers",
            "implicitcore_lab",
        }
        & modules
    )


def test_the_import_needs_no_typing():
    code = "import sys, implicitcore; print(*{'typing', 'ast', 'pathlib'} & set(sys.modules))"
    assert run_python("-S", "-c", code).stdout == "\n"  # -S: what site imports is not ours


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "code"),
    [
        (".", "import implicitcore as found; found.Anderson; found.extend.StepwiseRootSolver"),
        ("plugins/implicitcore-scipy", "import implicitcore_scipy as found; found.Hybr"),
    ],
)
def test_a_wheel_has_the_stubs(folder: str, code: str, tmp_path: Path):
    build = ["wheel", "--quiet", "--no-input", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [sys.executable, "-m", "pip", *build, "--wheel-dir", str(tmp_path), str(ROOT / folder)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    [wheel] = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = f"import implicitcore.extend; {code}; print(found.__file__)"
    done = run_python("-P", "-c", code, path=(Site(tmp_path / "site"),))
    assert done.stdout.startswith(str(tmp_path / "site")), done.stderr


def test_the_version_is_that_of_the_distribution(monkeypatch: pytest.MonkeyPatch):
    def fail(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    for version, expected in ((lambda name: f"{name} 7", "implicitcore 7"), (fail, "0+unknown")):
        monkeypatch.delitem(vars(ic), "__version__", raising=False)
        monkeypatch.setattr(metadata, "version", version)
        assert ic.__version__ == expected
    monkeypatch.delitem(vars(ic), "__version__", raising=False)
