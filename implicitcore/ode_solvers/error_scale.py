"""The units in which the error of a step is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from implicitcore.errors import ConvergenceWarning, InputError
from implicitcore.options.shared import ErrorNorm
from implicitcore.system.repeated import owner_of, warn_repeatedly
from implicitcore.tensors.norms import coarsest, real_dtype, rms_norm

if TYPE_CHECKING:
    from implicitcore.backends.base import Backend
    from implicitcore.system.system import System

Absolute = float | tuple[float, ...]
"""atol: of all numbers of a state, or of each."""


def allowed(magnitude: Tensor, rtol: float, atol: Absolute) -> Tensor:
    """The error atol + rtol ``|z|`` that each number may have.

    Arguments:
        magnitude: ``|z|``, ``[batch, n]``.
        rtol: relative tolerance.
        atol: absolute tolerance, of all numbers or of each.

    Raises:
        InputError: there are not n of them.
    """
    if not isinstance(atol, tuple):
        return magnitude * rtol + atol
    if len(atol) != magnitude.shape[1]:
        raise _wrong_number(magnitude.shape[1], atol)
    return magnitude * rtol + magnitude.new_tensor(atol)


def measured(  # noqa: PLR0913 - a formula
    error: Tensor,
    backend: Backend,
    z: Tensor,
    z_next: Tensor,
    rtol: float,
    atol: Absolute,
    norm: ErrorNorm | None,
) -> Tensor:
    """The norm of the error over what is allowed, ``[batch]``.

    By the backend where it is the root mean square, with one atol.

    Raises:
        InputError: ``norm`` returns something else.
    """
    if norm is None and not isinstance(atol, tuple):
        return backend.error_norm(error, z, z_next, rtol, atol)
    larger = torch.maximum(z.abs(), z_next.abs()).to(real_dtype(z))
    scaled = error.abs() / allowed(larger, rtol, atol)
    return norm_of(scaled, norm)


def norm_of(scaled: Tensor, norm: ErrorNorm | None) -> Tensor:
    """``[batch]`` of ``[batch, n]``.

    Raises:
        InputError: ``norm`` returns something else.
    """
    if norm is None:
        return rms_norm(scaled)
    found = norm(scaled)
    if isinstance(found, Tensor) and found.shape == scaled.shape[:1] and not found.is_complex():
        return found.to(real_dtype(scaled))
    said = f"shape {[*found.shape]}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
    raise InputError(
        f"norm: expected it to return real numbers of shape [{len(scaled)}] from "
        f"{[*scaled.shape]}, received {said}"
    )


def shared_error(scaled: Tensor) -> Tensor:
    """One step size for the batch: the error of a step is that of the worst sample, for each.

    ``Tsit5(norm=implicitcore.shared_error)``: with one span of times all samples take the same
    steps, each of which keeps the root mean square of every sample within the tolerances. All else
    stays per sample: the status, events, and a sample whose step is not finite, which goes on, or
    ends, by itself. These are at least the steps of the hardest sample alone, and up to a third
    more where another is the worst at another time: steps per sample, the default, take no more
    evaluations. Prefer ``coupled=True`` where samples depend on each other: it measures the mean
    over the batch.

    Implicit methods give a sample whose stages did not converge a shorter step of its own;
    ``Adams`` chooses its order, and with it its steps, for each sample; and the way back of
    ``Adjoint``, which has the errors of the adjoints beside these, has steps of each sample.

    Arguments:
        scaled: the errors over what is allowed, ``[batch, n]``.

    Returns:
        The largest root mean square, ``[batch]``; of a sample that is not finite its own.

    Example:
        >>> import torch, implicitcore as ic
        >>> rate, z0 = torch.tensor([[1.0], [10.0]]), torch.ones(2, 1)
        >>> decay = lambda t, z, rate: -rate * z
        >>> for norm in (None, ic.shared_error):
        ...     solver = ic.Tsit5(norm=norm)
        ...     ic.integrate(decay, z0, rate, times=[0.0, 1.0], solver=solver).steps.tolist()
        [4, 14]
        [14, 14]
    """
    own = rms_norm(scaled)
    if not len(own):
        return own
    finite = own.isfinite()
    return torch.where(finite, torch.where(finite, own, 0).amax(), own)


class _OfStates(NamedTuple):
    """A norm for states of n entries, where adjoints of as many are integrated beside them."""

    norm: ErrorNorm
    n: int

    def __call__(self, scaled: Tensor) -> Tensor:
        states, adjoints = scaled[:, : self.n], scaled[:, self.n :]
        return torch.maximum(norm_of(states, self.norm), rms_norm(adjoints))


def with_adjoints(solver: Any, n: int) -> Any:
    """The solver for states of n entries with adjoints of as many behind them.

    What is said of each entry of a state is kept. Of an adjoint, which has other units, each is
    held to the smallest tolerance in the root mean square.
    """
    changes: dict[str, Any] = {}
    if isinstance(atol := getattr(solver, "atol", None), tuple):
        if len(atol) != n:
            raise _wrong_number(n, atol)
        changes["atol"] = (*atol, *[min(atol)] * n)
    if (norm := getattr(solver, "norm", None)) is not None:
        changes["norm"] = _OfStates(norm, n)
    return replace(solver, **changes) if changes else solver


def _wrong_number(n: int, atol: tuple[float, ...]) -> InputError:
    return InputError(
        f"atol: expected a number, or {n}, one for each in the state of a sample, received "
        f"{len(atol)}"
    )


def check_precision(system: System, dtype: torch.dtype, rtol: float, atol: Absolute) -> None:
    """Warn of tolerances that rounding alone exceeds, for a state of size one.

    Half precision is held to that of its norms.
    """
    dtype = coarsest((dtype, *system.dtypes))
    eps = torch.finfo(dtype).eps if dtype.itemsize > 2 else torch.finfo(torch.float32).eps
    least = min(atol) if isinstance(atol, tuple) else atol
    if rtol + least < eps and not torch.compiler.is_compiling():
        warn_repeatedly(
            owner_of(system.dynamics),
            "precision",
            lambda: (
                f"rtol={rtol:g} and atol={least:g} are below the precision of "
                f"{dtype}, {eps:.2g}: steps will be small and "
                "no more accurate; use larger tolerances, or torch.float64"
            ),
            ConvergenceWarning,
        )
