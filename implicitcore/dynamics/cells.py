"""How a cell is called, and what is said of one that cannot be called so."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
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

    Its signature says so, or that of the module which another one passes its arguments to
    (``torch.compile``, data-parallel ones). Where it takes both two and three arguments, the first
    one's name does, or a third that has a value: it is an option of f, and no x.

    Arguments:
        field: a module or function.
        otherwise: the answer where the signature says neither.
    """
    known = getattr(field, "takes_time", None)
    if isinstance(known, bool):
        return known
    try:
        parameters = _parameters(field)
    except (TypeError, ValueError):  # a builtin that does not say
        return otherwise
    given = [item for item in parameters if item.kind in _POSITIONAL]
    inner = None if given else _passed_to(field)
    if inner is not None:
        return takes_time(inner, otherwise=otherwise)
    needed = sum(item.default is inspect.Parameter.empty for item in given)
    rest = any(item.kind is inspect.Parameter.VAR_POSITIONAL for item in parameters)
    most = math.inf if rest else len(given)
    if given and given[0].name in ("t", "time"):
        return True
    if needed <= 2 <= most:
        optional = most == 2 or (needed == 2 and len(given) > 2 and given[2].default is not None)
        return False if optional else otherwise
    return True if needed <= 3 <= most else otherwise


def called(function: Any, timed: bool, name: str, given: Sequence[Any]) -> Any:
    """What a function gives at t, z and x, called as :func:`takes_time` said.

    Arguments:
        function: of the user.
        timed: it takes (t, z, x), and not (z, x).
        name: what it is, for the error.
        given: t, z and x.

    Raises:
        InputError: it does not take these arguments.
    """
    try:
        return function(*given) if timed else function(*given[1:])
    except TypeError as error:
        check_call(error, function, name, "t, z, x" if timed else "z, x")
        raise


def _passed_to(field: Any) -> nn.Module | None:
    """The module that gets what this one is called with, whatever that is."""
    if not isinstance(field, nn.Module):
        return None
    inner = field._modules.get("_orig_mod", field._modules.get("module"))
    return inner if len(field._modules) == 1 else None


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _function(cell: Any) -> Any:
    return cell.forward if isinstance(cell, nn.Module) else cell


def _parameters(cell: Any) -> list[inspect.Parameter]:
    """What a cell takes; also one of TorchScript, which has a schema in the place of a signature.

    Raises:
        TypeError: it does not say, as builtins do not.
        ValueError: the same.
    """
    function = _function(cell)
    schema = getattr(function, "schema", None)
    if not isinstance(schema, torch._C.FunctionSchema):
        return [*inspect.signature(function).parameters.values()]
    none, kind = inspect.Parameter.empty, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [
        inspect.Parameter(
            item.name, kind, default=item.default_value if item.has_default_value() else none
        )
        for item in schema.arguments
        if item.name != "self"
    ]


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
            f"the {name} is called as f({arguments}), and {title} takes {signature}: give "
            f"lambda {arguments}: ... that calls it"
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
