"""What a plugin implements.

A plugin is a light module named by an entry point of the group ``implicitcore``. It says which version of this page it was
written for, and registers its parts; the code of a part is imported when the part is first used::

    from implicitcore import hookimpl

    IMPLICITCORE_API = 1

    @hookimpl
    def implicitcore_register(registry):
        registry.register("root_solver", "scipy-krylov", "implicitcore_scipy.krylov:Krylov", summary="...", requires=["scipy"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from implicitcore.parts import Registrar

PROJECT = "implicitcore"
"""The name of the hook's project and of the entry-point group."""

API_VERSION = 1
"""Grows when a plugin written for an earlier version may no longer work, or when plugins can do something new."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def implicitcore_register(registry: Registrar) -> None:
    """Register the parts of this plugin.

    Arguments:
        registry: call its :meth:`~implicitcore.parts.Registrar.register` once for each part.
    """
