"""Weights under ``torch.nn.utils.parametrize``, as a solve computed them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from implicitcore.system.current import current, running

Weights = dict[nn.Module, dict[str, Tensor]]
"""The weights of each module by their names."""

_writing = threading.RLock()


def compute_weights(module: nn.Module, parametrizations: nn.Module) -> dict[str, Tensor]:
    """The parametrised weights of one module, each computed once and with its graph.

    From then on the module asks the current solve for its weights. That is set up once, on the
    class that torch made for the parametrised module, and changes nothing outside a solve.
    """
    found: dict[str, Tensor] = {}
    # A power iteration writes into its vectors: not from two threads at once.
    with _writing, torch.enable_grad():
        for name, parametrization in parametrizations.named_children():
            if isinstance(parametrization, ParametrizationList):
                _ask_the_solve(type(module), name)
                found[name] = parametrization()
    return found


class CachedWeight(property):
    """A parametrised weight that a solve may have computed."""


def _ask_the_solve(kind: type[nn.Module], name: str) -> None:
    own = vars(kind).get(name)
    if isinstance(own, property) and not isinstance(own, CachedWeight) and own.fget is not None:
        setattr(kind, name, CachedWeight(_reader(name, own.fget), own.fset, own.fdel))


def _reader(name: str, compute: Callable[[nn.Module], Tensor]) -> Callable[[nn.Module], Tensor]:
    def read(module: nn.Module) -> Tensor:
        weights = running.weights
        if weights is None and not torch.compiler.is_compiling():
            context = current()
            weights = None if context is None else context.weights
        if weights is not None:
            own = weights.get(module)
            if own is not None and name in own:
                return own[name]
        return compute(module)

    return read
