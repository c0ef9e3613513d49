"""What torch's modes and transforms do with a solve.

``torch.compile``, ``torch.inference_mode``, ``torch.func``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C import _set_grad_enabled
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    is_batchedtensor,
    is_legacy_batchedtensor,
    peek_interpreter_stack,
)
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from implicitcore.errors import GradientError, InputError

_P = ParamSpec("_P")
_T = TypeVar("_T")

_VMAP = (
    "torch.func.vmap cannot go through a solve, whose stop test depends on the values: "
    "call it on the whole batch, whose samples are "
    "solved each by itself; for per-sample gradients, loop over the samples or use "
    "torch.autograd.grad"
)
_GRAPH = (
    "a solve stops by its values and is no part of a graph as it is: give the model a layer that "
    "implicitcore.compile made, or leave out fullgraph=True"
)
_EXPORT = (
    "a solve stops by its values and is no part of a graph as it is: write the model by "
    "implicitcore.export in place of torch.export, with a layer where it calls fixed_point, "
    "find_root or integrate"
)
_STRATEGY = (
    "{} is a gradient strategy for torch.autograd, not for {}: use torch.autograd.grad "
    "(with create_graph=True for a second "
    "derivative; torch.autograd.functional for a Jacobian), or the strategy Unrolled, "
    "which both can follow"
)
_COMPILED = (
    "a layer that implicitcore.compile made is for torch.autograd, not for torch.func and forward "
    "mode: use torch.autograd.grad, or the layer itself (compiled.layer), with Unrolled"
)
_MANY = (
    "the backward pass of a solve takes one gradient at a time, for its stop test depends on the "
    "values: instead of is_grads_batched=True, of vectorize=True and of a vmap around "
    "torch.autograd.grad, loop over the gradients; the strategy Unrolled takes many at once"
)
_PRODUCTS = (
    "this solver takes Jacobian products from torch.autograd, which is out of reach inside "
    "torch.func.grad, vjp, jacrev and jvp: use "
    "Picard, Anderson or Broyden there, or torch.autograd.grad"
)


def eager(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The function, out of reach of ``torch.compile`` and of ``torch.inference_mode``.

    A loop that stops by its values would be compiled for each count of steps; what it calls and was
    compiled by itself, as a cell, stays compiled. In inference mode a Jacobian product would be
    zero without a word: it becomes no_grad, in which a solver may still have one.
    """

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if torch.compiler.is_compiling():
            if torch.compiler.is_exporting():
                raise InputError(_EXPORT)
            torch._dynamo.graph_break(msg=_GRAPH)  # which a graph that may not break says
            return torch.compiler.disable(function)(*args, **kwargs)  # pyright: ignore[reportCallIssue] - torch types it as a decorator factory
        if torch.is_inference_mode_enabled():
            return _in_no_grad(function, args, kwargs)
        return function(*args, **kwargs)

    return call


def not_in_inference(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The function of which no graph is traced, out of reach of ``torch.inference_mode``."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if torch.is_inference_mode_enabled():
            return _in_no_grad(function, args, kwargs)
        return function(*args, **kwargs)

    return call


def _in_no_grad(function: Callable[..., _T], args: Any, kwargs: Any) -> _T:
    with torch.inference_mode(False), torch.no_grad():
        args, kwargs = usable((args, kwargs))
        return function(*args, **kwargs)


def usable(tree: Any) -> Any:
    """The pytree with tensors that autograd may save: one made in inference mode may not."""
    if isinstance(tree, Tensor):
        return tree.clone() if tree.is_inference() else tree
    if not any(
        isinstance(leaf, Tensor) and leaf.is_inference() for leaf in pytree.tree_leaves(tree)
    ):
        return tree
    return pytree.tree_map_only(Tensor, usable, tree)


def check_transforms(strategy: str, follows: Collection[str]) -> None:
    """Refuse the transforms that would fail deep inside a solve, or be wrong.

    Arguments:
        strategy: the name of the gradient strategy.
        follows: which of "grad" (``torch.func.grad``, ``vjp``, ``jacrev``) and "jvp" (forward mode)
            can go through it.

    Raises:
        InputError: under vmap.
        GradientError: under a derivative that cannot go through the strategy.
    """
    if peek_interpreter_stack() is None and forward_ad._current_level < 0:
        return
    transforms = {interpreter.key() for interpreter in get_interpreter_stack() or ()}
    if TransformType.Vmap in transforms:
        raise InputError(_VMAP)
    if TransformType.Grad in transforms and "grad" not in follows:
        raise GradientError(_STRATEGY.format(strategy, "torch.func.grad, vjp and jacrev"))
    if forward_ad._current_level >= 0 and "jvp" not in follows:
        raise GradientError(
            _STRATEGY.format(
                strategy, "forward-mode derivatives (torch.func.jvp, torch.autograd.forward_ad)"
            )
        )


def check_compiled() -> None:
    """Refuse every transform around a solve that is compiled: torch would say it of our insides.

    Raises:
        InputError: under vmap.
        GradientError: under a derivative of ``torch.func``, or of forward mode.
    """
    if transformed():
        check_transforms("", ("grad", "jvp"))  # of vmap
        raise GradientError(_COMPILED)


def without_graph(function: Callable[..., _T], *arguments: Any) -> _T:
    """What the function returns under ``torch.no_grad``, whose own context is seven calls."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    _set_grad_enabled(False)
    try:
        return function(*arguments)
    finally:
        _set_grad_enabled(True)


def with_graph(function: Callable[..., _T], *arguments: Any) -> _T:
    """What the function returns under ``torch.enable_grad``."""
    if torch.is_grad_enabled():
        return function(*arguments)
    _set_grad_enabled(True)
    try:
        return function(*arguments)
    finally:
        _set_grad_enabled(False)


def transformed() -> bool:
    """Whether a transform of ``torch.func`` or a forward-mode derivative is under way."""
    return peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def in_graph() -> bool:
    """Whether what is computed becomes operations of a graph, a compiler's or a trace for one."""
    traced = torch._C._TorchDispatchModeKey.PROXY
    return torch.compiler.is_compiling() or torch._C._get_dispatch_mode(traced) is not None


def ordinary(grads: Sequence[Tensor]) -> bool:
    """Whether gradients are what a kernel takes: memory, and none of many at once.

    Nor those of a transform or a compiler.
    """
    if torch.compiler.is_compiling() or transformed():
        return False
    # Of is_grads_batched, and of a vmap that is over.
    return not any(is_legacy_batchedtensor(grad) or is_batchedtensor(grad) for grad in grads)


def check_gradient(grad: Tensor) -> None:
    """Refuse many gradients at once, of which each would stop a solve at another step.

    Raises:
        GradientError: of is_grads_batched, or of a vmap around the backward pass.
    """
    if is_legacy_batchedtensor(grad) or is_batchedtensor(grad):
        raise GradientError(_MANY)


def in_backward() -> bool:
    """Whether this is called by a backward pass of torch.autograd."""
    return torch._C._current_graph_task_id() != -1


def check_products() -> None:
    """Refuse Jacobian products inside a derivative of ``torch.func``.

    Raises:
        GradientError: there is one.
    """
    if peek_interpreter_stack() is not None:
        raise GradientError(_PRODUCTS)
