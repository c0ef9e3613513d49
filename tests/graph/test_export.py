"""Artefacts of models: equal to the eager model at any batch size, without this library."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import implicitcore as ic
from implicitcore.testing.requirements import missing, needs

SIZES = (1, 3, 17)
LOAD = """
import sys, torch
sys.modules["implicitcore"] = None  # import implicitcore raises
try:
    import implicitcore
    raise SystemExit("implicitcore can be imported")
except ImportError:
    pass
folder, name = sys.argv[1:]
path = f"{folder}/{name}"
if name.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(path)
    key = session.get_inputs()[0].name
    run = lambda x: torch.from_numpy(session.run(None, {key: x.numpy()})[0])
elif name.endswith(".aoti.pt2"):
    run = torch._inductor.aoti_load_package(path)
else:
    run = torch.export.load(path).module()
inputs = torch.load(f"{folder}/inputs.pt")
with torch.no_grad():
    torch.save([run(x) for x in inputs], f"{folder}/outputs.pt")
"""


class Cell(nn.Module):
    def __init__(self, n: int = 8) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(n, n), ic.VariationalDropout(0.3)

    def forward(self, z, x):
        return torch.tanh(self.drop(self.linear(z)) + x)


def classifier(solver, **options) -> nn.Module:
    torch.manual_seed(0)
    layer = ic.ImplicitLayer(ic.FixedPoint(Cell()), solver=solver, **options)
    return nn.Sequential(nn.Linear(5, 8), layer, nn.Linear(8, 3)).eval()


def compare(model: nn.Module, path: Path, sample: tuple[int, ...] = (5,)) -> None:
    """The artefact in a process of its own gives what the eager model gives."""
    inputs = [torch.randn(size, *sample) for size in SIZES]
    torch.save(inputs, path.parent / "inputs.pt")
    arguments = [sys.executable, "-c", LOAD, str(path.parent), path.name]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        for x, found in zip(inputs, torch.load(path.parent / "outputs.pt"), strict=True):
            torch.testing.assert_close(found, model(x), rtol=1e-5, atol=1e-5)


def onnx_installed() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        needs(name)


SOLVERS = [
    ic.Picard(tol=1e-6),
    ic.Anderson(tol=1e-6),
    ic.Broyden(tol=1e-6),
    ic.Broyden(tol=1e-6, variant="bad", memory=4),
]


@pytest.mark.parametrize(
    "solver",
    [SOLVERS[1], *(pytest.param(solver, marks=pytest.mark.slow) for solver in SOLVERS[::2])],
    ids=lambda solver: type(solver).__name__,
)
def test_an_exported_program_is_the_model(solver, tmp_path):
    model = classifier(solver)
    compare(model, ic.export(model, torch.randn(4, 5), tmp_path / "model.pt2"))


@pytest.mark.slow(12)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: f"{type(solver).__name__}")
def test_machine_code_is_the_model(solver, tmp_path):
    if shutil.which("g++") is None:
        missing("a C++ compiler")
    model = classifier(solver)
    compare(model, ic.export(model, torch.randn(4, 5), tmp_path / "model.aoti.pt2"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: f"{type(solver).__name__}")
def test_an_onnx_model_is_the_model(solver, tmp_path):
    onnx_installed()
    model = classifier(solver)
    path = ic.export(model, torch.randn(4, 5), tmp_path / "model.onnx")
    import onnx

    assert any(node.op_type == "Loop" for node in onnx.load(path).graph.node)
    compare(model, path)


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> tuple[nn.Module, nn.Module]:
    """A model whose forward gives the whole solution, and its artefact."""

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            cell = ic.FixedPoint(lambda z, x: x[0].unsqueeze(1) * z + x[1])
            self.layer = ic.ImplicitLayer(
                cell, solver=ic.Picard(tol=1e-4, max_steps=40), start=ic.Zeros((3,))
            )

        def forward(self, x):
            solution = self.layer.solve(x)
            assert isinstance(solution, ic.Solution)
            return solution.z, solution.status, solution.steps, solution.residual, self.layer(x)

    model, example = Whole(), (torch.rand(2), torch.ones(2, 3))
    path = tmp_path_factory.mktemp("whole") / "whole.pt2"
    return model, torch.export.load(ic.export(model, (example,), path)).module()


def test_every_sample_stops_by_itself_in_an_artefact(steps):
    model, artefact = steps
    rate = torch.tensor([0.0, 0.2, 0.9, float("nan"), -50.0])
    x = (rate, torch.ones(5, 3))
    z, status, taken, residual, output = artefact(x)
    expected = model.layer.solve(x)
    assert torch.equal(status, expected.status)
    assert status.tolist() == [0, 0, 1, 3, 2]
    assert torch.equal(taken, expected.steps)
    assert len(set(taken.tolist())) >= 4
    torch.testing.assert_close(z, expected.z)
    torch.testing.assert_close(residual, expected.residual)
    # Where the layer raises, for it has on_failure="warn", there is no number to go on with.
    assert output.isnan().any(1).tolist() == [False, False, False, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("on_failure", ["raise", "mask", "ignore"])
def test_what_failed_is_never_an_answer_unless_it_is_asked_for(on_failure, tmp_path):
    layer = ic.ImplicitLayer(
        ic.FixedPoint(lambda z, x: -3 * z + x), solver=ic.Picard(), on_failure=on_failure
    )
    artefact = torch.export.load(ic.export(layer, torch.ones(1, 3), tmp_path / "m.pt2")).module()
    z = artefact(torch.ones(4, 3))
    assert bool(z.isnan().all()) == (on_failure == "raise")
    assert bool((z == 0).all()) == (on_failure != "raise")


@pytest.mark.slow
def test_the_model_is_left_as_it_was(tmp_path):
    linear = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    drop = ic.VariationalDropout(0.4)
    layer = ic.ImplicitLayer(
        ic.FixedPoint(lambda z, x: drop(0.5 * linear(z)).tanh() + x), solver=ic.Anderson(tol=1e-6)
    )
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(5, 4)), layer)
    path = ic.export(model, torch.randn(3, 5), tmp_path / "model.pt2")
    assert model.training and linear.training and drop.training and drop.p == 0.4
    assert "parametrizations" in model[0]._modules and model[1] is layer
    for module in (model, linear, drop):
        module.eval()
    compare(model, path)


@pytest.mark.slow
def test_an_example_may_hold_what_belongs_to_all_samples(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = ic.ImplicitLayer(
                ic.FixedPoint(lambda z, x: 0.5 * z.sin() * x["scale"] + x["x"]),
                solver=ic.Anderson(tol=1e-6),
                start=ic.Zeros((7,)),
            )

        def forward(self, x, scale):
            return self.layer({"x": x, "scale": ic.shared(scale)})

    model, scale = Scaled(), torch.rand(7)
    path = ic.export(model, (torch.ones(4, 7), ic.shared(scale)), tmp_path / "model.pt2")
    x = torch.randn(9, 7)
    torch.testing.assert_close(torch.export.load(path).module()(x, scale), model(x, scale))


def test_a_format_is_the_end_of_a_name(tmp_path):
    with pytest.raises(ic.ConfigError, match=r"\.pt2, \.aoti\.pt2 or \.onnx; got 'model.onx'"):
        ic.export(classifier(ic.Picard()), torch.ones(2, 5), tmp_path / "model.onx")


@pytest.mark.parametrize("example", [(torch.ones(2, 5), torch.ones(3, 5)), 1.0])
def test_an_example_has_one_batch(example, tmp_path):
    with pytest.raises(ic.InputError, match="of one size"):
        ic.export(classifier(ic.Picard()), example, tmp_path / "model.pt2")


def test_a_solver_that_has_no_loop_in_a_graph_is_named(tmp_path):
    with pytest.raises(ic.ConfigError, match="Newton has no loop in a graph; use Picard"):
        ic.export(classifier(ic.Newton()), torch.ones(2, 5), tmp_path / "model.pt2")


def test_a_model_that_cannot_be_traced_says_why(tmp_path):
    layer = ic.ImplicitLayer(
        ic.FixedPoint(lambda z, x: z * 0.5 if float(z.sum()) > 0 else x), solver=ic.Picard()
    )
    with pytest.raises(ic.InputError, match=r"ImplicitLayer cannot be written as m\.pt2"):
        ic.export(layer, torch.ones(2, 5), tmp_path / "m.pt2")


class AtTimes(nn.Module):
    """A model that asks its layer for the states at several times."""

    def __init__(self, solver) -> None:
        super().__init__()
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 5))
        field = ic.VectorField(lambda t, z, x: net(z) * (1 + t) + x)
        self.layer = ic.ImplicitLayer(field, solver=solver, start=ic.Identity())

    def forward(self, x):
        return self.layer(x, times=[0.0, 0.1, 0.5, 1.2, 2.0])


@pytest.mark.slow(15)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("end", [".pt2", ".aoti.pt2", ".onnx"])
@pytest.mark.parametrize(
    # Another runtime rounds otherwise, and may choose another order of a step of Adams where two
    # are alike: the error of the steps is below what is compared.
    "solver",
    [ic.Bosh3(), ic.Adams(rtol=1e-6, atol=1e-8)],
    ids=lambda it: type(it).__name__,
)
def test_the_states_at_several_times_are_those_of_the_model(solver, end, tmp_path):
    if end == ".onnx":
        onnx_installed()
    if end == ".aoti.pt2" and shutil.which("g++") is None:
        missing("a C++ compiler")
    model = AtTimes(solver)
    compare(model, ic.export(model, torch.randn(4, 5), tmp_path / f"model{end}"))


@pytest.mark.slow
def test_a_layer_is_exported_with_its_times(tmp_path):
    layer, times = AtTimes(ic.Bosh3()).layer, [1.0, 0.5, 0.0]
    path = ic.export(layer, torch.randn(2, 5), tmp_path / "model.pt2", times=times)
    x = torch.randn(3, 5)
    torch.testing.assert_close(torch.export.load(path).module()(x), layer(x, times=times))


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.0, 2.0, 1.0], "times: expected increasing or decreasing values"),
        ([[0.0, 1.0]], r"expected shape \[T\], received \[1, 2\]"),
    ],
)
def test_times_that_a_file_cannot_have_are_refused(times, message, tmp_path):
    with pytest.raises(ic.InputError, match=message):
        ic.export(AtTimes(ic.Bosh3()).layer, torch.ones(2, 5), tmp_path / "m.pt2", times=times)
    with pytest.raises(ic.ConfigError, match=r"AtTimes is no layer; .*layer\(x, times=\.\.\.\)"):
        ic.export(AtTimes(ic.Bosh3()), torch.ones(2, 5), tmp_path / "m.pt2", times=[0.0, 1.0])


class Function(nn.Module):
    def forward(self, x):
        return ic.fixed_point(lambda z, x: 0.5 * z + x, torch.zeros_like(x), x).z


def test_what_is_no_part_of_a_graph_says_what_to_write_instead(tmp_path):
    x, message = torch.ones(2, 3), "by implicitcore.export in place of torch.export, with a layer"
    layer = ic.ImplicitLayer(ic.FixedPoint(lambda z, x: 0.5 * z + x), solver="picard")
    for model in (layer, Function()):
        with pytest.raises(ic.InputError, match=message):
            torch.export.export(model, (x,))
    with pytest.raises(ic.InputError, match=message):
        ic.export(Function(), x, tmp_path / "model.pt2")


class Viewed(nn.Module):
    """A solve whose input is a view shaped like its base."""

    def __init__(self) -> None:
        super().__init__()
        cell = ic.FixedPoint(lambda z, x: (z / 2 + x).tanh())
        self.layer = ic.ImplicitLayer(cell, solver=ic.Picard(tol=1e-6))

    def forward(self, x):
        return self.layer(x.sin().unsqueeze(0).squeeze(0))


@pytest.mark.slow(12)
def test_machine_code_frees_what_a_loop_reads_once(tmp_path):
    """In the process that loads it, which it ended."""
    if shutil.which("g++") is None:
        missing("a C++ compiler")
    model = Viewed().eval()
    compare(model, ic.export(model, torch.randn(4, 5), tmp_path / "model.aoti.pt2"))


def test_an_export_that_failed_leaves_nothing_behind(tmp_path):
    """An example without a batch ties its size to that of the weight; the next is another model."""
    weight = torch.rand(4)
    cell = ic.FixedPoint(lambda z, x: (weight * z + x).sin() / 2)
    layer = ic.ImplicitLayer(cell, solver=ic.Picard())
    with pytest.raises(ic.InputError, match="cannot be written"):
        ic.export(layer, torch.ones(4), tmp_path / "m.pt2")
    path, x = ic.export(layer, torch.ones(2, 4), tmp_path / "m.pt2"), torch.rand(3, 4)
    torch.testing.assert_close(torch.export.load(path).module()(x), layer(x))
