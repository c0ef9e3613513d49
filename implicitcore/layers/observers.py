"""Observers, which are called after each solve of a layer.

The program registers some, plugins others. This module imports neither layers nor plugins: layers
import it.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from implicitcore.errors import InputError, did_you_mean, show

if TYPE_CHECKING:
    from implicitcore.layers.base import ImplicitLayer
    from implicitcore.solution import SolveResult

METHOD = "implicitcore_after_solve"
"""The method of an observer; a plugin's hook has the same name."""

ARGUMENTS = ("layer", "solution")
"""The arguments that an observer may take, by name."""


@dataclass(frozen=True, eq=False)
class Observer:
    """A function that is called after each solve.

    Attributes:
        name: for the note on an error.
        function: what is called.
        arguments: those of :data:`ARGUMENTS` that it takes.
    """

    name: str
    function: Callable[..., object]
    arguments: tuple[str, ...]


class ObserverHandle:
    """Removes an observer: by :meth:`remove`, or at the end of a ``with`` block."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def remove(self) -> None:
        """Remove the observer; a second call does nothing."""
        global active
        with _lock:
            active = tuple(other for other in active if other is not self._observer)

    def __enter__(self) -> ObserverHandle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


active: tuple[Observer, ...] = ()
"""The observers that the next solve calls.

It is replaced and never mutated: a solve in another thread may be iterating over it.
"""

_of_plugins: tuple[Observer, ...] = ()
_lock = threading.Lock()
_notifying: ContextVar[bool] = ContextVar("implicitcore_notifying", default=False)


def observe(observer: object) -> ObserverHandle:
    """Call an observer after every solve of a layer from now on, in any thread.

    Arguments:
        observer: an object with a method ``implicitcore_after_solve(layer, solution)``, or a
            function; either takes both arguments or one of them, by these names. See
            :func:`implicitcore.registry.hookspecs.implicitcore_after_solve`.

    Returns:
        A handle, like those of torch's hooks: ``handle.remove()`` removes the observer, and so
        does the end of ``with observe(observer):``.

    Raises:
        InputError: it cannot be called, or takes another argument.

    Example:
        >>> import torch, implicitcore as ic
        >>> dynamics = ic.FixedPoint(lambda z, x: 0.5 * z + x)
        >>> layer = ic.ImplicitLayer(dynamics, solver=ic.Picard(tol=1e-3))
        >>> with ic.observe(lambda solution: print(solution.evaluations)):
        ...     z = layer(torch.ones(2, 3))
        11
    """
    global active
    found = _observer(observer)
    with _lock:
        active = (*active, found)
    return ObserverHandle(found)


def observe_from_plugins(observers: Iterable[Observer]) -> None:
    """Replace the observers of plugins by those that a new discovery found."""
    global active, _of_plugins
    with _lock:
        own = [observer for observer in active if observer not in _of_plugins]
        _of_plugins = tuple(observers)
        active = (*_of_plugins, *own)


def notify(layer: ImplicitLayer, solution: SolveResult) -> None:
    """Call the active observers after a solve, unless an observer made the solve."""
    if _notifying.get():
        return
    given = {"layer": layer, "solution": solution}
    token, versions = _notifying.set(True), _versions(solution)
    try:
        for observer in active:
            try:
                observer.function(**{name: given[name] for name in observer.arguments})
                if _versions(solution) != versions:
                    raise InputError(
                        "an observer wrote into a tensor of the solution in place, which is the "
                        "result of the solve: use operations that return a new tensor, or begin "
                        "with solution.z.clone()"
                    )
            except Exception as error:
                error.add_note(
                    f"in the observer {observer.name}, after a solve of {type(layer).__name__}"
                )
                raise
    finally:
        _notifying.reset(token)


def _versions(solution: SolveResult) -> list[int]:
    """How often each tensor of the solution was written to."""
    from implicitcore.system.memory import versions_of  # which imports torch

    return versions_of([value for name, value in vars(solution).items() if name != "backward"])


def _observer(observer: object) -> Observer:
    function = getattr(observer, METHOD, observer)
    if isinstance(observer, type) or not callable(function):
        hint = (
            f"; call it: {observer.__name__}()"
            if isinstance(observer, type)
            else did_you_mean(METHOD, dir(observer))
        )
        raise InputError(
            f"expected a function, or an object with a method {METHOD}(layer, solution); "
            f"received {show(observer)}{hint}"
        )
    name = getattr(function, "__qualname__", type(observer).__qualname__)
    return Observer(name, function, _arguments(name, function))


def _arguments(name: str, function: Callable[..., object]) -> tuple[str, ...]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some functions written in C
        parameters = ()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return ARGUMENTS
    named = [
        parameter for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL
    ]
    for parameter in named:
        by_name = parameter.name in ARGUMENTS and parameter.kind is not parameter.POSITIONAL_ONLY
        if not by_name and parameter.default is parameter.empty:
            near = did_you_mean(parameter.name, ARGUMENTS)
            raise InputError(
                f"the observer {name} takes {str(parameter)!r}{near}: its arguments are "
                "layer and solution, by these names"
            )
    return tuple(parameter.name for parameter in named if parameter.name in ARGUMENTS)
