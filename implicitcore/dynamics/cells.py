"""What is said of a cell that cannot be called as the dynamics call it."""

from __future__ import annotations

import inspect
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
    function = cell.forward if isinstance(cell, nn.Module) else cell
    try:
        signature = inspect.signature(function)
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
