"""What a layer does on one batch: how contractive it is, how far it goes, what it holds."""

from __future__ import annotations

from typing import Any

import torch

from implicitcore_lab.data import Split
from implicitcore_lab.evaluation import evaluation_mode
from implicitcore_lab.measures import equilibrium_figures
from implicitcore_lab.memory import process_peak
from implicitcore_lab.models import Classifier

SAMPLES = 64


@torch.no_grad()
def diagnose(model: Classifier, batch: Split) -> dict[str, Any]:
    """Figures of the solver on the first images of a batch.

    Arguments:
        model: the classifier, on the device of the batch.
        batch: images and labels.

    Returns:
        peak_bytes, spectral_radius (None without equilibria) and start_distance, as
        :class:`~implicitcore_lab.records.Epoch` has them.
    """
    part = batch.first(SAMPLES)
    device = part.labels.device
    with evaluation_mode(model):
        figures = equilibrium_figures(model.layer, model.encoder(part.images))
    peak = process_peak(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return {
        "peak_bytes": peak,
        "spectral_radius": figures.get("spectral_radius"),
        "start_distance": figures["start_distance"],
    }
