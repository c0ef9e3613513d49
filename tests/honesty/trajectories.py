"""Vector fields with closed forms: a trajectory that converged is not wildly wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import implicitcore as ic
from honesty.solvers import ode_solver, parts
from honesty.tally import Row, Tally, answer

WILD = 1000.0
"""Times the tolerance: a bound on each step says only so much of the sum of all."""


@dataclass(frozen=True)
class Field:
    """A field with its solution, and how much it amplifies what goes wrong early.

    Attributes:
        name: for the report.
        field: v(t, z, x), x is ``[batch, n]``.
        exact: z(t) from z0, in float64; NaN where there is none.
        growth: of an error made at the start, at most, ``[batch, n]``.
        rate: x is drawn between these.
        start: so is z0.
    """

    name: str
    field: Callable[[Tensor, Tensor, Tensor], Tensor]
    exact: Callable[[float, Tensor, Tensor], Tensor]
    growth: Callable[[float, Tensor, Tensor], Tensor]
    rate: tuple[float, float] = (0.2, 5.0)
    start: tuple[float, float] = (-2.0, 2.0)


def none(t: float, z0: Tensor, x: Tensor) -> Tensor:
    return torch.ones_like(z0)


def blown_up(t: float, z0: Tensor, x: Tensor) -> Tensor:
    left = 1 - z0 * t
    return torch.where(left > 0, z0 / left, torch.nan)


def drained(t: float, z0: Tensor, x: Tensor) -> Tensor:
    return (z0.sqrt() - x * t / 2).clamp(min=0).square()


FIELDS = (
    Field("decay", lambda t, z, x: -x * z, lambda t, z0, x: z0 * torch.exp(-x * t), none),
    Field(
        "stiff decay",
        lambda t, z, x: -x * (z - torch.cos(t)) - torch.sin(t),
        lambda t, z0, x: torch.cos(torch.tensor(t)) + (z0 - 1) * torch.exp(-x * t),
        none,
        rate=(100.0, 1e3),
    ),
    Field(
        "growth",
        lambda t, z, x: x * z,
        lambda t, z0, x: z0 * torch.exp(x * t),
        lambda t, z0, x: torch.exp(x * t),
    ),
    Field(
        "logistic",
        lambda t, z, x: x * z * (1 - z),
        lambda t, z0, x: z0 / (z0 + (1 - z0) * torch.exp(-x * t)),
        lambda t, z0, x: torch.exp(x * t),
        start=(0.05, 2.0),
    ),
    Field(
        "forcing",
        lambda t, z, x: torch.cos(x * t).expand_as(z) * x,
        lambda t, z0, x: z0 + torch.sin(x * t),
        none,
        rate=(1.0, 20.0),
    ),
    Field(
        "blow-up",
        lambda t, z, x: z * z,
        blown_up,
        lambda t, z0, x: (1 - z0 * t).clamp(min=1e-2) ** -2,
        start=(-3.0, 3.0),
    ),
    Field("square root", lambda t, z, x: -x * torch.sqrt(z), drained, none, start=(0.5, 4.0)),
)


def turned(t: float, z0: Tensor, x: Tensor) -> Tensor:
    (q, p), angle = z0.tensor_split(2, 1), x.tensor_split(2, 1)[0] * t
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((q * cos + p * sin, p * cos - q * sin), 1)


def exchanged(t: Tensor, z: Tensor, x: Tensor) -> Tensor:
    q, p = z.tensor_split(2, 1)
    return x * torch.cat((p, -q), 1)


SEPARABLE = Field("oscillation", exchanged, turned, none)
"""For the solvers of positions and momenta, the halves of z; those of x are equal."""
TOLERANCES = ((1e-3, 1e-6), (1e-5, 1e-8), (1e-2, 1e-3))


def sweep(seed: int, names: tuple[str, ...] = ()) -> Tally:
    """The field of a seed, by every ODE solver (or those named)."""
    tally: Tally = {}
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    field, dtype = choose.choice(FIELDS), choose.choice((torch.float32, torch.float64))
    batch, n = choose.choice((1, 2, 4, 8)), choose.choice((1, 3))
    rtol, atol = choose.choice(TOLERANCES)
    draws = torch.rand(2, batch, n, generator=generator, dtype=torch.float64)
    low, high = torch.tensor([field.rate, field.start]).T[:, :, None, None]
    x, z0 = (low + (high - low) * draws).to(dtype)
    for name in names or parts("ode_solver"):
        row = tally.setdefault(("ODE solvers", name), Row())
        solver, end = ode_solver(name, rtol, atol), choose.choice((0.5, 2.0))
        asked = Asked(field, solver, z0, x, end)
        if solver.separable:
            asked = Asked(SEPARABLE, solver, z0.repeat(1, 2), x.repeat(1, 2), end)
        integrate(asked, (rtol, atol), row, f"seed {seed}")
    return tally


@dataclass(frozen=True)
class Asked:
    """One integration from 0 to ``end``."""

    field: Field
    solver: ic.ODESolver
    z0: Tensor
    x: Tensor
    end: float

    def __str__(self) -> str:
        return f"{self.field.name} {[*self.z0.shape]} {self.z0.dtype} to {self.end}, {self.solver}"


def integrate(asked: Asked, tolerances: tuple[float, float], row: Row, told: str) -> None:
    """Integrate, and compare with the closed form."""
    case = f"{told}, {asked}"
    row.calls += 1
    row.samples += len(asked.z0)
    shares = [0.0, 0.13, 0.5, 0.77, 1.0]  # output times that no solver chose
    times = torch.tensor([share * asked.end for share in shares], dtype=asked.z0.dtype)
    call = partial(
        ic.integrate,
        asked.field.field,
        asked.z0,
        asked.x,
        times=times,
        solver=asked.solver,
        on_failure="ignore",
    )
    with torch.no_grad():
        found = answer(row, case, call)
    if found is None:
        return
    row.statuses.update(ic.Status(status).name.lower() for status in found.status.tolist())
    for kind, wrong in judge(asked, tolerances, found, row):
        if bool(wrong.any()):
            sample = int(wrong.nonzero()[0])
            row.find(kind, case, f"sample {sample}, z = {found.z[-1, sample].tolist()}")


def judge(
    asked: Asked, tolerances: tuple[float, float], found: ic.Trajectory, row: Row
) -> list[tuple[str, Tensor]]:
    """What is not so, and for which samples."""
    z, converged = found.z.double(), found.converged
    problems = [
        ("converged at a z that is not finite", converged & ~z[-1].isfinite().all(1)),
        ("an output that is not finite", asked.z0.isfinite().all(1) & ~z.isfinite().all(2).all(0)),
        ("more steps than max_steps", found.steps > getattr(asked.solver, "max_steps", torch.inf)),
    ]
    if hasattr(asked.solver, "dt") or not hasattr(
        asked.solver, "rtol"
    ):  # fixed steps promise to arrive, and no error
        return problems[1:]
    rtol, atol = tolerances
    rtol = max(rtol, 10 * torch.finfo(asked.z0.dtype).eps)
    z0, x, worst = asked.z0.double(), asked.x.double(), torch.zeros(len(z[0]), dtype=z.dtype)
    for t, there in zip(found.times.tolist(), z, strict=True):
        exact = asked.field.exact(t, z0, x)
        largest = torch.maximum(exact.abs(), z0.abs()).clamp(min=1)
        early = (rtol * z0.abs() + atol) * asked.field.growth(t, z0, x)
        share = (there - exact).abs() / (WILD * (rtol * largest + early))
        worst = torch.maximum(worst, share.nan_to_num(torch.inf).amax(1))
    wild = converged & (worst > 1)
    if bool((converged & ~wild).any()):
        row.worst = max(row.worst, worst[converged & ~wild].max().item())
    return [*problems, ("converged and wildly wrong", wild)]
