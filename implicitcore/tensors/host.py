"""Whether the host reads values at no cost: the one place where loops ask for the device."""

from __future__ import annotations

from torch import Tensor


def on_host(tensor: Tensor) -> bool:
    """Whether the host may look at a tensor's values whenever it likes.

    On an accelerator each look waits for all that is queued. Modules call this function through its
    module, so that a test can put another in its place: with one that returns False, a CPU runs
    what an accelerator does (``pytest --accelerator``).
    """
    return tensor.is_cpu
