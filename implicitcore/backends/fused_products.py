"""Products with a history by the kernels of a backend, in a graph.

Each kernel is the derivative of the other. What is left is the gradient of the history, a column
times a row for each sample, in which there is no sum to fuse:

    out = row + scale W H:    grad row = grad,    grad W = scale grad H^H,  grad H = scale W^H grad
    out = row H^H:            grad row = grad H,                            grad H = grad^H row

with W ``[1, depth]``, H ``[depth, n]`` and row ``[1, n]`` of each sample.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from implicitcore.backends.base import Backend
from implicitcore.backends.torch import TORCH
from implicitcore.tensors import host
from implicitcore.tensors.transforms import ordinary

LEAST = 2**16
"""The entries of a history in a graph from which on that pays.

With implicitcore-cpp, forward and backward: 0.13 to 0.83 of torch's time from here on, in which
torch has a product of matrices for each sample; below it up to 1.8 of it. On an accelerator it is
one launch either way.
"""


def pays(history: Tensor) -> bool:
    """Whether a product in a graph is faster so than by torch.

    It is slower where the history itself is not in the graph, but in few shapes.
    """
    return history.requires_grad and history.numel() >= LEAST and host.on_host(history)


class AxpyHistory(Function):
    """See :meth:`Backend.axpy_history`."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - the kernel's
        ctx: Any,
        backend: Backend,
        row: Tensor | None,
        weights: Tensor,
        history: Tensor,
        scale: float,
    ) -> Tensor:
        """By the kernel, for no graph is recorded here."""
        _keep(ctx, weights, history, ctx.needs_input_grad[2:4])
        ctx.backend, ctx.scale = backend, scale
        return backend.axpy_history(row, weights, history, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """By calls that can be differentiated in their turn."""
        (grad,) = grads
        (weights, history), scale = ctx.saved_tensors, ctx.scale
        backend = ctx.backend if ordinary(grads) else TORCH
        inner = None if history is None else backend.inner_products(history, grad) * scale
        outer = None if weights is None else (weights.mH * scale) * grad
        return None, grad if ctx.needs_input_grad[1] else None, inner, outer, None


class InnerProducts(Function):
    """See :meth:`Backend.inner_products`."""

    @staticmethod
    def forward(ctx: Any, backend: Backend, history: Tensor, row: Tensor) -> Tensor:
        """By the kernel, for no graph is recorded here."""
        _keep(ctx, history, row, ctx.needs_input_grad[1:])
        ctx.backend = backend
        return backend.inner_products(history, row)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """By calls that can be differentiated in their turn."""
        (grad,) = grads
        history, row = ctx.saved_tensors
        backend = ctx.backend if ordinary(grads) else TORCH
        outer = None if row is None else grad.mH * row
        return None, outer, None if history is None else backend.axpy_history(None, grad, history)


def _keep(ctx: Any, one: Tensor, other: Tensor, needs: tuple[bool, bool]) -> None:
    """Of two factors each that the gradient of the other needs: what a graph of torch keeps."""
    ctx.save_for_backward(one if needs[1] else None, other if needs[0] else None)
