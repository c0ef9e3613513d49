"""What the dynamics may read beside z and x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from implicitcore.system.captured_modules import captured_modules, functions_of


@dataclass(frozen=True, eq=False)
class Reads:
    """What f may read beside z and x.

    Attributes:
        dynamics: what is solved.
        modules: the dynamics, what it captured, and their parts.
        owned: the module and the name of each parameter and buffer.
        built: of each module its parts, functions and hooks, and the names of its tensors.
    """

    dynamics: nn.Module
    modules: tuple[nn.Module, ...]
    owned: tuple[tuple[nn.Module, str], ...]
    built: tuple[Any, ...]

    @classmethod
    def of(cls, dynamics: nn.Module) -> Reads:
        """By a look at all modules, which takes longer than a call."""
        roots = (dynamics, *captured_modules(dynamics))
        modules = tuple(dict.fromkeys(part for root in roots for part in root.modules()))
        owned = tuple((module, name) for module in modules for name in _tensors(module))
        return cls(dynamics, modules, owned, _built(modules))

    def holds(self, dynamics: nn.Module) -> bool:
        """Whether all is where it was; the tensors may be others."""
        return dynamics is self.dynamics and self.built == _built(self.modules)


def _tensors(module: nn.Module) -> list[str]:
    owned = module._parameters, module._buffers
    return [name for tensors in owned for name, tensor in tensors.items() if tensor is not None]


def _built(modules: tuple[nn.Module, ...]) -> tuple[Any, ...]:
    return tuple(
        (
            *module._modules.values(),
            *functions_of(module),
            *module._forward_pre_hooks.values(),
            *module._forward_hooks.values(),
            *_tensors(module),
        )
        for module in modules
    )
