"""TorchDEQ's functions on our solvers: change the import, and the code runs.

TorchDEQ itself is not needed::

    from implicitcore.compat.torchdeq import add_deq_args, get_deq, reset_deq
    from implicitcore.compat.torchdeq.loss import fp_correction, jac_reg
    from implicitcore.compat.torchdeq.norm import apply_norm, reset_norm

Signatures, defaults and the numbers of steps are TorchDEQ's. :func:`implicitcore.build` and
:func:`implicitcore.fixed_point` give x to f, say how each sample ended, and are the better tools in
new code. What differs:

* Each sample stops by itself, at its own tolerance, and z is the iterate whose residual was
  measured. ``f_max_iter`` bounds the steps; the last iterate is evaluated once more to be judged.
  With ``ift`` z is that iterate too, where TorchDEQ gives f of it.
* f is one function for a whole call, its backward pass included: weights under ``apply_norm`` are
  computed once and masks drawn once. ``reset_norm``, ``reset_dropout`` and ``reset_deq`` have
  nothing to do.
* A cell that mixes samples (batch norm in training, attention over the batch) is an error where it
  is found; ``get_deq(coupled=True)`` solves the batch as one.
* ``b_tol`` is relative to the incoming gradient, and a backward solve above it warns.
* There are always as many states as were asked for: where a solve ends before one of its
  ``indexing``, that state is the last iterate. TorchDEQ leaves it out.
* ``hook_ift`` is ``ift``: its memory does not grow with the steps.
* The spectral norm is exact and needs no power iteration; weights under a norm have the names of
  ``torch.nn.utils.parametrize`` in a ``state_dict``.
* Not there, each with its reason: ``rel_trace``, ``backward_writer``, ``return_final``, ``ls`` and
  ``lam`` of solvers, and what registers classes of one's own.
"""

from __future__ import annotations

from typing import NoReturn

from implicitcore.compat.torchdeq.core import DEQ, get_deq, reset_deq
from implicitcore.compat.torchdeq.dropout import (
    VariationalDropout,
    VariationalDropout1d,
    VariationalDropout2d,
    VariationalDropout3d,
    reset_dropout,
)
from implicitcore.compat.torchdeq.loss import fp_correction, jac_reg, power_method
from implicitcore.compat.torchdeq.norm import apply_norm, remove_norm, reset_norm
from implicitcore.compat.torchdeq.utils import add_deq_args, mem_gc, mixed_init

__all__ = [
    "DEQ",
    "VariationalDropout",
    "VariationalDropout1d",
    "VariationalDropout2d",
    "VariationalDropout3d",
    "add_deq_args",
    "apply_norm",
    "fp_correction",
    "get_deq",
    "jac_reg",
    "mem_gc",
    "mixed_init",
    "power_method",
    "remove_norm",
    "reset_deq",
    "reset_dropout",
    "reset_norm",
]

_PARTS = "a part of one's own is a plugin here: implicitcore new-plugin NAME"
_SOLVERS = "a solve is implicitcore.fixed_point(f, z0, x, solver=...)"
_ABSENT = {
    "register_deq": "derive from torch.nn.Module and call the functions of implicitcore in it",
    "register_solver": f"{_PARTS}; f_solver takes any implicitcore.RootSolver",
    "register_norm": "use torch.nn.utils.parametrize.register_parametrization",
    "register_norm_module": "use torch.nn.utils.parametrize.register_parametrization",
    "register_weight_func": "give fp_correction the function itself: weight_func=function",
    "get_solver": _SOLVERS,
    "anderson_solver": _SOLVERS,
    "broyden_solver": _SOLVERS,
    "fixed_point_iter": _SOLVERS,
    "simple_fixed_point_iter": _SOLVERS,
}


def __getattr__(name: str) -> NoReturn:
    """Say why a name of TorchDEQ is not here."""
    if name in _ABSENT:
        raise ImportError(f"torchdeq.{name} is not carried over: {_ABSENT[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
