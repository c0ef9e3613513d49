"""A value and its pullback: how a solution that was found without a graph is differentiated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor, is_legacy_batchedtensor

from implicitcore.tensors import host
from implicitcore.tensors.norms import whole_finite
from implicitcore.tensors.transforms import check_gradient, transformed


class Pullback(ABC):
    """What the incoming gradient v of a solution z becomes, before it enters the graph of f(z)."""

    def __call__(self, v: Tensor) -> Tensor:
        """The cotangent u of f(z), ``[batch, n]``, for v = dL/dz, ``[batch, n]``.

        NaN for a sample whose v is not finite, whatever the solver makes of it: who scales a loss
        looks for it. The other samples do not see it.
        """
        if (
            host.on_host(v) and not transformed() and whole_finite(v)
        ):  # as a rule: one pass, and no copies
            return self.solve(v)
        finite = v.isfinite().all(1, keepdim=True)
        return torch.where(finite, self.solve(torch.where(finite, v, 0)), torch.nan)

    @abstractmethod
    def solve(self, v: Tensor) -> Tensor:
        """The same for a v that is finite."""

    @abstractmethod
    def differentiable(
        self, v: Tensor, z: Tensor, inputs: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        """u^T df/dinputs with a graph to v, z and the inputs.

        Raises:
            GradientError: there is no second derivative.
        """


def attach(fz: Tensor, z: Tensor, pullback: Pullback, inputs: Sequence[Tensor] = ()) -> Tensor:
    """The value z, whose gradient v reaches the graph of fz as pullback(v).

    A second derivative takes another way: fz hangs on a detached z, which hides that z itself
    moves. So u^T df is then computed afresh at the attached z.

    Arguments:
        fz: f(z) with its graph, ``[batch, n]``.
        z: ``[batch, n]``, without a graph.
        pullback: v -> u.
        inputs: all that f depends on, where there is a second derivative.
    """
    return _Cotangent.apply(fz, z, pullback, *inputs)


class _Cotangent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fz: Tensor, z: Tensor, pullback: Pullback, *inputs: Tensor) -> Tensor:
        del fz
        value = z.view_as(z)
        ctx.pullback, ctx.count = pullback, len(inputs)
        ctx.set_materialize_grads(False)
        if inputs:
            ctx.save_for_backward(value, *inputs)
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        v, nothing = grad_outputs[0], (None,) * ctx.count
        # Asked for in a first derivative too: autograd says where one was changed in place since.
        z, *inputs = ctx.saved_tensors or (None,)
        if v is None:
            return None, None, None, *nothing
        if is_legacy_batchedtensor(v) or is_batchedtensor(v):  # asked here, it is a call less
            check_gradient(v)
        if torch.is_grad_enabled():
            return None, None, None, *ctx.pullback.differentiable(v, z, inputs)
        return ctx.pullback(v), None, None, *nothing
