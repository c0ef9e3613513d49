"""The parts of the core, registered through the same hook as everybody's.

There is no list here: the one list of names is the stub ``implicitcore/__init__.pyi``, where a part
has above it a comment such as ``# root_solver anderson: Anderson acceleration``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import implicitcore
from implicitcore.lazy import read_stub
from implicitcore.registry.hookspecs import API_VERSION, hookimpl

if TYPE_CHECKING:
    from implicitcore.registry.part import Registrar

IMPLICITCORE_API = API_VERSION


@hookimpl
def implicitcore_register(registry: Registrar) -> None:
    """Register the parts of the core."""
    for cls, module, comment in read_stub(implicitcore.__file__):
        if comment:
            title, _, summary = comment.partition(": ")
            kind, _, name = title.partition(" ")
            registry.register(kind, name, f"{module}:{cls}", summary=summary)
