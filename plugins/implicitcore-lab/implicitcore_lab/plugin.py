"""The entry point: registers the commands and imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from implicitcore import hookimpl

if TYPE_CHECKING:
    from implicitcore.extend import Registrar

IMPLICITCORE_API = 1


@hookimpl
def implicitcore_register(registry: Registrar) -> None:
    """Register the three commands."""
    registry.register(
        "command",
        "train",
        "implicitcore_lab.cli:train",
        summary="Train one layer on images and save the run.",
    )
    registry.register(
        "command",
        "compare",
        "implicitcore_lab.cli:compare",
        summary="Train several layers alike and print one table.",
    )
    registry.register(
        "command",
        "evaluate",
        "implicitcore_lab.cli:evaluate",
        summary="Reload a run and reproduce its test accuracy.",
    )
