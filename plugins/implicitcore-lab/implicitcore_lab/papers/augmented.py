"""Why augmented Neural ODEs work: the added part is on its way to an equilibrium."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NamedTuple, final

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from implicitcore import (
    Anderson,
    FixedPoint,
    Identity,
    ImplicitLayer,
    Tsit5,
    VectorField,
    Zeros,
    fixed_point,
)
from implicitcore_lab.papers.kept import measure_rows
from implicitcore_lab.papers.table import (
    Budget,
    Column,
    Figures,
    Job,
    Results,
    Row,
    Table,
    average,
    values,
)

PLANE, ADDED, HIDDEN, SAMPLES = 2, 3, 16, 128
INNER, RING = 0.5, (1.0, 1.5)
HORIZON, RATE = 3.0, 1e-2
FLOW = Tsit5(rtol=1e-2, atol=1e-3, max_steps=500)
ROOT = Anderson(tol=1e-4, max_steps=100)


@final
@dataclass(frozen=True, kw_only=True)
class Augmented(Table):
    """A disk in a ring, told apart by flows without and with more channels, and an equilibrium."""

    title: ClassVar[str] = "Why augmented Neural ODEs work"
    reference: ClassVar[str] = (
        "Dupont, Doucet, Teh, Augmented Neural ODEs, arXiv 1904.01681; Ding, Cui, Wang, Shi, arXiv "
        "2310.09583, section 3"
    )
    claim: ClassVar[str] = (
        "The flow of a Neural ODE is a homeomorphism: a disk stays inside the ring around it, and "
        "no line separates them. Channels that begin at zero let it out. Seen from the "
        "equilibrium: where x stands still, da/dt = f(a, x) - a from a = 0 is a continuous DEQ, "
        "and what is added is on its way to a* = f(a*, x), a function of x that need "
        "not be invertible."
    )
    columns: ClassVar[Sequence[Column]] = (
        Column("accuracy", "accuracy (%)", ".1f", "of new points"),
        Column("loss", "loss", ".3f", "cross entropy of new points"),
        Column("evaluations", "evaluations", ".0f", "of f, for one batch"),
        Column("parameters", "parameters", ".0f"),
        Column("steps", "steps", ".0f", "of training"),
        Column(
            "distance",
            "distance",
            ".1e",
            "the mean of |a(T) - a*| / |a*|: how far the added part is from the equilibrium",
        ),
    )
    budgets: ClassVar[Mapping[str, Budget]] = {
        "smoke": Budget({"steps": 5}, note="5 steps and not 500."),
        "short": Budget({"steps": 500}),
        "paper": Budget({"steps": 2000}),
    }
    settings: ClassVar[Sequence[str]] = (
        f"Points of the plane, {SAMPLES} a step: |x| < {INNER:g} is one class, {RING[0]:g} < |x| < "
        f"{RING[1]:g} the other. A linear head on the last state; Adam with {RATE:g}.",
        f"f is a network with two hidden layers of {HIDDEN} (tanh); {ADDED} channels are added; "
        f"the flows are integrated to T = {HORIZON:g} by Tsit5 with {FLOW.rtol:g}.",
    )
    differences: ClassVar[Sequence[str]] = (
        "Neither paper has this table. The classes are those of the first, on fewer points.",
    )

    def rows(self) -> Sequence[Row]:
        """The models."""
        titles = {
            "neural-ode": "Neural ODE in the plane",
            "augmented": "augmented Neural ODE",
            "held": "the same with x held: da/dt = f(a, x) - a",
            "deq": "the equilibrium a* = f(a*, x)",
        }
        return [Row(name, title) for name, title in titles.items()]

    def measure(self, job: Job) -> Results:
        """Train each and test it."""
        steps = job.budget.settings["steps"]
        return measure_rows(job, lambda name, seed: _measure(name, seed, steps))

    def draw(self, figure: Figure, results: Results) -> None:
        """The last states, along the head's direction and across it."""
        x, labels = points(torch.Generator().manual_seed(7), 400)
        rows = [row for row in self.rows() if results.get(row.name)]
        axes: Any = figure.subplots(1, len(rows), squeeze=False)[0]
        for axis, row in zip(axes, rows, strict=True):
            model = trained(row.name, 0, int(average(results[row.name], "steps") or 0))
            with torch.no_grad():
                z = model.solve(x).z
            along, across = _projected(model, z)
            for label, colour in enumerate(("tab:orange", "tab:blue")):
                which = labels == label
                axis.scatter(along[which], across[which], s=4, color=colour)
            axis.axvline(0.0, color="grey", linewidth=0.8)
            axis.set_title(row.title, fontsize=8)
            axis.set_xlabel("along the head's direction", fontsize=7)

    def verdict(self, results: Results) -> Sequence[str]:
        """Who separates the classes, and how near the added part is to its equilibrium."""
        found = {name: average(figures, "accuracy") for name, figures in results.items()}
        told = ", ".join(
            f"{row.title} {value:.1f} %"
            for row in self.rows()
            if (value := found.get(row.name)) is not None
        )
        lines = [f"Accuracy: {told}."]
        distance = average(results.get("held", ()), "distance")
        if distance is not None:
            lines.append(
                f"With x held, the added part ends {100 * distance:.1f} % from the equilibrium of "
                "its own map: it is a continuous DEQ, cut short. What the added channels bring is "
                "that the output need not be an invertible function of x, and an equilibrium never "
                "was."
            )
        worst = min(values(results.get("deq", ()), "accuracy"), default=100.0)
        if worst < 99:
            lines.append(
                f"Trained as an equilibrium the same map does not separate the classes with every "
                f"seed in so many steps: {worst:.1f} % with the worst. The columns do not say why; "
                "a solve that fails would show as evaluations at their limit of "
                f"{ROOT.max_steps}."
            )
        return lines


class Model(NamedTuple):
    """A layer with its head."""

    layer: ImplicitLayer
    head: nn.Linear

    def solve(self, x: Tensor) -> Any:
        """The result of the layer."""
        return self.layer.solve(torch.cat((x, x.new_zeros(len(x), ADDED)), 1) if self.wide else x)

    @property
    def wide(self) -> bool:
        """Whether the flow is that of x with the added channels."""
        return isinstance(self.layer.start, Identity) and self.head.in_features > PLANE


def points(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Points of both classes in turn, ``[count, 2]``, and their labels."""
    labels = torch.arange(count) % 2
    share = torch.rand(count, generator=generator)
    angle = 2 * torch.pi * torch.rand(count, generator=generator)
    low, high = RING
    radius = torch.where(labels == 0, INNER * share.sqrt(), low + (high - low) * share)
    return radius.unsqueeze(1) * torch.stack((angle.cos(), angle.sin()), 1), labels


def _network(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN),
        nn.Tanh(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.Tanh(),
        nn.Linear(HIDDEN, outputs),
    )


class _Joined(nn.Module):
    """f(a, x) = tanh(network(a, x))."""

    def __init__(self) -> None:
        super().__init__()
        self.network = _network(ADDED + PLANE, ADDED)

    def forward(self, a: Tensor, x: Tensor) -> Tensor:
        """``[batch, ADDED]``."""
        return torch.tanh(self.network(torch.cat((a, x), 1)))


class _Alone(nn.Module):
    """v(z) = network(z)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.network = _network(size, size)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The velocity, shaped like z."""
        del x
        return self.network(z)


def _model(name: str) -> Model:
    if name in ("neural-ode", "augmented"):
        size = PLANE if name == "neural-ode" else PLANE + ADDED
        field = VectorField(_Alone(size), autonomous=True)
        layer = ImplicitLayer(field, solver=FLOW, start=Identity(), horizon=HORIZON)
        return Model(layer, nn.Linear(size, 2))
    cell, start = FixedPoint(_Joined()), Zeros((ADDED,))
    solver = FLOW if name == "held" else ROOT
    layer = ImplicitLayer(cell, solver=solver, start=start, horizon=HORIZON, on_failure="ignore")
    return Model(layer, nn.Linear(ADDED, 2))


@cache
def trained(name: str, seed: int, steps: int) -> Model:
    """A model after so many steps; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model(name)
    parameters = [*model.layer.parameters(), *model.head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x, labels = points(generator, SAMPLES)
        optimizer.zero_grad()
        cross_entropy(model.head(model.solve(x).z), labels).backward()
        optimizer.step()
    return model


@torch.no_grad()
def _measure(name: str, seed: int, steps: int) -> Figures:
    with torch.enable_grad():
        model = trained(name, seed, steps)
    x, labels = points(torch.Generator().manual_seed(10**6 + seed), 1000)
    solution = model.solve(x)
    logits = model.head(solution.z)
    parts = (*model.layer.parameters(), *model.head.parameters())
    return {
        "accuracy": 100 * (logits.argmax(1) == labels).float().mean().item(),
        "loss": cross_entropy(logits, labels).item(),
        "evaluations": float(solution.evaluations),
        "parameters": float(sum(part.numel() for part in parts)),
        "steps": float(steps),
        "distance": _distance(model, x, solution.z) if name in ("held", "deq") else None,
    }


def _distance(model: Model, x: Tensor, a: Tensor) -> float:
    """From the equilibrium, where the flow goes."""
    exact = fixed_point(
        model.layer.dynamics.update, a, x, solver=Anderson(tol=1e-6, max_steps=300)
    ).z
    return ((a - exact).norm(dim=1) / exact.norm(dim=1)).mean().item()


@torch.no_grad()
def _projected(model: Model, z: Tensor) -> tuple[Tensor, Tensor]:
    """z along the direction in which the head's two logits differ, from where they are equal.

    And along the one of most variance across it.
    """
    weight, bias = (model.head.weight.diff(dim=0)[0], model.head.bias.diff()[0])
    size = weight.norm()
    along = (z @ weight + bias) / size
    rest = z - ((z @ weight) / size**2).unsqueeze(1) * weight
    rest = rest - rest.mean(0)
    return along, rest @ torch.linalg.svd(rest, full_matrices=False)[2][0]
