"""One equilibrium by five ways: the idea that both papers have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from matplotlib.figure import Figure
from torch import Tensor

from implicitcore import (
    Anderson,
    Homotopy,
    HomotopyField,
    Newton,
    Picard,
    RootSolver,
    SteadyState,
    Tsit5,
    fixed_point,
)
from implicitcore_lab.papers.kept import measure_rows
from implicitcore_lab.papers.paths import Cell, draw_paths
from implicitcore_lab.papers.table import Budget, Column, Job, Results, Row, Table, average
from implicitcore_layers import HomoODE

FEATURES, SAMPLES, GAIN, EASY = 6, 4, 3.0, 0.95
TOL, HARD_TOL, MOST = 1e-11, 1e-9, 500
FINE = Tsit5(rtol=1e-10, atol=1e-12, max_steps=2000)
COARSE = Tsit5(rtol=1e-6, atol=1e-8, max_steps=500)
MET = 1e-4  # a path that arrived at s = 1 is at a root, to the tolerance of its steps
RATE = 24.0  # of the homotopy's flow: e^-24 of the residual is left at t = 1
HOMOODE = "homoode"
SEED_STRIDE = 1000

Solve = Callable[[Cell, Tensor, bool], tuple[Tensor, Tensor, int]]
"""A cell, x and whether it is a hard one, to z, the samples solved and the evaluations."""


@final
@dataclass(frozen=True, kw_only=True)
class Bridge(Table):
    """The same cells by fixed-point iteration, the flow to infinity, and homotopy continuation."""

    title: ClassVar[str] = "One equilibrium, five ways"
    reference: ClassVar[str] = (
        "Pal, Edelman, Rackauckas, arXiv 2201.12240, section 3; Ding, Cui, Wang, Shi, arXiv "
        "2310.09583, section 3"
    )
    claim: ClassVar[str] = (
        "Both papers say that DEQs and Neural ODEs are one thing: an equilibrium z = f(z, x) is "
        "the limit of the flow dz/dt = f(z, x) - z (Continuous DEQ), and the end of the zero path "
        "of the homotopy H(z, s) = s (z - f(z, x)) + (1 - s)(z - a), that is of the flow dz/ds = "
        "(I - s J)^-1 (f(z, x) - a) from s = 0 to 1 (HomoODE). Here all are integrated or "
        "iterated, and what they find is compared."
    )
    columns: ClassVar[Sequence[Column]] = (
        Column(
            "difference",
            "difference, one cell",
            ".1e",
            "the largest |z - z'| / |z'| over the samples, z' by Newton's method",
        ),
        Column("evaluations", "evaluations, one cell", ".0f", "of f, for all samples together"),
        Column("solved", "hard cells solved", ".0f", "samples of all hard cells"),
        Column("of", "of", ".0f"),
        Column("hard_evaluations", "evaluations, hard cells", ",.0f"),
    )
    budgets: ClassVar[Mapping[str, Budget]] = {
        "smoke": Budget({"cells": 2}, note="2 hard cells and not 20."),
        "short": Budget({"cells": 20}),
        "paper": Budget({"cells": 20}),
    }
    settings: ClassVar[Sequence[str]] = (
        f"The one cell: f(z, x) = tanh(W z + x) on {FEATURES} features, the 2-norm of W is "
        f"{EASY:g}, {SAMPLES} samples, float64; its equilibrium is unique. Solved to the relative "
        f"tolerance {TOL:g}, the homotopy's flow by Tsit5 with {FINE.rtol:g}.",
        f"The hard cells: the same with the entries of W normal of deviation {GAIN:g} / sqrt(n), "
        f"so that there are several equilibria, of which many repel. {SAMPLES} samples each, to "
        f"{HARD_TOL:g}, at most {MOST} steps.",
        "All begin at z = 0 but HomoODE, which begins at -1 and 1 in turn, the same for all "
        f"samples. Its field is HomotopyField: the homotopy's velocity in the time t of s = 1 - "
        f"exp(-{RATE:g} t), so that its output z(1) is at the end of the path.",
        "Products with the Jacobian are not counted as evaluations: Newton's method and the "
        "homotopies need n of them at each point.",
    )
    differences: ClassVar[Sequence[str]] = (
        "Neither paper has this table: it shows what their sections on theory say.",
        "HomoODE learns a field in place of the homotopy's; the field here is the homotopy's own, "
        "by s, so that a path that turns back in s ends its flow. Homotopy follows the length of "
        "the path and turns with it.",
    )

    def rows(self) -> Sequence[Row]:
        """The ways."""
        titles = {
            "picard": "Picard's iteration",
            "newton": "Newton's method",
            "anderson": "Anderson's acceleration",
            "flow": "the flow to infinity (Continuous DEQ)",
            "homotopy": "homotopy continuation",
            HOMOODE: "HomoODE with the homotopy's velocity as its field",
        }
        return [Row(name, title) for name, title in titles.items()]

    def measure(self, job: Job) -> Results:
        """Measure seed after seed."""
        count = job.budget.settings["cells"]
        return measure_rows(job, lambda name, seed: _measure(name, seed, count))

    def draw(self, figure: Figure, results: Results) -> None:
        """The paths."""
        del results
        draw_paths(figure, one_cell(0), hard_cells(0, 20))

    def verdict(self, results: Results) -> Sequence[str]:
        """Whether all agree, and who solves the hard cells."""
        found = {row.title: average(results.get(row.name, ()), "difference") for row in self.rows()}
        worst = max(value for value in found.values() if value is not None)
        solved = [
            f"{row.title} {count:.0f}"
            for row in self.rows()
            if (count := average(results.get(row.name, ()), "solved")) is not None
        ]
        total = max(average(each, "of") or 0.0 for each in results.values())
        same = "the same equilibrium" if worst < 1e-7 else "NOT the same equilibrium"
        return (
            f"Where the equilibrium is unique all ways find {same}: the largest relative "
            f"difference is {worst:.1e}.",
            f"Where it is not, they differ; solved of {total:.0f}: {', '.join(solved)}. The "
            "papers' statement is about the zero path of a homotopy: a flow by s ends where the "
            "path turns back, and homotopy continuation, which follows its length, goes on.",
        )


def one_cell(seed: int) -> tuple[Cell, Tensor]:
    """A cell with a unique equilibrium, and its x."""
    generator = torch.Generator().manual_seed(SEED_STRIDE * seed + SEED_STRIDE - 1)
    cell, x = _cell(generator, 1.0)
    weight = cell.weight
    return Cell(EASY * weight / torch.linalg.matrix_norm(weight, 2)), x


def hard_cells(seed: int, count: int) -> list[tuple[Cell, Tensor]]:
    """Cells with several equilibria, and their x."""
    seeds = range(SEED_STRIDE * seed, SEED_STRIDE * seed + count)
    return [_cell(torch.Generator().manual_seed(each), GAIN) for each in seeds]


def _cell(generator: torch.Generator, gain: float) -> tuple[Cell, Tensor]:
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    weight = gain * torch.randn(FEATURES, FEATURES, **options) / FEATURES**0.5
    return Cell(weight), torch.randn(SAMPLES, FEATURES, **options)


@torch.no_grad()
def _measure(name: str, seed: int, count: int) -> dict[str, float]:
    """The figures of one way."""
    solve = dict(_ways())[name]
    cell, x = one_cell(seed)
    truth, _, _ = _by(Newton(tol=TOL), cell, x)
    z, _, evaluations = solve(cell, x, False)
    difference = ((z - truth).norm(dim=1) / truth.norm(dim=1)).max().item()
    solved = spent = 0
    for hard, x in hard_cells(seed, count):
        _, good, cost = solve(hard, x, True)
        solved += int(good.sum())
        spent += cost
    return {
        "difference": difference,
        "evaluations": float(evaluations),
        "solved": float(solved),
        "of": float(count * SAMPLES),
        "hard_evaluations": float(spent),
    }


def _ways() -> Iterator[tuple[str, Solve]]:
    yield "picard", lambda cell, x, hard: _by(Picard(tol=_tol(hard), max_steps=MOST), cell, x)
    yield "newton", lambda cell, x, hard: _by(Newton(tol=_tol(hard)), cell, x)
    yield "anderson", lambda cell, x, hard: _by(Anderson(tol=_tol(hard), max_steps=MOST), cell, x)
    yield "flow", lambda cell, x, hard: _by(_flow(_tol(hard)), cell, x)
    yield (
        "homotopy",
        lambda cell, x, hard: _by(Homotopy(corrector=Newton(tol=_tol(hard))), cell, x),
    )
    yield HOMOODE, _homoode


def _tol(hard: bool) -> float:
    return HARD_TOL if hard else TOL


def _flow(tol: float) -> SteadyState:
    return SteadyState(tol=tol, max_steps=MOST, ode_solver=Tsit5(rtol=1e-3, atol=1e-4))


def _by(solver: RootSolver, cell: Cell, x: Tensor) -> tuple[Tensor, Tensor, int]:
    solution = fixed_point(cell, torch.zeros_like(x), x, solver=solver, on_failure="ignore")
    return solution.z, solution.converged, solution.evaluations


def _homoode(cell: Cell, x: Tensor, hard: bool) -> tuple[Tensor, Tensor, int]:
    """HomoODE whose field is the homotopy's velocity; no corrector."""
    layer = HomoODE(
        HomotopyField(cell, rate=RATE),
        autonomous=False,
        channels=x.shape[1],
        ode_solver=COARSE if hard else FINE,
    ).to(x.dtype)
    solution = layer.solve(x)
    z = solution.z
    residual = (cell(z, x) - z).norm(dim=1) / z.norm(dim=1)
    return z, solution.converged & (residual < MET), solution.evaluations
