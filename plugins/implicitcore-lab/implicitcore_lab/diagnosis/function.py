"""Whether x, the weights and f are what a solve can be made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from implicitcore.extend import norm
from implicitcore_lab.diagnosis.record import Record
from implicitcore_lab.diagnosis.subject import Subject, finite_rows, per_sample, times_of

SAME = 1e-3
"""Two evaluations that differ by less, relative to f, are one function."""

SHOWN = 8
"""So many numbers of samples are named."""


def check_inputs(subject: Subject, record: Record) -> Subject | None:
    """Find what is not finite in x and in the weights; the samples that are go on."""
    weights = [name for name, it in subject.layer.named_parameters() if not it.isfinite().all()]
    if weights:
        record.find(
            "nan weights",
            f"{', '.join(weights[:SHOWN])} of the layer hold NaN or infinity",
            "Go back to weights from before the step that made them; clip the gradient",
        )
        return None
    tensors = [leaf for leaf in per_sample(subject.x) if leaf.is_floating_point()]
    if not tensors:
        return subject
    good = finite_rows(tensors)
    record.figures["nan_inputs"] = (~good).float().mean().item()
    if bool(good.all()):
        return subject
    record.find(
        "nan inputs",
        f"x holds NaN or infinity in {int((~good).sum())} of {len(good)} samples ({_named(~good)})",
        "Mend the data or leave these samples out; on_failure='mask' trains on the others",
    )
    return None if subject.layer.coupled or not bool(good.any()) else subject.rows(good)


@torch.no_grad()
def check_one_function(subject: Subject, record: Record) -> Subject:
    """Find an f that differs from one evaluation to the next.

    What follows compares solves with each other, and does so without dropout: a mask is drawn once
    a solve at best.
    """
    system, z = _somewhere(subject)
    t = times_of(z)
    first, second = system.velocity(t, z), system.velocity(t, z)
    difference = _relative(second - first, first)
    record.figures["random_difference"] = difference
    if difference > SAME:
        modules = ", ".join(_random_modules(subject.layer.dynamics)) or "the cell"
        record.find(
            "random cell",
            f"two evaluations of f at one z and x differ by {difference:.0%} of f: {modules} "
            "draws anew at each",
            "Take implicitcore.VariationalDropout, whose mask is drawn once a solve",
        )
        subject.layer.eval()
    for module in subject.layer.modules():
        if "Dropout" in type(module).__name__:
            module.eval()
    return subject


@torch.no_grad()
def check_separate(subject: Subject, record: Record) -> Subject:
    """Find samples that depend on each other; the layer goes on with ``coupled=True``."""
    if subject.layer.coupled or subject.batch < 2:
        return subject
    system, z = _somewhere(subject)
    half, moved = len(z) // 2, z.clone()
    moved[:half] = 3 * moved[:half] + 1
    before, after = (system.velocity(times_of(z), it)[half:] for it in (z, moved))
    difference = _relative(after - before, before)
    record.figures["coupling"] = difference
    if difference > max(SAME, torch.finfo(before.real.dtype).eps ** 0.5):
        record.find(
            "coupled samples",
            f"f of a sample changes by {difference:.0%} when other samples of the batch move",
            "Give coupled=True where that is meant (a graph, attention over the batch); else take "
            "GroupNorm or LayerNorm in the place of a batch norm, or eval()",
        )
        return subject.changed(coupled=True)
    return subject


@torch.no_grad()
def check_finite(subject: Subject, record: Record) -> Subject | None:
    """Find an f that is not finite where the solve begins."""
    state = subject.start()
    system = subject.system(state)
    z = system.packing.pack(state)
    good = finite_rows([z, system.velocity(times_of(z), z)])
    if bool(good.all()):
        return subject
    record.find(
        "nan in f",
        f"f is NaN or infinite at the start of {int((~good).sum())} of {len(good)} samples "
        f"({_named(~good)}), whose x is finite",
        "Look for a division, a root or a logarithm in the cell; begin elsewhere (start=...)",
    )
    return None if subject.layer.coupled or not bool(good.any()) else subject.rows(good)


def _somewhere(subject: Subject) -> tuple:
    """The system, and a packed state near the start that is no special point."""
    state = subject.start()
    system = subject.system(state)
    z = system.packing.pack(state)
    noise = torch.randn(z.shape, dtype=torch.float64).to(z)
    return system, z + 0.1 * noise * (1 + z.abs())


def _relative(difference: Tensor, value: Tensor) -> float:
    size = norm(value).clamp(min=torch.finfo(torch.float32).tiny)
    return (norm(difference) / size).max().item()


def _random_modules(dynamics: nn.Module) -> list[str]:
    """The modules that draw, by name and class."""
    return [
        f"{type(module).__name__} ({name})"
        for name, module in dynamics.named_modules()
        if module.training and any(word in type(module).__name__ for word in ("Drop", "RReLU"))
    ]


def _named(mask: Tensor) -> str:
    numbers = mask.nonzero().flatten().tolist()
    more = ", ..." if len(numbers) > SHOWN else ""
    return f"numbers {', '.join(map(str, numbers[:SHOWN]))}{more}"
