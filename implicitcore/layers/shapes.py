"""The shapes of states: what initial guesses make tensors from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import InputError, show


def map_shape(make: Callable[[tuple[int, ...]], Any], shape: Any) -> Any:
    """The pytree of what ``make`` returns for the sizes of each tensor of a state.

    Arguments:
        make: called with the sizes of one tensor.
        shape: sizes, or a tuple or dict of shapes.

    >>> map_shape(sum, ((1, 2), {"a": (3,)}))
    (3, {'a': 3})
    """
    if isinstance(shape, dict):
        return {key: map_shape(make, part) for key, part in shape.items()}
    if any(isinstance(part, tuple | dict) for part in shape):
        return tuple(map_shape(make, part) for part in shape)
    return make(shape)


def first_tensor(x: Any, shape: Any) -> Tensor:
    """The tensor of x that has the batch size, dtype and device of the state.

    And its shape, where ``shape`` is None.

    Raises:
        InputError: x holds no floating-point tensor, or several and no ``shape`` is given.
    """
    if isinstance(x, Tensor) and x.ndim and x.is_floating_point():
        return x
    leaves = [
        leaf
        for leaf in pytree.tree_leaves(x)
        if isinstance(leaf, Tensor) and leaf.ndim and leaf.is_floating_point()
    ]
    if not leaves or (shape is None and len(leaves) > 1):
        kinds = ", ".join(
            f"{leaf.dtype} {list(leaf.shape)}" if isinstance(leaf, Tensor) else show(leaf)
            for leaf in pytree.tree_leaves(x)[:3]
        )
        raise InputError(
            f"cannot tell the shape of the state from an x with {len(leaves)} "
            f"floating-point tensors; give shape= or z0 (x holds {kinds or 'nothing'}; numbers and "
            "arrays become tensors by torch.as_tensor(...), integers by x.float())"
        )
    return leaves[0]
