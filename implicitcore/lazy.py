"""Packages whose names are imported when they are first used: what makes importing them cheap.

The names are listed once, in a stub beside the package's file: a type checker reads it, and so does
:func:`attach_stub` when the package is imported, in the style of the project ``lazy_loader``.
"""

from __future__ import annotations

import importlib
import sys

TYPE_CHECKING = False  # as typing has it, whose import would take most of the time of ours
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def attach_stub(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """What makes a module lazy: its ``__getattr__``, ``__dir__`` and ``__all__``.

    Arguments:
        package: its ``__name__``.
        file: its ``__file__``; the stub is the ``.pyi`` of the same name.

    Returns:
        The three, to be given these names in the module. A misspelt name is an AttributeError that
        gives the near matches.

    Raises:
        OSError: there is no stub, as in a bundle of compiled files alone.
        ValueError: a line of the stub is no re-export of one name.
    """
    modules = {name: module for name, module, _ in read_stub(file)}

    def find(name: str) -> Any:
        if name not in modules:
            from implicitcore.errors import did_you_mean

            near = did_you_mean(name, modules)
            raise AttributeError(f"module {package!r} has no attribute {name!r}{near}")
        found = getattr(importlib.import_module(modules[name]), name)
        setattr(sys.modules[package], name, found)  # the next look-up does not come here
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return find, names, sorted(modules)


def read_stub(file: str) -> list[tuple[str, str, str]]:
    """The names that a module's stub re-exports, in its order.

    Only ``from MODULE import NAME as NAME`` on a line of its own is read, which needs no parser:
    ``import implicitcore`` would wait for Python's.

    Arguments:
        file: the module's ``__file__``.

    Returns:
        For each name the name, the module that defines it, and the text of the comment line above
        it, or an empty string.

    Raises:
        ValueError: an import of another form.
    """
    exports, comment = [], ""
    stub = f"{file.rpartition('.')[0]}.pyi"
    with open(stub, encoding="utf-8") as lines:
        for line in lines:
            words = line.split()
            if words[:1] == ["from"]:
                if len(words) != 6 or words[2::2] != ["import", "as"] or words[3] != words[5]:
                    raise ValueError(
                        f"{stub}: expected 'from MODULE import NAME as NAME' on one line; "
                        f"received {line.strip()!r}"
                    )
                exports.append((words[3], words[1], comment))
            comment = line[1:].strip() if line.startswith("#") else ""
    return exports


def renamed(package: str, name: str, target: str) -> Any:
    """What a name of a package stands for now, ``module:attribute``; a warning says so.

    It is not kept under the old name: each use warns.
    """
    import warnings

    module, _, attribute = target.partition(":")
    message = f"{package}.{name} is now {module}.{attribute}"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
    return getattr(importlib.import_module(module), attribute)


_PROVIDED: dict[str, str] = {}


def provide(**targets: str) -> None:
    """Say which ``module:attribute`` does a service for lower modules, which must not import it.

    They ask for it by its name. The package itself, which stands above all of its modules, says so
    when it is imported.
    """
    _PROVIDED.update(targets)


def provided(service: str) -> Any:
    """What :func:`provide` named for a service, imported when it is first asked for."""
    module, _, attribute = _PROVIDED[service].partition(":")
    return getattr(importlib.import_module(module), attribute)
