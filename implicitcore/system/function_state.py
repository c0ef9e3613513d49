"""What f reads beside its arguments, to tell in a backward pass whether f is still the same."""

from __future__ import annotations

from collections.abc import Iterable
from types import FunctionType
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from implicitcore.errors import GradientError
from implicitcore.system.memory import version
from implicitcore.system.random_modules import draws_anew, is_random

_BETWEEN = "between the solve and its backward pass, which evaluates f again"


_Read = tuple[dict[str, Any] | None, str, Tensor, int]
"""A tensor that f may read: where it is kept, its name there, and its version."""


def _replaced(read: _Read) -> bool:
    store, name, tensor, _ = read
    return store is not None and store.get(name) is not tensor


def _is_changed(read: _Read) -> bool:
    return version(read[2]) != read[3] or _replaced(read)


class FunctionState:
    """The tensors and the modes of modules that f reads, as they are now.

    A backward pass that evaluates f again differentiates another function where one of them has
    changed since. Modules that depend on their mode are told by their code.

    Arguments:
        modules: those of the dynamics.
        x: the input of the solve.
    """

    def __init__(self, modules: Iterable[nn.Module], x: Any) -> None:
        self.settled = False
        self.modes = [(module, module.training) for module in modules]
        self.reads: list[_Read] = [
            (store, name, tensor, 0 if tensor.is_inference() else tensor._version)
            for module, _ in self.modes
            for store in (module._parameters, module._buffers)
            for name, tensor in store.items()
            if tensor is not None
        ]
        if isinstance(x, Tensor):
            self.reads.append((None, "x", x, version(x)))
        else:
            leaves = (leaf for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor))
            self.reads += [(None, "x", leaf, version(leaf)) for leaf in leaves]

    def settle(self) -> None:
        """The solve has ended: leave out what it wrote itself, as the statistics of a norm."""
        self.settled = True
        self.reads = [
            read
            for read in self.reads
            if (read[2].is_inference() or read[2]._version == read[3])
            and (read[0] is None or read[0].get(read[1]) is read[2])
        ]

    def check(self) -> None:
        """Require that nothing has changed since the solve ended.

        Raises:
            GradientError: says what did.
        """
        for read in self.reads if self.settled else ():
            if _is_changed(read):
                raise GradientError(_changed(read))
        for module, training in self.modes:
            if module.training != training and _depends_on_mode(module):
                now, then = ("train()", "eval()") if module.training else ("eval()", "train()")
                raise GradientError(
                    f"the mode of {type(module).__name__} was changed from {then} to {now} "
                    f"{_BETWEEN}: call backward first"
                )


def _changed(read: _Read) -> str:
    what = f"{read[1]} {list(read[2].shape)}"
    if _replaced(read):
        return (
            f"{what} of the dynamics was changed for another tensor {_BETWEEN}: call backward "
            "first, or use Unrolled (as under torch.func.functional_call)"
        )
    return f"{what} was changed in place {_BETWEEN}: call backward first, or change a clone"


def _depends_on_mode(module: nn.Module) -> bool:
    if is_random(module):
        return draws_anew(module)
    return any(
        "training" in function.__code__.co_names
        for kind in type(module).__mro__
        if kind not in nn.Module.__mro__
        for function in vars(kind).values()
        if isinstance(function, FunctionType)
    )
