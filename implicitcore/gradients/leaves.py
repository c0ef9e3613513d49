"""The tensors that a computation depends on."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.autograd.graph import Node


def leaves(output: Tensor) -> list[Tensor]:
    """The leaf tensors that require a gradient and that the graph of ``output`` reaches, each once.

    It finds what no module lists: the tensors that a closure captured.
    """
    found: list[Tensor] = []
    if output.grad_fn is None:
        return [output] if output.requires_grad else found
    todo: list[Node] = [output.grad_fn]
    seen = set(todo)
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


def union(*groups: Iterable[Tensor]) -> list[Tensor]:
    """The tensors of all groups in order, each once."""
    return list({id(tensor): tensor for group in groups for tensor in group}.values())
