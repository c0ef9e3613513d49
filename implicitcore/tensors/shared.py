"""Whose tensor is whose: per sample, with the batch first, unless it is marked as shared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import InputError, show


@dataclass(frozen=True, eq=False)
class Shared:
    """The mark of :func:`shared`: a pytree that belongs to all samples."""

    value: Any


pytree.register_pytree_node(
    Shared, lambda mark: ([mark.value], None), lambda values, _: Shared(*values)
)


def shared(tree: Any) -> Any:
    """Mark a tensor of x that belongs to all samples.

    It is what ``None`` is in the ``in_dims`` of ``torch.func.vmap``.
    A tensor in x is per sample: its first dimension is the batch. A tensor without dimensions, and
    whatever is no tensor, is shared by all samples anyway. Any other tensor is marked, so that no
    solver that goes on with some samples (``compact``, ``Chain``, ``on_failure="mask"``) takes rows
    of it. f receives the plain tensor, and gradients reach it.

    Arguments:
        tree: a tensor of any shape, or a pytree of them.

    Returns:
        What to put in its place in x.

    Example:
        >>> import torch, implicitcore as ic
        >>> rate, bias = torch.full((3, 1), 0.5), torch.ones(2)  # of each sample, of all samples
        >>> f = lambda z, x: x[0] * z + x[1]
        >>> ic.fixed_point(f, torch.zeros(3, 2), (rate, ic.shared(bias))).converged.tolist()
        [True, True, True]
    """
    return Shared(unwrapped(tree))


def is_marked(tree: Any) -> bool:
    """Whether something in the pytree is marked as shared."""
    if isinstance(tree, Tensor):
        return False
    return any(map(_is_shared, pytree.tree_leaves(tree, is_leaf=_is_shared)))


def unwrapped(tree: Any) -> Any:
    """The pytree without its marks: what f receives."""
    if isinstance(tree, Tensor):
        return tree
    return pytree.tree_map(
        lambda leaf: leaf.value if isinstance(leaf, Shared) else leaf, tree, is_leaf=_is_shared
    )


def marked_like(marked: Any, tree: Any) -> Any:
    """The plain pytree with the marks of another one, whose tensors it replaces in their order."""
    if isinstance(marked, Tensor):
        return tree
    return pytree.tree_unflatten(pytree.tree_leaves(tree), pytree.tree_structure(marked))


def check_batch(x: Any, batch: int) -> None:
    """Refuse a tensor of x that is neither per sample nor shared.

    Raises:
        InputError: names it.
    """
    for leaf in [x] if isinstance(x, Tensor) else pytree.tree_leaves(x, is_leaf=_is_shared):
        if isinstance(leaf, Tensor):
            if leaf.ndim and leaf.shape[0] != batch:
                raise InputError(_problem(x, batch))
        elif isinstance(getattr(leaf, "shape", None), tuple) and leaf.shape:
            raise InputError(
                f"x holds {show(leaf)} of shape {[*leaf.shape]}, which is no tensor: give "
                "torch.as_tensor(...)"
            )


def _problem(x: Any, batch: int) -> str:
    places: Iterable[tuple[Any, Any]] = pytree.tree_flatten_with_path(x, is_leaf=_is_shared)[0]
    found = [
        f"x{pytree.keystr(path)} of shape {list(leaf.shape)}"
        for path, leaf in places
        if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] != batch
    ]
    return (
        f"received {', '.join(found)} and a state of {batch} samples; expected a first dimension "
        f"of {batch} in each tensor of x, which is one entry a sample: mark a tensor that belongs "
        "to all samples, implicitcore.shared(tensor), as in ic.shared(...)"
    )


def _is_shared(node: Any) -> bool:
    return isinstance(node, Shared)
