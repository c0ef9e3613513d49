"""What the dynamics may read beside z and x."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from implicitcore.system.captured_modules import captured_modules


@dataclass(frozen=True, eq=False)
class Reads:
    """What f may read beside z and x.

    Attributes:
        modules: the dynamics, what it captured, and their parts.
        owned: the module and the name of each parameter and buffer.
    """

    modules: tuple[nn.Module, ...]
    owned: tuple[tuple[nn.Module, str], ...]

    @classmethod
    def of(cls, dynamics: nn.Module) -> Reads:
        """By a look at all modules, which takes longer than a call."""
        roots = (dynamics, *captured_modules(dynamics))
        modules = tuple(dict.fromkeys(part for root in roots for part in root.modules()))
        owned = tuple(
            (module, name)
            for module in modules
            for tensors in (module._parameters, module._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        )
        return cls(modules, owned)

    def holds(self) -> bool:
        """Whether the tensors are still where they were, as others they may be."""
        return all(name in m._parameters or name in m._buffers for m, name in self.owned)
