"""The answer of a solver that spares nothing, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore import (
    DOP853,
    ESDIRK,
    GMRES,
    Anderson,
    Broyden,
    Chain,
    Implicit,
    ImplicitCoreError,
    Newton,
    SolveResult,
    Unrolled,
)
from implicitcore.extend import ImplicitMethod
from implicitcore_lab.diagnosis.record import Record
from implicitcore_lab.diagnosis.subject import Subject, double

TIGHT = 1e-10
ROOT = Chain(
    (
        Anderson(tol=TIGHT, max_steps=80),
        Broyden(tol=TIGHT, max_steps=120),
        Newton(tol=TIGHT, max_steps=30),
    )
)
BACKWARD = Implicit(GMRES(tol=TIGHT, max_products=400))
EXPLICIT = DOP853(rtol=TIGHT, atol=1e-12, max_steps=2000)
STIFF = ESDIRK(rtol=1e-6, atol=1e-8, max_steps=2000)


@dataclass(frozen=True)
class Reference:
    """The same layer in float64 with tight parts, and what it found.

    Attributes:
        subject: the layer and its input.
        solution: from where the layer itself ended.
    """

    subject: Subject
    solution: SolveResult

    @property
    def trusted(self) -> Tensor:
        """Which samples it solved, ``[batch]``."""
        return self.solution.converged


def reference(subject: Subject, own: SolveResult, record: Record) -> Reference | None:
    """Solve again in float64, from where the layer ended; None where that cannot be done."""
    if record.found("stiff field") and not subject.is_root:
        record.unmeasured.append("the gradient error (the stiff field comes first)")
        return None
    exact = subject.double()
    if subject.is_root:
        exact = exact.changed(solver=ROOT, gradient=BACKWARD)
        z0 = double(_finite(own.z, own.start))
    else:
        solver = STIFF if isinstance(subject.layer.solver, ImplicitMethod) else EXPLICIT
        exact, z0 = exact.changed(solver=solver, gradient=Unrolled()), None
    try:
        return Reference(exact, exact.solve(z0))
    except (ImplicitCoreError, RuntimeError) as error:
        record.unmeasured.append(f"a reference in float64 ({first_line(error)})")
        return None


def first_line(error: Exception) -> str:
    """What an error says first."""
    return str(error).partition("\n")[0][:200]


def _finite(state: Any, start: Any) -> Any:
    """The state, and the start where it is not finite."""
    return pytree.tree_map(lambda z, z0: torch.where(z.isfinite(), z, z0), state, start)
