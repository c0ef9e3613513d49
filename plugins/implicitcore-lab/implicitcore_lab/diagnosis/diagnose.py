"""Measure a layer on one batch, and name what is wrong with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from implicitcore import (
    ConfigError,
    ImplicitCoreError,
    ImplicitCoreWarning,
    ImplicitLayer,
    Solution,
)
from implicitcore_lab.diagnosis.function import (
    check_finite,
    check_inputs,
    check_one_function,
    check_separate,
)
from implicitcore_lab.diagnosis.gradient import check_gradient, remark_explicit
from implicitcore_lab.diagnosis.record import Diagnosis, Record
from implicitcore_lab.diagnosis.reference import first_line, reference
from implicitcore_lab.diagnosis.solve import check_solve
from implicitcore_lab.diagnosis.start import check_start
from implicitcore_lab.diagnosis.subject import Subject, velocity_of
from implicitcore_lab.diagnosis.trajectory import check_steps, record_path

SEED = 0

CHECKS = (check_inputs, check_one_function, check_separate, check_finite, check_start)
"""Before a solve; each gives what goes on, None where nothing can."""


def diagnose(
    layer: ImplicitLayer,
    x: Any,
    *,
    readout: Callable[[Any], Tensor] | None = None,
    labels: Tensor | None = None,
    samples: int = 32,
) -> Diagnosis:
    """Measure a layer on one batch, and name what is wrong with it.

    Measured are: whether x, the weights and f are finite; whether f is one function and treats each
    sample by itself; whether the start can move; residual, steps and status of each sample; the
    spectral radius of df/dz at the equilibria of a sturdier solver; whether float64 goes further;
    the steps of an integration against the stability of its method; the error of the gradient
    against a tight solve in float64; and how far z* is from z0. A fault that hides others is
    reported first, and taken away for what follows.

    It works on a copy: the layer, its buffers and torch's generator stay as they are. The mode
    (``train()``, ``eval()``) is that of the layer, but solves are measured without dropout. It
    costs some hundred evaluations of f.

    Arguments:
        layer: the layer.
        x: its input, a batch.
        readout: what classifies a state ``[batch, ...]``, for the accuracy of the start alone.
        labels: int64 ``[batch]``, what it should say.
        samples: so many of the batch are measured, the first ones; all where they are coupled.

    Returns:
        The diagnosis: ``print`` it; :func:`draw_diagnosis` draws it.

    Raises:
        ConfigError: samples is not positive, or this is no layer.

    Example:
        >>> import torch, implicitcore as ic
        >>> from implicitcore_lab import diagnose
        >>> layer = ic.build("deq", lambda z, x: 0.5 * torch.sin(z) + x, root_solver="picard")
        >>> diagnose(layer, torch.linspace(-1.0, 1.0, 8).reshape(8, 1)).healthy
        True
        >>> expanding = ic.build("deq", lambda z, x: x - 1.5 * z, root_solver="picard")
        >>> diagnose(expanding, torch.ones(4, 2)).causes
        ('spectral radius',)
    """
    if samples < 1:
        raise ConfigError([f"samples: expected at least 1, received {samples}"])
    if not isinstance(layer, ImplicitLayer):
        given = type(layer).__name__
        raise ConfigError(
            [f"layer: expected a layer, received {given}; of a model, give its layer"]
        )
    record = Record()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", ImplicitCoreWarning)  # the findings say it
        torch.manual_seed(SEED)
        subject: Subject | None = Subject.of(layer, x, samples)
        whole = subject.batch
        for check in CHECKS:
            if subject is not None:
                subject = check(subject, record)
        if subject is not None:
            told = None if labels is None or subject.batch < whole else labels[:whole]
            _solve(subject, record, (readout, told))
    return record.finished()


def _solve(subject: Subject, record: Record, judged: tuple[Any, Tensor | None]) -> None:
    """Everything that needs a solve."""
    try:
        own = subject.solve(trace=subject.is_root)
    except (ImplicitCoreError, RuntimeError) as error:
        record.unmeasured.append(f"everything after the solve, which raised: {first_line(error)}")
        return
    record.figures["evaluations"] = float(own.evaluations)
    record.remarks.append(own.summary())
    _attempt(record, "the steps of the integration", check_steps, subject, own, record)
    exact = reference(subject, own, record)
    if isinstance(own, Solution):
        _attempt(record, "the cause of a failed solve", check_solve, subject, own, exact, record)
    _attempt(record, "the gradient error", check_gradient, subject, own, exact, record)
    remark_explicit(own, *judged, record)
    _attempt(record, "the path of the solve", record_path, subject, record)
    if not subject.layer.coupled:
        record.velocity = velocity_of(subject, subject.start())


def _attempt(record: Record, what: str, check: Callable[..., None], *arguments: Any) -> None:
    """Make a measurement; where it cannot be made, say why."""
    try:
        check(*arguments)
    except (ImplicitCoreError, RuntimeError) as error:
        record.unmeasured.append(f"{what} ({first_line(error)})")
