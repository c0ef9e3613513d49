"""Process groups whose solves stop at the same iteration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch

from implicitcore.errors import InputError
from implicitcore.gradients.implicit import Implicit
from implicitcore.root_solvers.gmres import GMRES
from implicitcore.root_solvers.stepwise import StepwiseRootSolver

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from implicitcore.layers.base import ImplicitLayer


class SharedGroup:
    """A process group of a layer: copies of the layer share it, and it cannot be pickled."""

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedGroup:
        return self

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "a process group cannot be saved: set layer.sync_steps = True (all processes) "
            "or False before saving, and the group again after loading"
        )


def group_of(layer: ImplicitLayer) -> ProcessGroup | None:
    """The process group that a layer's solves stop with; None where ``sync_steps`` is False.

    Raises:
        InputError: there are no processes, or a part of the layer cannot stop in step with others.
    """
    setting = layer.sync_steps
    if setting is False:
        return None
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        raise InputError(
            "sync_steps needs a process group: call torch.distributed.init_process_group "
            "first (torchrun)"
        )
    backward = getattr(layer.gradient, "solver", None)
    if backward is None and isinstance(layer.gradient, Implicit):
        backward = GMRES()  # as it takes where it is given none
    for part in (layer.solver, backward):
        if part is not None and not isinstance(part, StepwiseRootSolver):
            raise InputError(
                f"{type(part).__name__} cannot stop at the same step as other processes: its "
                "iterations differ in their number of evaluations. With sync_steps use Picard, "
                "Anderson or Broyden as the layer's solver and in its gradient, as in "
                "Implicit(Anderson(tol=1e-5))"
            )
    if layer.on_failure == "mask":
        raise InputError(
            "on_failure='mask' solves again only on the process whose samples failed, so it "
            "cannot be combined with sync_steps"
        )
    return torch.distributed.group.WORLD if setting is True else setting
