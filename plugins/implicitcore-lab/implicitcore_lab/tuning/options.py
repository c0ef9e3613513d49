"""How long is searched, what beside the curated parts is tried, and where trials are kept."""

from __future__ import annotations

from dataclasses import dataclass

from implicitcore.extend import Count, Options, Positive, Whole

USUAL_ERROR = 1e-3


@dataclass(frozen=True, kw_only=True)
class TuningOptions(Options):
    """The options of a search.

    Attributes:
        trials: in all, those of other processes and of earlier runs on the same study included.
        minutes: after which no further trial begins; None sets no limit.
        max_gradient_error: the largest relative gradient error of what is recommended; None is that
            of the default.
        root_solver: registered root solvers that are tried too, forward and backward.
        ode_solver: registered ODE solvers that are tried too.
        gradient: registered gradient strategies that are tried too.
        storage: a file on a disk that the processes share (Optuna's journal), or the URL of a
            database; None keeps the trials in memory.
        study: the name under which they are kept: a study that is there goes on.
        seed: of the sampler.
        repeats: of the timings of each configuration.
    """

    trials: Count = 50
    minutes: Positive | None = None
    max_gradient_error: Positive | None = None
    root_solver: tuple[str, ...] = ()
    ode_solver: tuple[str, ...] = ()
    gradient: tuple[str, ...] = ()
    storage: str | None = None
    study: str = "tune"
    seed: Whole = 0
    repeats: Count = 5

    def allowed(self, default: float | None) -> float:
        """The largest gradient error that is allowed.

        Arguments:
            default: that of the default; None where it failed.
        """
        if self.max_gradient_error is not None:
            return self.max_gradient_error
        return USUAL_ERROR if default is None else default
