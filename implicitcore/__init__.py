"""Implicit models in PyTorch: any dynamics, any solver, any gradient strategy, on any backend.

Every public name is here and is imported when it is first used: ``import implicitcore`` imports
neither torch nor a plugin. The list of the names, and of the modules that define them, is the stub
beside this file.
"""

from __future__ import annotations

from typing import Any

from implicitcore.lazy import attributes, provide, stub_modules

_MODULE_OF = stub_modules(__name__, __file__)

__all__ = sorted(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll]

_attribute = attributes(__name__, _MODULE_OF)

# Names are read by the configuration, which layers, functions and options must not import.
provide(
    describe="implicitcore.config.build:describe",
    read_part="implicitcore.config.build:read_part",
)


def __getattr__(name: str) -> Any:
    value = _version() if name == "__version__" else _attribute(name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(__name__)
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"
