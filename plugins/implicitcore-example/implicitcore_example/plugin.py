"""Registration: light, for nothing is imported until a name is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from implicitcore import hookimpl

if TYPE_CHECKING:
    from implicitcore.extend import Registrar

IMPLICITCORE_API = 1


@hookimpl
def implicitcore_register(registry: Registrar) -> None:
    """Register the parts."""
    registry.register(
        "root_solver",
        "example-relaxation",
        "implicitcore_example.relaxation:Relaxation",
        summary="Aitken's dynamic relaxation, per sample",
    )
