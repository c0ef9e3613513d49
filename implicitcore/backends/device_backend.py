"""The base of backends whose root iterations keep their state on a device."""

from __future__ import annotations

from dataclasses import dataclass

from implicitcore.backends.fused import FusedBackend
from implicitcore.options.options import Options


@dataclass(frozen=True, kw_only=True)
class DeviceBackend(Options, FusedBackend):
    """A backend whose root iterations are :class:`~implicitcore.extend.DeviceIteration`.

    Attributes:
        cuda_graphs: record up to three iterations of a root solver, f included, as one CUDA graph,
            which later solves with the same f and the same shapes launch as a whole: for an f of
            many small launches. f's Python then runs in the first iteration of a solve alone, so f
            may not read values on the host, draw from a generator of its own, write into its
            buffers, have hooks, or keep a state; where one of these is seen, the loop is run as
            without this option, with a warning that says which.
    """

    cuda_graphs: bool = False
