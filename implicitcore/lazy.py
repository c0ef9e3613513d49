"""A package whose names are imported when they are first used: what makes importing it cheap."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
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
            from implicitcore.wording import did_you_mean

            raise AttributeError(f"module {package!r} has no attribute {name!r}{did_you_mean(name, modules)}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    return find
