"""What the worker needs of other projects; elsewhere they are None, so that each module of the
worker can be imported."""

from __future__ import annotations

from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

NAMES = ("jax", "jaxopt", "optimistix", "diffrax")


def _found(name: str) -> Any:
    return import_module(name) if find_spec(name.partition(".")[0]) else None


np: Any = _found("numpy")
jax: Any = _found("jax")
jnp: Any = _found("jax.numpy")
sparse: Any = _found("jax.experimental.sparse")
jaxopt: Any = _found("jaxopt")
optimistix: Any = _found("optimistix")
diffrax: Any = _found("diffrax")


def versions() -> dict[str, str]:
    """Of those that are installed."""
    return {name: metadata.version(name) for name in NAMES if find_spec(name)}
