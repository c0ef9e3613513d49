"""Registration: light, for nothing is imported until the name is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from implicitcore import hookimpl

if TYPE_CHECKING:
    from implicitcore.extend import Registrar

IMPLICITCORE_API = 1


@hookimpl
def implicitcore_register(registry: Registrar) -> None:
    """Register the backend."""
    registry.register(
        "backend",
        "cpp",
        "implicitcore_cpp.backend:CppBackend",
        summary="whole iterations of root solvers in C++, for CPUs",
    )
