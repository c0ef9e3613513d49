"""Cells whose weights are divided among processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import nn

from implicitcore.errors import InputError
from implicitcore.system.captured_modules import captured_modules


def check_sharding(dynamics: nn.Module, together: bool) -> None:
    """Refuse dynamics that gather their weights at each call, unless all processes call them alike.

    ``fully_shard(model)`` gathers once for the whole pass, and is right with every solver and
    gradient. ``fully_shard(cell)`` gathers at each call of the cell: processes that iterate a
    different number of times wait for each other forever, and a gradient that calls the cell in
    its own backward pass is that of one process alone, or none. Modules that a function captured
    count.

    Arguments:
        dynamics: what is solved.
        together: the processes stop together, and the gradient is the implicit one.

    Raises:
        InputError: a module is divided on its own.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported: nothing is divided
    if fsdp is None or together or not torch.distributed.is_initialized():
        return
    for name, module in _named_modules(dynamics):
        if isinstance(module, fsdp.FSDPModule | fsdp.FullyShardedDataParallel):
            raise InputError(
                f"{name} is divided among the processes on its own (fully_shard), and gathers its "
                "weights at each evaluation: divide the whole model, fully_shard(model), or give "
                "a layer sync_steps = True and the gradient Implicit"
            )


def _named_modules(dynamics: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield from dynamics.named_modules(prefix="dynamics")
    for captured in captured_modules(dynamics):
        yield from captured.named_modules(prefix=f"the captured {type(captured).__name__}")
