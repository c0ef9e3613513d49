"""TorchDEQ's command line options, checkpointed calls and random starts."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from implicitcore.compat.torchdeq.settings import NAMES

_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("f_solver", "fixed_point_iter", f"forward solver: {', '.join(NAMES)}, or a registered one"),
    ("b_solver", "fixed_point_iter", "backward solver, likewise"),
    ("f_max_iter", 40, "evaluations of f in the forward solve"),
    ("b_max_iter", 40, "products in the backward solve"),
    ("f_tol", 1e-3, "tolerance of the forward solve"),
    ("b_tol", 1e-6, "tolerance of the backward solve, relative to the incoming gradient"),
    ("f_stop_mode", "abs", "abs or rel"),
    ("b_stop_mode", "abs", "accepted; the backward tolerance is relative"),
    ("eval_factor", 1.0, "times f_max_iter, in eval()"),
    ("eval_f_max_iter", 0, "f_max_iter in eval(), before eval_factor"),
    ("norm_type", "weight_norm", "weight_norm, spectral_norm or none"),
    ("norm_clip_value", 1.0, "largest factor of a weight, with --norm_clip"),
    ("norm_target_norm", 1.0, "norm of a weight that is not learned"),
    ("sn_n_power_iters", 1, "accepted; the spectral norm is exact"),
    ("core", "sliced", "indexing or sliced"),
    ("n_states", 1, "states for the loss, evenly spaced"),
    ("gamma", 0.8, "base of the weights of fp_correction"),
    ("tau", 1.0, "damping of phantom steps"),
    ("sup_gap", -1, "return every so many phantom steps"),
    ("jac_loss_weight", 0.0, "weight of jac_reg"),
    ("jac_loss_freq", 0.0, "how often it is added"),
    ("jac_incremental", 0, "steps after which its weight grows by 0.1"),
)
_FLAGS = (
    ("norm_no_scale", "do not learn the norm of weights"),
    ("norm_clip", "bound the factor of weights"),
    ("ift", "differentiate implicitly"),
    ("hook_ift", "the same"),
    ("sradius_mode", "measure the spectral radius in eval()"),
)
_LISTS = (
    ("indexing", [], "states for the loss, after so many steps"),
    ("grad", [1], "phantom steps from each state"),
    ("sup_loc", [], "phantom steps that are returned"),
)


def add_deq_args(parser: ArgumentParser) -> None:
    """Add TorchDEQ's options to a parser, with its defaults.

    Arguments:
        parser: of the command line; what it reads is for :func:`get_deq` and :func:`apply_norm`.
    """
    for name, default, text in _OPTIONS:
        parser.add_argument(f"--{name}", type=type(default), default=default, help=text)
    for name, text in _FLAGS:
        parser.add_argument(f"--{name}", action="store_true", help=text)
    for name, values, text in _LISTS:
        parser.add_argument(f"--{name}", type=int, nargs="+", default=values, help=text)


def mem_gc(func: Callable[..., Any], in_args: Sequence[Any] | None = None) -> Any:
    """Call f and keep none of its activations: backward evaluates it again.

    Arguments:
        func: a module or function.
        in_args: its arguments.

    Returns:
        What it returns, with the same gradients.
    """
    return checkpoint(func, *(in_args or ()), use_reentrant=False)


def mixed_init(z_shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """A start of normal random values, of which each is zero with probability 1/2.

    Arguments:
        z_shape: the shape.
        device: where it is made.

    Returns:
        The start, float32.

    Reference:
        Anil et al., Path Independent Equilibrium Models Can Better Exploit Test-Time Computation,
        arXiv 2211.09961.
    """
    z = torch.randn(*z_shape, device=device)
    return z * torch.randint(0, 2, tuple(z_shape), device=device)
