"""The tensors that a computation depends on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node
from torch.utils import _pytree as pytree

from implicitcore.errors import GradientError


def graph_leaves(output: Tensor, stop: Iterable[Tensor] = ()) -> list[Tensor]:
    """The leaf tensors that require a gradient and that the graph of ``output`` reaches, each once.

    It finds what no module lists: the tensors that a closure captured.

    Arguments:
        output: a tensor with a graph.
        stop: do not look behind these tensors.
    """
    found: list[Tensor] = []
    if output.grad_fn is None:
        return [output] if output.requires_grad else found
    todo: list[Node] = [output.grad_fn]
    seen = set(todo)
    for tensor in stop:
        if tensor.grad_fn is not None:
            seen.add(tensor.grad_fn)
    while todo:
        node = todo.pop()
        variable = getattr(node, "variable", None)  # an AccumulateGrad node holds its leaf
        if isinstance(variable, Tensor):
            found.append(variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)
    return found


def inputs(x: Any) -> list[Tensor]:
    """The tensors of a pytree that require a gradient."""
    if isinstance(x, Tensor):
        return [x] if x.requires_grad else []
    return [
        leaf for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor) and leaf.requires_grad
    ]


def union(*groups: Iterable[Tensor]) -> list[Tensor]:
    """The tensors of all groups in order, each once."""
    found: dict[int, Tensor] = {}  # by identity: the hash of a tensor is a call
    for group in groups:
        for tensor in group:
            found.setdefault(id(tensor), tensor)
    return list(found.values())


class Listed:
    """Tells that what is evaluated again depends on no other leaves than those that are known.

    A function makes leaves of its own, as the equilibrium of a layer inside it: those are new in
    each evaluation, and one that was there in the last is not.

    Arguments:
        inputs: the leaves.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self.inputs = inputs
        self.unlisted: set[Tensor] = set()

    def check(self, what: str, values: Sequence[Tensor], points: Sequence[Tensor]) -> None:
        """Require it of the values of an evaluation, which may depend on its points too.

        Raises:
            GradientError: it depends on a leaf that would get no gradient.
        """
        found = [graph_leaves(value, points) for value in values if value.grad_fn is not None]
        if not found:
            return
        unlisted = set(union(*found)).difference((*points, *self.inputs))
        for leaf in unlisted & self.unlisted:
            raise GradientError(
                f"{what} depends on a tensor of shape {list(leaf.shape)} at some times, and not "
                "where its tensors were looked for: give it in x, or make it a parameter of the "
                "dynamics"
            )
        self.unlisted = unlisted
