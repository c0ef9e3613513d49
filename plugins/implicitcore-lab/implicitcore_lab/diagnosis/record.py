"""What a diagnosis measured and found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

Cause = Literal[
    "nan inputs",
    "nan weights",
    "nan in f",
    "random cell",
    "coupled samples",
    "dead start",
    "singular start",
    "spectral radius",
    "precision",
    "too few steps",
    "no equilibrium",
    "stiff field",
    "out of steps",
    "loose solve",
    "loose backward",
    "approximate gradient",
]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault of a layer.

    Attributes:
        cause: what it is.
        measured: the measurement that shows it.
        advice: what mends it.
    """

    cause: Cause
    measured: str
    advice: str

    def __str__(self) -> str:
        return f"{self.cause}: {self.measured}. {self.advice}."


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What :func:`diagnose` measured on one batch, and the faults that it found.

    Attributes:
        findings: the faults, the ones that hide others first; empty for a healthy layer.
        remarks: what was measured and is no fault, as sentences.
        figures: each measurement by its name.
        curves: what the pictures show: ``trace`` ``[steps, batch]``, ``steps``,
            ``spectral_radius``, ``gradient_error`` and ``start_distance`` ``[batch]``,
            ``step_times`` and ``step_sizes`` ``[steps, batch]``, ``path`` ``[steps, n]``.
        unmeasured: what could not be measured, each with the reason.
        velocity: dz/dt of packed states ``[k, n]`` of the first sample, for the phase portrait.
    """

    findings: tuple[Finding, ...] = ()
    remarks: tuple[str, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Tensor] = field(default_factory=dict, repr=False)
    unmeasured: tuple[str, ...] = ()
    velocity: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

    @property
    def healthy(self) -> bool:
        """Whether no fault was found."""
        return not self.findings

    @property
    def causes(self) -> tuple[Cause, ...]:
        """The causes of the findings, in their order."""
        return tuple(finding.cause for finding in self.findings)

    def __str__(self) -> str:
        lines = [f"- {finding}" for finding in self.findings] or ["- no fault found"]
        lines += [f"  {remark}" for remark in self.remarks]
        return "\n".join(lines + [f"  not measured: {reason}" for reason in self.unmeasured])

    def as_data(self) -> dict[str, Any]:
        """Findings, remarks and figures as JSON takes them."""
        return {
            "findings": [vars(finding) for finding in self.findings],
            "remarks": list(self.remarks),
            "figures": self.figures,
            "unmeasured": list(self.unmeasured),
        }


@dataclass
class Record:
    """A diagnosis while it is made."""

    findings: list[Finding] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Tensor] = field(default_factory=dict)
    unmeasured: list[str] = field(default_factory=list)
    velocity: Callable[[Tensor], Tensor] | None = None

    def find(self, cause: Cause, measured: str, advice: str) -> None:
        """Note a fault."""
        self.findings.append(Finding(cause=cause, measured=measured, advice=advice))

    def found(self, cause: Cause) -> bool:
        """Whether a fault has been noted."""
        return any(finding.cause == cause for finding in self.findings)

    def finished(self) -> Diagnosis:
        """The diagnosis."""
        return Diagnosis(
            findings=tuple(self.findings),
            remarks=tuple(self.remarks),
            figures=dict(self.figures),
            curves=dict(self.curves),
            unmeasured=tuple(self.unmeasured),
            velocity=self.velocity,
        )
