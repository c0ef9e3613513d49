"""What a layer does on one batch: how contractive it is, how far it goes, what its start says."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch

from implicitcore import Solution, spectral_radius
from implicitcore_lab.data import Split
from implicitcore_lab.evaluation import evaluation_mode
from implicitcore_lab.measures import start_distance
from implicitcore_lab.models import Classifier

SAMPLES = 64
POWER_STEPS = 20
SEED = 0


@torch.no_grad()
def diagnose(model: Classifier, batch: Split) -> dict[str, Any]:
    """Figures of the solver on the first images of a batch.

    Arguments:
        model: the classifier, on the device of the batch.
        batch: images and labels.

    Returns:
        peak_bytes, spectral_radius (None without equilibria), start_distance and
        explicit_accuracy, as :class:`~implicitcore_lab.records.Epoch` has them.
    """
    part = batch.first(SAMPLES)
    with evaluation_mode(model):
        x = model.encoder(part.images)
        solution = model.layer.solve(x)
        explicit = model.head(solution.start)
        radius = None
        if isinstance(solution, Solution):
            generator = torch.Generator(part.labels.device).manual_seed(SEED)
            found = spectral_radius(
                model.layer, solution, x, steps=POWER_STEPS, generator=generator
            )
            radius = found.max().item()
    return {
        "peak_bytes": _peak_bytes(part.labels.device),
        "spectral_radius": radius,
        "start_distance": start_distance(solution).mean().item(),
        "explicit_accuracy": (explicit.argmax(1) == part.labels).float().mean().item(),
    }


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes * (1 if sys.platform == "darwin" else 1024)
