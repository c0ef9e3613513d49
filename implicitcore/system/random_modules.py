"""Modules that make f another function at each evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from implicitcore.dynamics.base import Dynamics
from implicitcore.errors import InputError, InputWarning
from implicitcore.system.captured_modules import captured_modules
from implicitcore.system.repeated import owner_of, warn_repeatedly

_DRAWING = (_DropoutNd, nn.RReLU, nn.MultiheadAttention, nn.RNNBase)
_ELSEWHERE = frozenset({"DropPath", "StochasticDepth", "DropBlock2d", "DropBlock3d"})


def is_random(module: nn.Module) -> bool:
    """Whether a module is one that may draw random numbers in training."""
    return isinstance(module, _DRAWING) or type(module).__name__ in _ELSEWHERE


def drawing(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Those of the modules, all in training, that draw random numbers at each call."""
    return [
        module
        for module in modules
        if (isinstance(module, _DRAWING) or type(module).__name__ in _ELSEWHERE)
        and draws_anew(module)
    ]


def draws_anew(module: nn.Module) -> bool:
    """Whether a module draws random numbers at each call in training, with the options it has."""
    if not isinstance(module, _DRAWING):
        return type(module).__name__ in _ELSEWHERE
    if isinstance(module, _DropoutNd):
        return module.p > 0
    if isinstance(module, nn.RReLU):
        return module.lower < module.upper
    layers = module.num_layers if isinstance(module, nn.RNNBase) else 2
    return module.dropout > 0 and layers > 1


def check_random(dynamics: Dynamics, random: Sequence[nn.Module], *, required: bool) -> None:
    """Refuse dynamics whose evaluations differ at random.

    Arguments:
        dynamics: what is solved.
        random: modules that draw anew, those of others than the dynamics included.
        required: whether the solve or its gradient is wrong where f differs. Where it is not,
            for an integral whose steps are differentiated as they were taken, a warning is given.

    Raises:
        InputError: the dynamics have such a module, and ``required``.
    """
    for root in (dynamics, *captured_modules(dynamics)):
        for name, module in root.named_modules():
            if module in random:
                _tell(dynamics, module, name, required)
                return


def _tell(dynamics: Dynamics, module: nn.Module, name: str, required: bool) -> None:
    where = f" ({name})" if name else ""
    message = (
        f"{type(module).__name__}{where} draws anew at each evaluation, so that f is not one "
        "function: use implicitcore.VariationalDropout, whose mask is drawn once a solve, or eval()"
    )
    if required:
        raise InputError(message)
    warn_repeatedly(owner_of(dynamics), name, lambda: message, InputWarning)
