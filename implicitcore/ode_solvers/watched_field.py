"""The vector field of steps that are recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from implicitcore.backends.device_backend import DeviceBackend
from implicitcore.system.system import System
from implicitcore.tensors.watched import WatchedCapture, modes_watch

if TYPE_CHECKING:
    from implicitcore.ode_solvers.integration import Integration

LENGTH = 4
"""Steps of a chunk."""

CHUNK = "chunk"
"""The graph of one."""


@dataclass(eq=False)
class WatchedField(System):
    """A vector field that is watched in each evaluation."""

    watch: WatchedCapture

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """See :meth:`System.velocity`.

        Raises:
            CaptureError: a CUDA graph cannot do what f does.
        """
        with self.watch.reading(t, z):
            return super().velocity(t, z)


def recording(run: Integration) -> bool:
    """Whether the steps of an integration are to be recorded, if they can be."""
    system, backend = run.system, run.system.backend
    if not (isinstance(backend, DeviceBackend) and backend.cuda_graphs):
        return False
    if type(system) is not System or run.observer is not None or run.outputs.saves:
        return False
    if system.context.scope.group is not None or torch.is_grad_enabled():
        return False
    return not modes_watch()
