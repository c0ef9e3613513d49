"""TorchDEQ's losses: fixed-point correction and the Jacobian's size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from implicitcore.errors import ConfigError, InputError, did_you_mean, show

WeightFunction = Callable[..., float]
"""The weight of state k of n."""


def _linear(n: int, k: int, gamma: float = 0.9, bias: float = 0.0) -> float:
    return 1 - gamma * (n - 1 - k) / n + bias


def _exponential(n: int, k: int, gamma: float = 0.8) -> float:
    return gamma ** (n - 1 - k)


def _constant(n: int, k: int, c: float = 1.0) -> float:
    del n, k
    return c


_WEIGHTS: dict[str, WeightFunction] = {
    "linear": _linear,
    "exp": _exponential,
    "const": _constant,
}


def fp_correction(
    crit: Callable[..., Tensor],
    args: Sequence[Any],
    weight_func: str | WeightFunction = "exp",
    return_loss_values: bool = False,
    **kwargs: Any,
) -> Any:
    """The loss of each state of a sequence, weighted: sum_k w(n, k) crit(z_k, ...).

    Arguments:
        crit: the loss, of as many arguments as ``args`` has.
        args: the arguments; a list or tuple is a sequence of n states, anything else (and a list of
            one) belongs to all of them.
        weight_func: ``"exp"``, gamma^(n-1-k) with gamma = 0.8; ``"linear"``,
            1 - gamma (n-1-k) / n + bias with 0.9 and 0; ``"const"``, c = 1; or a function of
            (n, k).
        return_loss_values: give the loss of each state too.
        **kwargs: options of the weight.

    Returns:
        The loss, a scalar; with ``return_loss_values`` a tuple of it and the list of those of the
        states.

    Raises:
        ConfigError: there is no such weight.
        InputError: two sequences differ in length.

    Example:
        >>> import torch
        >>> from implicitcore.compat.torchdeq.loss import fp_correction
        >>> states, y = [torch.tensor(1.0), torch.tensor(2.0)], torch.tensor(0.0)
        >>> round(fp_correction(lambda z, y: (z - y).abs(), (states, y)).item(), 6)
        2.8
    """
    weight = _weight(weight_func)
    rows = _aligned(args)
    losses = [crit(*row) for row in rows]
    weights = [weight(len(rows), k, **kwargs) for k in range(len(rows))]
    total = torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)]).sum()
    return (total, [loss.item() for loss in losses]) if return_loss_values else total


def jac_reg(f0: Tensor, z0: Tensor, vecs: int = 1, create_graph: bool = True) -> Tensor:
    """Hutchinson's estimate of ``|J|_F^2`` / n for J = df/dz, n the entries of a sample.

    Arguments:
        f0: f(z0), with its graph.
        z0: ``[batch, ...]``, requires a gradient.
        vecs: the number of random vectors.
        create_graph: keep a graph, to train on it.

    Returns:
        A scalar. :func:`implicitcore.jacobian_regularizer` needs no graph of yours.
    """
    total = z0.new_zeros(())
    for _ in range(vecs):
        (product,) = torch.autograd.grad(
            f0, z0, torch.randn_like(f0), retain_graph=True, create_graph=create_graph
        )
        total = total + product.square().sum()
    return total / (vecs * z0.numel())


def power_method(f0: Tensor, z0: Tensor, n_iters: int = 100) -> tuple[Tensor, Tensor]:
    """The spectral radius of J = df/dz of each sample by power iteration.

    Arguments:
        f0: f(z0), with its graph.
        z0: ``[batch, ...]``, requires a gradient.
        n_iters: the number of products, at least 2.

    Returns:
        The last vector, shaped like z0, and the radius ``[batch]``: the mean growth over the second
        half of the iteration. :func:`implicitcore.spectral_radius` needs no graph of yours.
    """
    w, growth = torch.randn_like(f0), []
    w = w / _size(w)
    for _ in range(max(n_iters, 2)):
        (w,) = torch.autograd.grad(f0, z0, w, retain_graph=True)
        size = _size(w).clamp(min=torch.finfo(w.dtype).tiny)
        growth.append(size.flatten())
        w = w / size
    return w, torch.stack(growth[len(growth) // 2 :]).log().mean(0).exp()


def _size(w: Tensor) -> Tensor:
    return w.flatten(1).norm(dim=1).reshape(-1, *(1,) * (w.ndim - 1))


def _weight(weight_func: str | WeightFunction) -> WeightFunction:
    if callable(weight_func):
        return weight_func
    if weight_func not in _WEIGHTS:
        near = did_you_mean(weight_func, _WEIGHTS)
        raise ConfigError(
            [
                f"weight_func: there is no {show(weight_func)}{near}; there are "
                f"{', '.join(_WEIGHTS)}, or give a function of (n, k)"
            ]
        )
    return _WEIGHTS[weight_func]


def _aligned(args: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The arguments of each state."""
    lists = [list(arg) if isinstance(arg, (list, tuple)) else [arg] for arg in args]
    longest = max(map(len, lists), default=0)
    lengths = sorted({len(each) for each in lists} - {1})
    if len(lengths) > 1:
        raise InputError(f"args: expected sequences of one length, received lengths {lengths}")
    return list(zip(*(each * longest if len(each) == 1 else each for each in lists), strict=True))
