"""The figures of docs/how_to_choose.md: what each choice costs on the problem it is made for.

    PYTHONPATH=tests python -m benchmarks.choose

writes the table of that page anew. Everything is counted, not timed, in float64 from fixed seeds:
evaluations of f (of the whole batch), vector-Jacobian products, samples that converged, bytes at
the fullest moment, errors against a tight reference. A test measures them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import implicitcore as ic
from benchmarks.choose_problems import (
    Field,
    Problem,
    cycle,
    end_error,
    flow_gradient_error,
    gradient_error,
    kinetics,
    normal,
    several_equilibria,
    skew,
    solve,
    symmetric,
)
from benchmarks.markdown import error as decimal
from benchmarks.markdown import table

PAGE = Path(__file__).parents[2] / "docs" / "how_to_choose.md"
BEGIN, END = "<!-- choose: begin -->", "<!-- choose: end -->"
HEADER = ("your case", "take", "measured", "instead of", "measured")


class Row(NamedTuple):
    """A line of the table."""

    case: str
    take: str
    taken: str
    other: str
    refused: str

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.case, f"`{self.take}`", self.taken, f"`{self.other}`", self.refused)


def evaluations(cell: Problem, solver: ic.RootSolver, batch: int = 16) -> str:
    """How a solve to 1e-6 ends, and what it costs."""
    found = solve(cell, solver, batch)
    ended = int(found.converged.sum())
    missing = "" if ended == batch else f", {ended} of {batch} samples"
    return f"{found.evaluations:,} evaluations{missing}"


def equilibria() -> Iterator[Row]:
    """Which root solver."""
    tight = {"tol": 1e-6, "max_steps": 500}
    picard, anderson, broyden = (kind(**tight) for kind in (ic.Picard, ic.Anderson, ic.Broyden))
    for radius, case in ((0.5, "f contracts well: Lipschitz 0.5"), (0.99, "Lipschitz 0.99: slow")):
        cell = symmetric(radius)
        yield Row(
            case, "Anderson()", evaluations(cell, anderson), "Picard()", evaluations(cell, picard)
        )
    flow = ic.SteadyState(**tight)
    yield Row(
        "Lipschitz 3, the flow z' = f - z is stable",
        "Broyden()",
        evaluations(skew(3.0), broyden),
        "Picard()",
        evaluations(skew(3.0), picard),
    )
    yield Row(
        "the same, as a flow",
        "SteadyState()",
        evaluations(skew(3.0), flow),
        "Anderson()",
        evaluations(skew(3.0), anderson),
    )
    path = ic.Homotopy(corrector=ic.Newton(tol=1e-6))
    many = several_equilibria()
    yield Row(
        "several equilibria, n = 6",
        "Homotopy()",
        evaluations(many, path, 64),
        "Newton()",
        evaluations(many, ic.Newton(**tight), 64),
    )
    yield Row(
        "several equilibria, Jacobians are dear",
        "Broyden()",
        evaluations(many, broyden, 64),
        "Anderson()",
        evaluations(many, anderson, 64),
    )
    yield uneven()


def uneven() -> Row:
    """A batch in which a few samples are slow."""
    easy = torch.full((60, 50), 3.0, dtype=torch.float64)
    x = torch.cat((easy, 0.1 * normal(4, 50)))

    def rows(compact: bool) -> str:
        seen = [0]

        def f(z: Tensor, x: Tensor) -> Tensor:
            seen[0] += len(z)
            return torch.tanh(0.99 * z + x)

        solver = ic.Picard(tol=1e-6, max_steps=500, compact=compact)
        ic.fixed_point(f, torch.zeros_like(x), x, solver=solver, on_failure="ignore")
        return f"{seen[0]:,} rows of f"

    return Row(
        "4 of 64 samples are slow",
        "compact=True",
        rows(True),
        "compact=False",
        rows(False),
    )


def gradients() -> Iterator[Row]:
    """Which gradient at an equilibrium, by its relative error in the weights."""

    def measured(radius: float, strategy: ic.GradientStrategy) -> str:
        solver = ic.Picard if isinstance(strategy, ic.Unrolled) else ic.Anderson
        error, found, peak = gradient_error(
            symmetric(radius), strategy, solver(tol=1e-6, max_steps=500)
        )
        vjps = f"{found.backward.vjps} vjps, " if found.backward.vjps else ""
        return f"error {decimal(error)}, {vjps}{peak:,.0f} kB"

    exact, loose = ic.Implicit(), ic.Implicit(ic.GMRES(tol=1e-2))
    cases = (
        ("exact gradients, radius 0.9", 0.9, exact, ic.Unrolled(), "Implicit()", "Unrolled()"),
        (
            "half the backward pass, radius 0.9",
            0.9,
            loose,
            ic.Neumann(steps=10),
            "Implicit(GMRES(tol=1e-2))",
            "Neumann(steps=10)",
        ),
        (
            "no backward solve, radius 0.5",
            0.5,
            ic.Phantom(steps=5),
            ic.Phantom(),
            "Phantom(steps=5)",
            "Phantom()",
        ),
        (
            "no backward solve, radius 0.9: do not",
            0.9,
            exact,
            ic.Phantom(steps=5),
            "Implicit()",
            "Phantom(steps=5)",
        ),
    )
    for case, radius, taken, other, taken_name, other_name in cases:
        yield Row(case, taken_name, measured(radius, taken), other_name, measured(radius, other))


def trajectories() -> Iterator[Row]:
    """Which ODE solver, by evaluations and the relative error of z(T)."""

    def cost(field: Field, solver: ic.ODESolver) -> str:
        error, found = end_error(field, solver)
        return f"{found.evaluations:,} evaluations, error {decimal(error)}"

    def at(kind: Callable[..., ic.ODESolver], tol: float) -> ic.ODESolver:
        return kind(rtol=tol, atol=tol, max_steps=20000)

    for tol, case, take, other in (
        (1e-3, "smooth, to 1e-3", ic.Tsit5, ic.Bosh3),
        (1e-9, "smooth, to 1e-9", ic.DOP853, ic.Tsit5),
    ):
        costs = (cost(cycle, at(kind, tol)) for kind in (take, other))
        yield Row(case, f"{take.__name__}()", next(costs), f"{other.__name__}()", next(costs))
    yield Row(
        "stiff: rates 1000 and 1",
        "ESDIRK()",
        cost(kinetics, at(ic.ESDIRK, 1e-4)),
        "Tsit5()",
        cost(kinetics, at(ic.Tsit5, 1e-4)),
    )


def along() -> Iterator[Row]:
    """Which gradient of a trajectory, by its error and memory."""

    def measured(strategy: ic.GradientStrategy, tol: float) -> str:
        solver = ic.Tsit5(rtol=tol, atol=tol, max_steps=5000)
        error, found, peak = flow_gradient_error(solver, strategy)
        again = found.backward.evaluations
        return f"error {decimal(error)}, {again:,} evaluations in backward, {peak:,.0f} kB"

    tight = 1e-7
    unrolled, few, back = (
        measured(strategy, tight) for strategy in (ic.Unrolled(), ic.Checkpointed(), ic.Adjoint())
    )
    yield Row("the steps fit into memory", "Unrolled()", unrolled, "Checkpointed()", few)
    yield Row("they do not", "Checkpointed()", few, "Unrolled()", unrolled)
    yield Row(
        "a smooth field, a tight tolerance, least memory", "Adjoint()", back, "Checkpointed()", few
    )


def rows() -> list[Row]:
    """All lines, in the order of the page."""
    torch.set_num_threads(1)
    return [*equilibria(), *gradients(), *trajectories(), *along()]


def page_table() -> str:
    """The table as the page has it."""
    text = PAGE.read_text(encoding="utf-8")
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()


def main() -> None:
    """Write the table of the page."""
    text = PAGE.read_text(encoding="utf-8")
    made = "\n".join(table(HEADER, [row.cells for row in rows()]))
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    PAGE.write_text(f"{text[:before]}\n\n{made}\n{text[after:]}", encoding="utf-8")
    print(made)


if __name__ == "__main__":
    main()
