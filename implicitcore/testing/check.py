"""A check: one promise of a kind of part, as a function that fails where the promise is broken."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from implicitcore.errors import ImplicitCoreWarning, InputError, describe_error, with_article
from implicitcore.testing.expect import ContractError, NotApplicable
from implicitcore.testing.factory import Inputs, Maker
from implicitcore.testing.subjects import MADE, kind_of, label


@dataclass(frozen=True)
class Check:
    """One promise of a kind of part. Call it with a part.

    Attributes:
        name: stable: plugins name it where they expect it to fail.
        kind: of the parts that it is for.
        function: does the work, on the part; on a :class:`~implicitcore.testing.factory.Maker` of
            modules: layers, dynamics, starts and cells.
        inputs: where their inputs come from, where the kit's own do not fit.
    """

    name: str
    kind: str
    function: Callable[[Any], None]
    inputs: Inputs | None = None

    @property
    def summary(self) -> str:
        """The promise, in one line."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def __call__(self, part: Any) -> None:
        """Check the part.

        Raises:
            ContractError: the part breaks the promise, or raised an error of its own.
            NotApplicable: the check says nothing about this part.
            InputError: the part is of another kind, or needs more than a cell.
        """
        if kind_of(part) != self.kind:
            raise InputError(
                f"{self.name} checks {with_article(self.kind)}, received {label(part)}, "
                f"{with_article(kind_of(part))}"
            )
        subject = subject_of(part, self.inputs)
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
            torch.manual_seed(0)
            # A tolerance that was not met is a status, which the checks read.
            warnings.simplefilter("ignore", ImplicitCoreWarning)
            try:
                self.function(subject)
            except (ContractError, NotApplicable):
                raise
            except Exception as error:
                raise ContractError(
                    f"{self.name}: {label(part)} raised {describe_error(error)}"
                ) from error


def subject_of(part: Any, inputs: Inputs | None = None) -> Any:
    """What the function of a check takes.

    Raises:
        InputError: it is no part, or needs more than a cell.
    """
    return Maker(part, inputs) if kind_of(part) in MADE else part


CHECKS: dict[str, list[Check]] = {}
"""The checks of each kind, in the order of their definition.

The package ``checks`` defines them.
"""


def contract(*kinds: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Make a function the check of its name, for these kinds.

    Its docstring is one line, the promise; it takes a part, or the :class:`Maker` of layers,
    dynamics, starts or cells, and raises :class:`ContractError` where the promise is broken.
    """

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        for kind in kinds:
            CHECKS.setdefault(kind, []).append(Check(function.__name__, kind, function))
        return function

    return register
