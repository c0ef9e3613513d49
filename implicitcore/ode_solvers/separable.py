"""Positions and momenta: the two halves of a state whose field is separable."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from weakref import WeakSet

import torch
from torch import Tensor

from implicitcore.errors import InputError
from implicitcore.system.system import System
from implicitcore.tensors.packing import Packing

# By how much of itself an entry is moved, about, to see whether a velocity depends on it: never
# past zero, beyond which a field may have no value.
MOVED = 2.0**-4

# A velocity that differs by so many units of rounding depends on what was moved.
ROUNDING = 16.0

_SEPARABLE: WeakSet[System] = WeakSet()


def halves(system: System, z: Tensor) -> tuple[Tensor, Tensor]:
    """One in the positions of a packed state and zero elsewhere, and the same of the momenta.

    Each ``[n]``, in the real dtype of z.
    """
    parts = system.momenta
    return _halves(parts, z.shape[1] // len(parts), z.real.dtype, z.device)


@lru_cache(maxsize=64)
def _halves(
    parts: tuple[bool, ...], size: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        momenta = torch.tensor(parts, dtype=dtype, device=device).repeat_interleave(size)
        return 1 - momenta, momenta


def separable_velocity(name: str, system: System, t: Tensor, z: Tensor) -> Tensor:
    """The velocity at the start of an integration, of a field that is found to be separable.

    The field is asked once for a system, by three evaluations beside that of the start: with the
    positions moved, both, and the momenta, each entry by up to a tenth of itself. What it depends
    on at other times, and further away, is not known.

    Arguments:
        name: of the solver.
        system: the vector field.
        t: the time, ``[batch]``.
        z: ``[batch, n]``.

    Raises:
        InputError: the state has no two halves, or the velocity of one depends on itself.
    """
    _check_state(name, system.packing)
    if system in _SEPARABLE:
        return system.velocity(t, z)
    with torch.no_grad():
        (q, p), near = halves(system, z), _moved(z)
        points = (torch.where(q != 0, near, z), near, torch.where(p != 0, near, z))
        first, both, last = (system.velocity(t, point) for point in points)
    pairs = (("dq/dt changes with q", q, both, last), ("dp/dt changes with p", p, both, first))
    for what, half, one, other in pairs:
        if _differ(one, other, half):
            raise InputError(
                f"{name} integrates separable fields, dq/dt of (t, p) and dp/dt of (t, q), where q "
                f"is the first half of the state and p the second; here {what}: use another ODE "
                "solver (Tsit5, RK4)"
            )
    _SEPARABLE.add(system)
    return system.velocity(t, z)


def _check_state(name: str, packing: Packing) -> None:
    """Refuse a state without two halves.

    Raises:
        InputError: says what was received and what was expected.
    """
    shapes, sizes = packing.full_shapes, packing.sizes
    if packing.plain:
        fits = not packing.coupled and len(shapes[0]) > 1 and shapes[0][1] % 2 == 0
    else:
        fits = sum(sizes) % 2 == 0 and sum(sizes) // 2 in accumulate(sizes)
    if not fits:
        received = ", ".join(str([*shape]) for shape in shapes)
        raise InputError(
            f"{name}: expected a state of positions and momenta, a pair (q, p) of tensors of one "
            "shape, or where samples do not depend on each other a tensor [batch, 2 k, ...] whose "
            f"first half is q; received {received}"
        )


def _moved(z: Tensor) -> Tensor:
    """A state near z, each entry of which is another by a share of its own."""
    share = (
        torch.arange(z.shape[1], device=z.device, dtype=torch.float32).mul(0.618).frac().add(0.5)
    )
    return torch.where(z == 0, 1, z) * (MOVED * share).to(z.dtype) + z


def _differ(one: Tensor, other: Tensor, half: Tensor) -> bool:
    """Whether the velocities of a half differ, of a sample in which they are finite."""
    if not half.numel():
        return False
    size = torch.maximum(one.abs(), other.abs()).amax(1, keepdim=True)
    bound = ROUNDING * torch.finfo(one.dtype).eps * size
    apart = (one - other).abs() * half > bound
    return bool((apart & torch.isfinite(size)).any())
