"""A package whose names are imported when they are first used: what makes importing it cheap."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package.

    Arguments:
        package: its ``__name__``.
        modules: for each public name the module in the package that defines it.

    Example:
        >>> attributes("implicitcore", {"Status": "solution"})("Status").CONVERGED.name
        'CONVERGED'
    """

    def find(name: str) -> Any:
        if name not in modules:
            from implicitcore.errors import did_you_mean

            raise AttributeError(
                f"module {package!r} has no attribute {name!r}{did_you_mean(name, modules)}"
            )
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    return find


def stub_modules(package: str, file: str) -> dict[str, str]:
    """For each public name of a package the module that defines it, from the imports of the stub beside the package's file.

    Arguments:
        package: its ``__name__``.
        file: its ``__file__``; the stub is the ``.pyi`` of the same name.

    Returns:
        As :func:`attributes` takes it: the modules without the name of the package.
    """
    tree = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {
        alias.name: str(node.module).removeprefix(f"{package}.")
        for node in imports
        for alias in node.names
    }


_PROVIDED: dict[str, str] = {}


def provide(**targets: str) -> None:
    """Say which ``module:attribute`` does a service that lower modules ask for by its name, and must not import.

    The package itself, which stands above all of its modules, says so when it is imported.
    """
    _PROVIDED.update(targets)


def provided(service: str) -> Any:
    """What :func:`provide` named for a service, imported when it is first asked for."""
    module, _, attribute = _PROVIDED[service].partition(":")
    return getattr(importlib.import_module(module), attribute)
