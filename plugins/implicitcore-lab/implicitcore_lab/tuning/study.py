"""The study: Optuna's sampler and storage, shared by processes and machines."""

from __future__ import annotations

import math
import os
import re
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from implicitcore import ConfigError
from implicitcore_lab.errors import RunError, first_line
from implicitcore_lab.tuning.options import TuningOptions
from implicitcore_lab.tuning.problem import Problem
from implicitcore_lab.tuning.reference import Reference
from implicitcore_lab.tuning.space import Space
from implicitcore_lab.tuning.trials import Measured, Refused, Row, measure

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Of a function, in its text: another in each process."""
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
SMALLEST_ERROR = 1e-12
ALLOWED = "gradient error"
"""The constraint: more than 0 is not allowed."""
FAR = 10.0
"""How far from allowed a refused trial counts, in powers of ten."""


@dataclass(frozen=True, eq=False)
class Search:
    """Asks for configurations and measures them.

    Attributes:
        problem: what is tuned.
        exact: the right gradients.
        space: what is tried.
        options: how long, and where the trials are kept.
    """

    problem: Problem
    exact: Reference
    space: Space
    options: TuningOptions

    def run(self, report: Callable[[Row], None]) -> tuple[list[Row], float]:
        """Search until the budget is spent.

        Arguments:
            report: called with each trial of this process.

        Returns:
            All trials of the study, those of other processes among them, and the largest gradient
            error that is allowed.

        Raises:
            RunError: the storage cannot be used, or has a study of that name for another problem.
        """
        end = time.monotonic() + 60 * (self.options.minutes or math.inf)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Optuna calls experimental
            study, cap = self._begin(report)
            while _finished(study) < self.options.trials and time.monotonic() < end:
                report(self._try(study, cap))
            return list(rows(study)), cap

    def _begin(self, report: Callable[[Row], None]) -> tuple[optuna.Study, float]:
        """Open the study; whoever finds it empty measures the default, as trial 0."""
        study = open_study(self.options)
        known = study.user_attrs.get("problem")
        own = _described(self.problem, self.space)
        if known is not None and known != own:
            raise RunError(
                f"the study {self.options.study!r} is of another problem (layer, shapes of the "
                "batch or parts that are tried); give another name with --study"
            )
        study.set_user_attr("problem", own)
        if not _has_default(study):
            trial = self._default_trial()
            if not _has_default(study):  # no other process has measured it meanwhile
                study.add_trial(trial)
            first = next(row for row in rows(study) if row.is_default)
            if first.worker == worker():  # of two that add it at once one begins the study
                report(first)
                for params in self.space.usual(_tolerance(self.problem)):
                    study.enqueue_trial(params)
        default = next(row for row in rows(study) if row.is_default)
        return study, self.options.allowed(default.measured and default.measured.gradient_error)

    def _default_trial(self) -> FrozenTrial:
        attributes: dict[str, Any] = {"parts": {}, "worker": worker()}
        try:
            found = measure(self.problem, self.exact, self.problem.layer, self.options.repeats)
        except Refused as error:
            attributes["reason"] = str(error)
            return create_trial(state=TrialState.PRUNED, user_attrs=attributes)
        found = replace(found, time_ratio=1.0)  # two timings of one thing differ by noise
        attributes["measured"] = asdict(found)
        excess = {ALLOWED: _excess(found, self.options.allowed(found.gradient_error))}
        return create_trial(values=_objectives(found), user_attrs=attributes, constraints=excess)

    def _try(self, study: optuna.Study, cap: float) -> Row:
        trial = study.ask()
        try:
            parts = self.space.suggest(trial)
            trial.set_user_attr("parts", parts)
            trial.set_user_attr("worker", worker())
            found = self._measure(parts)
        except Refused as error:
            trial.set_user_attr("reason", str(error))
            trial.set_constraint(ALLOWED, FAR)
            return _row(study.tell(trial, state=TrialState.PRUNED))
        except BaseException:
            study.tell(trial, state=TrialState.FAIL)
            raise
        trial.set_user_attr("measured", asdict(found))
        trial.set_constraint(ALLOWED, _excess(found, cap))
        return _row(study.tell(trial, _objectives(found)))

    def _measure(self, parts: Mapping[str, Any]) -> Measured:
        try:
            layer = self.problem.variant(parts)
        except ConfigError as error:
            raise Refused("; ".join(error.problems)) from error
        return measure(self.problem, self.exact, layer, self.options.repeats)


def open_study(options: TuningOptions) -> optuna.Study:
    """Open the study, or begin it where there is none.

    Raises:
        RunError: the storage cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(
            storage=_storage(options.storage),
            sampler=_sampler(options),
            study_name=options.study,
            directions=["minimize", "minimize"],
            load_if_exists=True,
        )
    except Exception as error:  # of a file system, of SQLAlchemy, of a driver
        raise RunError(f"storage {options.storage}: {first_line(error)}") from error


def rows(study: optuna.Study) -> Iterator[Row]:
    """The finished trials in order."""
    for trial in study.get_trials(deepcopy=False, states=FINISHED):
        yield _row(trial)


def _has_default(study: optuna.Study) -> bool:
    return any(row.is_default for row in rows(study))


def worker() -> str:
    """This machine and process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _row(trial: FrozenTrial) -> Row:
    held = trial.user_attrs
    measured = Measured(**held["measured"]) if "measured" in held else None
    return Row(
        trial.number,
        held.get("parts", {}),
        measured,
        held.get("reason", ""),
        held.get("worker", ""),
    )


def _storage(given: str | None) -> str | BaseStorage | None:
    if given is None or "://" in given:
        return given
    path = Path(given)
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def _sampler(options: TuningOptions) -> optuna.samplers.BaseSampler:
    """TPE; processes that share a storage draw different configurations."""
    seed = options.seed + (os.getpid() if options.storage else 0)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def _objectives(found: Measured) -> tuple[float, float]:
    """Powers of ten: both objectives are about factors."""
    return _logarithm(found.time_ratio), _logarithm(found.gradient_error)


def _excess(found: Measured, cap: float) -> float:
    """How far the gradient error is above what is allowed."""
    return _logarithm(found.gradient_error) - _logarithm(cap)


def _logarithm(value: float) -> float:
    return math.log10(min(max(value, SMALLEST_ERROR), 1 / SMALLEST_ERROR))


def _finished(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=FINISHED))


def _tolerance(problem: Problem) -> float:
    solver = problem.layer.solver
    return next(
        (float(getattr(solver, name)) for name in ("tol", "rtol") if hasattr(solver, name)), 1e-4
    )


def _described(problem: Problem, space: Space) -> dict[str, Any]:
    """What two processes must have alike to share a study."""
    return {
        "layer": ADDRESS.sub("", str(problem.layer)),
        "leaves": [[*leaf.shape] for leaf in problem.leaves],
        "dtypes": [str(leaf.dtype) for leaf in problem.leaves],
        "space": space.as_data(),
    }
