"""A part: what is registered under a name, and how it is imported when it is first used."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from implicitcore.errors import PluginError, describe_error, did_you_mean, show
from implicitcore.options.kinds import NAMED_KINDS, check_kind

_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
LONGEST_NAME, LONGEST_LINE = 64, 500
"""The most letters of the name of a part, and of its summary and each other text that it has."""
_ABSENT = object()
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is registered under a name.

    Attributes:
        kind: one of :data:`KINDS`.
        name: the name in configurations and on the command line.
        target: ``"module:attribute"``, imported by :meth:`load`; or a class, where one was
            registered in this process.
        summary: one line that says what it is.
        requires: distributions that the target imports.
        provider: the distribution that registered it.
        version: that distribution's version.
    """

    kind: str
    name: str
    target: str | type
    summary: str = ""
    requires: tuple[str, ...] = ()
    provider: str
    version: str | None = None

    def __post_init__(self) -> None:
        check_kind(self.kind)
        if not isinstance(self.name, str) or len(self.name) > LONGEST_NAME:
            raise PluginError(
                f"a part cannot be named {show(self.name)}: expected a text of at most "
                f"{LONGEST_NAME} letters{_length(self.name)}"
            )
        if not _NAME.fullmatch(self.name):
            raise PluginError(
                f"a part cannot be named {self.name!r}: use lower-case letters and digits "
                "with '_', '-' or '.' between them"
            )
        if isinstance(self.target, str) and not (
            _TARGET.fullmatch(self.target) and _is_line(self.target)
        ):
            raise PluginError(
                f"the target of {self.kind} {self.name!r} must be 'module:attribute', not "
                f"{show(self.target)}"
            )
        if not _is_line(self.summary):
            raise PluginError(
                f"the summary of {self.kind} {self.name!r} must be one line of text, not "
                f"{show(self.summary)} (at most {LONGEST_LINE} printable letters"
                f"{_length(self.summary)})"
            )
        if not all(map(_is_line, self.requires)):
            raise PluginError(
                f"the requirements of {self.kind} {self.name!r} must be names of distributions, "
                f"not {show(self.requires)}"
            )

    @property
    def qualified_name(self) -> str:
        """The name that no other distribution can have: ``provider:name``."""
        return f"{self.provider}:{self.name}"

    def load(self) -> Any:
        """Import the target.

        Returns:
            The class of the part; for a ``command``, the click command.

        Raises:
            PluginError: the target cannot be imported, or is no part of this kind, or is abstract.
        """
        found = _import(self) if isinstance(self.target, str) else self.target
        if self.kind in NAMED_KINDS:
            self._check_class(found)
        return found

    def _check_class(self, found: Any) -> None:
        if not (isinstance(found, type) and getattr(found, "kind", None) == self.kind):
            raise PluginError(
                f"{self}: the target {self.target!r} is not a {self.kind} class; derive it "
                "from the base class of its kind"
            )
        missing = sorted(getattr(found, "__abstractmethods__", ()))
        if missing:
            raise PluginError(
                f"{self}: {found.__name__} cannot be made, for it lacks {', '.join(missing)}"
            )

    def __str__(self) -> str:
        version = f" {self.version}" if self.version else ""
        return f"{self.kind} {self.name!r} of {self.provider}{version}"


class Registrar:
    """Collects the parts of one plugin; a plugin gets it as the argument ``registry``.

    Arguments:
        provider: the plugin's distribution.
        version: that distribution's version.
    """

    def __init__(self, provider: str, version: str | None = None) -> None:
        self._provider, self._version = provider, version
        self._parts: dict[tuple[str, str], Part] = {}

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts registered so far, in order."""
        return tuple(self._parts.values())

    def register(
        self, kind: str, name: str, target: str, *, summary: str, requires: Sequence[str] = ()
    ) -> None:
        """Register a part under a name.

        Arguments:
            kind: layer, dynamics, root_solver, ode_solver, gradient, backend, start, cell, dataset,
                model, table or command.
            name: lower-case letters and digits, with ``_``, ``-`` or ``.`` between them.
            target: ``"module:attribute"``, imported when the part is first used.
            summary: one line that says what it is.
            requires: names of the distributions that the target imports, for the message when one
                is missing.

        Raises:
            UnknownPartError: there is no such kind.
            PluginError: the name or the target cannot be used, or the plugin registered the name
                before.
        """
        if not isinstance(target, str):
            raise PluginError(
                f"the target of {kind} {name!r} must be a text 'module:attribute', "
                f"imported at first use, not {show(target)}"
            )
        part = Part(
            kind=kind,
            name=name,
            target=target,
            summary=summary,
            requires=listed(requires),
            provider=self._provider,
            version=self._version,
        )
        if (kind, name) in self._parts:
            raise PluginError(f"{kind} {name!r} is registered twice")
        self._parts[kind, name] = part


def _is_line(text: object) -> bool:
    """Whether it is a line that a terminal can show: no control character gets into the tables."""
    return isinstance(text, str) and text.isprintable() and len(text) <= LONGEST_LINE


def _length(text: object) -> str:
    return f", received {len(text)}" if isinstance(text, str) else ""


def canonical(distribution: str) -> str:
    """The name of a distribution as package indices compare it."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()


def listed(requires: Sequence[str]) -> tuple[str, ...]:
    """The requirements, of which one alone may come as a text."""
    return (requires,) if isinstance(requires, str) else tuple(requires)


def missing_requirements(requires: Sequence[str]) -> list[str]:
    """Those of the required distributions that are not installed.

    Their versions are pip's to compare.
    """
    from importlib.metadata import PackageNotFoundError, distribution

    missing = []
    for requirement in requires:
        try:
            distribution(re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0])
        except PackageNotFoundError:
            missing.append(requirement)
    return missing


def pip_install(requirements: Sequence[str]) -> str:
    """The command that installs them."""
    return f"pip install {' '.join(map(repr, requirements))}"


def is_interrupt(error: BaseException, module: str) -> bool:
    """Whether an error at the import of a plugin's module is the user's, who pressed Ctrl-C.

    All else is the plugin's: a script without a main guard that exits, an exception of its own
    that derives from BaseException, a ``raise KeyboardInterrupt`` that stands in its code.
    """
    if not isinstance(error, KeyboardInterrupt):
        return False
    import dis

    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return True
    home = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    instruction = trace.tb_frame.f_code.co_code[trace.tb_lasti]
    raised = dis.opname[instruction] == "RAISE_VARARGS"
    return not (raised and home == module.partition(".")[0])


def _import(part: Part) -> Any:
    module_name, _, attribute = str(part.target).partition(":")
    try:
        module = importlib.import_module(module_name)
        found = getattr(
            module, attribute, _ABSENT
        )  # here too a module may import: by its __getattr__
    except BaseException as error:
        if is_interrupt(error, module_name):
            raise
        missing = missing_requirements(part.requires)
        hint = f"; it needs {', '.join(missing)}: {pip_install(missing)}" if missing else ""
        raise PluginError(f"{part} cannot be imported: {describe_error(error)}{hint}") from error
    if found is _ABSENT:
        near = did_you_mean(attribute, dir(module))
        raise PluginError(
            f"{part} cannot be imported: module {module_name} has no {attribute!r}{near}"
        )
    return found
