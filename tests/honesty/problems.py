"""Random problems, many in a batch: their parameters are per sample.

A family is one formula, written once for every dtype: the same code in float64 (or complex128),
at the parameters rounded to the problem's dtype, is what a solution is measured with.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

Parameters = tuple[Tensor, ...]
WIDE = {False: torch.float64, True: torch.complex128}
LARGEST = 6
"""Entries of a state, at most: the small dense solves of the methods are then of any rank."""


@dataclass(frozen=True)
class Draw:
    """What a family draws its parameters with, in float64 or complex128.

    Attributes:
        generator: of torch's numbers.
        batch: samples.
        n: entries of a state.
        dtype: of the problem, for the units that it can hold.
    """

    generator: torch.Generator
    batch: int
    n: int
    dtype: torch.dtype

    @property
    def wide(self) -> torch.dtype:
        return WIDE[self.dtype.is_complex]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.batch, *shape, generator=self.generator, dtype=self.wide)

    def vector(self) -> Tensor:
        return self.normal(self.n)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Real numbers, of the wide dtype."""
        drawn = torch.rand(self.batch, *shape, generator=self.generator, dtype=torch.float64)
        return (low + (high - low) * drawn).to(self.wide)

    def choice(self, count: int) -> Tensor:
        """``[batch, 1]``, which of so many."""
        return torch.randint(count, (self.batch, 1), generator=self.generator).to(self.wide)

    def matrix(self, low: float, high: float) -> Tensor:
        """Matrices whose 2-norm is between the two."""
        drawn = self.normal(self.n, self.n)
        size = torch.linalg.matrix_norm(drawn, 2).clamp(min=1e-3)
        return drawn * (self.uniform(low, high) / size)[:, None, None]


@dataclass(frozen=True)
class Family:
    """Problems of one formula.

    Attributes:
        name: for the report.
        draw: the parameters, ``[batch, ...]`` each.
        f: the map f(z, parameters), or the field g where ``field``.
        field: whether the formula is g = f - z.
        rootless: no z is a fixed point, and the residual falls to no tenth of that at the start.
        singular: I - J may have no inverse at a root, so that there is no gradient.
        real: complex numbers have no order, or the formula means something else there.
    """

    name: str
    draw: Callable[[Draw], Parameters]
    f: Callable[[Tensor, Parameters], Tensor]
    field: bool = False
    rootless: bool = False
    singular: bool = False
    real: bool = False


def product(matrix: Tensor, z: Tensor) -> Tensor:
    return (matrix @ z[..., None]).squeeze(-1)


def affine(z: Tensor, p: Parameters) -> Tensor:
    return product(p[0], z) + p[1]


def tanh_cell(z: Tensor, p: Parameters) -> Tensor:
    return torch.tanh(affine(z, p))


def relu_cell(z: Tensor, p: Parameters) -> Tensor:
    return torch.relu(affine(z, p))


def in_units(z: Tensor, p: Parameters) -> Tensor:
    return p[2] * torch.tanh(product(p[0], z / p[2]) + p[1])


def drift(z: Tensor, p: Parameters) -> Tensor:
    return p[0] + 0.5 * torch.sin(z) * p[1]


def multiple(z: Tensor, p: Parameters) -> Tensor:
    return -((z - p[0]) ** 2) * (z - p[1])


def square_and_more(z: Tensor, p: Parameters) -> Tensor:
    return z * z + p[0]


def jump(z: Tensor, p: Parameters) -> Tensor:
    return p[0] * torch.sign(z - p[1]) + p[2] * z


def logistic(z: Tensor, p: Parameters) -> Tensor:
    return p[0] * z * (1 - z)


def root_cell(z: Tensor, p: Parameters) -> Tensor:
    return torch.sqrt(p[0] + p[1] * z)


def reciprocal(z: Tensor, p: Parameters) -> Tensor:
    return p[0] / z + p[1]


def constant(z: Tensor, p: Parameters) -> Tensor:
    return p[0] + 0 * z


def mixture(z: Tensor, p: Parameters) -> Tensor:
    """Easy, hard and hopeless samples side by side; one kind has NaN parameters."""
    matrix, x, drawn, spoiled = p
    kind = drawn.real.round()  # near a whole number where rounding is measured
    value = product(matrix, z) + x
    value = torch.where(kind == 1, torch.tanh(value), value)
    value = torch.where(kind == 2, 4 * value, value)
    value = torch.where(kind == 3, z + 1, value)
    return torch.where(kind == 4, value + spoiled, value)


def units(draw: Draw) -> Tensor:
    """``[batch, 1]``, powers of ten that the dtype can hold."""
    most = 200.0 if draw.wide is draw.dtype else 30.0
    return 10.0 ** draw.uniform(-most, most, 1)


def jordan(draw: Draw) -> Parameters:
    """Triangular matrices whose entries above the diagonal are far larger than those on it."""
    upper = torch.triu(draw.normal(draw.n, draw.n), 1) * 10.0 ** draw.uniform(-1, 3, 1, 1)
    return upper + torch.diag_embed(draw.uniform(-0.9, 0.9, draw.n)), draw.vector()


def near_singular(draw: Draw) -> Parameters:
    """I - A is close to singular, or is."""
    matrix = draw.matrix(0.1, 0.9)
    matrix[:, :, 0] = 0
    matrix[:, 0, 0] = 1 - 10.0 ** draw.uniform(-20, -1)
    return matrix, draw.vector()


def rotation(draw: Draw) -> Parameters:
    """Orthogonal matrices: every step keeps the distance from the fixed point."""
    return torch.linalg.qr(draw.normal(draw.n, draw.n))[0], draw.vector()


def mixed(draw: Draw) -> Parameters:
    spoiled = torch.full_like(draw.vector(), torch.nan)
    infinite = draw.choice(2).real == 1
    spoiled = torch.where(infinite, torch.inf, spoiled)
    return draw.matrix(0.1, 0.9), draw.vector(), draw.choice(5), spoiled


def matrices(low: float, high: float, draw: Draw) -> Parameters:
    return draw.matrix(low, high), draw.vector()


def drifting(draw: Draw) -> Parameters:
    return draw.uniform(1, 3, draw.n), draw.uniform(-1, 1, draw.n)


FAMILIES = (
    Family("contraction", partial(matrices, 0.05, 0.95), affine),
    Family("expansive map", partial(matrices, 1.05, 5), affine),
    Family("non-normal matrix", jordan, affine),
    Family("close to singular", near_singular, affine, singular=True),
    Family("rotation", rotation, affine, singular=True),
    Family("tanh cell", partial(matrices, 0.3, 4), tanh_cell, singular=True),
    Family("relu cell", partial(matrices, 0.3, 2), relu_cell, singular=True, real=True),
    Family("units", lambda d: (*matrices(0.1, 0.95, d), units(d)), in_units),
    Family("no fixed point", drifting, drift, field=True, rootless=True, real=True),
    Family("no real root", lambda d: (d.uniform(0.5, 3, d.n),), square_and_more, field=True),
    Family(
        "multiple root", lambda d: (d.vector(), d.vector()), multiple, field=True, singular=True
    ),
    Family(
        "discontinuous",
        lambda d: (d.vector(), d.vector(), d.uniform(-0.9, 0.9, d.n)),
        jump,
        real=True,
    ),
    Family("chaos", lambda d: (d.uniform(0.5, 4, d.n),), logistic, singular=True),
    Family(
        "square root", lambda d: (d.uniform(-0.5, 2, d.n), d.normal(d.n)), root_cell, singular=True
    ),
    Family("reciprocal", lambda d: (d.vector(), d.vector()), reciprocal, singular=True),
    Family("constant", lambda d: (d.vector(),), constant),
    Family("mixture", mixed, mixture),
)


@dataclass(frozen=True)
class Problem:
    """A batch of problems of one family, in one dtype.

    Attributes:
        family: the formula.
        parameters: in the problem's dtype.
        z0: the start, ``[batch, n]``.
        call: ``"fixed_point"`` or ``"find_root"``.
    """

    family: Family
    parameters: Parameters
    z0: Tensor
    call: str

    def f(self, z: Tensor, parameters: Parameters) -> Tensor:
        """What the solver is given: f for a fixed point, g for a root."""
        value = self.family.f(z, parameters)
        if self.family.field == (self.call == "find_root"):
            return value
        return value + z if self.family.field else value - z

    def wide(self) -> Problem:
        """The same problem in float64 or complex128: its numbers, and not those drawn."""
        to = WIDE[self.z0.is_complex()]
        parameters = tuple(parameter.to(to) for parameter in self.parameters)
        return replace(self, parameters=parameters, z0=self.z0.to(to))

    def __str__(self) -> str:
        batch, n = self.z0.shape
        dtype = str(self.z0.dtype).removeprefix("torch.")
        return f"{self.call} of {batch} x {n} {dtype}, {self.family.name}"


def problem(seed: int, dtype: torch.dtype, batch: int | None = None) -> Problem:
    """The problem of a seed; in every dtype of the same kind it is the same one, rounded."""
    choose = random.Random(seed)
    families = [each for each in FAMILIES if not (each.real and dtype.is_complex)]
    family = choose.choice(families)
    generator = torch.Generator().manual_seed(seed)
    size = batch or choose.choice((1, 4, 16, 32, 48))
    draw = Draw(generator, size, choose.randint(1, LARGEST), dtype)
    parameters = family.draw(draw)
    z0 = draw.vector() * choose.choice((0.0, 0.0, 1.0, 100.0))
    if family.rootless:
        z0 = torch.zeros_like(z0)
    if family.name == "units":
        z0 = z0 * parameters[2]
    call = choose.choice(("fixed_point", "find_root"))
    return Problem(family, tuple(each.to(dtype) for each in parameters), z0.to(dtype), call)
