"""CIFAR-10 at two resolutions: the second table of Continuous Deep Equilibrium Models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from implicitcore_lab.papers.figures import columns
from implicitcore_lab.papers.table import Budget, Claim, Column, Row
from implicitcore_lab.papers.training_table import TrainingTable

TOL = 5e-2
WEIGHT = 0.01
CHANNELS = [24, 24]
MODEL = {"name": "preset", "cell": "multiscale-tiny"}
SOLVERS: Mapping[str, Mapping[str, Any]] = {
    "discrete": {"name": "broyden", "tol": TOL, "max_steps": 18},
    "continuous": {"name": "steady_state", "tol": TOL, "max_steps": 50},
}
SOLVED = {"name": "implicit", "solver": {"name": "gmres", "tol": TOL, "max_products": 20}}
LAYERS: Mapping[str, tuple[str, Mapping[str, Any], str]] = {
    "vanilla": ("multiscale_deq", {"channels": CHANNELS}, "DEQ"),
    "skip": ("multiscale_skip_deq", {"weight": WEIGHT}, "Skip DEQ"),
    "skip-reg": (
        "multiscale_skip_reg_deq",
        {"channels": CHANNELS, "weight": WEIGHT},
        "Skip Reg. DEQ",
    ),
}
NEURAL_ODE = {
    "name": "multiscale_neural_ode",
    "channels": CHANNELS,
    "ode_solver": {"name": "bosh3", "rtol": TOL, "atol": TOL},
    "gradient": {"name": "adjoint"},
}
# Accuracy; training, backward and prediction seconds a batch.
PAPER = {
    "vanilla-discrete": ("81.233 ± 0.097", "0.651 ± 0.009", "0.075 ± 0.001", "0.282 ± 0.005"),
    "vanilla-continuous": ("80.807 ± 0.631", "0.753 ± 0.017", "0.261 ± 0.010", "0.136 ± 0.010"),
    "skip-discrete": ("82.013 ± 0.306", "0.717 ± 0.022", "0.115 ± 0.004", "0.274 ± 0.005"),
    "skip-continuous": ("80.807 ± 0.230", "0.806 ± 0.010", "0.293 ± 0.004", "0.154 ± 0.002"),
    "skip-reg-discrete": ("81.170 ± 0.356", "0.709 ± 0.005", "0.114 ± 0.002", "0.283 ± 0.007"),
    "skip-reg-continuous": ("82.513 ± 0.177", "0.679 ± 0.015", "0.143 ± 0.017", "0.154 ± 0.003"),
    "neural-ode": ("83.543 ± 0.393", "1.608 ± 0.026", "1.240 ± 0.021", "0.207 ± 0.006"),
}
PAPER_COLUMNS = (
    "test accuracy (%)",
    "training (s / batch)",
    "backward (s / batch)",
    "prediction (s / batch)",
)


@final
@dataclass(frozen=True, kw_only=True)
class Cifar10Tiny(TrainingTable):
    """The multiscale model of 163,546 parameters, 200,122 with a predictor."""

    title: ClassVar[str] = "CIFAR-10 at two resolutions"
    reference: ClassVar[str] = (
        "Pal, Edelman, Rackauckas, Continuous Deep Equilibrium Models, arXiv 2201.12240; the "
        "figures are those of the same table in the first author's thesis, MIT 2023"
    )
    claim: ClassVar[str] = (
        "The paper: continuous DEQs train 2 to 2.36 times faster than a Neural ODE, with a "
        "backward pass 4.2 to 8.67 times faster, and predict 1.8 to 2.1 times faster than discrete "
        "DEQs; Skip Reg. has the highest accuracy among the DEQs."
    )
    columns: ClassVar[Sequence[Column]] = columns(
        "accuracy",
        "evaluations",
        "train_evaluations",
        "backward",
        "forward_ms",
        "backward_ms",
        "step_ms",
        "predict_ms",
        "peak_mb",
        "unconverged",
        "radius",
        "distance",
        "explicit_accuracy",
        "parameters",
    )
    claims: ClassVar[Sequence[Claim]] = (
        Claim(
            "Continuous Skip Reg. trains faster than the Neural ODE, times",
            2.37,
            "step_ms",
            "skip-reg-continuous",
            "neural-ode",
        ),
        Claim(
            "its backward pass is faster than the Neural ODE's, times",
            8.67,
            "backward_ms",
            "skip-reg-continuous",
            "neural-ode",
        ),
        Claim(
            "Continuous DEQ predicts faster than the discrete one, times",
            2.07,
            "predict_ms",
            "vanilla-continuous",
            "vanilla-discrete",
        ),
        Claim(
            "test accuracy of Continuous Skip Reg. (%)", 82.513, "accuracy", "skip-reg-continuous"
        ),
    )
    common: ClassVar[Mapping[str, Any]] = {
        "dataset": "cifar10",
        "model": MODEL,
        "batch_size": 128,
        "learning_rate": 1e-3,
        "optimizer": "adamw",
        "weight_decay": 2.5e-6,
        "schedule": "cosine",
    }
    budgets: ClassVar[Mapping[str, Budget]] = {
        "smoke": Budget(
            {
                "dataset": "digits",
                "model": {**MODEL, "grey": True},
                "epochs": 1,
                "batch_size": 16,
                "unrolled_steps": 1,
                "unrolled_depth": 3,
                "threads": 1,
            },
            train=48,
            test=32,
            note="48 of scikit-learn's digits, 8 x 8, once: it shows that every row runs, and "
            "none of its figures means anything.",
        ),
        "short": Budget(
            {"epochs": 1, "batch_size": 64, "threads": 1},
            train=512,
            test=256,
            note="512 training and 256 test images once: for the times, not for the accuracies.",
        ),
        "paper": Budget({"epochs": 51, "unrolled_steps": 3000}),
    }
    settings: ClassVar[Sequence[str]] = (
        "Model: the cell multiscale-tiny, two resolutions of 24 channels, with its own stem and "
        "head; GroupNorm inside the cell, so that samples are solved apart.",
        f"Every solve to the relative tolerance {TOL:g}, per sample: by Broyden's method "
        "(discrete, at most 18 steps) or as a steady state (continuous, Adams), backward by GMRES "
        "(at most 20 products).",
        "Neural ODE: dz/dt = f(z, x) from 0 to z(1), Bosh3 with the same tolerance, gradient by "
        "the adjoint equation, which needs a method of one step.",
        f"The weight of the skip term is {WEIGHT:g}, as in the paper's text and script.",
    )
    differences: ClassVar[Sequence[str]] = (
        "The paper's times are of a GPU in Julia; ours are medians of CPU time, or of CUDA events "
        "where there is a GPU.",
        "The paper integrates the Neural ODE by VCAB3, a method of several steps.",
        "Each sample is solved to the tolerance; the paper's solver takes the norm of the batch.",
        "The unrolled training of the first 3,000 steps is that of the budget paper alone, and the "
        "Neural ODE has none.",
    )

    def rows(self) -> Sequence[Row]:
        """{DEQ, Skip, Skip Reg.} x {discrete, continuous}, and the Neural ODE."""
        return tuple(_rows())


def _rows() -> Iterator[Row]:
    for kind, (layer, options, title) in LAYERS.items():
        for solver, root_solver in SOLVERS.items():
            name = f"{kind}-{solver}"
            spec = {"name": layer, "root_solver": root_solver, "gradient": SOLVED, **options}
            yield Row(name, f"{title}, {solver}", {"layer": spec}, _paper(name))
    ode = {"layer": NEURAL_ODE, "unrolled_steps": 0}
    yield Row("neural-ode", "Neural ODE", ode, _paper("neural-ode"))


def _paper(name: str) -> dict[str, str]:
    return dict(zip(PAPER_COLUMNS, PAPER[name], strict=True))
