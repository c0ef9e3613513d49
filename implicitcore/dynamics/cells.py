"""How a cell is called, and what is said of one that cannot be called so."""

from __future__ import annotations

import inspect
import math
from typing import Any

from torch import nn

from implicitcore.errors import ConfigError, InputError, show


def check_cell(cell: Any, name: str, arguments: str) -> None:
    """Refuse what is no function of (z, x), before it is called.

    Arguments:
        cell: what was given.
        name: its option.
        arguments: what it is called with, as in ``"z, x"``.

    Raises:
        ConfigError: it is a class, cannot be called, or takes one input.
    """
    problem = _problem(cell, arguments)
    if problem:
        raise ConfigError([f"{name}: expected a module or function of ({arguments}), {problem}"])


def takes_time(field: Any, *, otherwise: bool) -> bool:
    """Whether a vector field is a function of (t, z, x), and not of (z, x).

    Its signature says so. Where it takes both two and three arguments, the first one's name does.

    Arguments:
        field: a module or function.
        otherwise: the answer where the signature says neither.
    """
    known = getattr(field, "takes_time", None)
    if isinstance(known, bool):
        return known
    try:
        parameters = [*inspect.signature(_function(field)).parameters.values()]
    except (TypeError, ValueError):  # a builtin that does not say
        return otherwise
    given = [item for item in parameters if item.kind in _POSITIONAL]
    needed = sum(item.default is inspect.Parameter.empty for item in given)
    rest = any(item.kind is inspect.Parameter.VAR_POSITIONAL for item in parameters)
    most = math.inf if rest else len(given)
    timed = bool(given) and given[0].name in ("t", "time")
    if needed <= 2 <= most and not timed:
        return otherwise if most > 2 else False
    return True if timed or needed <= 3 <= most else otherwise


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _function(cell: Any) -> Any:
    return cell.forward if isinstance(cell, nn.Module) else cell


def check_call(error: TypeError, cell: Any, name: str, arguments: str) -> None:
    """Say what a cell is called with, where it takes something else; called after it failed.

    Arguments:
        error: what the call raised.
        cell: what was called.
        name: its option.
        arguments: what it was called with, as in ``"z, x"``.

    Raises:
        InputError: its signature does not take these arguments.
    """
    try:
        signature = inspect.signature(_function(cell))
    except (TypeError, ValueError):  # a builtin that does not say
        return
    try:
        signature.bind(*arguments.split(", "))
    except TypeError:
        title = getattr(cell, "__name__", type(cell).__name__)
        raise InputError(
            f"the {name} is called as f({arguments}), and {title} takes {signature}"
        ) from error


def _problem(cell: Any, arguments: str) -> str:
    if isinstance(cell, type):
        return f"received the class {cell.__name__}; call it: {cell.__name__}(...)"
    if isinstance(cell, nn.Sequential):
        return (
            "received an nn.Sequential, which takes one input; combine them in a function: "
            f"lambda {arguments}: net(z + x)"
        )
    return "" if callable(cell) else f"received {show(cell)}"
