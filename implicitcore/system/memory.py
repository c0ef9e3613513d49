"""Whose memory is whose: f may write into what it is given, and give the same memory twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import InputError
from implicitcore.tensors.transforms import transformed

Beside = Sequence[tuple[str, Any, list[int]]]
"""What a function of the user is given: the name in its signature (t, z, x), a pytree, and how
often each tensor of it was written to."""


def as_given(**named: Any) -> Beside:
    """What it is given by these names, before the call."""
    return [(name, value, versions_of(value)) for name, value in named.items()]


def check_given(function: str, beside: Beside) -> None:
    """Require that the function wrote into none: what comes next would have another one.

    Raises:
        InputError: it did.
    """
    for name, value, versions in beside:
        if versions_of(value) != versions:
            raise _written(function, name)


def _written(function: str, name: str) -> InputError:
    meaning = {"t": "time", "z": "state", "x": "input"}[name]
    return InputError(
        f"{function} writes into its {meaning} {name} in place: use operations that return a new "
        f"tensor, or begin with {name} = {name}.clone()"
    )


class Memory:
    """What is known of how f uses memory, over the evaluations of one solve.

    The first evaluation has a copy of z, and its result is copied. If f wrote into its z, or gives
    the same memory at the second evaluation, it works on copies from then on; if not, nothing is
    copied again, and a later change of manners is an error.

    Attributes:
        copies_state: whether f gets a copy of z; None before the first evaluation.
        copies_result: whether its results are copied; None before the second evaluation.
        result: the last result, kept so that its memory is not used for another tensor.
        pointer: the address of that, None before the first evaluation.
        version: how often that had been written to.
        addresses: whether tensors have addresses: in a transform of torch.func they have none.
    """

    __slots__ = ("addresses", "copies_result", "copies_state", "pointer", "result", "version")

    def __init__(self) -> None:
        self.copies_state: bool | None = None
        self.copies_result: bool | None = None
        self.result: Tensor | None = None
        self.pointer: int | None = None
        self.version = 0
        self.addresses = not transformed()

    def fork(self) -> Memory:
        """The same knowledge, for evaluations whose results are apart from these."""
        part = Memory()
        part.copies_state, part.copies_result = self.copies_state, self.copies_result
        return part

    def release(self) -> None:
        """Let go of the last result."""
        self.result = self.pointer = None

    def note_state(self, written: bool, beside: Beside) -> None:
        """Whether f wrote into the z that it was given, as ``written`` says.

        Raises:
            InputError: z was no copy, and is lost; or f wrote into what it was given beside it.
        """
        if written and self.copies_state is False:
            raise InputError(
                "f writes into its state z in place, and did not at its first evaluation: use "
                "operations that return a new tensor (inplace=False), or begin with z = z.clone()"
            )
        if self.copies_state is None:
            self.copies_state = written
            for name, value, versions in beside:  # as in check_given, one call less in a solve
                if versions_of(value) != versions:
                    raise _written("f", name)

    def own(self, result: Tensor) -> Tensor:
        """The result in memory that f will not write to again.

        Raises:
            InputError: it is the memory of the last result, which was handed on.
        """
        if not self.addresses:
            return result
        pointer, owned = result.data_ptr(), result
        if self.pointer is None and self.copies_result is None:
            owned = result.clone()  # the first one
        elif pointer == self.pointer or self.copies_result is not False:
            owned = self._copied(result, pointer)
        self.result, self.pointer, self.version = result, pointer, result._version
        return owned

    def _copied(self, result: Tensor, pointer: int) -> Tensor:
        """A copy, where one is needed."""
        again = pointer == self.pointer and result.numel() > 0
        if again and self.copies_result is False and not self._constant(result):
            raise InputError(
                "f returned the memory of its last result again (a static output buffer), which "
                "overwrites that result: return a copy, out.clone()"
            )
        self.copies_result = self.copies_result or again
        return result.clone() if self.copies_result else result

    def _constant(self, result: Tensor) -> bool:
        """The same tensor, to which nothing was written; a CUDA graph would not tell."""
        return result is self.result and result._version == self.version and not result.is_cuda


def versions_of(x: Any) -> list[int]:
    """How often each tensor of x was written to."""
    if isinstance(x, Tensor):
        return [0 if x.is_inference() else x._version]
    return [version(leaf) for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor)]


def version(tensor: Tensor) -> int:
    """How often it was written to; a tensor made in inference mode does not count that."""
    return 0 if tensor.is_inference() else tensor._version


def apart(z: Tensor, *others: Any) -> Tensor:
    """z, or a copy of it where it shares memory with a tensor of the others."""
    if transformed() or not _has_memory(z):
        return z
    memory = z.untyped_storage().data_ptr()
    for tree in others:
        for leaf in (tree,) if isinstance(tree, Tensor) else pytree.tree_leaves(tree):
            if (
                isinstance(leaf, Tensor)
                and _has_memory(leaf)
                and leaf.untyped_storage().data_ptr() == memory
            ):
                return z.clone()
    return z


def _has_memory(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and type(tensor) in (Tensor, torch.nn.Parameter)
