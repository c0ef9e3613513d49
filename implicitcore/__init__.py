"""Implicit models in PyTorch: any dynamics, any solver, any gradient strategy, on any backend.

What a user of parts needs is here and is imported when it is first used: ``import implicitcore``
imports neither torch nor a plugin. The names, and the modules that define them, are in the stub
beside this file. What an author of parts needs is in :mod:`implicitcore.extend`.
"""

from __future__ import annotations

from implicitcore.lazy import attach_stub, provide

_attribute, __dir__, __all__ = attach_stub(__name__, __file__)  # pyright: ignore[reportUnsupportedDunderAll]

# Names are read by the configuration, which layers, functions and options must not import.
provide(
    describe="implicitcore.config.build:describe",
    read_part="implicitcore.config.build:read_part",
)


def __getattr__(name: str) -> object:
    return _version() if name == "__version__" else _attribute(name)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        globals()["__version__"] = found = version(__name__)
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"
    return found
