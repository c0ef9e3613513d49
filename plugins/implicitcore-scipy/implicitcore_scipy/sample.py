"""One sample between torch and NumPy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from implicitcore import GradientError, InputError
from implicitcore.extend import Evaluation, LinearSystem, System

_Value = TypeVar("_Value", Tensor, Evaluation)
Array = NDArray[np.float64]


class Sample:
    """The system of one sample, for code that knows NumPy.

    Float64 inside, the dtype of the state outside.

    Arguments:
        system: of the whole batch.
        z0: ``[batch, n]``.
        row: which sample.
        cure: what to do instead of asking for a graph, which SciPy does not have.
    """

    def __init__(self, system: System, z0: Tensor, row: int, cure: str) -> None:
        rows = torch.tensor([row], device=z0.device)
        self.system = system if len(z0) == 1 else system.restrict(rows)
        self.z0 = z0 if len(z0) == 1 else z0.index_select(0, rows)
        self.cure = cure
        self.foreign: Exception | None = None  # an error of the user's function, not of SciPy
        self._refuse(self.z0)

    def tensor(self, y: Array) -> Tensor:
        """``[n] -> [1, n]``."""
        return torch.tensor(y, dtype=self.z0.dtype, device=self.z0.device).unsqueeze(0)

    def array(self, z: Tensor) -> Array:
        """``[1, n] -> [n]``."""
        return z.detach()[0].to("cpu", torch.float64).numpy()

    def call(self, function: Callable[..., _Value], *arguments: Tensor) -> _Value:
        """A function of the system.

        Raises:
            GradientError: a graph is asked for.
        """
        try:
            value = function(*arguments)
        except Exception as error:
            self.foreign = error
            raise
        self._refuse(value.fz if isinstance(value, Evaluation) else value)
        return value

    def _refuse(self, value: Tensor) -> None:
        if torch.is_grad_enabled() and (
            value.requires_grad or peek_interpreter_stack() is not None
        ):  # the latter: inside torch.func
            self.foreign = GradientError(
                f"SciPy's solvers have no graph for Unrolled to follow: {self.cure}"
            )
            raise self.foreign


def check_real(z0: Tensor) -> None:
    """Refuse complex states.

    Raises:
        InputError: the state is complex.
    """
    if z0.is_complex():
        raise InputError(
            f"SciPy's solvers take real states, received {z0.dtype}: give its real and "
            "imaginary parts"
        )


@contextmanager
def one_by_one(system: System, batch: int) -> Iterator[None]:
    """Count evaluations of one sample each as evaluations of the batch, rounded up.

    SciPy's warnings are silenced meanwhile. A product with the matrix of a backward pass is one of
    the whole batch already.
    """
    before = system.evaluations
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # What SciPy and NumPy say about a failure, the status says.
        warnings.filterwarnings("ignore", module=r"(scipy|numpy)\.")
        yield
    if not isinstance(system, LinearSystem):
        system.evaluations = before - (before - system.evaluations) // batch
