"""What is measured of a trained row: once over the test images, and the medians of its steps."""

from __future__ import annotations

from statistics import median

import torch

from implicitcore import ImplicitLayer, RootSolver, Solution, SolveResult, spectral_radius
from implicitcore_lab.data import Dataset, Split
from implicitcore_lab.evaluation import evaluation_mode, step_memory
from implicitcore_lab.measures import start_distance
from implicitcore_lab.meter import Clock
from implicitcore_lab.models import Classifier
from implicitcore_lab.papers.table import Column
from implicitcore_lab.records import History
from implicitcore_lab.settings import Settings

SAMPLES = 256
POWER_STEPS = 40
SEED = 0

COLUMNS = {
    column.name: column
    for column in (
        Column("accuracy", "test accuracy (%)", ".2f"),
        Column("evaluations", "evaluations", ".2f", "of f for a test batch, the start's included"),
        Column(
            "authors_count",
            "on the authors' counter",
            ".3f",
            "the same as the paper's code counts: the solver's evaluations, at least two, one for "
            "the residual and one for a last application of f; its floor is 4",
        ),
        Column("train_evaluations", "evaluations, training", ".1f", "of f in a forward pass"),
        Column("backward", "products, backward", ".1f", "vector-Jacobian products and evaluations"),
        Column("forward_ms", "forward (ms)", ".2f", "median of the training steps"),
        Column("backward_ms", "backward (ms)", ".2f", "likewise"),
        Column("step_ms", "step (ms)", ".2f", "likewise, the optimiser's update included"),
        Column("predict_ms", "prediction (ms)", ".2f", "median of the test batches, not in turns"),
        Column(
            "unconverged",
            "unconverged (%)",
            ".2f",
            "test samples whose solve missed its tolerance",
        ),
        Column(
            "radius",
            "rho(J)",
            ".3f",
            "spectral radius of df/dz at the equilibria, mean over test images",
        ),
        Column("distance", "|z* - z0| / |z*|", ".3f", "mean over the test images"),
        Column(
            "explicit_accuracy",
            "explicit only (%)",
            ".2f",
            "test accuracy read out of z0, without the solve",
        ),
        Column("peak_mb", "peak memory (MB)", ".2f", "of one training step, beyond the weights"),
        Column("parameters", "parameters", ",.0f"),
    )
}
"""The columns that a training has, by their names."""


def columns(*names: str) -> tuple[Column, ...]:
    """Those of :data:`COLUMNS`."""
    return tuple(COLUMNS[name] for name in names)


def figures(
    model: Classifier, data: Dataset, settings: Settings, history: History
) -> dict[str, float | None]:
    """All figures of a trained classifier, by the names of the columns.

    Arguments:
        model: the classifier, on the device of the data.
        data: what it was trained on.
        settings: of the training.
        history: its steps.
    """
    batch = slice(settings.batch_size)
    images, labels = data.train.images[batch], data.train.labels[batch]
    return {
        **_test(model, data.test, settings.batch_size),
        "train_evaluations": history.mean("evaluations"),
        "backward": history.mean("backward"),
        **{
            name: median(getattr(step, name) for step in history.steps)
            for name in ("forward_ms", "backward_ms", "step_ms")
        },
        "peak_mb": step_memory(model, images, labels) / 1e6,
        "parameters": float(sum(p.numel() for p in model.parameters() if p.requires_grad)),
        "seconds": sum(step.seconds for step in history.steps),
    }


@torch.no_grad()
def _test(model: Classifier, split: Split, batch_size: int) -> dict[str, float | None]:
    """The figures of the test images, in batches as the paper's code counts them."""
    total = dict.fromkeys(
        (
            "accuracy",
            "explicit_accuracy",
            "unconverged",
            "evaluations",
            "authors_count",
            "distance",
        ),
        0.0,
    )
    clock, times = Clock(split.labels.device), []
    with evaluation_mode(model):
        for first in range(0, len(split), batch_size):
            part = split.rows(torch.arange(first, min(first + batch_size, len(split))))
            begin = clock.mark()
            solution = model.layer.solve(model.encoder(part.images))
            total["accuracy"] += _correct(model, solution.z, part)
            times.append((begin, clock.mark()))
            count = len(part)
            total["unconverged"] += float((~solution.converged).sum().item())
            total["explicit_accuracy"] += _correct(model, solution.start, part)
            total["evaluations"] += solution.evaluations * count
            total["authors_count"] += authors_count(model.layer, solution) * count
            total["distance"] += start_distance(solution).sum().item()
        radius = _radius(model, split.first(SAMPLES))
    found: dict[str, float | None] = {name: value / len(split) for name, value in total.items()}
    for name in ("accuracy", "explicit_accuracy", "unconverged"):
        found[name] = 100 * total[name] / len(split)
    if not isinstance(model.layer.solver, RootSolver):
        found["authors_count"] = None
    predict = median(clock.between(begin, end) for begin, end in times)
    return {**found, "predict_ms": predict, "radius": radius}


def _correct(model: Classifier, state: object, part: Split) -> float:
    return float((model.head(state).argmax(1) == part.labels).sum().item())


def authors_count(layer: ImplicitLayer, solution: SolveResult) -> int:
    """The evaluations as the code of arXiv 2201.12240 counts them.

    The solver calls f twice at least, then comes one call for the residual and a last application;
    what the start costs is not counted.
    """
    return max(2, solution.evaluations - layer.start.evaluations) + 2


def _radius(model: Classifier, part: Split) -> float | None:
    """The mean spectral radius at the equilibria of some test images; None without equilibria."""
    x = model.encoder(part.images)
    solution = model.layer.solve(x)
    if not isinstance(solution, Solution):
        return None
    generator = torch.Generator(part.labels.device).manual_seed(SEED)
    found = spectral_radius(model.layer, solution, x, steps=POWER_STEPS, generator=generator)
    return found.mean().item()
