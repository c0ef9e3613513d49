"""What the host reads of a device without waiting for all that is queued there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def values_later(numbers: Tensor) -> Callable[[], list[int]]:
    """The values that whole numbers ``[count]`` on the device have here in its stream.

    Returns:
        The values, by a call that waits for what was queued before, and for nothing after it.
    """
    if numbers.device.type != "cuda":
        known = numbers.tolist()
        return lambda: known
    pinned = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    with torch.cuda.device(numbers.device):
        pinned.copy_(numbers, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

    def values() -> list[int]:
        copied.synchronize()
        return pinned.tolist()

    return values
