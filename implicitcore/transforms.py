"""What torch's transforms of functions do with a solve: ``torch.compile``, ``torch.func``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch._C._functorch import TransformType, peek_interpreter_stack

from implicitcore.errors import GradientError, InputError

_P = ParamSpec("_P")
_T = TypeVar("_T")

_VMAP = (
    "torch.func.vmap cannot go through a solve, whose stop test depends on the values: call it on the whole batch, whose samples are "
    "solved each by itself; for per-sample gradients, loop over the samples or use torch.autograd.grad"
)
_DERIVATIVE = (
    "{} is a gradient strategy of torch.autograd, which torch.func.{} does not see: use torch.autograd.grad (create_graph=True for a "
    "second derivative, torch.autograd.functional for a Jacobian), or Unrolled under torch.func.grad, vjp and jacrev(chunk_size=1)"
)


def eager(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The function, out of reach of ``torch.compile``: a loop that stops by its values would be compiled for each count of steps.

    What it calls and was compiled by itself, as a cell, stays compiled.
    """

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def check_transforms(strategy: object, *, differentiable: bool) -> None:
    """Refuse the transforms of ``torch.func`` that would fail deep inside, or be wrong.

    Arguments:
        strategy: the gradient strategy, for the message.
        differentiable: it is plain tensor operations, which ``torch.func.grad`` can follow.

    Raises:
        InputError: under vmap.
        GradientError: under grad, vjp, jacrev or jvp, where the strategy belongs to torch.autograd.
    """
    interpreter = peek_interpreter_stack()
    if interpreter is None:
        return
    transform = interpreter.key()
    if transform == TransformType.Vmap:
        raise InputError(_VMAP)
    if transform in (TransformType.Grad, TransformType.Jvp) and not differentiable:
        raise GradientError(_DERIVATIVE.format(type(strategy).__name__, transform.name.lower()))
