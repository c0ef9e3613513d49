"""Some samples of whatever holds tensors with the batch first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.tensors.shared import Shared

_T = TypeVar("_T")
_RULE = "restrict"


def rule(function: Callable[[Any, Tensor], Any]) -> Mapping[str, Any]:
    """The ``metadata`` of a dataclass field with a rule of its own: ``function(value, rows)``."""
    return {_RULE: function}


SHARED = rule(lambda value, rows: value)
"""The ``metadata`` of a dataclass field that belongs to all samples."""

COUNT = rule(lambda value, rows: len(rows))
"""The ``metadata`` of a dataclass field that is the number of samples."""


def restrict(tree: Any, rows: Tensor) -> Any:
    """The part of a pytree that belongs to some samples.

    A tensor has the batch first, and its rows are taken. Tensors without dimensions, what is marked
    as shared, and objects that hold no tensors stay. A dataclass is built anew from its fields
    (those that its constructor takes), each by this function or by the rule in its metadata. An
    object that has a method of this name answers for itself.

    Arguments:
        tree: any pytree.
        rows: indices ``[k]``.
    """
    return pytree.tree_map(lambda leaf: _part(leaf, rows), tree, is_leaf=_is_whole)


def of_fields(value: _T, rows: Tensor) -> _T:
    """A dataclass, each field for some samples; what its constructor does not take begins anew."""
    parts = {
        entry.name: entry.metadata.get(_RULE, restrict)(getattr(value, entry.name), rows)
        for entry in fields(value)  # pyright: ignore[reportArgumentType] - any dataclass
        if entry.init
    }
    return type(value)(**parts)


def of_input(x: Any, rows: Tensor) -> Any:
    """The x of some samples, marks included; what is no tensor stays as it is."""

    def part(leaf: Any) -> Any:
        return _part(leaf, rows) if isinstance(leaf, Tensor) else leaf

    return pytree.tree_map(part, x, is_leaf=lambda node: isinstance(node, Shared))


def _is_whole(node: Any) -> bool:
    return isinstance(node, Shared) or is_dataclass(node)


def _part(leaf: Any, rows: Tensor) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.index_select(0, rows) if leaf.ndim else leaf
    if isinstance(leaf, Shared | type):
        return leaf
    if hasattr(leaf, "restrict"):
        return leaf.restrict(rows)
    return of_fields(leaf, rows) if is_dataclass(leaf) else leaf
