"""Implicit models in PyTorch: any dynamics, any solver, any gradient strategy, on any backend.

What a user of parts needs is here and is imported when it is first used: ``import implicitcore``
imports neither torch nor a plugin. The names, and the modules that define them, are in the stub
beside this file. What an author of parts needs is in :mod:`implicitcore.extend`.
"""

from __future__ import annotations

from implicitcore.lazy import attach_stub, provide, renamed

_attribute, __dir__, __all__ = attach_stub(__name__, __file__)  # pyright: ignore[reportUnsupportedDunderAll]

# Names are read by the configuration, which layers, functions and options must not import.
provide(
    describe="implicitcore.config.build:describe",
    read_part="implicitcore.config.build:read_part",
)


# What these names are called now; the others of this list moved to implicitcore.extend.
_RENAMED = {
    "EstimatedGradient": "implicitcore.extend:ApproximateGradient",
    "FirstUpdate": "implicitcore:OneStep",
    "FromInput": "implicitcore:Identity",
    "Learned": "implicitcore:LearnedInitialGuess",
    "Start": "implicitcore:InitialGuess",
    "one_function": "implicitcore:frozen_randomness",
}
_MOVED = (
    "FixedPointMap",
    "FusedBackend",
    "Options",
    "Registrar",
    "Residual",
    "Step",
    "StepwiseODESolver",
    "StepwiseRootSolver",
    "System",
)
_OLD = _RENAMED | {name: f"implicitcore.extend:{name}" for name in _MOVED}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    return renamed(__name__, name, _OLD[name]) if name in _OLD else _attribute(name)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        globals()["__version__"] = found = version(__name__)
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"
    return found
