"""The search, from a layer and a batch to what is recommended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from implicitcore import ImplicitLayer, build
from implicitcore_lab.tuning.options import TuningOptions
from implicitcore_lab.tuning.problem import Loss, Problem, make_problem
from implicitcore_lab.tuning.reference import reference
from implicitcore_lab.tuning.result import NOISE, Tuned, config_of, front_of
from implicitcore_lab.tuning.space import make_space
from implicitcore_lab.tuning.study import Search
from implicitcore_lab.tuning.trials import Row, time_beside

FINALISTS = 4
"""How many are measured once more: the fastest of many noisy times is too good to be true."""


def tune(
    layer: ImplicitLayer | str | Mapping[str, Any],
    x: Any,
    cell: Any = None,
    *,
    loss: Loss | None = None,
    report: Callable[[Row], None] = lambda row: None,
    **options: Any,
) -> Tuned:
    """Search for the fastest solver, gradient strategy, tolerances and backend of a layer.

    Trial 0 is the layer as it is. Each other configuration is timed beside it in turns (a training
    step: solve, loss, gradient of the layer's parameters and of x; CPU time, or time of the CUDA
    stream), and its gradient is compared with that of a tight solve in float64.

    Arguments:
        layer: a layer, which is left as it is, or the configuration of one.
        x: one batch of its input, as the layer takes it.
        cell: the cell, with a configuration.
        loss: solution -> a scalar; None is the inner product of z with random numbers. The layer's
            own term is added.
        report: called with each trial.
        **options: those of :class:`TuningOptions`: ``trials``, ``minutes``,
            ``max_gradient_error``, ``root_solver``, ``storage``, ``study``, ...

    Returns:
        The front and the recommended configuration; ``save(folder)`` writes them. Of a layer that
        is not registered (a plain :class:`implicitcore.ImplicitLayer`) the configuration has its
        ``solver``, ``gradient`` and ``backend``, which can be assigned to it.

    Raises:
        ConfigError: an option is unknown or out of its bounds.
        UnknownPartError: there is no part of a name that was given.
        ImplicitCoreError: the layer cannot take x, or its strategy not its solver.
        TrainingError: nothing converges tightly on this batch, so that there is no right gradient.
        RunError: the storage cannot be used, or has a study of that name for another problem.

    >>> import torch
    >>> torch.manual_seed(0).initial_seed()
    0
    >>> cell = torch.nn.Linear(4, 4)
    >>> f = lambda z, x: torch.tanh(0.5 * cell(z) + x)
    >>> found = tune("deq", torch.randn(8, 4), f, trials=2, repeats=1)
    >>> found.rows[0].is_default, found.config["name"]
    (True, 'deq')
    """
    settings = TuningOptions(**options)
    if not isinstance(layer, ImplicitLayer):
        layer = build(layer, cell)
    return search(make_problem(layer, x, loss), settings, report)


def search(problem: Problem, options: TuningOptions, report: Callable[[Row], None]) -> Tuned:
    """Search, and measure the best once more."""
    kind = "root_solver" if problem.is_equilibrium else "ode_solver"
    named = {name: getattr(options, name) for name in ("root_solver", "ode_solver", "gradient")}
    space = make_space(kind, named, problem.device)
    problem.seeded_step(problem.layer)  # what is wrong with the layer is said as it says it
    exact = reference(problem)
    rows, cap = Search(problem, exact, space, options).run(report)
    best, speedup = _best(problem, rows, cap, options.repeats)
    config = config_of(problem.variant(best.parts))
    return Tuned(tuple(rows), front_of(rows), best, speedup, cap, config, exact.text)


def _best(problem: Problem, rows: Sequence[Row], cap: float, repeats: int) -> tuple[Row, float]:
    """The fastest within the cap, of a few that are timed once more in turns with the default."""
    default = next(row for row in rows if row.is_default)
    allowed = [
        (row.measured.time_ratio, row.number, row)
        for row in rows
        if row.measured and row.measured.gradient_error <= cap and not row.is_default
    ]
    finalists = [row for _, _, row in sorted(allowed, key=lambda found: found[:2])[:FINALISTS]]
    if not finalists:
        return default, 1.0
    layers = [problem.variant(row.parts) for row in finalists]
    _, ratios = time_beside(problem, layers, 2 * repeats)
    fastest, row = min(zip(ratios, finalists, strict=True), key=lambda found: found[0])
    within = default.measured is not None and default.measured.gradient_error <= cap
    if within and fastest * NOISE >= 1:
        return default, 1.0
    return row, 1 / fastest
