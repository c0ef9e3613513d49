"""A planted fault is named, and a healthy model has none."""

import json
import re
from typing import Any

import pytest
import torch
from torch import nn

import implicitcore as ic
from implicitcore_lab import Diagnosis, diagnose, draw_diagnosis

N, BATCH = 16, 24


class Cell(nn.Module):
    """tanh(gain W z + x) with |W| = 1, and something behind it."""

    def __init__(self, gain: float = 0.5, behind: nn.Module | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(N, N, generator=generator)
        self.weight = nn.Parameter(weight / torch.linalg.matrix_norm(weight, 2))
        self.gain, self.behind = gain, behind or nn.Identity()

    def forward(self, z, x):
        return self.behind(torch.tanh(self.gain * z @ self.weight.T + x))


class Relaxation(nn.Module):
    """dz/dt = a (sin x - z), with rates a from 1 to the stiffness."""

    def __init__(self, stiffness: float) -> None:
        super().__init__()
        powers = torch.linspace(0, torch.tensor(stiffness).log10().item(), N)
        self.rate = nn.Parameter(10**powers)

    def forward(self, z, x):
        return self.rate * (torch.sin(x) - z)


def inputs(seed: int = 1) -> torch.Tensor:
    return 0.5 * torch.randn(BATCH, N, generator=torch.Generator().manual_seed(seed))


def expanding():
    return ic.build("deq", Cell(6.0), root_solver="picard"), 0.3 * inputs()


def dropout():
    return ic.build("deq", Cell(behind=nn.Dropout(0.1))), inputs()


def float32_floor():
    solver = {"name": "anderson", "tol": 1e-9, "max_steps": 200}
    return ic.build("deq", Cell(0.9), root_solver=solver), inputs()


def loose_backward():
    gradient = {"name": "implicit", "solver": {"name": "picard", "tol": 0.5}}
    return ic.build("deq", Cell(0.95), gradient=gradient), inputs()


def stiff():
    return ic.build("neural_ode", Relaxation(1e3), start="zeros"), inputs()


def dead_predictor():
    linear = nn.Linear(N, N)
    nn.init.constant_(linear.bias, -100.0)
    predictor = nn.Sequential(linear, nn.ReLU())
    return ic.build("skip_deq", Cell(), predictor=predictor), inputs()


def batch_norm():
    return ic.build("deq", Cell(behind=nn.BatchNorm1d(N))), inputs()


def nan_inputs():
    x = inputs()
    x[3], x[7, 2] = torch.nan, torch.inf
    return ic.build("deq", Cell()), x


SICK = {
    "spectral radius": expanding,
    "random cell": dropout,
    "precision": float32_floor,
    "loose backward": loose_backward,
    "stiff field": stiff,
    "dead start": dead_predictor,
    "coupled samples": batch_norm,
    "nan inputs": nan_inputs,
}


@pytest.mark.parametrize("cause", SICK)
def test_the_planted_cause_is_the_only_one_that_is_named(cause):
    layer, x = SICK[cause]()
    found = diagnose(layer, x)
    assert found.causes == (cause,), str(found)


MEASURED = {
    "spectral radius": (r"radius 1\.\d .* on 100% of samples, .*MAX_STEPS", "Anderson or Broyden"),
    "random cell": (r"differ by \d+% of f: Dropout \(cell.behind\)", "VariationalDropout"),
    "precision": (r"stands at \d\.\de-0[78] in float32, above .* 1e-09", "no less than"),
    "loose backward": (r"gradient error \d\d% of Implicit", r"Picard, whose tol is 0\.5"),
    "stiff field": (r"Tsit5 takes \d{3} steps .* ESDIRK takes \d\d", "esdirk"),
    "dead start": (r"272 parameters .* exactly 0, and 100% of z0", "initialise it again"),
    "coupled samples": (r"changes by \d+% when other samples", "coupled=True"),
    "nan inputs": (r"2 of 24 samples \(numbers 3, 7\)", "on_failure='mask'"),
}


@pytest.mark.parametrize("cause", SICK)
def test_the_advice_names_the_measurement(cause):
    layer, x = SICK[cause]()
    (finding,) = diagnose(layer, x).findings
    measured, advice = MEASURED[cause]
    assert re.search(measured, finding.measured), finding.measured
    assert re.search(advice, finding.advice), finding.advice


HEALTHY = {
    "deq": lambda: ic.build("deq", Cell()),
    "picard": lambda: ic.build("deq", Cell(0.8), root_solver="picard"),
    "broyden beyond radius 1": lambda: ic.build(
        "deq", Cell(1.6), root_solver={"name": "broyden", "max_steps": 200}
    ),
    "variational dropout": lambda: ic.build("deq", Cell(behind=ic.VariationalDropout(0.1))),
    "batch norm in eval": lambda: ic.build("deq", Cell(behind=nn.BatchNorm1d(N))).eval(),
    "coupled": lambda: ic.build("deq", Cell(behind=nn.BatchNorm1d(N)), coupled=True),
    "float64": lambda: ic.build(
        "deq", Cell().double(), root_solver={"name": "anderson", "tol": 1e-9}
    ),
    "continuous": lambda: ic.build("continuous_deq", Cell()),
    "skip": lambda: ic.build("skip_deq", Cell(), predictor=nn.Linear(N, N)),
    "phantom": lambda: ic.build("deq", Cell(), gradient={"name": "phantom", "steps": 4}),
    "function": lambda: ic.build("deq", lambda z, x: 0.5 * torch.sin(z) + x),
    "neural ode": lambda: ic.build("neural_ode", Relaxation(2.0), start="zeros"),
    "esdirk": lambda: ic.build(
        "neural_ode", Relaxation(1e2), start="zeros", ode_solver="esdirk", gradient="checkpointed"
    ),
}


SLOW = ("esdirk",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in HEALTHY]
)
def test_nothing_is_found_in_a_healthy_model(name):
    layer, x = HEALTHY[name](), inputs()
    x = x.double() if name == "float64" else x
    found = diagnose(layer, x)
    assert found.healthy, str(found)
    assert found.figures["unconverged" if "unconverged" in found.figures else "evaluations"] >= 0
    assert name == "function" or found.figures["gradient_error"] < 0.5


def slow():
    solver = {"name": "picard", "max_steps": 5}
    return ic.build("deq", Cell(0.95), root_solver=solver), inputs()


def no_fixed_point():
    return ic.build("deq", lambda z, x: z + 1 + z**2 + x**2), inputs()


def nan_in_f():
    return ic.build("deq", lambda z, x: torch.log(z - 1) + x), inputs()


def nan_weights():
    cell = Cell()
    nn.init.constant_(cell.weight, torch.nan)
    return ic.build("deq", cell), inputs()


def stuck():
    return ic.build("deq", lambda z, x: z * torch.relu(x)), inputs()


class Normalised(nn.Module):
    """A field whose normalisation has nothing but zeros to normalise at z = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(3 * Cell().weight.detach())
        self.norm = nn.GroupNorm(1, N)

    def forward(self, z, x):
        return 0.3 * self.norm(z @ self.weight) + x


def singular():
    return ic.build("neural_ode", Normalised(), start="zeros"), inputs()


def crude():
    return ic.build("deq", Cell(0.95), root_solver={"name": "picard", "tol": 0.3}), inputs()


def one_step_gradient():
    rate = torch.linspace(-3.0, 0.99, N)
    f = lambda z, x: x + rate * z  # noqa: E731
    return ic.build("deq", f, gradient="phantom", root_solver="broyden"), inputs()


def few_ode_steps():
    solver = {"name": "tsit5", "rtol": 1e-6, "atol": 1e-8, "max_steps": 2}
    return ic.build("neural_ode", Relaxation(2.0), start="zeros", ode_solver=solver), inputs()


OTHERS = {
    "too few steps": slow,
    "no equilibrium": no_fixed_point,
    "nan in f": nan_in_f,
    "nan weights": nan_weights,
    "dead start": stuck,
    "singular start": singular,
    "loose solve": crude,
    "approximate gradient": one_step_gradient,
    "out of steps": few_ode_steps,
}


@pytest.mark.parametrize("cause", OTHERS)
def test_further_causes(cause):
    layer, x = OTHERS[cause]()
    assert cause in diagnose(layer, x).causes


def test_the_layer_and_the_generator_stay_as_they_are():
    layer, x = batch_norm()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    state, config = torch.get_rng_state(), layer.config
    diagnose(layer, x.requires_grad_())
    assert layer.training and layer.config == config and x.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_x_may_be_a_pytree_with_a_shared_tensor():
    layer = ic.build("deq", lambda z, x: torch.tanh(z @ x["w"] + x["a"]), shape=(N,))
    found = diagnose(layer, {"a": inputs(), "w": ic.shared(0.3 * torch.eye(N))}, samples=4)
    assert found.healthy and len(found.curves["steps"]) == 4
    assert found.figures["spectral_radius"] < 0.31


def test_how_explicit_the_model_is():
    layer = ic.build("skip_deq", Cell(0.01), predictor=nn.Tanh())
    labels = torch.arange(BATCH) % N
    found = diagnose(layer, inputs(), readout=lambda z: z, labels=labels)
    assert found.figures["start_distance"] < 0.05
    assert found.figures["explicit_accuracy"] == found.figures["accuracy"]
    assert any("nearly explicit" in remark for remark in found.remarks)


def test_samples_is_positive():
    with pytest.raises(ic.ConfigError, match="samples: expected at least 1, received 0"):
        diagnose(ic.build("deq", Cell()), inputs(), samples=0)


def test_a_model_is_no_layer():
    model: Any = torch.nn.Sequential(ic.build("deq", Cell()))
    with pytest.raises(ic.ConfigError, match="expected a layer, received Sequential; of a model"):
        diagnose(model, inputs())


@pytest.mark.parametrize("case", [expanding, stiff, batch_norm], ids=lambda case: case.__name__)
def test_the_pictures(case, tmp_path):
    draw_diagnosis(tmp_path / "a.png", diagnose(*case()))
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_a_diagnosis_without_curves_is_a_picture_too(tmp_path):
    draw_diagnosis(tmp_path / "a.png", Diagnosis())
    assert (tmp_path / "a.png").exists()


def test_the_command(run, tmp_path):
    config = {"layer": {"name": "deq", "root_solver": "picard"}, "hidden": 8, "device": "cpu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    output = run("diagnose", "config.json", "--samples", "8")
    assert "no fault found" in output and "accuracy" in output
    written = json.loads((tmp_path / "diagnosis" / "diagnosis.json").read_text())
    assert written["findings"] == [] and written["figures"]["gradient_error"] < 1e-2
    assert (tmp_path / "diagnosis" / "diagnosis.png").exists()
    config["layer"]["root_solver"] = {"name": "picard", "max_steps": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "too few steps: " in run("diagnose", "config.json", "--out", "b", status=1)
    assert "no such file" in run("diagnose", "nowhere", status=1)


def test_the_command_reads_a_run(run, tmp_path):
    run(
        "train", "--layer", "deq", "--hidden", "8", "--epochs", "1", "--device", "cpu", "--out", "r"
    )
    assert "no fault found" in run("diagnose", "r", "--samples", "8")
