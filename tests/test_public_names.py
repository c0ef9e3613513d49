import ast
import importlib
import inspect
from importlib import metadata

import pytest
from support.sites import run_python

import implicitcore as ic


def names_for_type_checkers() -> dict[str, str]:
    """The names of the TYPE_CHECKING block, with their modules."""
    block = next(node for node in ast.parse(inspect.getsource(ic)).body if isinstance(node, ast.If))
    found = {}
    for statement in block.body:
        if isinstance(statement, ast.ImportFrom):
            [name] = statement.names
            assert name.asname == name.name  # an explicit re-export
            found[name.name] = statement.module
    return found


def test_the_table_the_type_checkers_block_and_all_agree():
    table = {
        name: f"implicitcore.{module}" for module, names in ic._EXPORTS.items() for name in names
    }
    assert names_for_type_checkers() == table
    assert sorted(table) == ic.__all__
    assert set(ic.__all__) <= set(dir(ic))


@pytest.mark.parametrize("name", ic.__all__)
def test_every_name_imports(name: str):
    assert getattr(ic, name) is getattr(
        importlib.import_module(f"implicitcore.{ic._MODULE_OF[name]}"), name
    )


def test_a_misspelt_name_gets_its_near_match():
    for misspelt in ("Andersen", "ANDERSON"):
        with pytest.raises(
            AttributeError,
            match=f"module 'implicitcore' has no attribute '{misspelt}'; did you mean 'Anderson'",
        ):
            getattr(ic, misspelt)


def test_the_import_brings_neither_torch_nor_plugins():
    code = "import sys, implicitcore; implicitcore.hookimpl; print(*sys.modules)"
    modules = run_python("-c", code).stdout.split()
    assert "implicitcore.registry.hookspecs" in modules
    assert not {
        "torch",
        "pydantic",
        "numpy",
        "implicitcore.registry.registry",
        "implicitcore_layers",
        "implicitcore_lab",
    } & set(modules)


def test_the_version_is_that_of_the_distribution(monkeypatch: pytest.MonkeyPatch):
    def fail(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    for version, expected in ((lambda name: f"{name} 7", "implicitcore 7"), (fail, "0+unknown")):
        monkeypatch.delitem(vars(ic), "__version__", raising=False)
        monkeypatch.setattr(metadata, "version", version)
        assert ic.__version__ == expected
    monkeypatch.delitem(vars(ic), "__version__")
