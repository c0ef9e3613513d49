"""One solve, one f: what is drawn or computed once and kept over all evaluations of a solve."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from implicitcore.errors import InputError
from implicitcore.system.cached_weights import Weights, compute_weights
from implicitcore.system.captured_modules import captured_modules
from implicitcore.system.current import Block, current, running
from implicitcore.system.function_state import FunctionState
from implicitcore.system.random_modules import drawing
from implicitcore.tensors.restrict import SHARED
from implicitcore.tensors.shared import unwrapped

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_T = TypeVar("_T")


@dataclass(eq=False)
class SolveContext:
    """What the evaluations of one solve have in common, those of its backward pass included.

    Inside it, dropout masks are drawn once, and a weight under ``torch.nn.utils.parametrize`` is
    the one computed when the solve began, with its graph: the power iteration of a spectral norm
    does not move, and f is one function. Nothing of it is written on a module, so that threads,
    tasks and generators may share one.

    Arguments:
        group: the processes that stop together (see ``sync_steps`` of the layer); None is this one
            alone.

    Attributes:
        drawn: what was drawn, by the keys of :meth:`draw`.
        weights: the parametrised weights, by module and name.
        modes: whether a module was in training when it was first asked.
        known: the modules whose weights are cached.
        members: those of them that belong to each module that was given.
        random: those of them that draw anew at each evaluation.
    """

    group: ProcessGroup | None = field(default=None, metadata=SHARED)
    drawn: dict[Any, Any] = field(default_factory=dict)
    weights: Weights = field(default_factory=dict, metadata=SHARED)
    modes: dict[nn.Module, bool] = field(default_factory=dict, metadata=SHARED)
    known: set[nn.Module] = field(default_factory=set, metadata=SHARED)
    members: dict[nn.Module, list[nn.Module]] = field(default_factory=dict, metadata=SHARED)
    random: list[nn.Module] = field(default_factory=list, metadata=SHARED)

    def cache_weights(self, module: nn.Module) -> None:
        """Compute the parametrised weights of a module, each once.

        Those that are cached already stay. Modules that a function of the module captured count.

        Raises:
            InputError: a weight has the older spectral norm, which would make f another function at
                each evaluation.
        """
        if module in self.known:
            return
        children, training = [module, *captured_modules(module)], []
        members = self.members[module] = []
        while children:
            child = children.pop()
            if child in self.known:
                continue
            self.known.add(child)
            members.append(child)
            # By hand: every solve comes here, and Module.modules() takes four times as long.
            for name, part in child._modules.items():
                if name == "parametrizations" and part is not None and is_parametrized(child):
                    self.weights[child] = compute_weights(child, part)
                elif part is not None:
                    children.append(part)
            if child.training:
                training.append(child)
        self._check(training)

    def modules(self, dynamics: nn.Module) -> Iterable[nn.Module]:
        """The modules that f consists of."""
        # Dynamics that are part of other dynamics have no list of their own.
        return self.members.get(dynamics) or dynamics.modules()

    def function_state(self, dynamics: nn.Module, x: Any) -> FunctionState:
        """What f reads, as it is now."""
        return FunctionState(self.modules(dynamics), x)

    def draw(self, key: Any, sample: Callable[[], Any]) -> Tensor:
        """The tensor of this key, with the batch first or marked as shared.

        ``sample`` makes it when it is first asked for.
        """
        if key not in self.drawn:
            self.drawn[key] = sample()
        return unwrapped(self.drawn[key])

    def stopping_with(self, group: ProcessGroup | None) -> SolveContext:
        """The same context, for solves that stop together with the processes of a group.

        None where they stop alone.
        """
        return self if group is self.group else replace(self, group=group)

    def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """What the function returns for the arguments, called inside the context."""
        before, weights = running.context, running.weights
        if before is self:
            return function(*arguments)
        try:
            running.context, running.weights = self, self.weights
            return function(*arguments)
        finally:
            running.context, running.weights = before, weights

    def _check(self, training: Sequence[nn.Module]) -> None:
        for module in training:
            if module._forward_pre_hooks:
                _refuse_moving(module)
        self.random += drawing(training)

    @contextmanager
    def entered(self) -> Iterator[SolveContext]:
        """Make this the context of the solve that runs: a block that gives way to no other task."""
        before = running.context
        try:
            running.switch(self)
            yield self
        finally:
            running.switch(before)


def in_training(module: nn.Module) -> bool:
    """Whether the module is in training: inside a solve, whether it was when first asked.

    ``train()`` and ``eval()`` between a solve and its backward pass change nothing then.
    """
    context = current()
    return module.training if context is None else context.modes.setdefault(module, module.training)


@contextmanager
def frozen_randomness(module: Callable[..., Any] | None = None) -> Iterator[SolveContext]:
    """Keep f one function inside the ``with`` block.

    Dropout masks are drawn once, parametrised weights computed once. Every solve does this by
    itself. Around a solve and what comes after it, both see the same f; the outermost block counts.
    Other threads and other asyncio tasks see nothing of it; in a generator it counts while the
    generator runs, and not while it is paused.

    Arguments:
        module: a layer, its dynamics or its cell, whose parametrised weights are cached at once;
            those of a function are at its solve.

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
        ...     # of the f that was solved:
        ...     loss = ic.jacobian_regularizer(layer, solution, torch.ones(2, 3))
    """
    context = current() or SolveContext()
    if isinstance(module, nn.Module):
        context.cache_weights(module)
    block = Block(context)
    try:
        yield context
    finally:
        block.close()


def scope_of(module: nn.Module) -> SolveContext:
    """The context of a solve of these dynamics: of the layer or block around it, or a new one."""
    context = running.context
    if context is None or module not in context.known:
        context = current() or SolveContext()
        context.cache_weights(module)
    return context


def _refuse_moving(module: nn.Module) -> None:
    if any(type(hook).__name__ == "SpectralNorm" for hook in module._forward_pre_hooks.values()):
        raise InputError(
            f"torch.nn.utils.spectral_norm changes the weight of {type(module).__name__} "
            "at each evaluation: "
            "use torch.nn.utils.parametrizations.spectral_norm, which is computed once a solve"
        )
