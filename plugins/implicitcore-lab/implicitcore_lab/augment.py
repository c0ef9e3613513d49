"""Random changes of training images, a function of the seed and the step alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from implicitcore_lab.errors import TrainingError
from implicitcore_lab.settings import Settings

SEEDS, BATCHES, PROCESSES = 1_000_000_007, 1_009, 1_021
"""Primes that keep the draws of seeds, steps, batches and processes apart."""


def augmented(images: Tensor, settings: Settings, place: tuple[int, int, int]) -> Tensor:
    """The images, each mirrored with probability 1/2 and shifted, as the settings say.

    Arguments:
        images: ``[batch, channels, height, width]``.
        settings: flip, crop and seed.
        place: step, batch in the step and process: they fix the draw, so that a training that goes
            on draws what it would have drawn.

    Returns:
        Images of the same shape; what a shift brings in is the mean colour, zero.
    """
    if not settings.flip and not settings.crop:
        return images
    if images.ndim != 4:
        raise TrainingError(
            f"flip and crop are for images; samples of {settings.dataset_name} have the shape "
            f"{list(images.shape[1:])}"
        )
    step, batch, process = place
    draw = ((settings.seed * SEEDS + step) * BATCHES + batch) * PROCESSES + process
    generator = torch.Generator().manual_seed(draw % 2**63)
    count, _, height, width = images.shape
    if settings.flip:
        mirrored = (torch.rand(count, generator=generator) < 0.5).to(images.device)
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    if settings.crop:
        shifts = torch.randint(2 * settings.crop + 1, (2, count), generator=generator)
        shifts = shifts.to(images.device)
        rows = shifts[0].view(-1, 1) + torch.arange(height, device=images.device)
        columns = shifts[1].view(-1, 1) + torch.arange(width, device=images.device)
        padded = pad(images, [settings.crop] * 4)
        samples = torch.arange(count, device=images.device).view(-1, 1, 1)
        images = padded.permute(0, 2, 3, 1)[samples, rows.unsqueeze(2), columns.unsqueeze(1)]
        images = images.permute(0, 3, 1, 2).contiguous()
    return images
