"""A vector field at several points of each sample, in one call."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from implicitcore.errors import InputError
from implicitcore.system.system import System
from implicitcore.tensors.norms import norm

_KNOWN: WeakKeyDictionary[System, dict[int, System | None]] = WeakKeyDictionary()


def repeated(system: System, copies: int, t: Tensor, z: Tensor) -> System | None:
    """The system with each sample so many times, in a row; None where f does not allow it.

    Whether it does is asked once: a sample beside others is to have the velocity that it has alone.
    That of a field that captures a tensor of each sample has another shape there, or raises; one
    that mixes samples gives another value.

    Arguments:
        system: the vector field.
        copies: of each sample.
        t: where to ask, ``[batch]``.
        z: ``[batch, n]``.
    """
    known = _KNOWN.setdefault(system, {})
    if copies not in known:
        rows = torch.arange(len(z), device=z.device).repeat_interleave(copies)
        known[copies] = _checked(system, rows, copies, t, z)
    return known[copies]


@torch.no_grad()
def _checked(system: System, rows: Tensor, copies: int, t: Tensor, z: Tensor) -> System | None:
    expected = system.velocity(t, z)
    others = torch.lerp(z, torch.ones_like(z), 0.1)
    points = torch.stack([z, *[others] * (copies - 1)], 1).flatten(0, 1)
    try:
        many = system.restrict(rows)
        found = many.velocity(t.index_select(0, rows), points)[::copies]
    except (InputError, RuntimeError, IndexError, ValueError, TypeError):
        return None
    bound = torch.finfo(z.dtype).eps ** 0.5 * norm(expected)
    wrong = (norm(found - expected) > bound) & torch.isfinite(bound)
    return None if bool(wrong.any()) else many
