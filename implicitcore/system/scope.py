"""One solve, one f: what is drawn or computed once and kept over all evaluations of a solve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from implicitcore.errors import InputError
from implicitcore.tensors.restrict import SHARED
from implicitcore.tensors.shared import unwrapped

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_T = TypeVar("_T")
_current: ContextVar[SolveContext | None] = ContextVar("implicitcore_scope", default=None)


@dataclass(eq=False)
class SolveContext:
    """What the evaluations of one solve have in common, those of its backward pass included.

    While it is entered, dropout masks are drawn once, and a weight under
    ``torch.nn.utils.parametrize`` is the one computed when the module was held, with its graph: the
    power iteration of a spectral norm does not move, and f is one function.

    Arguments:
        group: the processes that stop together (see ``sync_steps`` of the layer); None is this one
            alone.
    """

    group: ProcessGroup | None = field(default=None, metadata=SHARED)
    drawn: dict[Any, Any] = field(default_factory=dict)
    weights: dict[ParametrizationList, Callable[[], Tensor]] = field(
        default_factory=dict, metadata=SHARED
    )
    known: set[nn.Module] = field(default_factory=set, metadata=SHARED)

    def cache_weights(self, module: nn.Module) -> None:
        """Compute the parametrised weights of a module, each once.

        Those that are held already stay.

        Raises:
            InputError: a weight has the older spectral norm, which would make f another function at
                each evaluation.
        """
        children = [module]
        while children:
            child = children.pop()
            if child in self.known:
                continue
            # By hand: every solve comes here, and Module.modules() takes four times as long.
            children += (part for part in child._modules.values() if part is not None)
            self.known.add(child)
            if isinstance(child, ParametrizationList):
                if child not in self.weights:
                    with torch.enable_grad():
                        weight = child()
                    self.weights[child] = lambda weight=weight: weight
            elif child.training and child._forward_pre_hooks:
                _refuse_moving(child)

    def draw(self, key: Any, sample: Callable[[], Any]) -> Tensor:
        """The tensor of this key, with the batch first or marked as shared.

        ``sample`` makes it when it is first asked for.
        """
        if key not in self.drawn:
            self.drawn[key] = sample()
        return unwrapped(self.drawn[key])

    def stopping_with(self, group: ProcessGroup | None) -> SolveContext:
        """The same scope, for solves that stop together with the processes of a group.

        None where they stop alone.
        """
        return self if group is self.group else replace(self, group=group)

    def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """What the function returns for the arguments, called inside the scope."""
        if _current.get() is self:
            return function(*arguments)
        with self.entered():
            return function(*arguments)

    @contextmanager
    def entered(self) -> Iterator[SolveContext]:
        """Make this the current scope."""
        if _current.get() is self and not self.weights:
            yield self
            return
        before = {child: vars(child).get("forward") for child in self.weights}
        token: Token[SolveContext | None] = _current.set(self)
        try:
            for child, weight in self.weights.items():
                vars(child)["forward"] = weight
            yield self
        finally:
            _current.reset(token)
            for child, forward in before.items():
                if forward is None:
                    vars(child).pop("forward", None)
                else:
                    vars(child)["forward"] = forward


def current() -> SolveContext | None:
    """The scope of the solve that is running, if any."""
    return _current.get()


@contextmanager
def frozen_randomness(module: Callable[..., Any] | None = None) -> Iterator[SolveContext]:
    """Keep f one function inside the ``with`` block.

    Dropout masks are drawn once, parametrised weights computed once. Every solve does this by
    itself. Around a solve and what comes after it, both see the same f; the outermost block counts.

    Arguments:
        module: a layer, its dynamics or its cell, whose parametrised weights are held; a function
            has none.

    Raises:
        InputError: a weight of the module has the older ``torch.nn.utils.spectral_norm``.

    Example:
        >>> import torch, implicitcore as ic
        >>> class Cell(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.drop = ic.VariationalDropout(0.3)
        ...
        ...     def forward(self, z, x):
        ...         return self.drop(torch.tanh(0.5 * z + x))
        >>> layer = ic.ImplicitLayer(ic.FixedPoint(Cell()), solver=ic.Picard(tol=1e-6))
        >>> with ic.frozen_randomness(layer):
        ...     solution = layer.solve(torch.ones(2, 3))
        ...     loss = ic.jacobian_regularizer(layer, solution, torch.ones(2, 3))  # of the f that was solved
    """
    scope = _current.get() or SolveContext()
    if isinstance(module, nn.Module):
        scope.cache_weights(module)
    with scope.entered():
        yield scope


def solving(module: nn.Module) -> AbstractContextManager[SolveContext]:
    """As :func:`frozen_randomness`, for a solve that may be a layer's.

    That has entered a scope and held its dynamics.
    """
    scope = _current.get()
    return (
        frozen_randomness(module)
        if scope is None or module not in scope.known
        else nullcontext(scope)
    )


def _refuse_moving(module: nn.Module) -> None:
    if any(type(hook).__name__ == "SpectralNorm" for hook in module._forward_pre_hooks.values()):
        raise InputError(
            f"torch.nn.utils.spectral_norm changes the weight of {type(module).__name__} "
            "at each evaluation: "
            "use torch.nn.utils.parametrizations.spectral_norm, which is computed once a solve"
        )
