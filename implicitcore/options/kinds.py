"""The kinds of parts."""

from __future__ import annotations

from collections.abc import Sequence

from implicitcore.errors import UnknownPartError, did_you_mean, show

CLASS_KINDS = ("layer", "dynamics", "root_solver", "ode_solver", "gradient", "backend")
"""The kinds whose parts are classes with that ``kind``."""

MODULE_KINDS = ("layer", "dynamics")
"""The kinds whose parts hold modules and functions, which only Python can give."""

PIECE_KINDS = ("start", "cell")
"""What layers are made around: where z0 comes from, and the f(z, x) of ``implicitcore-layers``."""

DATA_KINDS = ("dataset", "model", "table")
"""What a training is about: classes too, whose bases are those of ``implicitcore-lab``."""

PACKAGES = {"cell": "implicitcore_layers", **dict.fromkeys(DATA_KINDS, "implicitcore_lab")}
"""Of the kinds whose base is not in the core the package that has it.

Its module ``testing`` defines checks of the kind.
"""

NAMED_KINDS = (*CLASS_KINDS, *PIECE_KINDS, *DATA_KINDS)
"""The kinds whose parts a configuration makes by their names."""

KINDS = (*NAMED_KINDS, "command")
"""Every kind; a ``command`` is a click command that a plugin adds to the command line."""


def check_kind(kind: str, known: Sequence[str] = KINDS) -> None:
    """Raise :class:`UnknownPartError` where there is no such kind."""
    if kind not in known:
        raise UnknownPartError(
            f"unknown kind {show(kind)}{did_you_mean(kind, known)} (kinds: {', '.join(known)})"
        )
