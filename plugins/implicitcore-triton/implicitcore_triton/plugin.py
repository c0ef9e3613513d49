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
    # No `requires`: without Triton the backend loads, and says what is missing.
    registry.register(
        "backend",
        "triton",
        "implicitcore_triton.backend:TritonBackend",
        summary="fused CUDA kernels, in Triton",
    )
