"""Which backend ``auto`` is, and why.

For :func:`implicitcore.build`, and for the command line that explains it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from implicitcore.errors import PluginError, PluginWarning, describe_error
from implicitcore.registry.part import Part

if TYPE_CHECKING:
    from implicitcore.backends.base import Backend
    from implicitcore.registry.registry import Registry

_REFERENCE = "implicitcore:torch"


@dataclass(frozen=True)
class Candidate:
    """A registered backend, and whether it can run here.

    Attributes:
        part: what is registered.
        backend: the backend; None where it could not be made.
        reason: why it cannot run here as it is (see :meth:`Backend.unready_reason`); None where it
            can.
        error: what its code raised, where it did: then it is broken, and not just unavailable.
    """

    part: Part
    backend: Backend | None
    reason: str | None
    error: Exception | None = None


def candidates(registry: Registry) -> Iterator[Candidate]:
    """Ask every backend whether it can run here, by name, and torch, which always can, last."""
    for part in sorted(
        registry.parts("backend"), key=lambda part: part.qualified_name == _REFERENCE
    ):
        try:
            backend = part.load()()
            found = Candidate(part, backend, backend.unready_reason())
        except (
            Exception
        ) as error:  # a plugin's: it must not keep the other backends from being found
            reason = (
                str(error) if isinstance(error, PluginError) else f"{part}: {describe_error(error)}"
            )
            found = Candidate(part, None, reason, error)
        yield found


def choose(found: Iterable[Candidate]) -> Candidate:
    """The first that can run here and takes tensors of the host; ``auto`` is this one.

    One for accelerators alone is passed over: torch is measured there, and no figure says yet that
    another backend is faster. It is used where it is named.

    Arguments:
        found: what :func:`candidates` gives; asked no further than needed.

    Raises:
        PluginError: none can.
    """
    for candidate in found:
        backend = candidate.backend
        if candidate.reason is None and backend and "cpu" in backend.device_types:
            return candidate
        if candidate.error:
            warnings.warn(
                f"backend 'auto' passed over {candidate.reason}", PluginWarning, stacklevel=2
            )
    raise PluginError("no backend can run here")
