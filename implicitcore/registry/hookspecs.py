"""What a plugin implements.

A plugin is a light module named by an entry point of the group ``implicitcore``. It says which
version of this page it was written for, and implements one hook or more. Most register parts; the
code of a part is imported when the part is first used::

    from implicitcore import hookimpl

    IMPLICITCORE_API = 1

    @hookimpl
    def implicitcore_register(registry):
        registry.register("root_solver", "scipy-krylov", "implicitcore_scipy.krylov:Krylov",
        summary="...", requires=["scipy"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from implicitcore.layers.base import ImplicitLayer
    from implicitcore.registry.part import Registrar
    from implicitcore.solution import SolveResult

PROJECT = "implicitcore"
"""The name of the hook's project and of the entry-point group."""

API_VERSION = 1
"""The version of the hooks.

It grows when a plugin written for an earlier one may no longer work, or when plugins can do
something new.
"""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def implicitcore_register(registry: Registrar) -> None:
    """Register the parts of this plugin.

    Arguments:
        registry: call its :meth:`~implicitcore.registry.part.Registrar.register` once for each
            part.
    """


@hookspec
def implicitcore_after_solve(layer: ImplicitLayer, solution: SolveResult) -> None:
    """Called after each forward solve of a layer.

    A plugin's function is active once plugins have been discovered, which the first use of a name
    does (``implicitcore.build``, ``create``, ``layer.config``, the command line): a program that
    builds its layers from objects alone discovers nothing. There, and for an observer that is to be
    active for a while only, use :func:`implicitcore.layers.observers.observe`.

    It is called in the thread of the solve and as the solve was, under ``no_grad`` or not; for each
    layer where layers are nested, the inner ones first; not for what a backward pass solves
    (``solution.backward`` counts that), nor for what an observer solves itself. An error in it
    reaches the user, with a note that names the observer.

    Arguments:
        layer: the layer that has solved.
        solution: what ``layer.solve`` returns, the same object. Its z has the graph of the solve,
            and to read a number from a CUDA tensor waits for the device: keep no z, and read
            seldom. ``solution.backward`` is filled later, by the backward pass.
    """
